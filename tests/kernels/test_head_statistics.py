"""Statistics and gradients of every backend against float64, row by row."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from simko_mlx.kernels import Head, head_statistics
from tests.kernels.head_oracle import (
    Case,
    element_errors,
    expected,
    make_case,
    measured,
    raw_logits,
    row_errors,
    to64,
)
from tests.kernels.metal_fixture import metal_backend  # noqa: F401

FIELDS = ("logprobs", "topk_logprobs", "entropy", "logsumexp")
WAYS = ["reference-tail", "portable-tail", "portable-recompute", "metal-tail", "metal-recompute"]
LIMIT = 1e-5
HEADS: dict[str, dict[str, Any]] = {
    "dense": {},
    "softcap": {"softcap": 30.0},
    "temperature 0.7": {"temperature": 0.7},
    "temperature 1.4, softcap, scale": {"temperature": 1.4, "softcap": 25.0, "scale": 0.5},
    "bias": {"bias": True},
    "4 bits": {"bits": 4},
    "8 bits, bias": {"bits": 8, "bias": True},
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of ``head_statistics``: a backend and a mode."""
    backend, mode = request.param.split("-")
    if backend == "metal":
        request.getfixturevalue("metal_backend")
    return {"backend": backend, "mode": mode, "chunk": 8}


def check(case: Case, way: dict[str, Any], limit: float = LIMIT) -> None:
    """Every statistic element by element, the gradient row by row."""
    entropy = way["mode"] == "recompute"
    wanted = expected(case, raw_logits(case))
    out, grad = measured(case, entropy=entropy, **way)
    for name in FIELDS:
        error = element_errors(np.array(getattr(out, name)), getattr(wanted, name))
        assert error < limit, f"{name} is off by {error:.1e}"
    assert np.array_equal(np.array(out.topk_ids), wanted.topk_ids)
    assert np.array_equal(np.array(out.rank1), wanted.rank1)
    errors = row_errors(grad, wanted.d_hidden_all if entropy else wanted.d_hidden)
    worst = int(errors.argmax())
    assert errors[worst] < limit, (
        f"the gradient at {case.names[worst]} is off by {errors[worst]:.1e}"
    )


@pytest.mark.parametrize("vocabulary", [5, 129, 3001])
@pytest.mark.parametrize("head", HEADS)
def test_every_row_agrees_with_float64(way, head, vocabulary):
    """Rows with p from 0.5 to 1 - 1e-7, tokens at rank 1, K, K + 1 and anywhere."""
    check(make_case(np.random.default_rng(vocabulary), vocabulary, **HEADS[head]), way)


@pytest.mark.parametrize("simko_k", range(1, 9))
def test_every_number_of_candidates(way, simko_k):
    check(make_case(np.random.default_rng(simko_k), 257, simko_k=simko_k), way)


@pytest.mark.parametrize("vocabulary", [1, 3, 127, 128, 1152, 1153])
def test_odd_vocabularies_and_few_tokens(way, vocabulary):
    rng = np.random.default_rng(vocabulary)
    case = make_case(rng, max(vocabulary, 3), simko_k=4)
    if vocabulary == 1:
        case.head = Head(case.head.weight[:1])
        case.tokens[:] = 0
    wanted = expected(case, raw_logits(case))
    out, grad = measured(case, **way)
    assert out.topk_ids.shape[1] == min(4, vocabulary)
    assert row_errors(grad, wanted.d_hidden).max() < LIMIT
    assert element_errors(np.array(out.logprobs), wanted.logprobs) < LIMIT
    assert np.array_equal(np.array(out.topk_ids), wanted.topk_ids)


def test_one_row(way):
    case = make_case(np.random.default_rng(3), 300)
    one = Case(
        case.hidden[:1],
        case.tokens[:1],
        case.head,
        case.simko_k,
        case.temperature,
        case.g_logprobs[:1],
        np.full((1, case.simko_k), 0.1),
        case.g_entropy[:1],
        case.names[:1],
    )
    check(one, way)


def test_no_rows_at_all(way):
    out = head_statistics(mx.zeros((0, 8)), mx.zeros((0,), dtype=mx.int32), mx.ones((50, 8)), **way)
    assert out.logprobs.shape == (0,) and out.topk_logprobs.shape == (0, 3)


