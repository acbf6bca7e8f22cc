"""What of a step's groups is trained on, in which pieces, with the log-probs measured before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from simko_mlx.batching import counts, pack, select, split_group, token_batch, tokens_held
from simko_mlx.config import Config
from simko_mlx.types import ScoredGroup, TokenBatch

LEAST_TOKENS = 1024  # small groups are put together up to here, where nothing says otherwise


@dataclass(frozen=True)
class Part:
    """Completions of one group that take part in the loss; ``old`` and ``ref`` (rows, longest) are
    their log-probs before any update, and under the base."""

    scored: ScoredGroup
    old: np.ndarray | None = None
    ref: np.ndarray | None = None

    def without(self, rows: set[int]) -> list[Part]:
        """The part without these completions, if any are left."""
        kept = [row for row in range(len(self.scored.verdicts)) if row not in rows]
        if not kept:
            return []
        old, ref = (x if x is None else x[kept] for x in (self.old, self.ref))
        return [Part(select(self.scored, kept), old, ref)]


Microbatch = list[Part]


def parts_of(scored: ScoredGroup, config: Config, *, may_skip: bool) -> list[Part]:
    """The parts of a group, none where it has nothing to teach: what is masked costs nothing.

    ``may_skip`` says that a zero advantage means a zero gradient.
    """
    mask = config.loss.mask_truncated_completions
    rows = [i for i in range(len(scored.verdicts)) if counts(scored, i, mask)]
    if not rows or (may_skip and not any(scored.advantages[i] for i in rows)):
        return []
    size = config.optim.microbatch_size or len(rows)
    return [Part(part) for part in split_group(select(scored, rows), size)]


def token_budget(config: Config) -> int:
    """Tokens that small groups are put together up to."""
    optim = config.optim
    if optim.microbatch_tokens is not None:
        return optim.microbatch_tokens
    return 0 if optim.microbatch_size else LEAST_TOKENS


def packed(parts: Sequence[Part], budget: int, *, alike: bool) -> list[Microbatch]:
    """The parts put together; ``alike`` where prompts of different lengths can't share a batch.

    No microbatch holds more than ``budget`` tokens, or than the largest part alone does.
    """
    if not parts:
        return []
    by_group = {id(part.scored): part for part in parts}
    largest = max(tokens_held([part.scored]) for part in parts)
    groups = pack([part.scored for part in parts], max(budget, largest), alike)
    return [[by_group[id(scored)] for scored in group] for group in groups]


def assemble(
    microbatch: Microbatch, config: Config, *, normalizer: float, bucketed: bool
) -> TokenBatch:
    """The microbatch as arrays."""
    batch = token_batch(
        [part.scored for part in microbatch],
        normalizer=normalizer,
        mask_truncated=config.loss.mask_truncated_completions,
        bucketed=bucketed,
    )
    rows, width = batch.tokens.shape
    n = rows // len(microbatch)

    def together(measured: list[np.ndarray | None]) -> mx.array | None:
        out = np.zeros((rows, width), dtype=np.float32)
        for p, values in enumerate(measured):
            if values is None:
                return None
            out[p * n : p * n + len(values), : values.shape[1]] = values[:, :width]
        return mx.array(out)

    return batch._replace(
        old_logprobs=together([part.old for part in microbatch]),
        ref_logprobs=together([part.ref for part in microbatch]),
    )


def measured(microbatch: Microbatch, logprobs: mx.array, name: str) -> Microbatch:
    """The microbatch with its parts' rows of these log-probs, as ``old`` or ``ref``."""
    values = np.array(logprobs)
    n = len(values) // len(microbatch)
    return [
        replace(part, **{name: values[p * n : p * n + len(part.scored.verdicts)]})
        for p, part in enumerate(microbatch)
    ]


def decoded(microbatch: Microbatch, batch: TokenBatch) -> mx.array:
    """(R, T): the log-probs that the decoder gave."""
    out = np.zeros(batch.tokens.shape, dtype=np.float32)
    n = len(out) // len(microbatch)
    for p, part in enumerate(microbatch):
        for i, completion in enumerate(part.scored.group.completions):
            out[p * n + i, : len(completion.logprobs)] = completion.logprobs
    return mx.array(out)


def lost_tokens(batch: TokenBatch, logprobs: mx.array) -> list[tuple[int, int]]:
    """The first token of each completion whose log-probs are not finite: (row, token).

    The loss leaves such tokens out, but the model's own backward pass would turn their zeros into
    NaN again, so their completions have to go.
    """
    bad = ~np.isfinite(np.array(logprobs))
    for before in (batch.old_logprobs, batch.ref_logprobs):
        if before is not None:
            bad |= ~np.isfinite(np.array(before))
    bad &= np.array(batch.loss_mask) > 0
    return [(int(row), int(bad[row].argmax())) for row in np.flatnonzero(bad.any(axis=-1))]


def without(microbatch: Microbatch, batch: TokenBatch, rows: set[int]) -> Microbatch:
    """The microbatch without these rows of its batch."""
    n = len(batch.tokens) // len(microbatch)
    left = (part.without({row - p * n for row in rows}) for p, part in enumerate(microbatch))
    return [part for some in left for part in some]


def describe(microbatch: Microbatch, batch: TokenBatch, row: int, token: int) -> str:
    """One clause on a completion that had to be left out."""
    p, i = divmod(row, len(batch.tokens) // len(microbatch))
    group = microbatch[p].scored.group
    return (
        f"a completion of problem {group.problem.id} has no finite log-probability at token "
        f"{token + 1}; it was left out: {group.completions[i].text[:40]!r}"
    )
