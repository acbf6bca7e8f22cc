"""Scored groups -> token batches. Token ids are those that were sampled, never re-tokenised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np

from simko_mlx.types import LENGTH, RolloutGroup, ScoredGroup, TokenBatch

MEASURED_PER_PROBLEM = 8  # completions whose token statistics an evaluation takes
LEAST = 8  # the smallest unit that lengths are padded to


def bucket(size: int) -> int:
    """``size`` rounded up so that few different shapes occur: to a multiple of 8, and beyond 64 to
    a multiple of a quarter of the power of two below."""
    step = max(LEAST, (1 << max(0, (size - 1).bit_length() - 1)) // 4)
    return -(-size // step) * step


def pad(
    rows: Sequence[Sequence[float]],
    dtype: type = np.float32,
    shape: tuple[int, int] | None = None,
) -> mx.array:
    """Rows of different lengths -> (B, longest), or ``shape``, right-padded with zeros."""
    out = np.zeros(shape or (len(rows), max(map(len, rows))), dtype=dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return mx.array(out)


def token_batch(
    parts: Sequence[ScoredGroup],
    *,
    normalizer: float,
    mask_truncated: bool = False,
    bucketed: bool = False,
) -> TokenBatch:
    """The microbatch of these groups, or parts of groups.

    Each prompt gets as many rows as the largest part has; the rows of smaller ones are filled up
    with empty ones. ``bucketed`` pads the tokens' length, too. See ``counts`` for what takes no
    part in the loss; its tokens stay in ``normalizer``.
    """
    n = max(len(part.verdicts) for part in parts)
    longest = max(len(c.token_ids) for part in parts for c in part.group.completions)
    shape = (n * len(parts), bucket(longest) if bucketed else longest)
    tokens = np.zeros(shape, dtype=np.int32)
    mask = np.zeros(shape, dtype=np.float32)
    advantages = np.zeros(shape[0], dtype=np.float32)
    correct = np.zeros(shape[0], dtype=bool)
    for p, part in enumerate(parts):
        for i, (completion, verdict) in enumerate(
            zip(part.group.completions, part.verdicts, strict=True)
        ):
            row, length = p * n + i, len(completion.token_ids)
            tokens[row, :length] = completion.token_ids
            mask[row, :length] = counts(part, i, mask_truncated)
            advantages[row], correct[row] = part.advantages[i], verdict.correct
    return TokenBatch(
        prompts=tuple(part.group.prompt_ids for part in parts),
        tokens=mx.array(tokens),
        loss_mask=mx.array(mask),
        advantages=mx.array(advantages),
        correct=mx.array(correct),
        normalizer=normalizer,
    )


def counts(scored: ScoredGroup, row: int, mask_truncated: bool) -> bool:
    """Whether a completion takes part in the loss: one that could not be scored does not, nor,
    with ``mask_truncated``, one that hit the length limit."""
    truncated = scored.group.completions[row].stop_reason == LENGTH
    return scored.verdicts[row].reward is not None and not (mask_truncated and truncated)


def group_batch(group: RolloutGroup) -> TokenBatch:
    """A batch to measure a group with (log-probs, entropy): its advantages are zero."""
    rows = [c.token_ids for c in group.completions]
    zeros = mx.zeros((len(rows),))
    return TokenBatch(
        prompts=(group.prompt_ids,),
        tokens=pad(rows, np.int32),
        loss_mask=pad([[1.0] * len(row) for row in rows]),
        advantages=zeros,
        correct=zeros > 0,
        normalizer=1.0,
    )


def split_group(scored: ScoredGroup, size: int) -> list[ScoredGroup]:
    """The group in parts of at most ``size`` completions, which keep the group's advantages."""
    rows = range(len(scored.verdicts))
    return [select(scored, rows[start : start + size]) for start in rows[::size]]


def select(scored: ScoredGroup, rows: Sequence[int]) -> ScoredGroup:
    """The group with these completions only; they keep the group's advantages."""
    group = scored.group
    return ScoredGroup(
        replace(group, completions=tuple(group.completions[i] for i in rows)),
        tuple(scored.verdicts[i] for i in rows),
        tuple(scored.advantages[i] for i in rows),
    )


def completion_tokens(groups: Sequence[ScoredGroup]) -> int:
    """Completion tokens of these groups, stop tokens included: the loss's normaliser."""
    return sum(len(c.token_ids) for scored in groups for c in scored.group.completions)


def tokens_held(parts: Sequence[ScoredGroup]) -> int:
    """Tokens that a microbatch of these parts holds activations of, padding included."""
    rows = len(parts) * max(len(part.verdicts) for part in parts)
    width = max(len(c.token_ids) for part in parts for c in part.group.completions)
    prompt = max(len(part.group.prompt_ids) for part in parts)
    return len(parts) * bucket(prompt) + rows * bucket(width)


def pack(parts: Sequence[ScoredGroup], budget: int, alike: bool = False) -> list[list[ScoredGroup]]:
    """Parts of groups put together into microbatches of at most ``budget`` tokens (a part that is
    larger stands alone). Parts of similar length come together, so that little is padded.

    ``alike`` only puts those together whose prompts have the same length.
    """

    def shape(part: ScoredGroup) -> tuple[int, int, int]:
        width = max(len(c.token_ids) for c in part.group.completions)
        return len(part.group.prompt_ids), len(part.verdicts), width

    packed: list[list[ScoredGroup]] = []
    for part in sorted(parts, key=shape):  # stable: equal ones stay in the step's order
        last = packed[-1] if packed else []
        fits = last and tokens_held([*last, part]) <= budget
        if fits and (not alike or shape(last[0])[0] == shape(part)[0]):
            last.append(part)
        else:
            packed.append([part])
    return packed
