"""How much memory a run will take, told before anything is computed.

Each phase is traced at its largest shape and the graph's memory simulated (``graphs.peak_bytes``):
the weights are arguments, so they need not even be loaded. Nothing here is fitted to measurements.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten

from simko_mlx.batching import MEASURED_PER_PROBLEM, bucket
from simko_mlx.config import Config
from simko_mlx.forward import Layout, lay_out
from simko_mlx.graphs import peak_bytes
from simko_mlx.learner import make_optimizer
from simko_mlx.losses import find_loss
from simko_mlx.losses.common import fork_statistics
from simko_mlx.microbatches import token_budget
from simko_mlx.planner_decoding import QUEUE, Rows, decoding_bytes
from simko_mlx.policy import Policy
from simko_mlx.step import Step
from simko_mlx.types import TokenBatch

ADAM_MOMENTS = 2

Memo = dict[Any, int]
"""What has been told already: forecasts of configs that differ in one key have much in common."""


@dataclass(frozen=True)
class Shape:
    """The largest shapes of a run, in tokens and rows: ``prompt`` and ``completion`` tokens,
    ``microbatch`` rows of a group in a training step, which so many ``groups`` share, and
    ``microbatches`` of an update; what ``rollout`` and ``evaluations`` decode; ``measured`` rows of
    which an evaluation takes statistics at once."""

    prompt: int
    completion: int
    microbatch: int
    groups: int
    microbatches: int
    rollout: Rows
    evaluations: tuple[Rows, ...]
    measured: int

    @classmethod
    def of(cls, config: Config, prompt: int) -> Shape:
        """The largest shapes that a config allows, for prompts of at most ``prompt`` tokens."""
        rollout, optim = config.rollout, config.optim
        parts = min(optim.microbatch_size or rollout.group_size, rollout.group_size)
        tokens = bucket(prompt) + parts * bucket(rollout.max_completion_length)
        problems = -(-rollout.problems_per_step // optim.minibatches)
        groups = min(problems, max(1, token_budget(config) // tokens))
        tested = _evaluations(config)
        return cls(
            prompt=prompt,
            completion=rollout.max_completion_length,
            microbatch=parts,
            groups=groups,
            microbatches=-(-problems * -(-rollout.group_size // parts) // groups),
            rollout=Rows.of(rollout.problems_per_step, rollout.group_size, rollout.batch_size),
            evaluations=tuple(dict.fromkeys(tested)),
            measured=min(MEASURED_PER_PROBLEM, max((rows.group for rows in tested), default=0)),
        )

    @property
    def tokens(self) -> int:
        """Of the largest microbatch. Shorter completions must not be packed beyond it."""
        width = self.microbatch * bucket(self.completion)
        return self.groups * (bucket(self.prompt) + width)

    @property
    def tested(self) -> int:
        """Rows that the larger evaluation decodes side by side."""
        return max((rows.rows for rows in self.evaluations), default=0)


def _evaluations(config: Config) -> list[Rows]:
    """What is decoded by the two kinds of evaluation, a part of the problems at a time."""
    evaluation, width = config.eval, config.rollout.batch_size
    kinds = []
    if evaluation.before or evaluation.after:
        kinds.append((evaluation.problems, evaluation.n))
    if evaluation.every:
        kinds.append((evaluation.every_problems, evaluation.every_n))
    if not config.data.eval_path:
        kinds = [(min(problems, config.data.heldout), n) for problems, n in kinds]
    return [Rows.of(min(p, max(1, width // n)), n, width) for p, n in kinds if p]


@dataclass(frozen=True)
class Forecast:
    """Bytes. ``weights``: of the model, adapter included; ``optimizer``: its moments. ``rollout``,
    ``evaluation`` and ``step`` are the peaks of these phases, weights and optimizer included; 0
    where a phase doesn't occur."""

    weights: int
    optimizer: int
    rollout: int
    evaluation: int
    step: int
    shape: Shape

    @property
    def peak(self) -> int:
        return max(self.rollout, self.evaluation, self.step)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "peak": self.peak}


def forecast(
    policy: Policy,
    config: Config,
    prompt: int,
    *,
    step: Step | None = None,
    memo: Memo | None = None,
) -> Forecast:
    """The memory of a run with this config, for prompts of at most ``prompt`` tokens.

    ``policy`` may be an outline (``load_outline``), whose weights are not in memory. ``step`` is
    the run's own where there is one: it knows whether it compiles.

    Raises:
        Unpredictable: the model does what can't be traced.
    """
    shape, memo = Shape.of(config, prompt), {} if memo is None else memo
    trainable = _nbytes(policy.model.trainable_parameters())
    weights, moments = _nbytes(policy.model.parameters()), ADAM_MOMENTS * trainable
    held = weights + moments
    update = step_peak(policy, config, prompt, step=step, memo=memo)
    with _settings(policy, config):
        rollout = _decoding(policy, shape.rollout, shape, memo)
        tested = [_decoding(policy, rows, shape, memo) for rows in shape.evaluations]
        if shape.measured:
            key = ("measuring", shape.measured, policy.chunk)
            tested.append(_remembered(memo, key, partial(_measuring, policy, shape)))
    return Forecast(
        weights,
        moments,
        rollout=held + rollout,
        evaluation=held + max(tested) if tested else 0,
        step=update,
        shape=shape,
    )


