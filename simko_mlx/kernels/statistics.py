"""From sums over the vocabulary to statistics, and from cotangents to coefficients: the arithmetic
of a few numbers per token that every backend shares.

Everything is seen from the rank-1 candidate: with m the largest logit and the *tail mass*
R = sum over the other tokens of exp(z - m), logsumexp = m + log1p(R). Where a token is almost
certain R is tiny but exact, so log-probabilities, entropy and 1 - p = R / (1 + R) keep their
relative precision; 1 - softmax would lose it.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

BLOCK = 128


class HeadStatistics(NamedTuple):
    """Per token; leading axes are those of the tokens, K the number of candidates.

    ``logprobs`` (...,) of the given token and ``topk_logprobs`` (..., K), largest first, float32,
    are differentiable. ``topk_ids`` (..., K) int32, ``entropy`` (...,) float32 in nats,
    ``logsumexp`` (...,) float32 of the logits and ``rank1`` (...,) bool (no token is more likely
    than the given one) carry no gradient, but entropy does in mode "recompute" and of full logits.

    A candidate whose logit is -inf has log-probability -inf and no gradient. A row with a logit
    that is NaN or +inf, with none above -inf, or with a token outside the vocabulary, is *lost*:
    NaN throughout (``rank1`` False), with no gradient; other rows don't notice.
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


class RowSums(NamedTuple):
    """What one pass over N rows of logits leaves, all float32 but the ids.

    ``values`` and ``ids`` (N, L): the L largest logits, L = min(K + 1, V); ``chosen`` (N,): the
    given token's logit; ``tail`` (N,): R; ``weighted`` (N,): sum over all tokens of
    exp(z - m) (z - m), at most 0.
    """

    values: mx.array
    ids: mx.array
    chosen: mx.array
    tail: mx.array
    weighted: mx.array


def row_sum(x: mx.array, *, block: int = BLOCK) -> mx.array:
    """Sum over the last axis in two levels: MLX's flat float32 sum on CPU loses 1e-4 at a
    vocabulary of 152k."""
    width = x.shape[-1]
    blocks = width // block
    if blocks < 2:
        return x.sum(axis=-1)
    whole = x[..., : blocks * block].reshape(*x.shape[:-1], blocks, block)
    total = whole.sum(axis=-1).sum(axis=-1)
    return total + x[..., blocks * block :].sum(axis=-1) if width % block else total


def is_lost(sums: RowSums) -> mx.array:
    """(N,) bool: rows with a NaN, an infinite or no finite logit."""
    return ~(mx.isfinite(sums.values[:, 0]) & mx.isfinite(sums.tail))


def statistics(sums: RowSums, simko_k: int) -> HeadStatistics:
    """The statistics of N rows from their sums."""
    top = sums.values[:, 0]
    lost = is_lost(sums)
    log_total = mx.where(lost, mx.nan, mx.log1p(sums.tail))
    # The difference is 0 at the top itself; -inf - -inf is no number, and lost anyway.
    candidates = sums.values[:, :simko_k] - top[:, None]
    return HeadStatistics(
        logprobs=(sums.chosen - top) - log_total,
        topk_logprobs=candidates - log_total[:, None],
        topk_ids=sums.ids[:, :simko_k].astype(mx.int32),
        entropy=log_total - sums.weighted / (1.0 + sums.tail),
        logsumexp=top + log_total,
        rank1=(sums.chosen >= top) & ~lost,
    )


class Coefficients(NamedTuple):
    """d loss / d logits of the special columns, and of each other column v as -mass x p_v.

    ``ids`` (N, 1 + K): the token, then the candidates; ``values`` (N, 1 + K): each column's
    derivative, 0 where a column stands twice; ``mass`` (N,): the sum of all cotangents.
    """

    ids: mx.array
    values: mx.array
    mass: mx.array


def coefficients(
    sums: RowSums, tokens: mx.array, logprobs: mx.array, topk_logprobs: mx.array
) -> Coefficients:
    """The derivatives at the special columns from the cotangents of both kinds of log-probs.

    A column j with cotangent g_j has g_j - S p_j, with S their sum. At the rank-1 candidate that
    would cancel where p is nearly 1, so there it is g (1 - p) - p x (the other cotangents), with
    1 - p = R / (1 + R).
    """
    k = topk_logprobs.shape[1]
    values, ids = sums.values[:, :k], sums.ids[:, :k]
    g_token = mx.where(sums.chosen > -mx.inf, logprobs.astype(mx.float32), 0.0)
    g_topk = mx.where(values > -mx.inf, topk_logprobs.astype(mx.float32), 0.0)
    tokens = tokens.astype(ids.dtype)
    same = ids == tokens[:, None]
    # The token's cotangent goes to its column among the candidates, where it has one there.
    g_topk = g_topk + mx.where(same, g_token[:, None], 0.0)
    apart = ~same.any(axis=-1)
    g_token = mx.where(apart, g_token, 0.0)
    others = g_topk[:, 1:].sum(axis=-1) + g_token
    mass = g_topk[:, 0] + others

    total = 1.0 + sums.tail
    top = values[:, :1]
    p_topk = mx.exp(values - top) / total[:, None]
    p_token = mx.exp(sums.chosen - top[:, 0]) / total
    first = (g_topk[:, 0] * sums.tail - others) / total
    rest = g_topk[:, 1:] - mass[:, None] * p_topk[:, 1:]
    token = mx.where(apart, g_token - mass * p_token, 0.0)
    out = mx.concatenate([token[:, None], first[:, None], rest], axis=1)
    return Coefficients(mx.concatenate([tokens[:, None], ids], axis=1), out, mass)
