"""Scored groups -> new weights: the update of one step, with gradients summed over microbatches.

A microbatch is one problem's group, or a part of it where memory is short, or several where they
are small. Groups whose coefficients are all zero need no forward pass and are skipped; their tokens
stay in the normaliser, so that skipping changes nothing else.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import safetensors.numpy
from mlx.utils import tree_map, tree_unflatten
from mlx_lm.tuner.utils import build_schedule

from simko_mlx.batching import completion_tokens
from simko_mlx.config import Config, OptimConfig
from simko_mlx.losses import LOSSES, find_loss
from simko_mlx.microbatches import (
    Microbatch,
    Part,
    assemble,
    decoded,
    describe,
    lost_tokens,
    measured,
    packed,
    parts_of,
    token_budget,
    without,
)
from simko_mlx.policy import Policy, named_arrays
from simko_mlx.step import Step
from simko_mlx.types import ScoredGroup, TokenBatch, UserError


def make_optimizer(config: OptimConfig) -> optim.Optimizer:
    """AdamW with bias correction (MLX leaves it out by default: its first step is 3 times too
    long), its rate constant or on one of mlx-lm's schedules.

    Raises:
        UserError: the schedule is not one that mlx-lm can build.
    """
    rate: Any = config.learning_rate
    if config.lr_schedule is not None:
        try:
            rate = build_schedule(config.lr_schedule)
            float(rate(mx.array(0)))
        except (KeyError, AttributeError, TypeError, IndexError, ValueError) as error:
            raise UserError(
                f"optim.lr_schedule is {config.lr_schedule}: write it as mlx-lm does, e.g. "
                "{name: cosine_decay, arguments: [1e-5, 1000], warmup: 50}."
            ) from error
    low, high = config.betas
    return optim.AdamW(
        learning_rate=rate,
        betas=[low, high],
        eps=config.eps,
        weight_decay=config.weight_decay,
        bias_correction=True,
    )


def random_words(*key: Any) -> int:
    """A 64-bit number that depends on nothing but the key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@dataclass
class Report:
    """Sums over the updates of one step."""

    sums: dict[str, float] = field(default_factory=dict)
    tokens: float = 0.0
    loss: float = 0.0
    grad_norm: float = 0.0
    decode_gap: float = 0.0
    updates: int = 0
    skipped_groups: int = 0
    skipped_updates: int = 0
    lost_completions: int = 0
    microbatches: int = 0
    problems: list[str] = field(default_factory=list)

    def metrics(self) -> dict[str, float]:
        """Means per token (over the tokens that were trained on) and counts, by their names."""
        out = {
            "loss/loss": self.loss / max(1, self.updates),
            "loss/decode_gap": self.decode_gap,
            "optim/grad_norm": self.grad_norm / max(1, self.updates),
            "optim/updates": float(self.updates),
            "optim/skipped_groups": float(self.skipped_groups),
            "optim/skipped_updates": float(self.skipped_updates),
            "optim/lost_completions": float(self.lost_completions),
            "optim/microbatches": float(self.microbatches),
        }
        out |= {f"loss/{name}": total / max(1.0, self.tokens) for name, total in self.sums.items()}
        return out


