"""The decode loop's batches: kept full while rows wait, and no row's tokens depend on them."""

from __future__ import annotations

import copy
import gc
from collections import Counter
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache

from simko_mlx.decoding import Decoder, Row, Settings, Together
from simko_mlx.sampling import row_hasher, token_key
from simko_mlx.selftest import can_decode_ragged
from tests.test_head_tap import build

PROMPTS = ((3, 4, 5, 6, 7), (8, 9, 10), (11, 12, 13, 14, 15, 16, 17, 18, 19), (20, 21, 22))
STOP = frozenset(range(0, 200, 9))  # every ninth token ends a row


class Watched:
    """A model that notes the shapes it is called with, and its caches' sizes."""

    def __init__(self, model: Any):
        self.model = model
        self.layers = model.layers
        self.shapes: list[tuple[int, int]] = []
        self.held = 0

    def __call__(self, ids: mx.array, cache: Any = None) -> mx.array:
        self.shapes.append((ids.shape[0], ids.shape[1]))
        out = self.model(ids, cache=cache)
        if getattr(cache[0], "keys", None) is not None:
            self.held = max(self.held, cache[0].keys.shape[2])
        return out

    def make_cache(self) -> list[Any]:
        if hasattr(self.model, "make_cache"):
            return self.model.make_cache()
        return [KVCache() for _ in self.layers]

    @property
    def prefills(self) -> list[int]:
        return [length for _, length in self.shapes if length > 1]

    @property
    def widths(self) -> list[int]:
        return [rows for rows, length in self.shapes if length == 1]


@pytest.fixture(scope="module")
def qwen() -> Any:
    return build("qwen2")