def tied_case(rng: np.random.Generator, simko_k: int) -> Case:
    """Each row of the head stands several times: whole ranks are ties. Products are exact (few
    bits), or BLAS would round equal columns differently at the edges of its blocks."""
    case = make_case(rng, 400, simko_k=simko_k)
    weight = np.round(np.array(case.head.weight) * 256)[rng.integers(0, 60, size=400)] / 256
    case.head = Head(mx.array(weight))
    case.hidden = mx.round(case.hidden * 256) / 256
    z = to64(case.hidden) @ weight.T.astype(np.float64)
    case.tokens[::2] = z.argmax(axis=-1)[::2]  # the first of the tied maxima
    case.tokens[1] = np.flatnonzero(z[1] == z[1].max())[-1]  # the last of them
    return case


@pytest.mark.parametrize("simko_k", [1, 3, 8])
def test_among_ties_the_lowest_index_comes_first(way, simko_k):
    case = tied_case(np.random.default_rng(simko_k), simko_k)
    wanted = expected(case, raw_logits(case))
    out, grad = measured(case, **way)
    assert np.array_equal(np.array(out.topk_ids), wanted.topk_ids)
    assert out.rank1[1].item(), "a token as likely as the best is at rank 1"
    assert np.array_equal(np.array(out.rank1), wanted.rank1)
    assert row_errors(grad, wanted.d_hidden).max() < LIMIT


def masked_case(finite: list[int], simko_k: int = 4) -> Case:
    case = make_case(np.random.default_rng(9), 200, simko_k=simko_k)
    bias = np.full(200, -np.inf, dtype=np.float32)
    bias[finite] = 0.0
    case.head = Head(case.head.weight, bias=mx.array(bias))
    case.tokens = np.array(finite)[np.arange(len(case.tokens)) % len(finite)]
    return case


@pytest.mark.parametrize("finite", [[7], [3, 150], [0, 1, 199], list(range(0, 200, 7))])
def test_fewer_finite_logits_than_candidates(way, finite):
    case = masked_case(finite)
    wanted = expected(case, raw_logits(case))
    out, grad = measured(case, **way)
    found = np.array(out.topk_logprobs)
    assert np.array_equal(np.isfinite(found), np.isfinite(wanted.topk_logprobs))
    assert np.array_equal(np.array(out.topk_ids), wanted.topk_ids)
    assert element_errors(np.array(out.logprobs), wanted.logprobs) < LIMIT
    assert np.abs(np.array(out.entropy) - wanted.entropy).max() < 1e-5
    largest = max(np.abs(wanted.d_hidden).max(), 1e-9)
    assert np.abs(grad - wanted.d_hidden).max() < LIMIT * largest


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("simko_k", [1, 3])
@pytest.mark.parametrize("bits", [None, 4])
def test_half_precision_is_as_exact_as_its_logits(way, dtype, simko_k, bits):
    """Given the logits as the type rounds them, the statistics are exact; the gradient, a product
    in that type, within a few of its roundings, also where the tail has a mass of 1e-7."""
    case = make_case(np.random.default_rng(5), 700, simko_k=simko_k, dtype=dtype, bits=bits)
    raw = raw_logits(case, rounded=True)
    # The gradient arrives in that type: float16 has no room for 1e-7 of a head row.
    size = np.abs(expected(case, raw).d_hidden).max(axis=-1)
    case.g_logprobs, case.g_topk = case.g_logprobs / size, case.g_topk / size[:, None]
    wanted = expected(case, raw)
    out, grad = measured(case, **way)
    for name in FIELDS:
        error = element_errors(np.array(getattr(out, name)), getattr(wanted, name))
        assert error < LIMIT, f"{name} is off by {error:.1e}"
    assert np.array_equal(np.array(out.topk_ids), wanted.topk_ids)
    errors = row_errors(grad, wanted.d_hidden)
    worst = int(errors.argmax())
    # Full logits by autodiff put the gradient through MLX's quantised product, which on the CPU
    # sums in the type itself.
    limit = (16 if bits and way["backend"] == "reference" else 5) * mx.finfo(dtype).eps
    assert errors[worst] < limit, f"at {case.names[worst]}: {errors[worst]:.1e} over {limit:.1e}"


