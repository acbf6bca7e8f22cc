"""Statistics of the next-token distribution that objectives are functions of."""

from simko_mlx.kernels.budget import chunk_tokens
from simko_mlx.kernels.fused import head_statistics
from simko_mlx.kernels.head import Head
from simko_mlx.kernels.reference import logit_statistics
from simko_mlx.kernels.statistics import HeadStatistics
from simko_mlx.kernels.topk import top_k

__all__ = [
    "Head",
    "HeadStatistics",
    "chunk_tokens",
    "head_statistics",
    "logit_statistics",
    "top_k",
]