def rows_of(count: int, prompts=PROMPTS, limit: int = 20) -> list[Row]:
    """Rows that alternate between prompts; each with a limit of its own."""
    n = len(prompts)
    return [Row(i % n, limit - i % 5, row_hasher(0, 1, f"p{i % n}", i // n)) for i in range(count)]


def decode(
    model: Any,
    count: int,
    *,
    width: int = 4,
    prompts=PROMPTS,
    stop=STOP,
    limit: int = 20,
    ragged: bool = True,
    shared: bool = False,
    chunk: int = 512,
) -> tuple[list[Row], Watched, Decoder]:
    watched = Watched(model)
    rows = rows_of(count, prompts, limit)
    settings = Settings(width=width, prefill_chunk=chunk)
    decoder = Decoder(watched, prompts, stop, settings, Together(ragged, shared=shared))  # type: ignore[arg-type]
    ended: Counter[int] = Counter()

    def finished(row: Row) -> None:
        assert row.done and row.tokens
        ended[id(row)] += 1

    for _ in decoder.run(rows, finished):
        assert set(ended) == {id(row) for row in rows if row.done}  # told in the same step
    assert ended == Counter(id(row) for row in rows)
    return rows, watched, decoder


def drawn(rows: list[Row]) -> list[list[int]]:
    return [row.tokens for row in rows]


def close(rows: list[Row], others: list[Row]) -> bool:
    pairs = zip(rows, others, strict=True)
    return all(row.logprobs == pytest.approx(other.logprobs, abs=2e-4) for row, other in pairs)


def test_rows_end_where_they_should(qwen):
    rows, *_ = decode(qwen, 24)
    stopped = [row for row in rows if row.tokens[-1] in STOP]
    assert len(stopped) > 5 and len({len(row.tokens) for row in stopped}) > 3
    for row in rows:
        assert not any(token in STOP for token in row.tokens[:-1])
        assert row in stopped or len(row.tokens) == row.limit
        assert len(row.logprobs) == len(row.tokens) <= row.limit


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8])
def test_a_batch_that_refills_draws_the_same_tokens(qwen, width):
    wide, *_ = decode(qwen, 24, width=24)
    rows, *_ = decode(qwen, 24, width=width)
    assert drawn(rows) == drawn(wide)
    assert close(rows, wide)


def test_the_batch_is_full_as_long_as_rows_wait(qwen):
    rows, watched, _ = decode(qwen, 30, width=4)
    assert watched.widths == sorted(watched.widths, reverse=True)  # 4 until the very last rows
    assert watched.widths.count(4) > 0.7 * len(watched.widths)
    tokens = sum(len(row.tokens) for row in rows)
    # Without refilling, each batch of 4 would go on for as long as its longest row.
    batches = [rows[i : i + 4] for i in range(0, len(rows), 4)]
    plain = sum(max(len(row.tokens) for row in batch) for batch in batches)
    assert len(watched.widths) < 0.85 * plain
    assert sum(watched.widths) < 1.6 * tokens


def test_finished_rows_leave_when_nothing_waits(qwen):
    _, watched, _ = decode(qwen, 8, width=8)
    assert watched.widths[0] == 8 and watched.widths[-1] <= 3


@pytest.mark.parametrize("width", [2, 5, 16])
def test_each_prompt_is_run_once_and_dropped_when_no_row_of_it_waits(qwen, width):
    _, watched, decoder = decode(qwen, 16, width=width)
    assert sorted(watched.prefills) == sorted(len(prompt) - 1 for prompt in PROMPTS)
    assert decoder.prefilled == {}


def test_a_prompts_cache_is_kept_only_while_rows_of_it_wait(qwen):
    rows = [Row(i // 4, 6, row_hasher(0, 1, f"p{i // 4}", i % 4)) for i in range(16)]
    decoder = Decoder(qwen, PROMPTS, (), Settings(width=2, prefill_chunk=512), Together())
    for _ in decoder.run(rows, lambda row: None):
        waiting = {row.prompt for row in decoder.waiting}
        assert set(decoder.prefilled) <= waiting and len(decoder.prefilled) <= 1


def test_prompts_are_run_in_chunks(qwen):
    whole, *_ = decode(qwen, 8, width=3)
    rows, watched, _ = decode(qwen, 8, width=3, chunk=3)
    assert drawn(rows) == drawn(whole)
    assert max(watched.prefills) == 3


def test_rows_that_stop_at_once_are_replaced_at_once(qwen):
    """Every token stops: each row is one token, and the batch is renewed at every step."""
    for width in (1, 3, 4):
        rows, watched, _ = decode(qwen, 10, width=width, stop=range(200))
        assert [len(row.tokens) for row in rows] == [1] * 10
        assert len(watched.widths) <= 2 * 10 // width + 4


def test_limits_of_one_and_rows_that_outlast_many_others(qwen):
    def mixed() -> list[Row]:
        limits = [40, 1, 1, 1, 1, 1, 1, 2, 1, 1, 3, 1]
        return [Row(i % 4, limit, row_hasher(0, 1, "p", i)) for i, limit in enumerate(limits)]

    found = []
    for width in (12, 2, 3):
        rows = mixed()
        settings = Settings(width=width, prefill_chunk=512)
        for _ in Decoder(qwen, PROMPTS, (), settings, Together()).run(rows, lambda row: None):
            pass
        assert [len(row.tokens) for row in rows] == [row.limit for row in rows]
        found.append(drawn(rows))
    assert found[0] == found[1] == found[2]


def test_stops_in_the_very_step_of_a_refill(qwen):
    """With stop tokens from the rows' own answers, so that rows end at every place there is."""
    free, *_ = decode(qwen, 12, width=12, stop=())
    for place in (0, 1, 2, 5, 9):
        stop = {row.tokens[place] for row in free[::3]}
        for width in (2, 3):
            rows, *_ = decode(qwen, 12, width=width, stop=stop)
            for row, whole in zip(rows, free, strict=True):
                end = next((i for i, t in enumerate(whole.tokens) if t in stop), row.limit - 1)
                assert row.tokens == whole.tokens[: end + 1]


@pytest.mark.parametrize("prompts", [((5,), (6,)), ((5,), (6, 7, 8)), ((6, 7, 8), (5,))])
@pytest.mark.parametrize("family", ["qwen2", "mamba"])
def test_prompts_of_one_token(family, prompts):
    """Nothing is prefilled then, and an empty state can't be merged with a filled one."""
    model = build(family)
    alone, *_ = decode(model, 8, width=1, prompts=prompts)
    for width in (2, 3, 8):
        rows, *_ = decode(model, 8, width=width, prompts=prompts)
        assert drawn(rows) == drawn(alone) and close(rows, alone)


def test_where_rows_of_different_lengths_cannot_mix(qwen):
    wanted, *_ = decode(qwen, 16, width=16)
    rows, watched, _ = decode(qwen, 16, width=4, ragged=False)
    assert drawn(rows) == drawn(wanted) and close(rows, wanted)
    assert set(watched.widths) == {1}  # neighbours never have prompts of one length here
    same = tuple(prompt[:2] for prompt in PROMPTS)
    wanted, *_ = decode(qwen, 16, width=16, prompts=same)
    rows, watched, _ = decode(qwen, 16, width=4, prompts=same, ragged=False)
    assert drawn(rows) == drawn(wanted) and close(rows, wanted)
    assert max(watched.widths) == 4


class Unmergeable(KVCache):
    """A cache of another kind, which has neither merge nor filter."""

    @property
    def merge(self):
        raise AttributeError

    def __deepcopy__(self, memo):
        out = Unmergeable()
        out.__dict__.update(self.__dict__)
        if self.keys is not None:  # written to in place
            out.keys, out.values = mx.array(self.keys), mx.array(self.values)
        return out


def test_caches_that_cannot_be_merged_take_one_row_at_a_time(qwen):
    wanted, *_ = decode(qwen, 8, width=8)
    watched = Watched(qwen)
    watched.make_cache = lambda: [Unmergeable() for _ in qwen.layers]  # type: ignore[method-assign]
    assert can_decode_ragged(watched) == "Unmergeable can't be merged"
    rows = rows_of(8)
    decoder = Decoder(
        watched,  # type: ignore[arg-type]
        *(PROMPTS, STOP, Settings(width=4, prefill_chunk=512)),
        Together(ragged=False),
    )
    for _ in decoder.run(rows, lambda row: None):
        pass
    assert drawn(rows) == drawn(wanted) and set(watched.widths) == {1}


@pytest.mark.parametrize("family", ["gemma3_text", "mamba"])
def test_windows_and_states_refill_too(family):
    """Rows longer than the window of 8; a recurrent state."""
    model = build(family)
    assert can_decode_ragged(model) is None
    alone, *_ = decode(model, 12, width=1)
    for width in (3, 12):
        rows, *_ = decode(model, 12, width=width)
        assert drawn(rows) == drawn(alone) and close(rows, alone)


def test_caches_do_not_grow_with_the_number_of_rows(qwen):
    bound = max(map(len, PROMPTS)) + 3 * 20
    for count in (12, 96):
        _, watched, _ = decode(qwen, count, width=4)
        assert watched.held <= bound


def test_no_memory_is_left_behind(qwen):
    def held() -> int:
        gc.collect()
        return mx.get_active_memory()

    decode(qwen, 16)
    before = held()
    for _ in range(2):
        decode(qwen, 32)
    assert held() <= before + 4096


def test_the_first_row_of_a_prompt_does_not_write_into_the_caches_of_the_next(qwen):
    """Rows of one prompt share its caches, which decoding writes into in place."""
    rows = [Row(0, 8, row_hasher(0, 1, "p", 0)) for _ in range(6)]  # six times the same row
    for ragged in (True, False):
        again = copy.deepcopy([Row(r.prompt, r.limit, None) for r in rows])
        for row in again:
            row.hasher = row_hasher(0, 1, "p", 0)
        settings = Settings(width=2, prefill_chunk=512)
        decoder = Decoder(qwen, PROMPTS, (), settings, Together(ragged))
        for _ in decoder.run(again, lambda row: None):
            pass
        assert len({tuple(row.tokens) for row in again}) == 1


def test_each_token_of_a_row_has_a_key_of_its_own(qwen, monkeypatch):
    asked: list[tuple[int, int]] = []

    def noting(hasher: Any, token: int) -> bytes:
        asked.append((id(hasher), token))
        return token_key(hasher, token)

    monkeypatch.setattr("simko_mlx.decoding.token_key", noting)
    rows, *_ = decode(qwen, 9, width=3)
    for row in rows:
        places = [token for hasher, token in asked if hasher == id(row.hasher)]
        assert places == list(range(len(places))) and len(places) >= len(row.tokens)


def test_rows_that_may_not_share_a_batch_decode_one_at_a_time(qwen):
    expected, _, _ = decode(qwen, 4)
    watched, rows = Watched(qwen), rows_of(4)
    settings = Settings(width=8, prefill_chunk=512)
    decoder = Decoder(watched, PROMPTS, STOP, settings, Together(False, False))  # type: ignore[arg-type]
    for _ in decoder.run(rows, lambda row: None):
        pass
    assert set(watched.widths) == {1} and drawn(rows) == drawn(expected)
