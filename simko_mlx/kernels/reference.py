"""The specification of the head statistics: from full logits, by automatic differentiation."""

from __future__ import annotations

import mlx.core as mx

from simko_mlx.kernels.statistics import HeadStatistics, row_sum
from simko_mlx.kernels.topk import top_k

LOWEST = -3e38


def _below_top(z: mx.array, ids: mx.array, top: mx.array, z_top: mx.array) -> mx.array:
    """z[ids] - z_top, without a gradient at masked tokens, nor at the top itself: there +g and -g
    would meet the tiny tail's gradient and round it away."""
    below = mx.take_along_axis(z, ids, axis=-1) - z_top
    below = mx.where(below > -mx.inf, below, -mx.inf)
    return mx.where(ids == top, 0.0, below)


def _lost_rows(z: mx.array) -> mx.array:
    """(N,) bool: rows with a logit that is NaN or +inf, or with none above -inf."""
    poisoned = row_sum(mx.maximum(z, LOWEST) * 0.0)  # 0, or NaN of either kind
    return mx.isnan(poisoned) | (z.max(axis=-1) == -mx.inf)


def logit_statistics(
    logits: mx.array, tokens: mx.array, *, simko_k: int = 3, temperature: float = 1.0
) -> HeadStatistics:
    """Statistics of softmax(logits / temperature); ``entropy`` is differentiable too.

    Args:
        logits: (N, V), any float dtype; computed in float32.
        tokens: (N,) integers in [0, V).
        simko_k: number of candidates K; with fewer than K tokens in the vocabulary, all of them.
        temperature: the one that the tokens were sampled with, > 0.
    """
    # Ranked before anything is rounded: a temperature must not make ties.
    ids = top_k(mx.stop_gradient(logits.astype(mx.float32)), simko_k)
    return ranked_statistics(logits, tokens, ids, temperature=temperature)


def ranked_statistics(
    logits: mx.array, tokens: mx.array, ids: mx.array, *, temperature: float = 1.0
) -> HeadStatistics:
    """As ``logit_statistics``, with the candidates ``ids`` (N, K), best first, already known."""
    z = logits.astype(mx.float32)
    if temperature != 1.0:
        z = z / temperature
    known = (tokens >= 0) & (tokens < z.shape[-1])
    lost = _lost_rows(mx.stop_gradient(z)) | ~known
    z = mx.where(lost[:, None], 0.0, z)  # or their NaN would reach the gradient, even times 0
    top = ids[:, :1]
    z_top = mx.take_along_axis(z, top, axis=-1)  # (N, 1), differentiable on purpose
    shifted = z - z_top
    e = mx.where(mx.arange(z.shape[-1], dtype=mx.int32) == top, 0.0, mx.exp(shifted))
    tail = row_sum(e)
    log_total = mx.where(lost, mx.nan, mx.log1p(tail))
    chosen = mx.where(known, tokens, 0)[:, None].astype(mx.int32)
    # z = -inf (a masked token) contributes nothing to the entropy, not 0 x inf.
    weighted = row_sum(e * mx.where(e > 0, shifted, 0.0))
    return HeadStatistics(
        logprobs=_below_top(z, chosen, top, z_top)[:, 0] - log_total,
        topk_logprobs=_below_top(z, ids, top, z_top) - log_total[:, None],
        topk_ids=ids,
        entropy=log_total - weighted / (1.0 + tail),
        logsumexp=mx.stop_gradient(z_top[:, 0] + log_total),
        rank1=(mx.take_along_axis(shifted, chosen, axis=-1)[:, 0] >= 0) & ~lost,
    )
