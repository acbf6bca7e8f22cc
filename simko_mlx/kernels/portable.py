"""One chunk of tokens through the head in plain MLX: any device, no [tokens, vocabulary] array
that outlives the chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from simko_mlx.kernels.exponential import exp
from simko_mlx.kernels.head import Head
from simko_mlx.kernels.statistics import Coefficients, RowSums, is_lost, row_sum
from simko_mlx.kernels.topk import top_k

NEGLIGIBLE = -120.0  # exp of it is exactly 0 in float32, and 0 x it is no NaN as 0 x inf would be
LARGEST_TAIL = 1024.0  # so many head rows of size 60 add up to less than float16's maximum


@dataclass(frozen=True)
class Pass:
    """What one pass over the vocabulary is for: K, the temperature, and whether ``mean`` is
    wanted (mode "tail")."""

    simko_k: int
    temperature: float
    want_mean: bool


class Chunk(NamedTuple):
    """``sums`` of the chunk's C rows; ``mean`` (C, D) float32, where wanted: the sum of
    p_v slope_v W_v over all tokens v but the given one and the candidates; ``slopes`` (C, 1 + K)
    float32, where the head has a cap: the slopes of those; ``at`` (C, K) float32, where ids were
    given: their logits."""

    sums: RowSums
    mean: mx.array | None = None
    slopes: mx.array | None = None
    at: mx.array | None = None


def logits_at(logits: mx.array, ids: mx.array) -> mx.array:
    """The logits of these ids (C, K); NaN where there is no such token."""
    known = (ids >= 0) & (ids < logits.shape[-1])
    at = mx.take_along_axis(logits, mx.where(known, ids, 0).astype(mx.int32), axis=-1)
    return mx.where(known, at, mx.array(mx.nan, dtype=logits.dtype))


def special_slopes(head: Head, raw: mx.array, special: mx.array) -> mx.array | None:
    """The cap's slope at the special columns; from the raw logits, since next to the cap the capped
    ones have hardly a digit left for it."""
    return head.slope(mx.take_along_axis(raw, special, axis=-1)) if head.softcap else None


def special_ids(tokens: mx.array, ids: mx.array, simko_k: int) -> mx.array:
    """(C, 1 + K) int32: the columns that have coefficients of their own."""
    return mx.concatenate([tokens[:, None].astype(mx.int32), ids[:, :simko_k]], axis=1)


def forward(
    hidden: mx.array,
    tokens: mx.array,
    head: Head,
    task: Pass,
    candidates: mx.array | None = None,
) -> Chunk:
    """``hidden`` (C, D) and ``tokens`` (C,) int32 -> sums over the vocabulary.

    Candidates are ranked by their raw logits, before a cap or a temperature rounds them into ties.
    The tail is summed relative to its own largest member, the candidate of rank K + 1: relative to
    the top it would vanish from float16, and from any product with it.
    """
    simko_k = task.simko_k
    raw = head.raw(hidden)
    z = head.finish(raw, task.temperature)
    at = None if candidates is None else logits_at(z, candidates)
    ids = top_k(raw.astype(mx.float32), simko_k + 1)
    values = mx.take_along_axis(z, ids, axis=-1)
    chosen = mx.take_along_axis(z, tokens[:, None], axis=-1)
    top = values[:, :1]
    shift = mx.where(mx.isfinite(values[:, -1:]), values[:, -1:], top)
    special = special_ids(tokens, ids, simko_k)
    below = mx.put_along_axis(z, special, mx.array(-mx.inf), axis=-1) - shift
    below = mx.maximum(below, NEGLIGIBLE)
    e = exp(below)
    mass = row_sum(e)[:, None]
    weighted = row_sum(e * below)[:, None]

    # Back to the top's scale; the special columns join in one by one, each of them once.
    apart = mx.where(mx.any(ids[:, :simko_k] == tokens[:, None], axis=-1, keepdims=True), 0.0, 1.0)
    others = mx.concatenate([values[:, 1:simko_k], chosen], axis=1) - top
    others = mx.maximum(others, NEGLIGIBLE)
    once = mx.concatenate([mx.ones_like(values[:, 1:simko_k]), apart], axis=1)
    e_others = mx.exp(others) * once
    factor = mx.exp(shift - top)
    tail = factor * mass + e_others.sum(axis=-1, keepdims=True)
    weighted = factor * (weighted + mass * mx.maximum(shift - top, NEGLIGIBLE))
    weighted = weighted + (e_others * others).sum(axis=-1, keepdims=True)
    sums = RowSums(values, ids, chosen[:, 0], tail[:, 0], weighted[:, 0])
    if not task.want_mean:
        return Chunk(sums, at=at)
    slope = head.slope(raw)
    if slope is not None:
        e = e * slope
    dtype = head.sum_dtype(hidden.dtype)
    if dtype == mx.float16:
        shrink = mx.minimum(1.0, LARGEST_TAIL / mx.maximum(mass, 1.0))
        e = e * shrink
        factor = factor / shrink
    mean = head.back(e.astype(dtype)).astype(mx.float32) * (factor / (1.0 + tail))
    return Chunk(sums, mean, special_slopes(head, raw, special), at)


class Cotangents(NamedTuple):
    """What arrives for N rows in mode "recompute": see ``coefficients``, and the entropy's."""

    special: Coefficients
    entropy: mx.array