def step_peak(
    policy: Policy,
    config: Config,
    prompt: int,
    *,
    step: Step | None = None,
    memo: Memo | None = None,
) -> int:
    """``Forecast.step`` alone.

    Raises:
        Unpredictable: the model does what can't be traced.
    """
    shape, memo = Shape.of(config, prompt), {} if memo is None else memo
    trainable = _nbytes(policy.model.trainable_parameters())
    held = _nbytes(policy.model.parameters()) + ADAM_MOMENTS * trainable
    with _settings(policy, config):
        step = step or Step(policy, config, find_loss(config.loss.name), trusted=True)
        batch = (prompt, shape.completion, shape.microbatch, shape.groups)
        key = ("step", batch, config.grad_checkpoint, policy.chunk, step.compiles)
        gradient = _remembered(memo, key, partial(_gradient, policy, step, shape))
        update = _remembered(memo, "update", partial(_update, policy, config))
    # The gradients of the microbatches before are kept, as a sum.
    kept = trainable if shape.microbatches > 1 else 0
    return held + max(kept + gradient, trainable + update)


def _remembered(memo: Memo, key: Any, tell: Callable[[], int]) -> int:
    if key not in memo:
        memo[key] = tell()
    return memo[key]


def _decoding(policy: Policy, rows: Rows, shape: Shape, memo: Memo) -> int:
    def tell() -> int:
        return decoding_bytes(policy, rows, shape.prompt, shape.completion)

    return _remembered(memo, (rows, policy.shares_prompts), tell)


class Unpredictable(Exception):
    """Why memory can't be told, as half a sentence."""


def _nbytes(tree: Any) -> int:
    return sum(array.nbytes for _, array in _named(tree))


def _named(tree: Any) -> list[tuple[str, mx.array]]:
    return list(tree_flatten(tree))  # type: ignore[arg-type]


@contextmanager
def _settings(policy: Policy, config: Config) -> Iterator[None]:
    """Within the block the policy works by this config, and gets its own arrays back at the end:
    a trace leaves placeholders behind."""
    before, parameters = policy.config, policy.model.parameters()
    policy.config = config
    training = policy.model.training
    try:
        yield
    except (ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
        raise Unpredictable(" ".join(str(error).split())[:200] or type(error).__name__) from error
    finally:
        policy.config = before
        policy.model.update(parameters)
        policy.model.train(training)


def largest_batch(
    config: Config, shape: Shape, *, ragged: bool = False, seed: int = 0
) -> TokenBatch:
    """A microbatch of the largest shape, of tokens drawn at random from the first hundred;
    ``ragged``: its prompts differ in length."""
    rng = np.random.default_rng(seed)
    rows, width = shape.groups * shape.microbatch, shape.completion
    advantages = np.resize([1.0, -1.0], rows).astype(np.float32)
    several = config.optim.minibatches * config.optim.num_iterations > 1
    zeros = mx.zeros((rows, width))
    return TokenBatch(
        prompts=tuple(
            tuple(int(i) for i in rng.integers(0, 100, size=max(1, shape.prompt - p * ragged)))
            for p in range(shape.groups)
        ),
        tokens=mx.array(rng.integers(0, 100, size=(rows, width)).astype(np.int32)),
        loss_mask=mx.ones((rows, width)),
        advantages=mx.array(advantages),
        correct=mx.arange(rows) % 2 == 0,
        normalizer=float(rows * width),
        old_logprobs=zeros if several else None,
        ref_logprobs=zeros if config.loss.kl_coef else None,
    )


def _gradient(policy: Policy, step: Step, shape: Shape) -> int:
    """Bytes that one microbatch of the largest shape takes beyond what is held."""
    batch = largest_batch(step.config, shape, ragged=policy.way == "packed")
    layout = lay_out(batch, policy.way, bucketed=step.compiles)
    way, rows, width, per_prompt, length = layout.key
    fields = batch._asdict() | {"normalizer": mx.array(batch.normalizer)}
    fields = {name: x for name, x in fields.items() if isinstance(x, mx.array)}
    policy.model.train()

    def gradient(parameters: Any, arrays: Any, fields: Any) -> Any:
        policy.model.update(parameters)
        same = Layout(way, rows, width, per_prompt, length, arrays)
        batch = TokenBatch(prompts=(), **fields)
        return step.gradient(policy.model.trainable_parameters(), same, batch)

    args = (policy.model.parameters(), layout.arrays, fields)
    return peak_bytes(gradient, *args, compiled=step.compiles, queue=QUEUE).peak


def _update(policy: Policy, config: Config) -> int:
    """Bytes that an update takes beyond weights, moments and gradient."""
    trainable = policy.model.trainable_parameters()
    optimizer = make_optimizer(config.optim)
    optimizer.init(trainable)

    def update(parameters: Any, state: Any, gradient: Any) -> Any:
        optimizer.state = state
        limit = config.optim.max_grad_norm
        gradient, norm = optim.clip_grad_norm(gradient, math.inf if limit is None else limit)
        return optimizer.apply_gradients(gradient, parameters), optimizer.state, norm

    args = (trainable, optimizer.state, trainable)
    return peak_bytes(update, *args, given=(0, 1), queue=QUEUE).peak


def _measuring(policy: Policy, shape: Shape) -> int:
    """Bytes that the statistics of an evaluation's completions take."""
    one = dataclasses.replace(shape, groups=1, microbatch=shape.measured)
    batch = largest_batch(policy.config, one)
    layout = lay_out(batch, policy.way)
    way, rows, width, per_prompt, length = layout.key
    quantile = policy.config.loss.entropy_quantile
    policy.model.eval()

    def measure(parameters: Any, arrays: Any) -> Any:
        policy.model.update(parameters)
        same = Layout(way, rows, width, per_prompt, length, arrays)
        stats = policy.statistics_at(same, simko_k=3, temperature=1.0, gradient=False)
        return fork_statistics(stats, batch.loss_mask, quantile)

    return peak_bytes(measure, policy.model.parameters(), layout.arrays, queue=QUEUE).peak