def test_float16_survives_a_flat_distribution_over_many_tokens(way):
    """The tail's sum of head rows would leave float16's range: 40,000 equal rows of size 3."""
    rng = np.random.default_rng(0)
    row = np.abs(rng.normal(size=64)) * 3
    head = Head(mx.array(np.tile(row, (40_000, 1)), dtype=mx.float16))
    hidden = mx.array(rng.normal(size=(3, 64)) * 0.01, dtype=mx.float16)
    case = Case(
        hidden, np.array([0, 5, 39_999]), head, 3, 1.0, np.ones(3), np.zeros((3, 3)), np.zeros(3)
    )
    _, grad = measured(case, **way)
    # All rows are equal, so no direction changes any probability.
    assert np.isfinite(grad).all() and np.abs(grad).max() < 0.02


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("softcap", [None, 20.0])
def test_a_broken_row_stays_alone(way, broken, softcap):
    case = make_case(np.random.default_rng(4), 500, softcap=softcap)
    entropy = way["mode"] == "recompute"
    whole, whole_grad = measured(case, entropy=entropy, **way)
    hidden = np.array(case.hidden)
    hidden[2, 7] = broken
    case.hidden = mx.array(hidden)
    out, grad = measured(case, entropy=entropy, **way)
    others = np.arange(len(hidden)) != 2
    assert np.array_equal(grad[others], whole_grad[others])
    assert not grad[2].any()
    for name, found in out._asdict().items():
        before = np.array(getattr(whole, name))
        assert np.array_equal(np.array(found)[others], before[others]), name
        if name in FIELDS:
            assert np.isnan(np.array(found)[2]).all(), name
    assert not out.rank1[2].item()


def test_a_broken_row_stays_out_of_the_heads_own_gradient():
    case = make_case(np.random.default_rng(4), 60)
    hidden = np.array(case.hidden)
    hidden[2, 7] = np.nan

    def loss(hidden: mx.array, weight: mx.array, backend: str) -> mx.array:
        out = head_statistics(
            hidden, mx.array(case.tokens), weight, mode="recompute", backend=backend, chunk=4
        )
        return mx.where(mx.isfinite(out.logprobs), out.logprobs, 0.0).sum()

    for backend in ("portable", "reference"):
        grad = mx.grad(loss, argnums=1)(mx.array(hidden), case.head.weight, backend)
        kept = np.delete(np.arange(len(hidden)), 2)
        case.tokens, tokens = case.tokens[kept], case.tokens
        wanted = mx.grad(loss, argnums=1)(mx.array(hidden[kept]), case.head.weight, backend)
        case.tokens = tokens
        assert mx.allclose(grad, wanted, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 20.0])
def test_recompute_gives_the_head_its_gradient(bias, softcap):
    case = make_case(np.random.default_rng(6), 150, bias=bias, softcap=softcap, temperature=1.2)
    wanted = expected(case, raw_logits(case))

    def loss(weight: mx.array, offset: mx.array) -> mx.array:
        head = Head(weight, bias=offset if bias else None, softcap=softcap)
        out = head_statistics(
            case.hidden, mx.array(case.tokens), head, temperature=1.2, mode="recompute", chunk=5
        )
        total = (mx.array(case.g_logprobs) * out.logprobs).sum()
        total = total + (mx.array(case.g_topk) * out.topk_logprobs).sum()
        return total + (mx.array(case.g_entropy) * out.entropy).sum()

    offset = case.head.bias if case.head.bias is not None else mx.zeros((150,))
    d_weight, d_bias = mx.grad(loss, argnums=(0, 1))(case.head.weight, offset)
    assert row_errors(np.array(d_weight)[None], wanted.d_weight_all[None]).max() < LIMIT
    if bias:
        assert row_errors(np.array(d_bias)[None], wanted.d_bias_all[None]).max() < LIMIT


def test_chunks_change_nothing_but_rounding():
    case = make_case(np.random.default_rng(8), 1500)
    one, one_grad = measured(case, backend="portable", chunk=1)
    all_at_once, grad = measured(case, backend="portable", chunk=1000)
    assert np.array_equal(np.array(one.topk_ids), np.array(all_at_once.topk_ids))
    assert row_errors(one_grad, grad).max() < LIMIT
    assert element_errors(np.array(one.logprobs), np.array(all_at_once.logprobs)) < LIMIT


