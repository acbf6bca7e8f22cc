"""The specification of the head statistics, from full logits.

Everything is computed from the rank-1 candidate's point of view: with m the largest logit and the
*tail mass* R = sum over the other tokens of exp(z - m), logsumexp = m + log1p(R). Where a token is
almost certain, R is tiny but exact, so log-probabilities, entropy and the gradient
1 - p = R / (1 + R) keep their relative precision; 1 - softmax would lose it.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from simko_mlx.kernels.topk import top_k

BLOCK = 128


class HeadStatistics(NamedTuple):
    """Per token; leading axes are those of the tokens, K the number of candidates.

    ``logprobs`` (...,) of the given token and ``topk_logprobs`` (..., K), largest first, float32,
    are differentiable. ``topk_ids`` (..., K) int32, ``entropy`` (...,) float32 in nats,
    ``logsumexp`` (...,) float32 of logits / temperature and ``rank1`` (...,) bool (no token is
    more likely than the given one) carry no gradient.
    """

    logprobs: mx.array
    topk_logprobs: mx.array
    topk_ids: mx.array
    entropy: mx.array
    logsumexp: mx.array
    rank1: mx.array

    def reshape(self, *shape: int) -> HeadStatistics:
        """The same statistics with the token axis (N,) split into ``shape``."""
        return HeadStatistics(*(x.reshape(*shape, *x.shape[1:]) for x in self))


def _row_sum(x: mx.array) -> mx.array:
    """Sum over the last axis in two levels: MLX's flat float32 sum on CPU loses 1e-4 at a
    vocabulary of 152k."""
    width = x.shape[-1]
    blocks = width // BLOCK
    if blocks < 2:
        return x.sum(axis=-1)
    whole = x[..., : blocks * BLOCK].reshape(*x.shape[:-1], blocks, BLOCK)
    return whole.sum(axis=-1).sum(axis=-1) + x[..., blocks * BLOCK :].sum(axis=-1)


def _below_top(z: mx.array, ids: mx.array, top: mx.array, z_top: mx.array) -> mx.array:
    """z[ids] - z_top, without a gradient at the top itself: there +g and -g would meet the tiny
    tail's gradient and round it away."""
    return mx.where(ids == top, 0.0, mx.take_along_axis(z, ids, axis=-1) - z_top)


def logit_statistics(
    logits: mx.array, tokens: mx.array, *, simko_k: int = 3, temperature: float = 1.0
) -> HeadStatistics:
    """Statistics of softmax(logits / temperature).

    Args:
        logits: (N, V), any float dtype; computed in float32.
        tokens: (N,) integers in [0, V).
        simko_k: number of candidates K; with fewer than K tokens in the vocabulary, all of them.
        temperature: the one that the tokens were sampled with, > 0.
    """
    z = logits.astype(mx.float32)
    if temperature != 1.0:
        z = z * (1.0 / temperature)
    ids = top_k(mx.stop_gradient(z), simko_k)
    top = ids[:, :1]
    z_top = mx.take_along_axis(z, top, axis=-1)  # (N, 1), differentiable on purpose
    shifted = z - z_top
    is_top = mx.arange(z.shape[-1], dtype=mx.int32) == top
    e = mx.where(is_top, 0.0, mx.exp(shifted))
    tail = _row_sum(e)
    log_total = mx.log1p(tail)
    chosen = tokens[:, None].astype(mx.int32)
    logprobs = _below_top(z, chosen, top, z_top)[:, 0] - log_total
    topk_logprobs = _below_top(z, ids, top, z_top) - log_total[:, None]
    # z = -inf (a masked token) contributes nothing to the entropy, not 0 x inf.
    weighted = _row_sum(mx.where(e > 0, e * shifted, 0.0))
    entropy = mx.stop_gradient(log_total - weighted / (1.0 + tail))
    rank1 = mx.take_along_axis(shifted, chosen, axis=-1)[:, 0] >= 0
    return HeadStatistics(
        logprobs, topk_logprobs, ids, entropy, mx.stop_gradient(z_top[:, 0] + log_total), rank1
    )
