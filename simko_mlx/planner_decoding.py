"""The memory that decoding takes: the decoder's own steps at their largest, never evaluated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import CacheList, make_prompt_cache

from simko_mlx.decoding import COMPACT_AT, Batch, Decoder, Row, Settings, Together
from simko_mlx.graphs import CPU, peak_bytes
from simko_mlx.policy import Policy
from simko_mlx.sampling import row_hasher
from simko_mlx.shared_prompts import PIECE, share_attention

Caches = list[Any]

# The worst of ten places where the CPU queue's tasks may end takes ten times as long to tell, and
# is within 2 % of the first.
QUEUE = CPU._replace(phases=1) if mx.default_device().type == mx.DeviceType.cpu else None


@dataclass(frozen=True)
class Rows:
    """``rows`` decoded side by side, ``group`` for each of ``prompts``; ``refilled``: others wait
    to take the places of those that end."""

    rows: int
    group: int
    prompts: int
    refilled: bool

    @classmethod
    def of(cls, problems: int, group: int, width: int) -> Rows:
        rows = min(width, problems * group)
        return cls(rows, group, -(-rows // group), problems * group > rows)


def decoding_bytes(policy: Policy, rows: Rows, prompt: int, completion: int) -> int:
    """Bytes that decoding takes at the largest of its moments."""
    policy.model.eval()
    return max(_Decoding(policy, rows, prompt, completion).moments())


class _Decoding:
    """Decoding at its longest: prompts that differ by a token, completions of full length."""

    def __init__(self, policy: Policy, rows: Rows, prompt: int, completion: int):
        self.policy = policy
        self.model: Any = policy.model
        self.rows = rows
        self.completion = completion
        self.chunk = policy.config.rollout.prefill_chunk
        known = policy.together
        ragged = self._takes_ragged_rows() if known is None else known.ragged
        shared = policy.shares_prompts and not policy.unshared and share_attention(self.model)
        self.together = Together(ragged, known is None or known.alike, shared)
        unequal = self.together.ragged or self.together.shared
        lengths = [max(1, prompt - (i % 2 and unequal)) for i in range(rows.prompts + 1)]
        self.prompts = [(0,) * length for length in lengths]

    def _takes_ragged_rows(self) -> bool:
        """What the self-test will find, as far as shapes tell."""
        caches = [self._prefill((0,) * length) for length in (5, 2)]
        if not all(hasattr(cache, "merge") for cache in caches[0]):
            return False
        # Seven rows: two might pass for the heads of a model.
        merged = [type(c).merge([c, d, c, d, c, d, c]) for c, d in zip(*caches, strict=True)]
        try:
            self.model(mx.zeros((7, 1), dtype=mx.int32), cache=merged)
        except ValueError:  # shapes that don't broadcast
            return False
        return True

    def moments(self) -> Iterator[int]:
        """Bytes at each moment that may be the largest."""
        long, short = (self._prefill(prompt) for prompt in (self.prompts * 2)[:2])
        prompts = [short if p % 2 else long for p in range(len(self.prompts))]
        held = _bytes(prompts[:-1])
        yield held + self._last_piece()
        yield held + self._peak(prompts, self._begin)

        batch = self._begin(prompts)
        if self.together.shared:
            yield from self._moments_shared(batch, prompts)
            return
        yield _bytes([batch.caches]) + self._peak([batch.caches], self._go_on(batch))
        if self.rows.refilled and all(hasattr(c, "_idx") for c in batch.caches):
            # A buffer that rows have joined outlasts the first completions, and grows once.
            for cache in batch.caches:
                cache._idx = len(self.prompts[0]) - 1 + self.completion
            yield _bytes([batch.caches]) + self._peak([batch.caches], self._go_on(batch))
            self._decoder([], 0).step(batch)  # it grows
            for cache in batch.caches:
                cache._idx -= 1
        if self.rows.refilled:
            caches = [batch.caches, *prompts]
            yield _bytes([batch.caches, prompts[0]]) + self._peak(caches, self._join(batch))

    def _moments_shared(self, batch: Batch, prompts: list[Caches]) -> Iterator[int]:
        # A buffer that has grown outlasts the one it grew from.
        self._age(batch, (self.completion - 1) % PIECE + 1, columns=0)
        yield _bytes([batch.caches]) + self._peak([batch.caches], self._step(batch))
        self._age(batch)
        alive = COMPACT_AT * len(batch.rows), 2 * self.rows.prompts - 1  # then each for itself
        for rows in {max(1, int(count)) for count in alive if count <= len(batch.rows)}:
            yield _bytes([batch.caches]) + self._peak([batch.caches], self._go_on(batch, rows))
        if self.rows.refilled:
            for _ in range(2):  # rows that join make room for as many tokens again
                caches = [batch.caches, *prompts]
                yield _bytes([batch.caches, prompts[0]]) + self._peak(caches, self._join(batch))
                batch = self._join(batch)([_with(c, _arrays(c)) for c in caches])
                self._age(batch)

    def _age(self, batch: Batch, left: int = 1, *, columns: int = 1) -> None:
        """The moment before the last tokens of these rows, for which buffers have ``columns``."""
        for row in batch.rows:
            row.drawn = self.completion - left
        for cache in batch.caches:
            cache.used = self.completion - left + int(cache.layout.begins.min())
            cache.room = cache.used + left
            for name in ("keys", "values"):
                heads, size = getattr(cache, name).shape[1::2]
                shape = len(batch.rows), heads, cache.used + columns, size
                setattr(cache, name, mx.zeros(shape, getattr(cache, name).dtype))

    # --- what is traced -------------------------------------------------------------------------

    def _begin(self, prompts: list[Caches]) -> Batch:
        return self._started(self._decoder(prompts, self.rows.rows + self.rows.refilled))

    def _step(self, batch: Batch) -> Callable[[list[Caches]], Batch]:
        """A token."""

        def run(caches: list[Caches]) -> Batch:
            same = _copied(batch, caches[0])
            same.tokens = self._decoder([], 0).step(same)[0]
            return same

        return run

    def _go_on(self, batch: Batch, rows: int | None = None) -> Callable[[list[Caches]], Batch]:
        """A token, with the finished rows gone where they may go."""
        alive = list(range(rows or max(1, int(COMPACT_AT * len(batch.rows)))))

        def run(caches: list[Caches]) -> Batch:
            decoder, same = self._decoder([], 0), _copied(batch, caches[0])
            decoder.compact(same, alive)
            same.tokens = decoder.step(same)[0]
            return same

        return run

    def _join(self, batch: Batch) -> Callable[[list[Caches]], Batch]:
        """A token, after waiting rows have taken the places of finished ones."""

        def run(caches: list[Caches]) -> Batch:
            alive = range(int(COMPACT_AT * len(batch.rows)))
            decoder = self._decoder(caches[1:], len(batch.rows) - len(alive))
            same = _copied(batch, caches[0])
            decoder.compact(same, list(alive))
            same.tokens = decoder.step(same)[0]
            return same

        return run

    def _started(self, decoder: Decoder) -> Batch:
        batch = decoder.first_batch()
        batch.tokens = decoder.step(batch)[0]
        return batch

    def _last_piece(self) -> int:
        length = len(self.prompts[0]) - 1
        last = max(0, (length - 1) // self.chunk * self.chunk)
        if not length:
            return 0

        def run(caches: list[Caches]) -> Batch:
            self.model(mx.zeros((1, length - last), dtype=mx.int32), cache=caches[0])
            return Batch([], caches[0], mx.zeros((1,)))

        return self._peak([self._prefill(self.prompts[0], last)], run)

    # --- parts ----------------------------------------------------------------------------------

    def _decoder(self, prompts: list[Caches], rows: int) -> Decoder:
        """A decoder for which so many rows wait, after these prompts."""
        temperature = self.policy.config.rollout.temperature
        settings = Settings(self.rows.rows, self.chunk, temperature)
        decoder = Decoder(self.model, self.prompts, (), settings, self.together)
        hasher = row_hasher(0, 0, "", 0)
        group = self.rows.group
        decoder.queue([Row(i // group, self.completion, hasher) for i in range(rows)])
        decoder.prefilled = dict(enumerate(prompts))
        return decoder

    def _prefill(self, prompt: tuple[int, ...], length: int | None = None) -> Caches:
        """Lazy caches that have room for a prompt, after all of its tokens but one."""
        caches = make_prompt_cache(self.model)
        for cache in caches:
            if hasattr(cache, "step"):
                cache.step = max(1, len(prompt) - 1)
        length = len(prompt) - 1 if length is None else length
        for start in range(0, length, self.chunk):
            size = min(self.chunk, length - start)
            self.model(mx.zeros((1, size), dtype=mx.int32), cache=caches)
        return caches

    def _peak(self, caches: list[Caches], run: Callable[[list[Caches]], Batch]) -> int:
        """Bytes that running takes beyond these caches, which nobody else holds."""

        def traced(parameters: Any, arrays: Any) -> Any:
            self.model.update(parameters)
            mine = [_with(c, a) for c, a in zip(caches, arrays, strict=True)]
            batch = run(mine)
            return batch.tokens, _arrays(batch.caches)

        arrays = [_arrays(c) for c in caches]
        parameters = self.policy.model.parameters()
        return peak_bytes(traced, parameters, arrays, given=(1,), queue=QUEUE).peak


def _copied(batch: Batch, caches: Caches) -> Batch:
    return Batch(batch.rows, caches, mx.zeros((len(batch.rows),), dtype=mx.int32))


def _leaves(caches: Sequence[Any]) -> Iterator[Any]:
    """The caches one by one, of layers that have several too."""
    for cache in caches:
        if isinstance(cache, CacheList):
            yield from _leaves(cache.caches)
        else:
            yield cache


def _arrays(caches: Caches) -> list[dict[str, Any]]:
    """Keys, values and states; places and padding are few numbers, and looked at on the way."""
    return [
        {name: x for name, x in vars(cache).items() if _is_state(x)} for cache in _leaves(caches)
    ]


def _is_state(x: Any) -> bool:
    if isinstance(x, list):
        return any(_is_state(item) for item in x)
    return isinstance(x, mx.array) and mx.issubdtype(x.dtype, mx.floating)


def _with(caches: Caches, arrays: list[dict[str, Any]]) -> Caches:
    """Copies of the caches that hold these arrays."""
    rest = iter(arrays)

    def copied(cache: Any) -> Any:
        other = copy.copy(cache)
        if isinstance(cache, CacheList):
            other.caches = tuple(map(copied, cache.caches))
            return other
        for name, value in next(rest).items():
            setattr(other, name, list(value) if isinstance(value, list) else value)
        return other

    return list(map(copied, caches))


def _bytes(caches: list[Caches]) -> int:
    arrays: Any = tree_flatten([_arrays(c) for c in caches])
    return sum(array.nbytes for _, array in arrays)