def recompute(
    hidden: mx.array,
    head: Head,
    sums: RowSums,
    cotangents: Cotangents,
    *,
    temperature: float,
) -> tuple[mx.array, mx.array]:
    """The chunk's (d hidden (C, D), d raw (C, V)) from logits computed again, float32.

    d entropy / d z_v = -p_v (z_v - m + E[m - z]), of which nothing cancels.
    """
    raw = head.raw(hidden)
    z = head.finish(raw, temperature)
    special, entropy = cotangents.special, cotangents.entropy.astype(mx.float32)[:, None]
    ids, top = special.ids, sums.values[:, :1]
    total = (1.0 + sums.tail)[:, None]
    depth = -(sums.weighted[:, None] / total)

    def derivative(below: mx.array, mass: mx.array) -> mx.array:
        below = mx.maximum(below, NEGLIGIBLE)
        return -exp(below) / total * (mass + entropy * (below + depth))

    # The special columns from the logits that the sums were made of: another path to the same
    # logit may round differently, and at the top that is more than all that is left.
    known = mx.concatenate([sums.chosen[:, None], sums.values[:, : ids.shape[1] - 1]], axis=1)
    own = special.values + derivative(known - top, mx.array(0.0))
    own = mx.where(_first_of_each(ids), own, 0.0)
    others = derivative(z - top, special.mass[:, None])
    grad = mx.put_along_axis(others, ids, mx.array(0.0), axis=-1)
    grad = grad.at[mx.arange(ids.shape[0])[:, None], ids].add(own)
    slope = head.slope(raw)
    if slope is not None:
        grad = grad * slope
    grad = mx.where(is_lost(sums)[:, None], 0.0, grad * (head.scale / temperature))
    return _times_head(grad, head, head.sum_dtype(hidden.dtype)), grad


def _first_of_each(ids: mx.array) -> mx.array:
    """(N, J) bool: the token's own column only where it isn't a candidate's as well."""
    apart = ~mx.any(ids[:, 1:] == ids[:, :1], axis=-1, keepdims=True)
    return mx.concatenate([apart, mx.ones_like(ids[:, 1:]) > 0], axis=1)


def _times_head(grad: mx.array, head: Head, dtype: mx.Dtype) -> mx.array:
    if dtype != mx.float16:
        return head.back(grad.astype(dtype)).astype(mx.float32)
    # Coefficients are divided by the number of tokens: float16 would lose most of them.
    largest = mx.abs(grad).max(axis=-1, keepdims=True)
    largest = mx.where(largest > 0, largest, 1.0)
    return head.back((grad / largest).astype(dtype)).astype(mx.float32) * largest
