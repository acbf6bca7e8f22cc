"""SimKO: Simple Pass@K Policy Optimization (arXiv 2510.14807), as a function of statistics.

At forking tokens (entropy above the completion's own quantile), and only there,

* in verified-correct completions with A > 0 the importance ratio g of the sampled token becomes
      g~ = (1 - alpha) g + (alpha / K) sum over the top-K of sg(g / g_k) g_k,
* in incorrect completions with A < 0 whose sampled token is the rank-1 candidate the advantage is
  multiplied by ``rank1_penalty``.

Where this differs from the paper or from the authors' code:

1. g_k = pi(k) / pi_old(k) is never formed. In sg(g / g_k) g_k the old probability cancels:
   its value is g and its gradient g grad log pi(k). So the old top-K log-probs are not stored.
2. The authors smooth by ``correct`` alone, and sharpen by A < 0 alone. With binary rewards that
   is the same thing. With shaped rewards a correct completion can have A < 0, or an incorrect
   one A > 0; then nothing is smoothed or sharpened, and the share is logged ("conflict").
3. The authors' code broadcasts ``correct`` along the wrong axis when the batch size equals the
   response length. Here it is always one value per completion.
4. The quantile's position is computed in float64 and snapped to integers, so that a threshold
   that is an element excludes that element, whatever the machine.
5. Where fewer than K candidates have a finite logit, alpha is spread over those that have.
6. The sampled token may be one of the K candidates; its weight is then 1 - alpha + alpha / K.
"""

from __future__ import annotations

import mlx.core as mx

from simko_mlx.config import LossConfig
from simko_mlx.kernels import HeadStatistics, logit_statistics
from simko_mlx.losses.common import (
    clipped_surrogate,
    finish,
    forking_tokens,
    importance_ratio,
    without_lost_tokens,
)
from simko_mlx.types import LossOutput, TokenBatch


def simko(stats: HeadStatistics, batch: TokenBatch, config: LossConfig) -> LossOutput:
    """The loss of one microbatch; reads every key of the ``loss`` section."""
    mask = batch.loss_mask
    advantages = batch.advantages[:, None]
    correct = batch.correct[:, None]
    forking = forking_tokens(stats.entropy, mask, config.entropy_quantile)

    smoothed = forking & correct & (advantages > 0)
    ratio = importance_ratio(stats, batch)
    ratio = mx.where(smoothed, _smooth(ratio, stats.topk_logprobs, config.alpha), ratio)

    sharpened = forking & ~correct & (advantages < 0) & stats.rank1
    advantages = mx.where(sharpened, config.rank1_penalty * advantages, advantages)

    per_token, clipped = clipped_surrogate(ratio, advantages, config)
    conflict = mx.where(correct, batch.advantages[:, None] < 0, batch.advantages[:, None] > 0)
    extra = {
        "clipped": clipped,
        "ratio": ratio,
        "forking": forking,
        "smoothed": smoothed,
        "sharpened": sharpened,
        "conflict": mx.broadcast_to(conflict, mask.shape),
    }
    return finish(per_token, stats, batch, config, extra)


def _smooth(ratio: mx.array, topk_logprobs: mx.array, alpha: float) -> mx.array:
    """(1 - alpha) g + (alpha / K) sum_k sg(g) exp(logp_k - sg(logp_k)); in value g itself."""
    finite = mx.isfinite(topk_logprobs)
    logprobs = mx.where(finite, topk_logprobs, 0.0)  # no gradient, and no inf - inf
    unit = mx.where(finite, mx.exp(logprobs - mx.stop_gradient(logprobs)), 0.0)
    mean = unit.sum(axis=-1) / mx.maximum(finite.sum(axis=-1), 1)
    return (1.0 - alpha) * ratio + alpha * mx.stop_gradient(ratio) * mean


def simko_loss(
    logits: mx.array,
    tokens: mx.array,
    mask: mx.array,
    advantages: mx.array,
    correct: mx.array,
    old_logprobs: mx.array,
    *,
    simko_k: int = 3,
    alpha: float = 0.01,
    rank1_penalty: float = 1.1,
    entropy_quantile: float = 0.8,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    temperature: float = 1.0,
) -> mx.array:
    """The SimKO loss of one batch from full logits: a float32 scalar, differentiable in logits.

    Args:
        logits: (B, T, V), float; logits[b, t] predicts tokens[b, t].
        tokens: (B, T) integers, the sampled completions, right-padded.
        mask: (B, T), 1 at completion tokens (the stop token included), 0 at padding.
        advantages: (B,) float.
        correct: (B,), true or non-zero where the verifier accepted the completion.
        old_logprobs: (B, T) float, log-probs of ``tokens`` under softmax(logits / temperature) of
            the policy that sampled them.
        simko_k: K, the number of candidates that share ``alpha``.
        alpha: share of the gradient spread over the candidates (authors: mix_topk_coef).
        rank1_penalty: factor on the rank-1 candidate's advantage where wrong (lambda_top1).
        entropy_quantile: forking tokens lie strictly above this quantile (authors: tau).
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        temperature: of the sampling, > 0.

    Returns:
        The mean over all positions with mask > 0; 0 where there is none. A position whose logits
        are NaN or +inf adds nothing to it, and has no gradient. With alpha = 0 and
        rank1_penalty = 1 it is GRPO's loss exactly.

    Raises:
        ValueError: shapes that don't fit together.
    """
    rows, width, vocabulary = logits.shape
    for name, array, shape in (
        ("tokens", tokens, (rows, width)),
        ("mask", mask, (rows, width)),
        ("advantages", advantages, (rows,)),
        ("correct", correct, (rows,)),
        ("old_logprobs", old_logprobs, (rows, width)),
    ):
        if array.shape != shape:
            given = f"{name} has shape {array.shape}"
            raise ValueError(f"{given}, but logits of shape {logits.shape} need {shape}")
    flat = logits.reshape(-1, vocabulary)
    stats = logit_statistics(flat, tokens.reshape(-1), simko_k=simko_k, temperature=temperature)
    mask = (mask > 0).astype(mx.float32)
    batch = TokenBatch(
        prompts=((0,),),
        tokens=tokens,
        loss_mask=mask,
        advantages=advantages.astype(mx.float32),
        correct=correct.astype(mx.float32) > 0,
        normalizer=mx.maximum(mask.sum(), 1.0),  # type: ignore[arg-type]
        old_logprobs=old_logprobs.astype(mx.float32),
    )
    config = LossConfig(
        alpha=alpha,
        simko_k=simko_k,
        entropy_quantile=entropy_quantile,
        rank1_penalty=rank1_penalty,
        clip_low=clip_low,
        clip_high=clip_high,
    )
    stats = stats.reshape(rows, width)
    return simko(stats, without_lost_tokens(stats, batch), config).loss
