"""How much memory a run will take, told before anything is computed.

Each phase is traced at its largest shape and the graph's memory simulated (``graphs.peak_bytes``):
the weights are arguments, so they need not even be loaded. Nothing here is fitted to measurements.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from simko_mlx.batching import bucket
from simko_mlx.config import Config
from simko_mlx.decoding import COMPACT_AT
from simko_mlx.forward import Layout, lay_out
from simko_mlx.graphs import CPU, peak_bytes
from simko_mlx.losses import find_loss
from simko_mlx.microbatches import token_budget
from simko_mlx.policy import Policy
from simko_mlx.sampling import draw
from simko_mlx.step import Step
from simko_mlx.types import TokenBatch

ADAM_MOMENTS = 2
KEPT_GRADIENTS = 1  # summed over microbatches while the next one runs


# Where the queue's tasks end matters little to decoding, whose operations are alike.
QUEUE = None if mx.default_device().type != mx.DeviceType.cpu else CPU._replace(phases=1)


@dataclass(frozen=True)
class Shape:
    """The largest shapes of a run, in tokens and rows: ``prompt`` and ``completion`` tokens,
    ``microbatch`` rows of a group in a training step, which so many ``groups`` share, ``rollout``
    and ``evaluation`` rows decoded side by side, ``prompts`` of which caches are held at the start
    of a batch."""

    prompt: int
    completion: int
    microbatch: int
    groups: int
    rollout: int
    evaluation: int
    prompts: int

    @classmethod
    def of(cls, config: Config, prompt: int) -> Shape:
        """The largest shapes that a config allows, for prompts of at most ``prompt`` tokens."""
        rollout, evaluation = config.rollout, config.eval
        rows = rollout.problems_per_step * rollout.group_size
        width = min(rollout.batch_size, rows)
        tested = 0
        if evaluation.before or evaluation.after:
            tested = max(tested, evaluation.n * evaluation.problems)
        if evaluation.every:
            tested = max(tested, evaluation.every_n * evaluation.every_problems)
        parts = min(config.optim.microbatch_size or rollout.group_size, rollout.group_size)
        tokens = bucket(prompt) + parts * bucket(rollout.max_completion_length)
        return cls(
            prompt=prompt,
            completion=rollout.max_completion_length,
            microbatch=parts,
            groups=min(rollout.problems_per_step, max(1, token_budget(config) // tokens)),
            rollout=width,
            evaluation=min(rollout.batch_size, tested),
            prompts=min(rollout.problems_per_step, -(-width // rollout.group_size) + 1),
        )


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


def forecast(policy: Policy, config: Config, prompt: int, *, step: Step | None = None) -> Forecast:
    """The memory of a run with this config, for prompts of at most ``prompt`` tokens.

    ``policy`` may be an outline (``load_outline``), whose weights are not in memory. ``step`` is
    the run's own where there is one: it knows whether it compiles.

    Raises:
        Unpredictable: the model does what can't be traced.
    """
    shape = Shape.of(config, prompt)
    step = step or Step(policy, config, find_loss(config.loss.name), trusted=True)
    trainable = _nbytes(policy.model.trainable_parameters())
    weights, moments = _nbytes(policy.model.parameters()), ADAM_MOMENTS * trainable
    held = weights + moments
    gradients = KEPT_GRADIENTS * trainable
    with _settings(policy, config):
        rollout = held + _decoding(policy, shape, shape.rollout)
        alike = shape.evaluation == shape.rollout
        return Forecast(
            weights,
            moments,
            rollout=rollout,
            evaluation=rollout if alike else held + _decoding(policy, shape, shape.evaluation),
            step=held + gradients + _step(policy, step, shape),
            shape=shape,
        )


def step_peak(policy: Policy, config: Config, prompt: int) -> int:
    """``Forecast.step`` alone.

    Raises:
        Unpredictable: the model does what can't be traced.
    """
    step = Step(policy, config, find_loss(config.loss.name), trusted=True)
    trainable = _nbytes(policy.model.trainable_parameters())
    held = _nbytes(policy.model.parameters()) + (ADAM_MOMENTS + KEPT_GRADIENTS) * trainable
    with _settings(policy, config):
        return held + _step(policy, step, Shape.of(config, prompt))


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


def largest_batch(config: Config, shape: Shape, *, seed: int = 0) -> TokenBatch:
    """A microbatch of the largest shape, of tokens drawn at random from the first few hundred."""
    rng = np.random.default_rng(seed)
    rows, width = shape.groups * shape.microbatch, shape.completion
    advantages = np.resize([1.0, -1.0], rows).astype(np.float32)
    several = config.optim.minibatches * config.optim.num_iterations > 1
    zeros = mx.zeros((rows, width))
    return TokenBatch(
        prompts=tuple(
            tuple(int(i) for i in rng.integers(0, 100, size=shape.prompt))
            for _ in range(shape.groups)
        ),
        tokens=mx.array(rng.integers(0, 100, size=(rows, width)).astype(np.int32)),
        loss_mask=mx.ones((rows, width)),
        advantages=mx.array(advantages),
        correct=mx.arange(rows) % 2 == 0,
        normalizer=float(rows * width),
        old_logprobs=zeros if several else None,
        ref_logprobs=zeros if config.loss.kl_coef else None,
    )


def _step(policy: Policy, step: Step, shape: Shape) -> int:
    """Bytes that one microbatch of the largest shape takes beyond what is held."""
    batch = largest_batch(step.config, shape)
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

    parameters = policy.model.parameters()
    return peak_bytes(gradient, parameters, layout.arrays, fields, compiled=step.compiles).peak


def _decoding(policy: Policy, shape: Shape, rows: int) -> int:
    """Bytes that decoding takes: the caches at their full length, and the most of what a batch's
    start, a token while finished rows leave, or a prompt's last piece takes besides."""
    if not rows:
        return 0
    policy.model.eval()
    length, chunk = shape.prompt - 1, policy.config.rollout.prefill_chunk
    room = shape.completion
    prompts = _caches(policy, shape.prompts, length, chunk)
    full = _caches(policy, rows, length, chunk, room=room, token=True)
    held = _cache_bytes(full)
    index = mx.zeros((rows,), dtype=mx.int32)
    alive = max(1, int(COMPACT_AT * rows))
    last = max(0, (length - 1) // chunk * chunk)
    piece = _caches(policy, 1, last, chunk)
    moments = [
        _cache_bytes(prompts) + _token(policy, prompts, rows, lambda x: x[index], room=room),
        held + _token(policy, full, alive, lambda x: x[index[:alive]]),
        _cache_bytes(prompts) + _token(policy, piece, 1, tokens=max(1, length - last)),
    ]
    return max(moments)


def _caches(
    policy: Policy, rows: int, length: int, chunk: int, *, room: int = 0, token: bool = False
) -> list[Any]:
    """Lazy caches of so many rows after ``length`` tokens, with room for more."""
    caches = make_prompt_cache(policy.model)
    for cache in caches:
        if hasattr(cache, "step"):
            cache.step = max(1, length)
    for start in range(0, length, chunk):
        size = min(chunk, length - start)
        policy.model(mx.zeros((rows, size), dtype=mx.int32), cache=caches)
    for cache in caches:
        if hasattr(cache, "step") and room:
            cache.step = room
    if token:
        policy.model(mx.zeros((rows, 1), dtype=mx.int32), cache=caches)
    return caches


def _arrays(caches: list[Any]) -> list[dict[str, Any]]:
    return [
        {name: x for name, x in vars(cache).items() if isinstance(x, (mx.array, list))}
        for cache in caches
    ]


def _cache_bytes(caches: list[Any]) -> int:
    return _nbytes(_arrays(caches))


def _token(
    policy: Policy,
    caches: list[Any],
    rows: int,
    change: Callable[[mx.array], mx.array] | None = None,
    *,
    room: int = 0,
    tokens: int = 0,
) -> int:
    """Bytes that one token of ``rows`` rows takes beyond the caches, after ``change`` to their
    arrays; or a prompt's piece of ``tokens``."""

    def run(parameters: Any, arrays: Any, ids: mx.array, random: mx.array) -> Any:
        policy.model.update(parameters)
        mine = [copy.copy(cache) for cache in caches]
        for cache, values in zip(mine, arrays, strict=True):
            for name, value in values.items():
                if isinstance(value, list):
                    value = [x if x is None or change is None else change(x) for x in value]
                elif change is not None:
                    value = change(value)
                setattr(cache, name, value)
            if room and hasattr(cache, "step"):
                cache.step = room
        logits = policy.model(ids, cache=mine)
        if tokens:
            return _arrays(mine)
        logits = logits[:, -1].astype(mx.float32)
        temperature = policy.config.rollout.temperature
        logits = logits if temperature == 1.0 else logits * (1.0 / temperature)
        return draw(logits, random), _arrays(mine)

    ids = mx.zeros((rows, tokens or 1), dtype=mx.int32)
    parameters = policy.model.parameters()
    return peak_bytes(run, parameters, _arrays(caches), ids, mx.zeros((rows, 2)), given=(1,)).peak
