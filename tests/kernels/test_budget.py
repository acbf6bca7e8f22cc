"""The memory that the head takes is the one that was promised."""

from __future__ import annotations

import mlx.core as mx
import pytest

from simko_mlx.kernels import chunk_tokens, head_statistics
from simko_mlx.kernels.budget import GIB, budget_bytes

MAC_8GB = int(5.33 * GIB)  # what macOS recommends a process to keep to


@pytest.mark.parametrize(
    ("mode", "metal", "budget"),
    [
        *[("tail", False, GIB / 8), ("nograd", False, GIB / 8), ("recompute", False, GIB / 2)],
        *[("tail", True, GIB / 2), ("recompute", True, 0.533 * GIB)],
    ],
)
def test_the_budget_is_a_tenth_and_at_most_what_makes_it_faster(mode, metal, budget):
    assert budget_bytes(MAC_8GB, mode=mode, metal=metal) == pytest.approx(budget, rel=1e-6)
    assert budget_bytes(96 * GIB, mode="recompute", metal=True) == 2 * GIB


@pytest.mark.parametrize("vocabulary", [7, 32_000, 151_936, 262_144, 1_000_000])
@pytest.mark.parametrize("mode", ["tail", "recompute", "nograd"])
@pytest.mark.parametrize("metal", [False, True])
def test_chunks_are_multiples_of_32_within_their_bounds(vocabulary, mode, metal):
    chunk = chunk_tokens(
        vocabulary, mode=mode, metal=metal, budget=budget_bytes(MAC_8GB, mode=mode, metal=metal)
    )
    assert 8 <= chunk <= 1024
    assert chunk < 32 or chunk % 32 == 0


def test_small_budgets_give_small_chunks():
    assert chunk_tokens(262_144, budget=1) == 8
    assert chunk_tokens(262_144, budget=21 * 262_144 * 17) == 17
    assert chunk_tokens(262_144, budget=21 * 262_144 * 63) == 32


def peak_of(tokens: int, vocabulary: int, *, mode: str, chunk: int | None, width: int = 16) -> int:
    """Bytes at the peak above what was held before, forward and backward."""
    mx.random.seed(0)
    hidden = mx.random.normal((tokens, width))
    weight = mx.random.normal((vocabulary, width))
    ids = mx.random.randint(0, vocabulary, (tokens,))
    mx.eval(hidden, weight, ids)

    def loss(hidden: mx.array) -> mx.array:
        out = head_statistics(hidden, ids, weight, mode=mode, chunk=chunk, backend="portable")
        return out.logprobs.sum() + out.topk_logprobs.sum() + mx.stop_gradient(out.entropy).sum()

    held = mx.get_active_memory()
    mx.reset_peak_memory()
    if mode == "nograd":
        mx.eval(loss(hidden))
    else:
        mx.eval(mx.value_and_grad(loss)(hidden))
    return mx.get_peak_memory() - held


@pytest.mark.skipif(mx.metal.is_available(), reason="the figures in budget.py are the CPU's")
@pytest.mark.parametrize("mode", ["tail", "recompute", "nograd"])
@pytest.mark.parametrize("vocabulary", [32_000, 151_936, 262_144])
def test_the_peak_keeps_to_the_budget_of_an_8_gb_machine(vocabulary, mode):
    budget = budget_bytes(MAC_8GB, mode=mode)
    chunk = chunk_tokens(vocabulary, mode=mode, budget=budget)
    assert peak_of(2 * chunk, vocabulary, mode=mode, chunk=chunk) <= budget


def test_more_tokens_take_no_more_than_their_own_arrays():
    """From T to 4 T with the same chunk, only what is O(T D) may grow."""
    short, long = (
        peak_of(tokens, 20_000, mode="tail", chunk=32, width=64) for tokens in (256, 1024)
    )
    # The mean of the tail, its part of the gradient, the gradient, and a few numbers per token.
    arrays = (1024 - 256) * (6 * 64 + 40) * 4
    assert long - short <= arrays


def test_a_head_that_trains_takes_no_more_with_more_tokens():
    """Its gradient is one (V, D) array, and no chunk's logits wait for it."""
    mx.random.seed(0)
    weight = mx.random.normal((20_000, 16))
    peaks = []
    for tokens in (128, 512):
        hidden, ids = mx.random.normal((tokens, 16)), mx.random.randint(0, 20_000, (tokens,))

        def loss(hidden: mx.array, weight: mx.array, ids: mx.array = ids) -> mx.array:
            return head_statistics(hidden, ids, weight, mode="recompute", chunk=16).logprobs.sum()

        mx.eval(hidden, ids, weight)
        held = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(mx.value_and_grad(loss, argnums=(0, 1))(hidden, weight))
        peaks.append(mx.get_peak_memory() - held)
    assert peaks[1] - peaks[0] < (1 << 20)


@pytest.mark.parametrize(("tokens", "vocabulary"), [(512, 20_000)])
def test_the_smallest_chunk_takes_less_than_a_tenth_of_full_logits(tokens, vocabulary):
    full = peak_of_full_logits(tokens, vocabulary)
    assert peak_of(tokens, vocabulary, mode="tail", chunk=8) <= full / 10
    assert peak_of(tokens, vocabulary, mode="tail", chunk=64) <= full / 4


def peak_of_full_logits(tokens: int, vocabulary: int) -> int:
    mx.random.seed(0)
    hidden, weight = mx.random.normal((tokens, 16)), mx.random.normal((vocabulary, 16))
    ids = mx.random.randint(0, vocabulary, (tokens,))
    mx.eval(hidden, weight, ids)

    def loss(hidden: mx.array) -> mx.array:
        z = hidden @ weight.T
        lse = mx.logsumexp(z, axis=-1, keepdims=True)
        best = mx.argpartition(-mx.stop_gradient(z), kth=2, axis=-1)[:, :3]
        total = (mx.take_along_axis(z, ids[:, None], axis=-1) - lse).sum()
        return total + (mx.take_along_axis(z, best, axis=-1) - lse).sum()

    held = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.value_and_grad(loss)(hidden))
    return mx.get_peak_memory() - held