def test_nograd_equals_tail_and_has_no_gradient():
    case = make_case(np.random.default_rng(2), 300)
    tail, _ = measured(case, backend="portable", mode="tail")
    nograd, grad = measured(case, backend="portable", mode="nograd")
    for name in tail._fields:
        assert np.array_equal(np.array(getattr(tail, name)), np.array(getattr(nograd, name))), name
    assert not grad.any()


def test_inside_a_compiled_gradient():
    case = make_case(np.random.default_rng(1), 300)
    tokens = mx.array(case.tokens)

    def loss(hidden: mx.array) -> mx.array:
        out = head_statistics(hidden, tokens, case.head, chunk=4, backend="portable")
        return out.logprobs.sum() + 0.1 * out.topk_logprobs.sum()

    plain, compiled = mx.grad(loss)(case.hidden), mx.compile(mx.grad(loss))(case.hidden)
    assert mx.allclose(plain, compiled, atol=1e-6)


@pytest.mark.parametrize("scales", [mx.bfloat16, mx.float16])
def test_float32_states_on_a_head_quantised_in_half_precision(way, scales):
    case = make_case(np.random.default_rng(5), 700, bits=4, dtype=scales)
    case.hidden = case.hidden.astype(mx.float32)
    raw = raw_logits(case, rounded=True)
    # The product dequantises in float32; the oracle must, too.
    head = case.head
    packed = (head.weight, head.scales.astype(mx.float32), head.biases.astype(mx.float32))
    exact = mx.dequantize(*packed, group_size=32, bits=4)
    wanted = expected(Case(**{**vars(case), "head": Head(exact)}), raw)
    _, grad = measured(case, **way)
    assert row_errors(grad, wanted.d_hidden).max() < LIMIT


@pytest.mark.parametrize("dtype", [mx.bfloat16, pytest.param(mx.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["tail", "recompute"])
def test_a_quantised_head_keeps_its_digits_at_a_real_vocabulary(mode, dtype):
    """MLX's product on the CPU sums in the type of its input: 20,000 terms in bfloat16."""
    case = make_case(np.random.default_rng(2), 20_000, bits=4, dtype=dtype)
    raw = raw_logits(case, rounded=True)
    size = np.abs(expected(case, raw).d_hidden).max(axis=-1)
    case.g_logprobs, case.g_topk = case.g_logprobs / size, case.g_topk / size[:, None]
    wanted = expected(case, raw)
    _, grad = measured(case, mode=mode, backend="portable", chunk=8)
    assert row_errors(grad, wanted.d_hidden).max() < 3 * mx.finfo(dtype).eps


def test_the_cap_makes_no_ties_among_candidates(way):
    """Far beyond the cap all logits round to it; the order is that of the raw ones."""
    case = make_case(np.random.default_rng(3), 300, softcap=4.0, scale=8.0)
    out, _ = measured(case, **way)
    wanted = np.argsort(-raw_logits(case), axis=-1, kind="stable")[:, :3]
    assert np.array_equal(np.array(out.topk_ids), wanted)


def test_tail_gives_nothing_but_the_hidden_states_a_gradient_whatever_the_backend():
    case = make_case(np.random.default_rng(3), 60)
    tokens = mx.array(case.tokens)

    def loss(hidden: mx.array, weight: mx.array, backend: str) -> mx.array:
        out = head_statistics(hidden, tokens, weight, backend=backend)
        return out.logprobs.sum() + out.entropy.sum() + out.logsumexp.sum()

    grads = [
        mx.grad(loss, argnums=(0, 1))(case.hidden, case.head.weight, backend)
        for backend in ("reference", "portable")
    ]
    assert mx.allclose(grads[0][0], grads[1][0], atol=1e-5)
    assert not grads[0][1].any().item() and not grads[1][1].any().item()


@pytest.mark.parametrize("mode", ["tail", "recompute"])
@pytest.mark.parametrize(("width", "vocabulary"), [(512, 5000), (896, 3000)])
def test_wide_hidden_states_are_as_exact(width, vocabulary, mode):
    """A float32 product over 512 numbers alone would leave errors of 1.5e-5 here."""
    for seed in range(2):
        case = make_case(np.random.default_rng(seed), vocabulary, width=width)
        check(case, {"backend": "portable", "mode": mode, "chunk": 8})
