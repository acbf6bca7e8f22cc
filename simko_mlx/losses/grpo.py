"""GRPO with a token-level mean: PPO's clipped surrogate on group advantages.

Shao et al. 2024 (arXiv 2402.03300), with the normaliser of DAPO (arXiv 2503.14476): the mean over
all completion tokens of the update instead of a mean of per-completion means.
"""

from __future__ import annotations

from simko_mlx.config import LossConfig
from simko_mlx.kernels import HeadStatistics
from simko_mlx.losses.common import clipped_surrogate, finish, importance_ratio
from simko_mlx.types import LossOutput, TokenBatch


def grpo(stats: HeadStatistics, batch: TokenBatch, config: LossConfig) -> LossOutput:
    """The loss of one microbatch; reads clip_low, clip_high and kl_coef."""
    ratio = importance_ratio(stats, batch)
    per_token, clipped = clipped_surrogate(ratio, batch.advantages[:, None], config)
    return finish(per_token, stats, batch, config, {"clipped": clipped, "ratio": ratio})
