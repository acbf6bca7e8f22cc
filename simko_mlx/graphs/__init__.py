"""What MLX would evaluate for a function, and how much memory that takes, without running it."""

from simko_mlx.graphs.memory import CPU, METAL, NONE_AHEAD, Held, Peak, Queue, peak_bytes

__all__ = ["CPU", "METAL", "NONE_AHEAD", "Held", "Peak", "Queue", "peak_bytes"]
