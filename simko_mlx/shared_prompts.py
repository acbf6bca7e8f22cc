"""Decoding caches that hold a prompt's keys and values once for all the rows that continue it.

A row's attention goes over its prompt, shared, and over its own tokens; one softmax spans both.
The queries of a prompt's rows become the rows of one product, which reads the prompt's keys once.
(``prefix.py`` has the caches of training, through which gradients flow.)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import wraps
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache, make_prompt_cache

from simko_mlx.kernels.exponential import softmax

PIECE = 64  # columns that rows' buffers grow by: most completions end long before their limit
ATTENTION = "scaled_dot_product_attention"  # what mlx-lm's models call, by this name
Pair = tuple[mx.array, mx.array]  # keys and values


class Layout:
    """Which prompt each of B rows continues, and which columns of its buffer it fills.

    ``rows`` names each row's prompt, ``begins`` the column of its first own token. Before that, its
    columns up to ``ends`` hold its prompt, where it isn't shared. ``lengths`` (B,) are those of the
    prompts' keys.
    """

    def __init__(
        self, rows: Sequence[int], lengths: np.ndarray, begins: np.ndarray, ends: np.ndarray
    ):
        self.rows = list(rows)
        self.lengths, self.begins, self.ends = lengths, begins, ends
        self.prompts = list(dict.fromkeys(rows))
        place = {prompt: i for i, prompt in enumerate(self.prompts)}
        self.place = np.array([place[prompt] for prompt in self.rows])
        # Rows by prompt, (P, slots); a prompt with fewer rows has row 0 in the slots left over.
        slot = np.array([self.rows[:i].count(prompt) for i, prompt in enumerate(self.rows)])
        self.slots = int(slot.max()) + 1
        rows_of = np.zeros((len(self.prompts), self.slots), dtype=np.int32)
        rows_of[self.place, slot] = np.arange(len(self.rows))
        self.in_order = rows_of.size == len(self.rows) and bool(
            (np.diff(rows_of.ravel()) == 1).all()
        )
        self._rows_of = mx.array(rows_of.ravel())
        self._slot_of = mx.array((self.place * self.slots + slot).astype(np.int32))
        self._offset: tuple[int, int | mx.array] | None = None
        self._mask: tuple[int, mx.array | None] | None = None

    def offset(self, used: int) -> int | mx.array:
        """The position in its text of a row's token in this column: one for all, or (B,)."""
        if self._offset is None or self._offset[0] != used:
            places = self.lengths - self.begins + used
            same = bool((places == places[0]).all())
            self._offset = used, int(places[0]) if same else mx.array(places.astype(np.int32))
        return self._offset[1]

    def mask(self, used: int) -> mx.array | None:
        """(B, 1, 1, used): which columns are a row's; None where all are."""
        if (self.begins <= self.ends).all():
            return None
        if self._mask is None or self._mask[0] != used:
            column = np.arange(used)
            filled = (column < self.ends[:, None]) | (column >= self.begins[:, None])
            self._mask = used, _rows_mask(filled)
        return self._mask[1]

    def prompt_mask(self) -> mx.array | None:
        """(P, 1, 1, S): which columns are a prompt's; None where all are."""
        lengths = np.zeros(len(self.prompts), dtype=int)
        lengths[self.place] = self.lengths
        if (lengths == lengths.max()).all():
            return None
        filled = np.arange(int(lengths.max())) < lengths[:, None]
        return _rows_mask(filled)

    def by_prompt(self, x: mx.array) -> mx.array:
        """(B, heads, n, D) of rows to (P, heads, slots x n, D) of prompts."""
        _, heads, n, size = x.shape
        x = x if self.in_order else x[self._rows_of]
        x = x.reshape(len(self.prompts), self.slots, heads, n, size)
        return x.swapaxes(1, 2).reshape(len(self.prompts), heads, self.slots * n, size)

    def by_row(self, x: mx.array) -> mx.array:
        """The way back."""
        prompts, heads, n, size = x.shape
        x = x.reshape(prompts, heads, self.slots, n // self.slots, size).swapaxes(1, 2)
        x = x.reshape(prompts * self.slots, heads, n // self.slots, size)
        return x if self.in_order else x[self._slot_of]


class SharedPromptCache:
    """One layer's keys and values: of P prompts (P, heads, S, D), of B rows (B, heads, columns, D),
    which are ``room`` at most.

    ``offset``, ``update_and_fetch`` and ``make_mask`` are what mlx-lm's models ask a cache for.
    """

    def __init__(self, layout: Layout, prompt_mask: mx.array | None, room: int):
        self.layout = layout
        self.prompt_mask = prompt_mask
        self.room = room
        self.used = 0  # of the room
        self.prompt_keys: mx.array | None = None
        self.prompt_values: mx.array | None = None
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    @property
    def offset(self) -> int | mx.array:
        return self.layout.offset(self.used)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Pair:
        """Takes in a token of each row; gives the keys and values of the rows' columns in use."""
        start, self.used = self.used, self.used + keys.shape[2]
        if self.keys is None or self.values is None:
            self.keys, self.values = (_zeros(x, x.shape[0], 0) for x in (keys, values))
        if self.used > self.keys.shape[2]:
            more = min(PIECE, self.room - start)
            self.keys, self.values = (_longer(x, more) for x in (self.keys, self.values))
        self.keys[..., start : self.used, :] = keys
        self.values[..., start : self.used, :] = values
        return self.keys[..., : self.used, :], self.values[..., : self.used, :]

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | None:
        if N != 1 or return_array or window_size:
            raise ValueError("shared prompts are for decoding with full attention")
        return None  # see attend

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
        """Attention of queries (B, heads, 1, D) over the prompts and the rows' own columns."""
        rows, heads, _, size = queries.shape
        # Query heads that share a key head are rows of one product.
        queries = queries.reshape(rows, keys.shape[1], heads // keys.shape[1], size)
        mask = self.layout.mask(self.used)
        if self.prompt_keys is None or self.prompt_values is None:
            out = mx.fast.scaled_dot_product_attention(
                queries, keys, values, scale=scale, mask=mask
            )
            return out.reshape(rows, heads, 1, -1)
        queries = queries * scale
        own = queries @ keys.swapaxes(-1, -2)
        if mask is not None:
            own = mx.where(mask, own, -mx.inf)
        before = self.layout.by_prompt(queries) @ self.prompt_keys.swapaxes(-1, -2)
        if self.prompt_mask is not None:
            before = mx.where(self.prompt_mask, before, -mx.inf)
        split = before.shape[-1]
        scores = mx.concatenate([self.layout.by_row(before), own], axis=-1)
        weights = softmax(scores)
        before = self.layout.by_prompt(weights[..., :split]) @ self.prompt_values
        out = self.layout.by_row(before) + weights[..., split:] @ values
        return out.reshape(rows, heads, 1, -1)


def share_attention(model: nn.Module) -> bool:
    """Makes a model's attention take these caches; False where it can't.

    mlx-lm's models find ``scaled_dot_product_attention`` in their own module: there it is wrapped
    by one that asks such a cache, and does as before with any other.
    """
    if not all(type(cache) is KVCache for cache in make_prompt_cache(model)):
        return False
    modules = {sys.modules[type(part).__module__] for part in model.modules()}
    found = [module for module in modules if hasattr(module, ATTENTION)]
    for module in found:
        plain = getattr(module, ATTENTION)
        if not hasattr(plain, "takes_shared_prompts"):
            setattr(module, ATTENTION, _sharing(plain))
    return bool(found)


def _sharing(plain: Any) -> Any:
    @wraps(plain)
    def attention(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any,
        scale: float,
        mask: Any = None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        if isinstance(cache, SharedPromptCache):
            if mask is not None or sinks is not None:
                raise ValueError("shared prompts take neither masks nor sinks")
            return cache.attend(queries, keys, values, scale)
        more = {} if sinks is None else {"sinks": sinks}
        return plain(queries, keys, values, cache=cache, scale=scale, mask=mask, **more)

    attention.takes_shared_prompts = True  # type: ignore[attr-defined]
    return attention


# --- other rows -----------------------------------------------------------------------------------


def arrange(
    old: Sequence[SharedPromptCache],
    keep: Sequence[int],
    joining: Sequence[tuple[int, int]],
    prefilled: Mapping[int, Sequence[KVCache]],
    *,
    room: int,
    last: bool,
) -> list[SharedPromptCache]:
    """The caches of another batch: of the old one's rows ``keep``, then of a row for each of
    ``joining``, (prompt, its prefilled length).

    ``prefilled`` has, for prompts that are new, a cache per layer; ``room`` is how many more tokens
    a row will have at most. ``last``: no row will join later, so that each may take its prompt
    along once hardly any share one.
    """
    kept = np.array(keep, dtype=int)
    rows, lengths, begins, ends = [], np.zeros(0, int), np.zeros(0, int), np.zeros(0, int)
    used = trim = 0
    if keep:
        before = old[0].layout
        rows = [before.rows[i] for i in keep]
        lengths, begins, ends = (x[kept] for x in (before.lengths, before.begins, before.ends))
        trim = 0 if ends.any() else int(begins.min())
        begins, used = begins - trim, old[0].used - trim
    new = len(joining)
    layout = Layout(
        rows + [prompt for prompt, _ in joining],
        np.concatenate([lengths, np.array([length for _, length in joining], dtype=int)]),
        np.concatenate([begins, np.full(new, used)]),
        np.concatenate([ends, np.zeros(new, dtype=int)]),
    )
    alone = last and not ends.any() and len(layout.rows) < 2 * len(layout.prompts)
    mask = layout.prompt_mask()
    caches = []
    for i in range(len(old) or len(prefilled[joining[0][0]])):
        cache = SharedPromptCache(layout, mask, used + room)
        cache.used = used
        known = old[i] if keep else None
        for name in ("keys", "values"):
            setattr(cache, f"prompt_{name}", _prompts(name, layout, known, i, prefilled))
            own = None if known is None else getattr(known, name)
            if own is not None:
                own = own[:, :, trim : trim + used][mx.array(kept)]
                own = mx.concatenate([own, _zeros(own, new, used)]) if new else own
                own = _longer(own, min(PIECE, room))
            setattr(cache, name, own)
        caches.append(cache)
    return _each_its_own(caches) if alone and caches[0].prompt_keys is not None else caches


def _prompts(
    name: str,
    layout: Layout,
    old: SharedPromptCache | None,
    layer: int,
    prefilled: Mapping[int, Sequence[KVCache]],
) -> mx.array | None:
    """The prompts' keys (or values), (P, heads, S, D); None where no row shares any."""
    if layout.ends.any() or not layout.lengths.any():
        return None
    size = int(layout.lengths.max())
    known: dict[int, mx.array] = {}
    stacked = None if old is None else getattr(old, f"prompt_{name}")
    if old is not None and stacked is not None:
        if old.layout.prompts == layout.prompts:
            return stacked
        known = {prompt: stacked[i : i + 1] for i, prompt in enumerate(old.layout.prompts)}
    sizes = dict(zip(layout.rows, layout.lengths.tolist(), strict=True))
    for prompt in layout.prompts:
        if prompt not in known and sizes[prompt]:
            known[prompt] = getattr(prefilled[prompt][layer], name)
    some = next(iter(known.values()))
    parts = []
    for prompt in layout.prompts:
        keys = known[prompt][:, :, : sizes[prompt]] if sizes[prompt] else _zeros(some, 1, 0)
        short = size - sizes[prompt]
        parts.append(mx.concatenate([keys, _zeros(some, 1, short)], axis=2) if short else keys)
    return mx.concatenate(parts)


def _each_its_own(caches: list[SharedPromptCache]) -> list[SharedPromptCache]:
    """The same rows with their prompts before their own columns."""
    old = caches[0].layout
    size = int(old.lengths.max())
    layout = Layout(old.rows, old.lengths, old.begins + size, old.lengths)
    place = mx.array(old.place)
    for cache in caches:
        for name in ("keys", "values"):
            prompts, own = getattr(cache, f"prompt_{name}")[place], getattr(cache, name)
            if own is None:
                own = _zeros(prompts, len(old.rows), min(PIECE, cache.room))
            setattr(cache, name, mx.concatenate([prompts, own], axis=2))
            setattr(cache, f"prompt_{name}", None)
        cache.layout, cache.prompt_mask = layout, None
        cache.used, cache.room = cache.used + size, cache.room + size
    return caches


def _rows_mask(filled: np.ndarray) -> mx.array:
    return mx.array(np.ascontiguousarray(filled[:, None, None]))


def _longer(own: mx.array, columns: int) -> mx.array:
    return mx.concatenate([own, _zeros(own, own.shape[0], columns)], axis=2)


def _zeros(like: mx.array, rows: int, columns: int) -> mx.array:
    return mx.zeros((rows, like.shape[1], columns, like.shape[3]), like.dtype)
