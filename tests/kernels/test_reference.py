"""Head statistics from full logits against numpy in float64."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from simko_mlx.kernels import logit_statistics, top_k
from tests.oracle import log_softmax


@pytest.mark.parametrize("vocabulary", [3, 111, 128, 129, 1000, 5003])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.5])
def test_statistics_match_float64(vocabulary, temperature):
    rng = np.random.default_rng(vocabulary)
    logits = (rng.normal(size=(7, vocabulary)) * 3).astype(np.float32)
    tokens = rng.integers(0, vocabulary, size=7)
    tokens[0] = logits[0].argmax()
    stats = logit_statistics(mx.array(logits), mx.array(tokens), simko_k=4, temperature=temperature)
    k = min(4, vocabulary)
    for i in range(7):
        z = logits[i].astype(np.float64) / temperature
        row = log_softmax(z)
        ids = np.argsort(-z, kind="stable")[:k]
        assert stats.logprobs[i].item() == pytest.approx(row[tokens[i]], rel=1e-5, abs=1e-6)
        assert np.array(stats.topk_ids[i]).tolist() == ids.tolist()
        assert np.array(stats.topk_logprobs[i]) == pytest.approx(row[ids], rel=1e-5, abs=1e-6)
        assert stats.entropy[i].item() == pytest.approx(-(np.exp(row) * row).sum(), rel=1e-5)
        lse = z.max() + np.log(np.exp(z - z.max()).sum())
        assert stats.logsumexp[i].item() == pytest.approx(lse, rel=1e-5)
        assert stats.rank1[i].item() == (z[tokens[i]] == z.max())


@pytest.mark.parametrize("width", [1, 5, 127, 128, 257, 1280, 4099])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_top_k_is_exact_and_the_lowest_index_wins_ties(width, k):
    rng = np.random.default_rng(width + k)
    values = rng.integers(0, 6, size=(20, width)).astype(np.float32)  # full of ties
    found = np.array(top_k(mx.array(values), k))
    expected = np.argsort(-values, axis=-1, kind="stable")[:, : min(k, width)]
    assert np.array_equal(found, expected)


def test_ties_with_the_largest_logit_count_as_rank_1():
    logits = mx.array([[2.0, 5.0, 5.0, 1.0]])
    assert logit_statistics(logits, mx.array([2])).rank1.item()
    assert not logit_statistics(logits, mx.array([0])).rank1.item()


def test_a_large_vocabulary_keeps_float32_precision():
    vocabulary = 151_936
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, vocabulary)).astype(np.float32)
    stats = logit_statistics(mx.array(logits), mx.array([5, 6]))
    for i, token in enumerate((5, 6)):
        row = log_softmax(logits[i].astype(np.float64))
        assert stats.logprobs[i].item() == pytest.approx(row[token], rel=2e-6)
        assert stats.entropy[i].item() == pytest.approx(-(np.exp(row) * row).sum(), rel=5e-6)


def test_half_precision_logits_are_computed_in_float32():
    logits = mx.random.normal((4, 300)).astype(mx.bfloat16)
    stats = logit_statistics(logits, mx.array([0, 1, 2, 3]))
    exact = logit_statistics(logits.astype(mx.float32), mx.array([0, 1, 2, 3]))
    assert stats.logprobs.dtype == mx.float32
    assert mx.array_equal(stats.logprobs, exact.logprobs)
