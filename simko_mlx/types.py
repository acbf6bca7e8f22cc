"""The frozen data of one training step, in the order in which it comes to exist.

    Problem -> RolloutGroup of Completions -> ScoredGroup of Verdicts -> TokenBatch -> LossOutput
            -> StepMetrics

This module imports neither mlx nor numpy at run time: verifier workers import it, and a worker
that loaded Metal would cost memory and a second of start-up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import mlx.core as mx

STOP = "stop"
LENGTH = "length"


class UserError(Exception):
    """A mistake in what the user gave us: one sentence with the fix. The CLI exits with code 2."""


@dataclass(frozen=True)
class Problem:
    """One question whose answer can be checked."""

    id: str
    messages: tuple[dict[str, str], ...]
    answer: str
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """One sampled answer: exactly the token ids that were drawn, the stop token included.

    ``logprobs`` are float32 log-probabilities of softmax(logits / temperature), one per token;
    ``text`` is decoded without the stop token; ``stop_reason`` is "stop" or "length".
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    stop_reason: str


@dataclass(frozen=True)
class RolloutGroup:
    """The completions sampled for one problem; ``prompt_ids`` are the tokens they continue."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one completion; ``reward`` is None where it can't be scored.

    ``detail`` says why, in a few words; ``taken`` is the part of the completion that was taken for
    its answer. ``fault``: the machinery failed, through no fault of the completion's, which then
    has no reward.
    """

    reward: float | None
    correct: bool
    detail: str = ""
    taken: str | None = None
    fault: bool = False


@dataclass(frozen=True)
class ScoredGroup:
    """A group with a verdict and an advantage for each of its completions."""

    group: RolloutGroup
    verdicts: tuple[Verdict, ...]
    advantages: tuple[float, ...]


class TokenBatch(NamedTuple):
    """One microbatch: completions of P problems, right-padded to T tokens.

    ``prompts`` are the P prompts' token ids; the R = P x n rows that follow are n for each prompt,
    in the prompts' order. ``tokens`` (R, T) int32; ``loss_mask`` (R, T) float32, 0 at padding and
    in rows that only fill up; ``advantages`` (R,) float32; ``correct`` (R,) bool; ``normalizer``
    the number of completion tokens of the whole update, over all of its microbatches;
    ``old_logprobs`` and ``ref_logprobs`` (R, T) float32, or None.
    """

    prompts: tuple[tuple[int, ...], ...]
    tokens: mx.array
    loss_mask: mx.array
    advantages: mx.array
    correct: mx.array
    normalizer: Any  # a float, or a scalar array where the step is compiled
    old_logprobs: mx.array | None = None
    ref_logprobs: mx.array | None = None


class LossOutput(NamedTuple):
    """``loss`` is this microbatch's share of the mean over the update (a scalar that adds up over
    microbatches); ``metrics`` are sums over tokens, to be divided by the number of tokens."""

    loss: mx.array
    metrics: dict[str, mx.array]


@dataclass(frozen=True)
class StepMetrics:
    """Named figures of one step: "reward/mean", "rollout/tokens", "loss/clip_high", "time/step"."""

    step: int
    values: Mapping[str, float]


def require(condition: bool, message: str) -> None:
    """Raises UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)
