"""Statistics of the next-token distribution that objectives are functions of."""

from simko_mlx.kernels.reference import HeadStatistics, logit_statistics
from simko_mlx.kernels.topk import top_k

__all__ = ["HeadStatistics", "logit_statistics", "top_k"]