class Learner:
    """Owns the optimizer and turns scored groups into updates of the policy."""

    def __init__(self, policy: Policy, config: Config):
        self.policy = policy
        self.config = config
        self.loss_fn = find_loss(config.loss.name)
        # Only of our own losses is it known that a zero advantage means a zero gradient.
        self.may_skip = config.loss.name in LOSSES and config.loss.kl_coef == 0
        self.optimizer = make_optimizer(config.optim)
        self.optimizer.init(policy.model.trainable_parameters())
        mx.eval(self.optimizer.state)  # so that memory is measured with it from the start
        self.budget = token_budget(config)  # of a microbatch; a plan may lower it
        self.step = Step(policy, config, self.loss_fn)
        problem = self.step.problem
        self.notes = [f"The training step is not compiled ({problem})."] if problem else []

    def learn(
        self,
        groups: Sequence[ScoredGroup],
        step: int,
        *,
        before_change: Callable[[], None] = lambda: None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Report:
        """All updates of one step. ``before_change`` is called before weights first change: until
        then the step can be abandoned."""
        report = Report()
        optim_config = self.config.optim
        # LoRA's dropout draws from MLX's global generator.
        mx.random.seed(random_words(self.config.seed, "dropout", step))
        updates = optim_config.minibatches * optim_config.num_iterations
        parts = [parts_of(scored, self.config, may_skip=self.may_skip) for scored in groups]
        parts = self._measure(parts, measure_old=updates > 1)
        report.skipped_groups = sum(not p for p in parts)
        self.policy.model.train()
        total = updates * max(1, len(groups) // optim_config.minibatches)
        done = 0
        for iteration in range(optim_config.num_iterations):
            order = list(range(len(groups)))
            if updates > 1:
                random.Random(random_words(self.config.seed, step, iteration)).shuffle(order)
            for some in np.array_split(order, optim_config.minibatches):
                indices = [int(i) for i in some]
                normalizer = completion_tokens([groups[i] for i in indices])
                chosen = self._packed([part for i in indices for part in parts[i]])
                gradient = self._gradient(chosen, float(normalizer), report)
                done += len(indices)
                progress(min(done, total), total)
                if gradient is not None:
                    before_change()
                    self._apply(gradient, report)
        self.policy.model.eval()
        return report

    def _packed(self, parts: Sequence[Part]) -> list[Microbatch]:
        return packed(parts, self.budget, alike=self.policy.way in ("single", "exact"))

    def _measure(self, parts: list[list[Part]], measure_old: bool) -> list[list[Part]]:
        """The parts with the log-probs that the loss needs from before any update."""
        if not measure_old and not self.config.loss.kl_coef:
            return parts
        place = {id(part.scored): i for i, some in enumerate(parts) for part in some}
        found: list[list[Part]] = [[] for _ in parts]
        for microbatch in self._packed([part for some in parts for part in some]):
            if measure_old:
                # By the training function, without dropout: those of the policy that sampled, but
                # for the last digits, in which the decoder differs.
                microbatch = measured(microbatch, self._logprobs(microbatch), "old")
            if self.config.loss.kl_coef:
                with self.policy.reference():
                    microbatch = measured(microbatch, self._logprobs(microbatch), "ref")
            for part in microbatch:
                found[place[id(part.scored)]].append(part)
        return found

    def _logprobs(self, microbatch: Microbatch) -> mx.array:
        # The same tokens and candidates as in the loss, so that the same sums are formed: where the
        # policy is still the base, the KL penalty is exactly 0, and Adam gets no noise to amplify.
        logprobs = self.policy.statistics(
            assemble(microbatch, self.config, normalizer=1.0, bucketed=self.step.compiles),
            simko_k=self.config.loss.simko_k,
            temperature=self.config.rollout.temperature,
            gradient=False,
        ).logprobs  # of the others nothing is kept: they would hold the logits of all tokens
        mx.eval(logprobs)
        return logprobs

    def _gradient(
        self, microbatches: Sequence[Microbatch], normalizer: float, report: Report
    ) -> Any | None:
        """Gradient of the mean over ``normalizer`` tokens; None where nothing has a signal."""
        gradient: Any | None = None
        loss_sum = 0.0
        waiting = list(microbatches)
        while waiting:
            microbatch = waiting.pop(0)
            batch = assemble(
                microbatch, self.config, normalizer=normalizer, bucketed=self.step.compiles
            )
            (loss, metrics, logprobs), grads = self.step(batch)
            mx.eval(loss, metrics, logprobs, grads)
            lost = lost_tokens(batch, logprobs)
            if lost:
                report.problems += [describe(microbatch, batch, *place) for place in lost]
                report.lost_completions += len(lost)
                rest = without(microbatch, batch, {row for row, _ in lost})
                waiting[:0] = [rest] if rest else []
                continue
            gradient = grads if gradient is None else tree_map(mx.add, gradient, grads)
            mx.eval(gradient)  # one microbatch in memory at a time
            loss_sum += float(loss)
            self._record(microbatch, batch, metrics, logprobs, report)
        if gradient is not None and not math.isfinite(loss_sum):
            report.skipped_updates += 1
            report.problems.append(f"the loss is {loss_sum}; that update was skipped")
            return None
        report.loss += loss_sum
        return gradient

    def _record(
        self,
        microbatch: Microbatch,
        batch: TokenBatch,
        metrics: dict[str, mx.array],
        logprobs: mx.array,
        report: Report,
    ) -> None:
        for name, value in metrics.items():
            report.sums[name] = report.sums.get(name, 0.0) + float(value)
        report.tokens += float(batch.loss_mask.sum())
        report.microbatches += 1
        # The weights must still be those that sampled, and dropout off, as it was then.
        before = batch.old_logprobs
        if before is None and not self.config.policy.lora_parameters.dropout:
            before = logprobs
        if report.updates == 0 and before is not None:
            gap = float(
                mx.where(batch.loss_mask > 0, mx.abs(before - decoded(microbatch, batch)), 0).max()
            )
            report.decode_gap = float(np.maximum(report.decode_gap, gap))  # keeps a NaN

    def _apply(self, gradient: Any, report: Report) -> None:
        limit = self.config.optim.max_grad_norm
        gradient, norm = optim.clip_grad_norm(gradient, math.inf if limit is None else limit)
        norm = float(norm)
        if not math.isfinite(norm):
            report.skipped_updates += 1
            report.problems.append(f"the gradient's norm is {norm}; that update was skipped")
            return
        self.optimizer.update(self.policy.model, gradient)
        mx.eval(self.policy.model.trainable_parameters(), self.optimizer.state)
        report.grad_norm += norm
        report.updates += 1

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.learning_rate)

    def state_file(self) -> bytes:
        """The optimizer's state as safetensors."""
        flat = named_arrays(self.optimizer.state)
        return safetensors.numpy.save({name: np.array(value) for name, value in flat.items()})

    def load_state(self, data: bytes) -> None:
        """Restores what ``state_file`` wrote.

        Raises:
            UserError: it belongs to another set of trainable parameters.
        """
        arrays = safetensors.numpy.load(data)
        state = named_arrays(self.optimizer.state)
        expected = {name: value.shape for name, value in state.items()}
        if {name: array.shape for name, array in arrays.items()} != expected:
            raise UserError(
                "The checkpoint's optimizer state does not fit the policy: the model in the "
                "folder or on the Hub has changed since the run began."
            )
        items = [(name, mx.array(array)) for name, array in arrays.items()]
        self.optimizer.state = tree_unflatten(items)
        mx.eval(self.optimizer.state)
