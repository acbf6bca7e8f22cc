"""What of a step's groups is trained on, and with which measured log-probs."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from simko_mlx.batching import select, tokens_held
from simko_mlx.microbatches import (
    LEAST_TOKENS,
    Part,
    assemble,
    decoded,
    describe,
    lost_tokens,
    measured,
    packed,
    parts_of,
    token_budget,
    without,
)
from tests.runs import small_config
from tests.test_batching import scored


def lengths(part: Part) -> list[int]:
    return [len(c.token_ids) for c in part.scored.group.completions]


@pytest.mark.parametrize("mask", [False, True])
def test_masked_completions_cost_nothing(mask):
    config = small_config(loss__mask_truncated_completions=mask)
    group = scored([3, 50, 60, 4], masked=[1], cut=[2])
    (part,) = parts_of(group, config, may_skip=True)
    assert lengths(part) == ([3, 4] if mask else [3, 60, 4])
    assert part.scored.advantages == ((-0.5, 2.5) if mask else (-0.5, 1.5, 2.5))
    batch = assemble([part], config, normalizer=1.0, bucketed=False)
    assert batch.tokens.shape == ((2, 4) if mask else (3, 60))
    assert parts_of(scored([3, 3], masked=[0, 1]), config, may_skip=False) == []


def test_what_has_nothing_to_teach_is_skipped_where_that_is_known():
    config = small_config()
    equal = replace(scored([3, 4]), advantages=(0.0, 0.0))
    assert parts_of(equal, config, may_skip=True) == []
    assert len(parts_of(equal, config, may_skip=False)) == 1
    # The only advantage is that of a completion which does not count.
    masked = replace(scored([3, 4], masked=[1]), advantages=(0.0, 1.0))
    assert parts_of(masked, config, may_skip=True) == []


def test_groups_are_split_after_what_is_masked_has_gone():
    config = small_config(optim__microbatch_size=2)
    parts = parts_of(scored([1, 2, 3, 4, 5], masked=[1]), config, may_skip=True)
    assert [lengths(part) for part in parts] == [[1, 3], [4, 5]]


def test_the_budget():
    assert token_budget(small_config()) == LEAST_TOKENS
    assert token_budget(small_config(optim__microbatch_size=4)) == 0
    assert token_budget(small_config(optim__microbatch_tokens=77)) == 77
    both = small_config(optim__microbatch_size=4, optim__microbatch_tokens=77)
    assert token_budget(both) == 77
    assert token_budget(small_config(optim__microbatch_tokens=0)) == 0


@pytest.mark.parametrize("budget", [0, 200, 1000, None])
def test_small_groups_share_a_microbatch_up_to_the_budget(budget):
    config = small_config(optim__microbatch_tokens=budget)
    parts = [Part(scored([4] * 4, prompt=5 + i % 3, name=f"p{i}")) for i in range(40)]
    large = Part(scored([100] * 4, prompt=9, name="large"))
    alone = tokens_held([parts[0].scored])
    for chosen in (parts, [*parts, large]):
        for alike in (False, True):
            found = packed(chosen, token_budget(config), alike=alike)
            assert sorted(id(p) for some in found for p in some) == sorted(map(id, chosen))
            limit = max(
                LEAST_TOKENS if budget is None else budget,
                tokens_held([large.scored]) if large in chosen else alone,
            )
            assert all(tokens_held([p.scored for p in some]) <= limit for some in found)
            fewest = -(-len(parts) // (limit // alone))
            assert len(found) <= fewest + (2 if alike else 0) + (large in chosen)
    assert packed([], 1000, alike=False) == []


def test_measured_log_probs_follow_their_completions_into_other_company():
    config = small_config(optim__microbatch_tokens=10**6)
    sizes = {"a": [3, 9], "b": [5, 2, 7], "c": [4]}
    parts = [Part(scored(ls, prompt=4 + i, name=n)) for i, (n, ls) in enumerate(sizes.items())]

    def value(name: str, row: int, token: int) -> float:
        return -(100 * ord(name) + 10 * row + token) / 1000.0

    (together,) = packed(parts, token_budget(config), alike=False)
    batch = assemble(together, config, normalizer=1.0, bucketed=True)
    assert batch.old_logprobs is None and batch.ref_logprobs is None
    n = len(batch.tokens) // 3
    logprobs = np.full(batch.tokens.shape, 77.0, dtype=np.float32)  # padding is looked at by nobody
    for p, part in enumerate(together):
        for row, length in enumerate(lengths(part)):
            name = part.scored.group.problem.id
            logprobs[p * n + row, :length] = [value(name, row, t) for t in range(length)]
    found = measured(together, mx.array(logprobs), "old")
    found = measured(found, mx.array(2 * logprobs), "ref")
    by_name = {part.scored.group.problem.id: part for part in found}
    for names in ("a", "cb", "bac", "ab"):
        some = [by_name[name] for name in names]
        for bucketed in (False, True):
            again = assemble(some, config, normalizer=1.0, bucketed=bucketed)
            assert again.old_logprobs is not None and again.ref_logprobs is not None
            mask = np.array(again.loss_mask) > 0
            rows = len(mask) // len(some)
            for p, name in enumerate(names):
                for row, length in enumerate(sizes[name]):
                    wanted = np.array([value(name, row, t) for t in range(length)])
                    old = np.array(again.old_logprobs)[p * rows + row]
                    ref = np.array(again.ref_logprobs)[p * rows + row]
                    assert old[:length] == pytest.approx(wanted, rel=1e-6)
                    assert ref[:length] == pytest.approx(2 * wanted, rel=1e-6)
            assert mask.sum() == sum(sum(sizes[name]) for name in names)


def test_one_part_without_log_probs_leaves_all_without():
    config = small_config()
    with_old = Part(scored([2], name="a"), old=np.zeros((1, 2), dtype=np.float32))
    batch = assemble([with_old, Part(scored([2]))], config, normalizer=1.0, bucketed=False)
    assert batch.old_logprobs is None


def test_a_part_without_some_of_its_completions():
    old = np.arange(12, dtype=np.float32).reshape(4, 3)
    part = Part(scored([1, 2, 3, 3]), old=old, ref=-old)
    assert part.without({0, 1, 2, 3}) == []
    (rest,) = part.without({0, 2})
    assert lengths(rest) == [2, 3] and rest.scored.advantages == (0.5, 2.5)
    assert rest.old is not None and rest.ref is not None
    assert rest.old.tolist() == old[[1, 3]].tolist() == (-rest.ref).tolist()
    assert rest.scored == select(part.scored, [1, 3])
    (same,) = part.without(set())
    assert same.scored == part.scored


def test_a_microbatch_without_rows_of_its_batch():
    config = small_config()
    parts = [Part(scored([1, 2, 3], name="a")), Part(scored([4], name="b"))]
    batch = assemble(parts, config, normalizer=1.0, bucketed=False)  # rows a a a, b - -
    assert [lengths(p) for p in without(parts, batch, {1})] == [[1, 3], [4]]
    assert [lengths(p) for p in without(parts, batch, {3})] == [[1, 2, 3]]
    assert [lengths(p) for p in without(parts, batch, {0, 1, 2, 3})] == []
    assert [lengths(p) for p in without(parts, batch, {0, 1, 2})] == [[4]]
    assert "problem b has no finite log-probability at token 3" in describe(parts, batch, 3, 2)
    assert "'a1'" in describe(parts, batch, 1, 0)


def test_lost_tokens_are_those_that_count():
    config = small_config()
    parts = [Part(scored([2, 3], name="a")), Part(scored([3, 1], name="b"))]
    batch = assemble(parts, config, normalizer=1.0, bucketed=False)
    values = np.zeros(batch.tokens.shape, dtype=np.float32)
    assert lost_tokens(batch, mx.array(values)) == []
    values[0, 2] = np.nan  # padding
    values[1, 1:] = np.nan
    values[3, 0] = -np.inf
    assert lost_tokens(batch, mx.array(values)) == [(1, 1), (3, 0)]
    before = np.zeros(batch.tokens.shape, dtype=np.float32)
    before[2, 2] = np.nan
    for name in ("old_logprobs", "ref_logprobs"):
        sick = batch._replace(**{name: mx.array(before)})
        assert lost_tokens(sick, mx.zeros(batch.tokens.shape)) == [(2, 2)]


def test_the_decoders_log_probs_lie_where_the_batch_has_its_tokens():
    config = small_config()
    parts = [Part(scored([2, 3])), Part(scored([1]))]
    batch = assemble(parts, config, normalizer=1.0, bucketed=True)
    found = np.array(decoded(parts, batch))
    assert (found == np.where(np.array(batch.loss_mask) > 0, -0.5, 0.0)).all()
