"""Head statistics and their gradients written out in float64 numpy: no autodiff, one softmax."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from simko_mlx.kernels import Head, HeadStatistics, head_statistics

PROBABILITIES = (0.5, 0.99, 0.999, 1 - 1e-5, 1 - 1e-7)


@dataclass
class Case:
    """N rows of hidden states with a head, and the cotangents of what is differentiable."""

    hidden: mx.array
    tokens: np.ndarray
    head: Head
    simko_k: int
    temperature: float
    g_logprobs: np.ndarray
    g_topk: np.ndarray
    g_entropy: np.ndarray
    names: list[str] = field(default_factory=list)


@dataclass
class Expected:
    """In float64, with the gradient with respect to ``hidden`` without and with the entropy's."""

    logprobs: np.ndarray
    topk_logprobs: np.ndarray
    topk_ids: np.ndarray
    entropy: np.ndarray
    logsumexp: np.ndarray
    rank1: np.ndarray
    d_hidden: np.ndarray
    d_hidden_all: np.ndarray
    d_weight_all: np.ndarray
    d_bias_all: np.ndarray


def to64(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def dense_weight(head: Head) -> np.ndarray:
    if head.scales is None:
        return to64(head.weight)
    form: dict[str, Any] = {"group_size": head.group_size, "bits": head.bits, "mode": head.mode}
    return to64(mx.dequantize(head.weight, head.scales, head.biases, **form))


def raw_logits(case: Case, *, rounded: bool = False) -> np.ndarray:
    """What the head's product gives; ``rounded``: as MLX gives it in the model's own type."""
    if rounded:
        return to64(case.head.raw(case.hidden))
    raw = to64(case.hidden) @ dense_weight(case.head).T
    return raw if case.head.bias is None else raw + to64(case.head.bias)


def expected(case: Case, raw: np.ndarray) -> Expected:
    """From raw logits (N, V) in float64."""
    head, k = case.head, case.simko_k
    z = raw * head.scale
    slope = np.ones_like(z)
    if head.softcap:
        slope = 1 / np.cosh(z / head.softcap) ** 2
        z = head.softcap * np.tanh(z / head.softcap)
    z = z / case.temperature
    rows = np.arange(len(z))
    top = z.max(axis=-1, keepdims=True)
    lse = top + np.log(np.exp(z - top).sum(axis=-1, keepdims=True))
    # log p of the largest as -log1p of the others: exact where it is nearly 0.
    logp = z - lse
    best = z.argmax(axis=-1)
    others = np.exp(z - top)
    others[rows, best] = 0.0
    logp[rows, best] = -np.log1p(others.sum(axis=-1))
    p = np.exp(logp)
    one_minus = 1 - p
    one_minus[rows, best] = others.sum(axis=-1) / (1 + others.sum(axis=-1))
    finite = np.isfinite(z)
    entropy = -(p * np.where(finite, logp, 0)).sum(axis=-1)
    ids = np.argsort(-z, axis=-1, kind="stable")[:, :k]

    g = np.zeros_like(z)
    np.add.at(g, (rows, case.tokens), case.g_logprobs)
    taken = np.take_along_axis(finite, ids, axis=-1)
    np.add.at(g, (rows[:, None], ids), np.where(taken, case.g_topk[:, : ids.shape[1]], 0))
    rest = g.sum(axis=-1, keepdims=True) - g
    dz = g * one_minus - p * rest
    deeper = -p * (np.where(finite, logp, 0) + entropy[:, None]) * case.g_entropy[:, None]
    factor = slope * head.scale / case.temperature
    weight = dense_weight(head)
    d_all = (dz + deeper) * factor
    return Expected(
        logprobs=logp[rows, case.tokens],
        topk_logprobs=np.take_along_axis(logp, ids, axis=-1),
        topk_ids=ids,
        entropy=entropy,
        logsumexp=lse[:, 0],
        rank1=z[rows, case.tokens] >= top[:, 0],
        d_hidden=(dz * factor) @ weight,
        d_hidden_all=d_all @ weight,
        d_weight_all=d_all.T @ to64(case.hidden),
        d_bias_all=d_all.sum(axis=0),
    )


def measured(
    case: Case, *, entropy: bool = False, **options: Any
) -> tuple[HeadStatistics, np.ndarray]:
    """The product's statistics and its gradient with respect to ``hidden``."""
    tokens = mx.array(case.tokens.astype(np.int32))
    k = min(case.simko_k, case.head.vocabulary)
    g_topk = mx.array(case.g_topk[:, :k].astype(np.float32))

    def loss(hidden: mx.array) -> tuple[mx.array, HeadStatistics]:
        out = head_statistics(
            hidden,
            tokens,
            case.head,
            simko_k=case.simko_k,
            temperature=case.temperature,
            **options,
        )
        # A masked candidate is -inf: 0 x -inf would be no number, and a real loss leaves it out.
        topk = mx.where(out.topk_logprobs > -mx.inf, out.topk_logprobs, 0.0)
        total = (mx.array(case.g_logprobs.astype(np.float32)) * out.logprobs).sum()
        total = total + (g_topk * topk).sum()
        if entropy:
            total = total + (mx.array(case.g_entropy.astype(np.float32)) * out.entropy).sum()
        return total, out

    (_, out), grad = mx.value_and_grad(loss)(case.hidden)
    return out, to64(grad)


def row_errors(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Largest difference of each row over the row's largest value: (N,)."""
    found, wanted = found.reshape(len(found), -1), wanted.reshape(len(wanted), -1)
    same = np.where(found == wanted, 0.0, np.abs(found - wanted))  # -inf equals -inf
    finite = np.where(np.isfinite(wanted), np.abs(wanted), 0.0)
    return same.max(axis=-1) / np.maximum(finite.max(axis=-1), 1e-300)


def element_errors(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest relative difference of any element."""
    same = np.where(found == wanted, 0.0, np.abs(found - wanted))
    return float((same / np.maximum(np.abs(np.where(found == wanted, 1, wanted)), 1e-300)).max())


def towards(
    weight: np.ndarray, hidden: np.ndarray, token: int, probability: float, finish: Any
) -> np.ndarray:
    """``hidden`` moved along the token's own row until the token has this probability."""
    direction = weight[token] / np.linalg.norm(weight[token]) ** 2

    def log_odds(length: float) -> float:
        z = finish(weight @ (hidden + length * direction))
        others = np.delete(z, token)
        top = others.max()
        return float(z[token] - top - np.log(np.exp(others - top).sum()))

    low, high = -50.0, 200.0
    target = np.log(probability) - np.log1p(-probability)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if log_odds(middle) < target else (low, middle)
    return hidden + (low + high) / 2 * direction


def make_case(
    rng: np.random.Generator,
    vocabulary: int,
    *,
    width: int = 96,
    simko_k: int = 3,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    bits: int | None = None,
    bias: bool = False,
    dtype: mx.Dtype = mx.float32,
) -> Case:
    """Rows whose token has each of PROBABILITIES, then tokens at rank 1, K, K + 1 and random ones,
    with cotangents like those of a loss: the token's, and smaller ones of the candidates."""
    weight = mx.array((rng.normal(size=(vocabulary, width)) * 0.3).astype(np.float32))
    offset = mx.array(rng.normal(size=vocabulary).astype(np.float32) * 0.5) if bias else None
    options: dict[str, Any] = {"softcap": softcap, "scale": scale}
    if offset is not None:
        options["bias"] = offset.astype(dtype)
    if bits:
        packed, scales, biases = mx.quantize(weight.astype(dtype), 32, bits)
        head = Head(packed, scales=scales, biases=biases, group_size=32, bits=bits, **options)
    else:
        head = Head(weight.astype(dtype), **options)
    w = dense_weight(head)
    b = 0.0 if head.bias is None else to64(head.bias)

    def finish(raw: np.ndarray) -> np.ndarray:
        z = (raw + b) * scale
        return (softcap * np.tanh(z / softcap) if softcap else z) / temperature

    hidden, tokens, names = [], [], []
    for probability in PROBABILITIES:
        token = int(rng.integers(vocabulary))
        start = rng.normal(size=width) * 0.4
        hidden.append(towards(w, start, token, probability, finish))
        tokens.append(token)
        names.append(f"p = {probability}")
    places = sorted({0, min(simko_k, vocabulary) - 1, min(simko_k + 1, vocabulary) - 1})
    for place in [*places, None, None, None]:
        h = rng.normal(size=width) * 0.5
        order = np.argsort(-finish(w @ h), kind="stable")
        hidden.append(h)
        tokens.append(int(rng.integers(vocabulary)) if place is None else int(order[place]))
        names.append("random" if place is None else f"rank {place + 1}")
    rows = len(tokens)
    return Case(
        hidden=mx.array(np.array(hidden).astype(np.float32)).astype(dtype),
        tokens=np.array(tokens),
        head=head,
        simko_k=simko_k,
        temperature=temperature,
        g_logprobs=rng.normal(size=rows),
        # As SimKO: a share of the token's own cotangent at some rows, nothing at others.
        g_topk=rng.normal(size=(rows, 8))[:, :simko_k] * 0.1 * (np.arange(rows) % 2)[:, None],
        g_entropy=rng.normal(size=rows) * 0.3,
        names=names,
    )
