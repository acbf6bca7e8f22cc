"""What ``head_statistics`` takes and refuses: heads, tokens, candidates, settings."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from simko_mlx.kernels import Head, head_statistics
from tests.kernels.head_oracle import make_case


def test_statistics_of_given_candidates():
    case = make_case(np.random.default_rng(2), 300)
    tokens = mx.array(case.tokens)
    ids = mx.array(np.random.default_rng(0).integers(0, 300, size=(len(case.tokens), 3)))
    logits = case.head.logits(case.hidden)
    wanted = mx.take_along_axis(logits, ids, axis=-1) - mx.logsumexp(logits, axis=-1, keepdims=True)
    for backend in ("reference", "portable"):
        out = head_statistics(
            case.hidden, tokens, case.head, mode="nograd", candidates=ids, backend=backend, chunk=4
        )
        assert np.array_equal(np.array(out.topk_ids), np.array(ids))
        assert mx.allclose(out.topk_logprobs, wanted, atol=1e-5)
    with pytest.raises(ValueError, match="candidates go with mode nograd"):
        head_statistics(case.hidden, tokens, case.head, candidates=ids)


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("tied", [False, True])
def test_heads_are_made_of_mlx_layers(bits, tied):
    mx.random.seed(0)
    layer: Any = nn.Embedding(96, 64) if tied else nn.Linear(64, 96, bias=True)
    if bits:
        layer = layer.to_quantized(group_size=32, bits=bits)
    hidden = mx.random.normal((5, 64))
    logits = layer.as_linear(hidden) if tied else layer(hidden)
    out = head_statistics(hidden, mx.arange(5), layer, chunk=2)
    assert mx.array_equal(Head.of(layer).raw(hidden), logits)
    assert mx.allclose(out.logsumexp, mx.logsumexp(logits, axis=-1), atol=1e-5)


def test_what_does_not_fit_is_said():
    hidden, tokens, weight = mx.zeros((4, 8)), mx.zeros((4,), dtype=mx.int32), mx.zeros((20, 8))
    for options, word in (
        ({"simko_k": 9}, "simko_k is 9"),
        ({"simko_k": 0}, "simko_k is 0"),
        ({"simko_k": 2.5}, "simko_k is 2.5"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"softcap": -30.0}, "softcap is -30"),
        ({"softcap": float("nan")}, "softcap is nan"),
        ({"chunk": 2.5}, "chunk is 2.5"),
        ({"chunk": 0}, "chunk is 0"),
        ({"mode": "fast"}, "mode is one of"),
        ({"backend": "cuda"}, "backend one of"),
    ):
        with pytest.raises(ValueError, match=word):
            head_statistics(hidden, tokens, weight, **options)
    with pytest.raises(ValueError, match="tokens"):
        head_statistics(hidden, tokens[:3], weight)
    with pytest.raises(ValueError, match="can't take hidden"):
        head_statistics(hidden, tokens, mx.zeros((20, 9)))
    with pytest.raises(ValueError, match="a bias for 20 tokens"):
        head_statistics(hidden, tokens, Head(weight, bias=mx.zeros((21,))))
    for bad in (np.zeros(4, dtype=np.int32), mx.zeros((4,))):
        with pytest.raises(TypeError, match="tokens must be"):
            head_statistics(hidden, bad, weight)  # type: ignore[arg-type]
    for bad in (np.zeros((4, 8)), mx.zeros((4, 8), dtype=mx.int32)):
        with pytest.raises(TypeError, match="hidden must be"):
            head_statistics(bad, tokens, weight)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a head is"):
        head_statistics(hidden, tokens, nn.RMSNorm(8))


@pytest.mark.parametrize("backend", ["reference", "portable"])
@pytest.mark.parametrize("mode", ["tail", "recompute", "nograd"])
@pytest.mark.parametrize("wrong", [500, 10**6, 2**31 - 1, -1, -501])
def test_a_token_that_is_none_loses_its_row_alone(backend, mode, wrong):
    """It must not read or write beyond any array."""
    case = make_case(np.random.default_rng(1), 500)
    tokens = mx.array(case.tokens)
    whole = head_statistics(case.hidden, tokens, case.head, backend=backend, mode=mode, chunk=4)
    tokens[3] = wrong
    out = head_statistics(case.hidden, tokens, case.head, backend=backend, mode=mode, chunk=4)
    assert mx.isnan(out.logprobs[3]).item() and mx.isnan(out.topk_logprobs[3]).all().item()
    others = np.arange(len(case.tokens)) != 3
    assert np.array_equal(np.array(out.logprobs)[others], np.array(whole.logprobs)[others])


@pytest.mark.parametrize("backend", ["reference", "portable"])
def test_a_candidate_that_is_none_has_no_log_probability(backend):
    hidden, tokens, weight = mx.ones((2, 8)), mx.array([0, 1]), mx.random.normal((20, 8))
    ids = mx.array([[3, 20], [-1, 4]])
    out = head_statistics(
        hidden, tokens, weight, simko_k=2, candidates=ids, mode="nograd", backend=backend
    )
    assert np.isnan(np.array(out.topk_logprobs)).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("kind", [mx.int16, mx.uint32, mx.int64, mx.uint8])
def test_tokens_of_any_integer_type(kind):
    hidden, weight = mx.random.normal((3, 8)), mx.random.normal((100, 8))
    out = head_statistics(hidden, mx.array([0, 50, 99]).astype(kind), weight)
    same = head_statistics(hidden, mx.array([0, 50, 99]), weight)
    assert mx.array_equal(out.logprobs, same.logprobs)
