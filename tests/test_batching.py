"""Scored groups put into arrays, and put together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from simko_mlx.batching import (
    bucket,
    completion_tokens,
    counts,
    group_batch,
    pack,
    pad,
    select,
    split_group,
    token_batch,
    tokens_held,
)
from simko_mlx.types import LENGTH, STOP, Completion, Problem, RolloutGroup, ScoredGroup, Verdict


def scored(lengths, *, prompt=5, name="p", masked=(), cut=()) -> ScoredGroup:
    """A group whose completions have these lengths; their tokens count up from 1."""
    completions = tuple(
        Completion(tuple(range(1, n + 1)), (-0.5,) * n, f"{name}{i}", LENGTH if i in cut else STOP)
        for i, n in enumerate(lengths)
    )
    verdicts = tuple(
        Verdict(None if i in masked else float(i % 2), i % 2 == 1) for i in range(len(lengths))
    )
    problem = Problem(name, (), "1")
    group = RolloutGroup(problem, tuple(range(prompt)), completions)
    return ScoredGroup(group, verdicts, tuple(i - 0.5 for i in range(len(lengths))))


def test_buckets_are_few_and_waste_little():
    sizes = range(1, 5000)
    found = [bucket(size) for size in sizes]
    assert all(b >= size for b, size in zip(found, sizes, strict=True))
    assert found == sorted(found)
    assert [bucket(b) for b in found] == found
    for b, size in zip(found, sizes, strict=True):
        assert b - size < 8 or b < 1.25 * size
        assert b % 8 == 0
    assert len(set(found)) <= 8 + 4 * 7
    assert [bucket(n) for n in (1, 8, 9, 64, 65, 80, 81, 128, 129)] == (
        [8, 8, 16, 64, 80, 80, 96, 128, 160]
    )


def test_rows_are_padded_with_zeros():
    assert pad([[1, 2], [3]], np.int32).tolist() == [[1, 2], [3, 0]]
    assert pad([[1.5]], shape=(2, 3)).tolist() == [[1.5, 0, 0], [0, 0, 0]]


def test_smaller_parts_are_filled_up_with_rows_that_take_no_part():
    parts = [scored([3, 1, 2], prompt=5), scored([4], prompt=2)]
    batch = token_batch(parts, normalizer=9.0)
    assert [len(p) for p in batch.prompts] == [5, 2]
    assert batch.tokens.tolist() == [
        [1, 2, 3, 0], [1, 0, 0, 0], [1, 2, 0, 0], [1, 2, 3, 4], [0] * 4, [0] * 4,
    ]  # fmt: skip
    assert batch.loss_mask.sum(axis=1).tolist() == [3, 1, 2, 4, 0, 0]
    assert batch.advantages.tolist() == [-0.5, 0.5, 1.5, -0.5, 0, 0]
    assert batch.correct.tolist() == [False, True, False, False, False, False]
    assert batch.normalizer == 9.0


@pytest.mark.parametrize("longest", [1, 8, 9, 70])
def test_a_bucketed_batch_is_the_same_but_for_its_width(longest):
    parts = [scored([longest, 1])]
    exact, padded = (token_batch(parts, normalizer=1.0, bucketed=b) for b in (False, True))
    assert exact.tokens.shape[1] == longest and padded.tokens.shape[1] == bucket(longest)
    for name in ("tokens", "loss_mask"):
        wide = np.array(getattr(padded, name))
        assert (wide[:, :longest] == np.array(getattr(exact, name))).all()
        assert not wide[:, longest:].any()


def test_what_counts():
    group = scored([2, 2, 2, 2], masked=[1], cut=[1, 2])
    assert [counts(group, i, False) for i in range(4)] == [True, False, True, True]
    assert [counts(group, i, True) for i in range(4)] == [True, False, False, True]
    for mask in (False, True):
        batch = token_batch([group], normalizer=1.0, mask_truncated=mask)
        assert batch.loss_mask.sum(axis=1).tolist() == [
            2 * counts(group, i, mask) for i in range(4)
        ]
    assert completion_tokens([group, group]) == 16


def test_a_group_to_measure_counts_whole():
    batch = group_batch(scored([3, 1], masked=[0], cut=[1]).group)
    assert batch.loss_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert not np.array(batch.advantages).any() and not np.array(batch.correct).any()


def test_parts_of_a_group_keep_their_advantages():
    group = scored([1, 2, 3, 4, 5])
    parts = split_group(group, 2)
    assert [len(part.verdicts) for part in parts] == [2, 2, 1]
    assert sum((part.advantages for part in parts), ()) == group.advantages
    assert sum((part.group.completions for part in parts), ()) == group.group.completions
    chosen = select(group, [3, 1])
    assert chosen.advantages == (2.5, 0.5)
    assert [len(c.token_ids) for c in chosen.group.completions] == [4, 2]
    assert chosen.verdicts == (group.verdicts[3], group.verdicts[1])


def test_tokens_held_counts_what_the_arrays_have():
    parts = [scored([3, 70, 2], prompt=5), scored([4], prompt=20)]
    batch = token_batch(parts, normalizer=1.0, bucketed=True)
    assert tokens_held(parts) == batch.tokens.size + 2 * bucket(20)
    assert tokens_held([scored([1])]) == 8 + 8


def test_packing_keeps_to_the_budget_and_loses_nothing():
    rng = np.random.default_rng(0)
    parts = [
        scored(rng.integers(1, 120, size=rng.integers(1, 9)), prompt=int(rng.integers(1, 60)))
        for _ in range(60)
    ]
    whole = sorted(map(id, parts))
    for budget in (0, 500, 3000, 10**9):
        for alike in (False, True):
            packed = pack(parts, budget, alike)
            assert sorted(id(part) for some in packed for part in some) == whole
            for some in packed:
                assert len(some) == 1 or tokens_held(some) <= budget
                assert not alike or len({len(part.group.prompt_ids) for part in some}) == 1
            if budget == 0:
                assert len(packed) == 60
            if budget == 3000 and not alike:
                assert len(packed) < 45
                # No neighbour would have fitted as well.
                for some, following in itertools.pairwise(packed):
                    assert tokens_held([*some, following[0]]) > budget
    assert len(pack(parts, 10**9)) == 1
    lengths = {len(part.group.prompt_ids) for part in parts}
    assert len(pack(parts, 10**9, alike=True)) == len(lengths)


def test_parts_of_one_shape_stay_in_order_and_come_together():
    short = [scored([4, 4], prompt=4, name=f"s{i}") for i in range(3)]
    long = [scored([60, 60], prompt=50, name=f"l{i}") for i in range(3)]
    mixed = [part for pair in zip(long, short, strict=True) for part in pair]
    packed = pack(mixed, 3 * tokens_held(long[:1]))
    names = [[part.group.problem.id for part in some] for some in packed]
    assert [name for some in names for name in some] == ["s0", "s1", "s2", "l0", "l1", "l2"]
    assert pack([], 100) == []
