"""The decode loop: a batch of rows that stays full while rows wait, and shrinks when none do.

Knows nothing of problems' texts, tokenizers or rewards. Each row's tokens are drawn with its own
keys, so they don't depend on what else is in the batch.
"""

from __future__ import annotations

import copy
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache, make_prompt_cache

from simko_mlx.cpu_decoding import quick_step
from simko_mlx.sampling import draw, token_key, uniforms
from simko_mlx.shared_prompts import arrange

COMPACT_AT = 0.85  # finished rows leave the batch when at most this share is still alive


@dataclass(eq=False)
class Row:
    """One completion in the making: ``prompt`` is the place of its prompt, ``limit`` its greatest
    length, ``hasher`` what its keys derive from."""

    prompt: int
    limit: int
    hasher: Any
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    drawn: int = 0  # tokens asked for, of which the newest may still be under way
    done: bool = False


@dataclass(frozen=True)
class Settings:
    """How rows are decoded: ``width`` rows side by side, prompts in pieces of ``prefill_chunk``."""

    width: int
    prefill_chunk: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class Together:
    """Which rows may share a batch (see ``selftest``): of different lengths (``ragged``), of one
    length (``alike``); and whether those of a prompt use one copy of it (``shared``)."""

    ragged: bool = True
    alike: bool = True
    shared: bool = False


@dataclass
class Batch:
    """The rows under way with their caches, and the tokens (B,) that they go on with."""

    rows: list[Row]
    caches: list[Any]
    tokens: mx.array


