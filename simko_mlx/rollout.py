"""Problems -> groups of completions.

Each prompt is prefilled once and its cache fanned out to the problem's completions; tokens are
drawn with keys of (seed, step, problem, sample, token), so a completion doesn't depend on what
else is in the batch. Knows nothing of rewards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from simko_mlx.decoding import Decoder, Row, Settings, Together
from simko_mlx.sampling import row_hasher
from simko_mlx.types import LENGTH, STOP, Completion, Problem, RolloutGroup, UserError

Progress = Callable[[int, int, int], None]
"""(completions done, completions wanted, tokens so far), after each token of the batch"""


@dataclass(frozen=True)
class Sampling:
    """How a set of completions is drawn. ``step`` is a step's number, or a word like "eval"."""

    group_size: int
    max_completion_length: int
    temperature: float
    seed: int
    step: int | str
    batch_size: int
    prefill_chunk: int
    top_p: float = 1.0
    top_k: int = 0


class Diverged(UserError):
    """The weights have gone where no probability is finite; they are not worth saving."""


def rollout(
    policy: Any,
    prompts: Sequence[tuple[Problem, tuple[int, ...]]],
    sampling: Sampling,
    progress: Progress | None = None,
    on_group: Callable[[int, RolloutGroup], None] | None = None,
) -> list[RolloutGroup]:
    """Samples ``group_size`` completions for each (problem, prompt ids), in order.

    ``policy`` has ``model``, ``tokenizer``, ``stop_tokens`` and ``together``. The model is left in
    evaluation mode (LoRA's dropout would otherwise stay on while sampling). ``on_group`` is given
    each group, with its place, as soon as its last completion has ended, while others still decode.

    Raises:
        Diverged: the model's probabilities are not finite.
    """
    policy.model.eval()
    size = sampling.group_size
    rows = [
        Row(
            p,
            sampling.max_completion_length,
            row_hasher(sampling.seed, sampling.step, problem.id, sample),
        )
        for p, (problem, _) in enumerate(prompts)
        for sample in range(size)
    ]
    settings = Settings(
        width=sampling.batch_size,
        prefill_chunk=sampling.prefill_chunk,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
    )
    decoder = Decoder(
        policy.model,
        [ids for _, ids in prompts],
        policy.stop_tokens,
        settings,
        policy.together or Together(ragged=False),
    )
    groups: list[RolloutGroup | None] = [None] * len(prompts)
    left = [size] * len(prompts)

    def finished(row: Row) -> None:
        p = row.prompt
        left[p] -= 1
        if not left[p]:
            mine = rows[p * size : (p + 1) * size]
            group = RolloutGroup(*prompts[p], tuple(_completion(policy, r) for r in mine))
            groups[p] = group
            if on_group is not None:
                on_group(p, group)

    for _ in decoder.run(rows, finished):
        if progress is not None:
            done = sum(row.done for row in rows)
            progress(done, len(rows), sum(len(row.tokens) for row in rows))
    return [group for group in groups if group is not None]


def _completion(policy: Any, row: Row) -> Completion:
    if not all(math.isfinite(logprob) for logprob in row.logprobs):
        raise Diverged(
            "The model's probabilities are not finite any more: start again with a lower "
            "optim.learning_rate (or, at the very first step, with a base in bfloat16 or float32)."
        )
    stopped = row.tokens[-1] in policy.stop_tokens
    text_ids = row.tokens[:-1] if stopped else row.tokens
    text = policy.tokenizer.decode(text_ids, clean_up_tokenization_spaces=False)
    reason = STOP if stopped else LENGTH
    return Completion(tuple(row.tokens), tuple(row.logprobs), text, reason)
