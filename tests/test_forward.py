"""One forward pass per prompt for all its completions, against each row alone and in full."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from simko_mlx.forward import WAYS, Way, lay_out
from simko_mlx.prefix import PrefixCache
from tests.shared_prompts import by_layout, by_rows, make_batch, policy_of, relative_error

ONE = make_batch([9], [[6, 3, 1]])
RAGGED = make_batch([9, 4, 13], [[6, 3], [1, 8], [5, 0]])


@pytest.fixture(scope="module", params=["qwen2", "llama", "gemma2"])
def policy(request, tmp_path_factory) -> Any:
    return policy_of(tmp_path_factory.mktemp(request.param), request.param)


def agrees(policy: Any, batch: Any, way: Way, *, bucketed: bool, wanted: Any = None) -> None:
    logprobs, gradient = wanted or by_rows(policy, batch)
    found, mine = by_layout(policy, lay_out(batch, way, bucketed=bucketed), batch)
    assert mx.abs(found - logprobs).max().item() < 2e-5
    assert not (np.array(found)[np.array(batch.loss_mask) == 0]).any()
    assert relative_error(mine, gradient) < 1e-4


@pytest.mark.parametrize("bucketed", [False, True])
def test_every_way_gives_the_log_probs_and_gradient_of_single_rows(policy, bucketed):
    one, ragged = by_rows(policy, ONE), by_rows(policy, RAGGED)
    for way in WAYS:
        agrees(policy, ONE, way, bucketed=bucketed, wanted=one)
        # Gemma 2's attention takes no mask per row.
        if way == "full" or (way == "packed" and policy.way == "packed"):
            agrees(policy, RAGGED, way, bucketed=bucketed, wanted=ragged)


def test_statistics_take_the_policys_way(policy):
    family = policy.model.args.model_type
    fastest: Way = "single" if family == "gemma2" else "packed"
    assert policy.way == fastest
    batch = RAGGED if fastest == "packed" else ONE
    wanted, _ = by_rows(policy, batch, temperature=0.7)
    for policy.way in ("full", fastest):
        stats = policy.statistics(batch, simko_k=2, temperature=0.7)
        assert mx.abs(stats.logprobs - wanted).max().item() < 3e-5
        measured = policy.statistics(batch, simko_k=2, temperature=0.7, gradient=False)
        assert mx.abs(measured.logprobs - stats.logprobs).max().item() < 1e-6


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Any:
    return policy_of(tmp_path_factory.mktemp("qwen"), "qwen2")


@pytest.mark.parametrize("bucketed", [False, True])
@pytest.mark.parametrize(
    "prompts", [[1], [1, 1], [1, 9], [9, 1, 2], [2, 2], [8, 9, 10], [33, 1]], ids=str
)
def test_prompts_of_any_length(qwen, prompts, bucketed):
    batch = make_batch(prompts, [[3, 5]] * len(prompts))
    wanted = by_rows(qwen, batch)
    ways: tuple[Way, ...] = WAYS if len(set(prompts)) == 1 else ("packed", "full")
    for way in ways:
        agrees(qwen, batch, way, bucketed=bucketed, wanted=wanted)


def test_rows_of_one_token_and_a_single_row(qwen):
    for lengths in ([[1]], [[1, 1, 1]], [[7]]):
        batch = make_batch([5], lengths)
        for way in WAYS:
            agrees(qwen, batch, way, bucketed=True)


def test_a_batch_wider_than_its_tokens(qwen):
    batch = make_batch([5, 3], [[4, 2], [1, 3]], width=16)
    for way in ("packed", "full"):
        agrees(qwen, batch, way, bucketed=True)


def test_ways_that_cannot_mix_lengths_say_so():
    for way in ("single", "exact"):
        with pytest.raises(ValueError, match="different lengths"):
            lay_out(RAGGED, way)


@pytest.mark.parametrize("bucketed", [False, True])
@pytest.mark.parametrize("prompts", [[21], [21, 5], [3, 30], [7, 8, 9, 10]], ids=str)
def test_prompts_longer_than_a_sliding_window(tmp_path, prompts, bucketed):
    """The window is 8 tokens; completions leave it, too."""
    policy = policy_of(tmp_path, "gemma3_text")
    assert policy.way == "packed"
    batch = make_batch(prompts, [[12, 5]] * len(prompts))
    wanted = by_rows(policy, batch)
    ways: tuple[Way, ...] = WAYS if len(prompts) == 1 else ("packed", "full")
    for way in ways:
        agrees(policy, batch, way, bucketed=bucketed, wanted=wanted)


def test_the_check_would_notice_a_prompt_without_a_gradient(qwen, monkeypatch):
    """Negative control: keys and values as decoding has them, of which no gradient is taken."""

    def detached(self: PrefixCache, rows: int, lengths: Any) -> None:
        self.rows, self.lengths = rows, lengths
        self.keys, self.values = mx.stop_gradient(self.keys), mx.stop_gradient(self.values)

    wanted = by_rows(qwen, RAGGED)
    monkeypatch.setattr(PrefixCache, "fan_out", detached)
    found = by_layout(qwen, lay_out(RAGGED, "packed"), RAGGED)
    assert mx.abs(found[0] - wanted[0]).max().item() < 2e-5  # the values are right
    assert relative_error(found[1], wanted[1]) > 0.1


def test_few_shapes_occur_where_lengths_are_padded():
    rng = np.random.default_rng(0)

    def shapes(bucketed: bool) -> int:
        found = set()
        for _ in range(200):
            lengths = rng.integers(1, 17, size=(2, 4)).tolist()
            prompts = rng.integers(20, 40, size=2).tolist()
            batch = make_batch(prompts, lengths, width=16)
            layout = lay_out(batch, "packed", bucketed=bucketed)
            found.add((layout.key, *(a.shape for a in layout.arrays.values())))
        return len(found)

    assert shapes(True) <= 25 < 150 < shapes(False)


def test_a_cache_says_where_its_rows_are():
    cache = PrefixCache(window=4)
    keys = mx.random.normal((2, 1, 5, 3))
    assert cache.offset == 0 and cache.make_mask(3) == "causal"
    cache.update_and_fetch(keys, keys)
    cache.fan_out(2, mx.array([5, 2]))
    assert cache.offset.tolist() == [5, 5, 2, 2]
    wide, _ = cache.update_and_fetch(mx.zeros((4, 1, 2, 3)), mx.zeros((4, 1, 2, 3)))
    assert wide.shape == (4, 1, 7, 3) and mx.array_equal(wide[3, :, :5], keys[1]).item()
    mask = np.array(cache.make_mask(2))[:, 0].astype(int)
    # Of 5 places before: the window ends 3 back; of the second prompt 3 are padding.
    assert mask[0].tolist() == [[0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]]
    assert mask[2].tolist() == [[1, 1, 0, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1, 1]]


def test_only_the_prefixes_of_ways_that_can_have_it_are_padded():
    for way, size in (("packed", 16), ("single", 16), ("exact", 10)):
        layout = lay_out(make_batch([11], [[3, 2]]), way, bucketed=True)
        assert layout.arrays["prefix"].shape == (1, size)
        assert (layout.length is None) == (size == 16)
    assert lay_out(make_batch([11], [[3]]), "single").length == 10
