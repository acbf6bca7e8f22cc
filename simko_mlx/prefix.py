"""Caches through which gradients flow: one forward pass of a prompt serves all its completions.

mlx-lm's own caches write into buffers, which is right for decoding. These hold what the prompt's
pass gave, as part of the graph, and hand it to each completion's row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)

Lengths = int | mx.array
"""How many of the prefix's tokens are real: one number (or scalar array) for all prompts, or (P,)
for prompts of different lengths that are right-padded."""


class PrefixCache:
    """Keys and values of one attention layer: first of P prompts, then of n rows for each.

    ``offset``, ``update_and_fetch`` and ``make_mask`` are what mlx-lm's models ask a cache for.
    """

    def __init__(self, window: int | None = None):
        self.window = window  # of sliding attention: a token sees this many, itself included
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.rows: int | None = None  # for each prompt; None during the prompts' own pass
        self.lengths: Lengths = 0

    def fan_out(self, rows: int, lengths: Lengths) -> None:
        """From here on each prompt is continued by ``rows`` rows."""
        self.rows = rows
        self.lengths = lengths

    @property
    def offset(self) -> Lengths:
        """The position of the first token that comes now; (R,) where it differs by row."""
        if self.rows is None or self.keys is None:
            return 0
        if isinstance(self.lengths, mx.array) and self.lengths.ndim:
            return mx.repeat(self.lengths, self.rows)
        return self.lengths

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.keys is None or self.values is None:
            if self.rows is None:
                self.keys, self.values = keys, values
            return keys, values
        assert self.rows is not None
        return (
            mx.concatenate([_for_rows(self.keys, self.rows), keys], axis=2),
            mx.concatenate([_for_rows(self.values, self.rows), values], axis=2),
        )

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """For N tokens: "causal", or (N, S) or (R, 1, N, S) bool, S counting the prefix too."""
        window = window_size or self.window
        prefix = 0 if self.keys is None or self.rows is None else self.keys.shape[2]
        if window is not None and prefix + N <= window:
            window = None
        exact = prefix == 0 or isinstance(self.lengths, int)
        if exact and window is None and not return_array:
            return "causal"
        place = mx.arange(N)
        mask = _within(place[:, None] - place[None], window)
        if prefix == 0:
            return mask
        before = mx.arange(prefix)
        # (1, 1, 1) or, for each row, (R, 1, 1): how far the first token of the row is along.
        start = mx.array(self.offset).reshape(-1, 1, 1)
        seen = _within(start + place[:, None] - before[None], window) & (before[None] < start)
        if start.shape[0] == 1:
            return mx.concatenate([seen[0], mask], axis=1)
        mask = mx.broadcast_to(mask, (start.shape[0], N, N))
        return mx.concatenate([seen, mask], axis=2)[:, None]

    def arrays(self) -> list[mx.array]:
        """What gradients flow through."""
        return [] if self.keys is None or self.values is None else [self.keys, self.values]

    def with_arrays(self, arrays: Sequence[mx.array]) -> PrefixCache:
        """The same cache with these in the place of ``arrays()``."""
        other = PrefixCache(self.window)
        other.rows, other.lengths = self.rows, self.lengths
        other.take(arrays)
        return other

    def take(self, arrays: Sequence[mx.array]) -> None:
        if arrays:
            self.keys, self.values = arrays


class PrefixState(ArraysCache):
    """The state of one recurrent or convolutional layer after P prompts, or for their rows."""

    def fan_out(self, rows: int, lengths: Lengths) -> None:
        assert isinstance(lengths, int), "padding would have run through the state"
        self.cache = [None if x is None else _for_rows(x, rows) for x in self.cache]

    def arrays(self) -> list[mx.array]:
        return [x for x in self.cache if x is not None]

    def with_arrays(self, arrays: Sequence[mx.array]) -> PrefixState:
        other = PrefixState(len(self.cache))
        other.cache = list(self.cache)
        other.take(arrays)
        return other

    def take(self, arrays: Sequence[mx.array]) -> None:
        if arrays:
            self.cache = list(arrays)


class PrefixList:
    """The caches of one layer that has several, such as attention beside a recurrence."""

    def __init__(self, caches: Sequence[Prefix]):
        self.caches = list(caches)

    def __getitem__(self, index: int) -> Prefix:
        return self.caches[index]

    def fan_out(self, rows: int, lengths: Lengths) -> None:
        for cache in self.caches:
            cache.fan_out(rows, lengths)

    def arrays(self) -> list[Any]:
        """For each of them a list."""
        return [cache.arrays() for cache in self.caches]

    def with_arrays(self, arrays: Sequence[Any]) -> PrefixList:
        pairs = zip(self.caches, arrays, strict=True)
        return PrefixList([cache.with_arrays(mine) for cache, mine in pairs])

    def take(self, arrays: Sequence[Any]) -> None:
        for cache, mine in zip(self.caches, arrays, strict=True):
            cache.take(mine)


Prefix = PrefixCache | PrefixState | PrefixList


def _for_rows(x: mx.array, rows: int) -> mx.array:
    """(P, ...) -> (P x rows, ...). Its gradient is a sum over rows, in a fixed order."""
    if x.shape[0] == 1:
        return mx.broadcast_to(x, (rows, *x.shape[1:]))
    wide = mx.broadcast_to(x[:, None], (x.shape[0], rows, *x.shape[1:]))
    return wide.reshape(-1, *x.shape[1:])


def _within(distance: mx.array, window: int | None) -> mx.array:
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def prefix_caches(model: nn.Module) -> list[Prefix] | str:
    """Empty caches for each of the model's layers; or why it can't have them, as half a sentence.

    They stand in for what mlx-lm's ``make_prompt_cache`` gives.
    """
    return _stand_ins(make_prompt_cache(model))


def _stand_ins(caches: Sequence[Any]) -> list[Prefix] | str:
    found: list[Prefix] = []
    for cache in caches:
        if type(cache) is KVCache:
            found.append(PrefixCache())
        elif type(cache) is RotatingKVCache and cache.keep == 0:
            found.append(PrefixCache(window=cache.max_size))
        elif type(cache) is ArraysCache:
            found.append(PrefixState(len(cache.cache)))
        elif type(cache) is CacheList:
            several = _stand_ins(cache.caches)
            if isinstance(several, str):
                return several
            found.append(PrefixList(several))
        else:
            return f"{type(cache).__name__} can't be shared between rows"
    return found


def is_recurrent(caches: Sequence[Prefix]) -> bool:
    """Whether a prompt must be exactly as long as it is, since padding would change the state."""
    return any(
        is_recurrent(cache.caches) if isinstance(cache, PrefixList) else type(cache) is PrefixState
        for cache in caches
    )