class Decoder:
    """Decodes rows to their ends.

    ``prefilled`` holds the caches of prompts of which rows wait. (``planner_decoding.py`` follows
    the same steps without evaluating them.)
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[tuple[int, ...]],
        stop: Iterable[int],
        settings: Settings,
        together: Together,
    ):
        self.model: Any = model
        self.prompts = prompts
        self.stop = stop
        self.settings = settings
        # An empty recurrent state can't be merged with a filled one: a prompt of one token decides.
        self.ragged = together.ragged and all(len(prompt) > 1 for prompt in prompts)
        self.alike, self.shared = together.alike, together.shared
        self.waiting: deque[Row] = deque()
        self._users: Counter[int] = Counter()
        self.prefilled: dict[int, list[Any]] = {}

    def run(self, rows: Sequence[Row], finished: Callable[[Row], None]) -> Iterator[None]:
        """Decodes all rows, in order; calls ``finished`` for each as it ends. Yields after each
        token of the batch."""
        self.queue(rows)
        while self.waiting:
            yield from self._decode(self.first_batch(), finished)

    def queue(self, rows: Sequence[Row]) -> None:
        """These rows wait from now on."""
        self.waiting = deque(rows)
        self._users = Counter(row.prompt for row in rows)

    # --- one batch ----------------------------------------------------------------------------

    def _decode(self, batch: Batch, finished: Callable[[Row], None]) -> Iterator[None]:
        pending: tuple[mx.array, mx.array, list[Row]] | None = None
        while True:
            drawn = None
            if any(not row.done and row.drawn < row.limit for row in batch.rows):
                # One token ahead: the next step is queued before the last one's tokens are read.
                batch.tokens, logprobs = self.step(batch)
                mx.async_eval(batch.tokens, logprobs)
                drawn = (batch.tokens, logprobs, batch.rows)
            if pending is not None:
                self._collect(*pending, finished)
                yield
            pending = drawn
            alive = [i for i, row in enumerate(batch.rows) if not row.done]
            if pending is None and not alive and not self._can_refill(batch):
                return
            if len(alive) <= COMPACT_AT * len(batch.rows):
                self.compact(batch, alive)

    def step(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """The next token of each row and its log-prob in float32 of softmax(logits / T)."""
        settings = self.settings
        random = uniforms(token_key(row.hasher, row.drawn) for row in batch.rows)
        with quick_step():
            logits = self.model(batch.tokens[:, None], cache=batch.caches)
        logits = logits[:, -1].astype(mx.float32)
        if settings.temperature != 1.0:
            logits = logits * (1.0 / settings.temperature)
        for row in batch.rows:
            row.drawn += 1
        return draw(logits, random, top_p=settings.top_p, top_k=settings.top_k)

    def _collect(
        self,
        tokens: mx.array,
        logprobs: mx.array,
        rows: list[Row],
        finished: Callable[[Row], None],
    ) -> None:
        drawn = zip(rows, np.array(tokens).tolist(), np.array(logprobs).tolist(), strict=True)
        for row, token, logprob in drawn:
            if not row.done:
                row.tokens.append(token)
                row.logprobs.append(logprob)
                if token in self.stop or len(row.tokens) == row.limit:
                    row.done = True
                    finished(row)

    def _can_refill(self, batch: Batch) -> bool:
        if self.shared:
            return bool(self.waiting)
        if not (self.waiting and self.ragged):
            return False
        return all(hasattr(c, "filter") and hasattr(c, "extend") for c in batch.caches)

    def compact(self, batch: Batch, alive: list[int]) -> None:
        """Drops finished rows, where the caches let them go, and takes in waiting ones."""
        refill = self._can_refill(batch)
        if self.shared:
            if alive or refill:
                self._arrange(batch, alive)
            return
        if not all(hasattr(c, "filter") or type(c) is KVCache for c in batch.caches):
            return
        if not alive:
            if refill:  # all at once: there is nothing to join
                fresh = self._take(self.settings.width)
                batch.rows, batch.tokens = fresh, self._last(fresh)
                batch.caches = self._merged(fresh)
            return
        keep = mx.array(alive)
        for cache in batch.caches:
            _keep_rows(cache, keep)
        batch.tokens = batch.tokens[keep]
        batch.rows = [batch.rows[i] for i in alive]
        if refill:
            fresh = self._take(self.settings.width - len(alive))
            for cache, more in zip(batch.caches, self._merged(fresh), strict=True):
                cache.extend(more)
            batch.tokens = mx.concatenate([batch.tokens, self._last(fresh)])
            batch.rows = [*batch.rows, *fresh]

    def _arrange(self, batch: Batch, alive: list[int]) -> None:
        """Fills the places of rows that aren't alive with waiting ones, as far as there are any."""
        fresh = self._take(self.settings.width - len(alive))
        rows = [*(batch.rows[i] for i in alive), *fresh]
        caches = {p: self._prompt(p, last=True) for p in {row.prompt: None for row in fresh}}
        batch.caches = arrange(
            batch.caches,
            alive,
            [(row.prompt, len(self.prompts[row.prompt]) - 1) for row in fresh],
            caches,
            room=max(row.limit - row.drawn for row in rows),
            last=not self.waiting,
        )
        batch.tokens = mx.concatenate([batch.tokens[mx.array(alive, mx.int32)], self._last(fresh)])
        batch.rows = rows

    # --- rows to begin with ---------------------------------------------------------------------

    def first_batch(self) -> Batch:
        if self.shared:
            batch = Batch([], [], mx.array([], dtype=mx.int32))
            self._arrange(batch, [])
            return batch
        lengths = {len(self.prompts[row.prompt]) for row in list(self.waiting)[: self._width()]}
        refill = len(self.waiting) > self._width()
        caches = self._prompt(self.waiting[0].prompt)
        plain = self.alike and all(type(c) is KVCache for c in caches)
        if plain and len(lengths) == 1 and not (refill and self.ragged):
            # Prompts of one length: plain caches with a row per completion, which need no mask.
            rows = self._take(self._width())
            return Batch(rows, self._repeated(rows), self._last(rows))
        if self.ragged:
            rows = self._take(self._width())
            return Batch(rows, self._merged(rows), self._last(rows))
        if plain:
            rows = self._take(self._alike())
            return Batch(rows, self._repeated(rows), self._last(rows))
        # E.g. chunked attention: one row at a time, the same tokens.
        rows = self._take(1)
        caches = copy.deepcopy(self._prompt(rows[0].prompt, last=True))
        return Batch(rows, caches, self._last(rows))

    def _width(self) -> int:
        return min(self.settings.width, len(self.waiting))

    def _alike(self) -> int:
        """Of the next rows, how many have prompts of one length."""
        first = len(self.prompts[self.waiting[0].prompt])
        for i in range(self._width()):
            if len(self.prompts[self.waiting[i].prompt]) != first:
                return i
        return self._width()

    def _take(self, count: int) -> list[Row]:
        rows = [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]
        self._users.subtract(row.prompt for row in rows)
        return rows

    def _last(self, rows: list[Row]) -> mx.array:
        return mx.array([self.prompts[row.prompt][-1] for row in rows], dtype=mx.int32)

    def _prompt(self, prompt: int, *, last: bool = False) -> list[Any]:
        """The caches after a prompt; it is run once, and kept while rows of it wait."""
        if prompt not in self.prefilled:
            self.prefilled[prompt] = prefill(
                self.model, self.prompts[prompt], self.settings.prefill_chunk
            )
        caches = self.prefilled[prompt]
        if last and not self._users[prompt]:
            del self.prefilled[prompt]
        return caches

    def _layers(self, rows: list[Row]) -> tuple[list[tuple[Any, ...]], mx.array]:
        """For each layer the caches of the rows' prompts, and each row's place among them."""
        order = list(dict.fromkeys(row.prompt for row in rows))
        place = {prompt: i for i, prompt in enumerate(order)}
        layers = list(zip(*(self._prompt(p, last=True) for p in order), strict=True))
        return layers, mx.array([place[row.prompt] for row in rows])

    def _repeated(self, rows: list[Row]) -> list[Any]:
        layers, index = self._layers(rows)
        repeated = []
        for layer in layers:
            repeated.append(repeat(layer, index))
        return _sized(repeated, max(row.limit for row in rows))

    def _merged(self, rows: list[Row]) -> list[Any]:
        """One left-padded cache per layer with a row for each completion."""
        layers, index = self._layers(rows)
        merged = []
        for layer in layers:
            batch = type(layer[0]).merge(layer)
            if hasattr(batch, "filter"):
                batch.filter(index)  # repeats rows as well as it drops them
            else:
                batch = type(layer[0]).merge([layer[i] for i in np.array(index)])
            merged.append(batch)
        return _sized(merged, max(row.limit for row in rows))


