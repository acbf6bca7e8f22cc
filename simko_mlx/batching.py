"""Scored groups -> token batches. Token ids are those that were sampled, never re-tokenised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np

from simko_mlx.types import LENGTH, RolloutGroup, ScoredGroup, TokenBatch


def pad(rows: Sequence[Sequence[float]], dtype: type = np.float32, value: float = 0) -> mx.array:
    """Rows of different lengths -> (B, longest), right-padded."""
    out = np.full((len(rows), max(map(len, rows))), value, dtype=dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return mx.array(out)


def token_batch(
    scored: ScoredGroup, *, normalizer: float, mask_truncated: bool = False
) -> TokenBatch:
    """The microbatch of one problem's group.

    ``mask_truncated`` takes completions that hit the length limit out of the loss; so are those
    that could not be scored. Their tokens stay in ``normalizer``.
    """
    batch = group_batch(scored.group)
    keep = [
        verdict.reward is not None and not (mask_truncated and completion.stop_reason == LENGTH)
        for completion, verdict in zip(scored.group.completions, scored.verdicts, strict=True)
    ]
    return batch._replace(
        loss_mask=batch.loss_mask * mx.array(np.array(keep, dtype=np.float32))[:, None],
        advantages=mx.array(np.array(scored.advantages, dtype=np.float32)),
        correct=mx.array(np.array([v.correct for v in scored.verdicts], dtype=bool)),
        normalizer=normalizer,
    )


def group_batch(group: RolloutGroup) -> TokenBatch:
    """A batch to measure a group with (log-probs, entropy): its advantages are zero."""
    prompt, rows = list(group.prompt_ids), [c.token_ids for c in group.completions]
    zeros = mx.zeros((len(rows),))
    return TokenBatch(
        # Right padding needs no attention mask: a token never sees what follows it.
        input_ids=pad([prompt + list(row[:-1]) for row in rows], np.int32),
        prompt_length=len(prompt),
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


def has_signal(scored: ScoredGroup, batch: TokenBatch) -> bool:
    """Whether any token of the group has a non-zero coefficient in the policy gradient."""
    return any(scored.advantages) and bool((batch.loss_mask * batch.advantages[:, None]).any())
