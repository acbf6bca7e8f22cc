"""What the objectives share: forking tokens, the clipped surrogate, sums over the mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import mlx.core as mx
import numpy as np

from simko_mlx.config import LossConfig
from simko_mlx.kernels import HeadStatistics
from simko_mlx.types import LossOutput, TokenBatch

LossFn = Callable[[HeadStatistics, TokenBatch, LossConfig], LossOutput]
"""(statistics of shape (B, T), batch, settings) -> this microbatch's share of the loss."""


@lru_cache(maxsize=64)
def _quantile_positions(width: int, q: float) -> tuple[np.ndarray, np.ndarray]:
    """For n = 0..width values: lower index and fraction of the position q (n - 1).

    In float64, and snapped to an integer within 1e-9: in float32, 0.8 x 5 is not 4, and a
    threshold that is an element must exclude that element.
    """
    position = np.maximum(q * (np.arange(width + 1, dtype=np.float64) - 1), 0.0)
    nearest = np.rint(position)
    position = np.where(np.abs(position - nearest) < 1e-9, nearest, position)
    low = np.floor(position)
    return low.astype(np.int32), (position - low).astype(np.float32)


def forking_tokens(entropy: mx.array, mask: mx.array, quantile: float) -> mx.array:
    """Where a token's entropy is strictly above its completion's quantile: (B, T) bool.

    The quantile is taken over the completion's own tokens (mask > 0), by linear interpolation.
    """
    width = mask.shape[-1]
    low_of, fraction_of = _quantile_positions(width, quantile)
    real = mask > 0
    entropy = mx.stop_gradient(entropy)
    count = real.sum(axis=-1)
    low = mx.array(low_of)[count][:, None]
    fraction = mx.array(fraction_of)[count][:, None]
    ordered = mx.sort(mx.where(real, entropy, mx.inf), axis=-1)
    high = mx.minimum(low + 1, mx.maximum(count[:, None].astype(mx.int32) - 1, 0))
    below = mx.take_along_axis(ordered, low, axis=-1)
    above = mx.take_along_axis(ordered, high, axis=-1)
    # a + f (b - a) is exactly a where a == b; a (1 - f) + b f would not be.
    threshold = mx.where(fraction > 0, below + fraction * (above - below), below)
    return real & (entropy > threshold)


def fork_statistics(
    stats: HeadStatistics, mask: mx.array, quantile: float
) -> tuple[mx.array, mx.array, mx.array]:
    """What an evaluation reports of each token: entropy and whether it is a forking one, (B, T),
    and the probabilities of the top K, (B, T, K).

    They are to be evaluated together: what is left for later would keep the logits until then.
    """
    forking = forking_tokens(stats.entropy, mask, quantile)
    return stats.entropy, forking, mx.exp(stats.topk_logprobs)


def without_lost_tokens(stats: HeadStatistics, batch: TokenBatch) -> TokenBatch:
    """The batch with tokens masked whose log-probs are not finite: one such token would make the
    sum over all of them no number. They stay in the normaliser, as masked completions do."""
    finite = mx.isfinite(mx.stop_gradient(stats.logprobs))
    for measured in (batch.old_logprobs, batch.ref_logprobs):
        if measured is not None:
            finite = finite & mx.isfinite(measured)
    return batch._replace(loss_mask=mx.where(finite, batch.loss_mask, 0.0))


def importance_ratio(stats: HeadStatistics, batch: TokenBatch) -> mx.array:
    """g = pi(y) / pi_old(y), (B, T); exactly 1 where this is the first update, and at padding
    (before the exponential: the product of a zero gradient and an infinite ratio is not zero)."""
    old = stats.logprobs if batch.old_logprobs is None else batch.old_logprobs
    difference = stats.logprobs - mx.stop_gradient(old)
    return mx.exp(mx.where(batch.loss_mask > 0, difference, 0.0))


def clipped_surrogate(
    ratio: mx.array, advantages: mx.array, config: LossConfig
) -> tuple[mx.array, mx.array]:
    """PPO's max(-A g, -A clip(g, 1 - low, 1 + high)) per token, and where the clip is active."""
    high, low = 1.0 + config.clip_high, 1.0 - config.clip_low
    clipped = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))
    bound = mx.where(advantages > 0, high, low)
    return -advantages * mx.where(clipped, bound, ratio), clipped


def finish(
    per_token: mx.array,
    stats: HeadStatistics,
    batch: TokenBatch,
    config: LossConfig,
    extra: dict[str, mx.array],
) -> LossOutput:
    """Adds the KL penalty, sums over completion tokens, divides by the update's token count.

    The divisor counts all completion tokens of the update, those of skipped groups and of masked
    completions included, as in the authors' code: skipping does not change the learning rate.
    """
    mask = batch.loss_mask
    metrics = dict(extra)
    if config.kl_coef and batch.ref_logprobs is not None:
        # k3 estimate (Schulman 2020): exp(d) - d - 1 with d = log pi_ref - log pi.
        d = mx.where(mask > 0, batch.ref_logprobs - stats.logprobs, 0.0)
        kl = mx.exp(d) - d - 1.0
        per_token = per_token + config.kl_coef * kl
        metrics["kl"] = kl
    # `where`, not a product: a padded position may hold inf or nan.
    loss = mx.where(mask > 0, per_token * mask, 0.0).sum() / batch.normalizer
    probs = mx.exp(stats.topk_logprobs)
    metrics["entropy"] = stats.entropy
    for rank in range(min(3, probs.shape[-1])):
        metrics[f"rank{rank + 1}"] = probs[..., rank]
    sums = {
        name: mx.stop_gradient(mx.where(mask > 0, value.astype(mx.float32), 0.0).sum())
        for name, value in metrics.items()
    }
    return LossOutput(loss, sums)