def repeat(caches: Sequence[Any], index: mx.array) -> KVCache:
    """One plain cache of rows that these, all of one length, have: for each place in ``index``."""
    cache = KVCache()
    if not caches[0].empty():
        parts = [c.keys_and_values() for c in caches]
        cache.keys = mx.concatenate([k for k, _ in parts])[index]
        cache.values = mx.concatenate([v for _, v in parts])[index]
        cache.offset = caches[0].offset
    return cache


def prefill(model: Any, prompt: tuple[int, ...], chunk: int) -> list[Any]:
    """The caches after all but the last token of a prompt, in chunks that bound the memory."""
    caches = _sized(make_prompt_cache(model), len(prompt) - 1)
    ids = mx.array(prompt[:-1], dtype=mx.int32)
    for start in range(0, len(prompt) - 1, chunk):
        with quick_step():
            model(ids[None, start : start + chunk], cache=caches)
        mx.eval([c.state for c in caches])
    return caches


def _sized(caches: list[Any], tokens: int) -> list[Any]:
    """Caches that grow by the planned length at once, not by 256: short answers decode 2-4 times
    faster."""
    for cache in caches:
        if hasattr(cache, "step"):
            cache.step = max(1, tokens)
    return caches


def _keep_rows(cache: Any, keep: mx.array) -> None:
    if hasattr(cache, "filter"):
        cache.filter(keep)
    elif not cache.empty():
        cache.keys, cache.values = cache.keys[keep], cache.values[keep]
