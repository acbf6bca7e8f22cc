"""exp for whole rows of logits: of all that happens to a logit, what takes the longest on a CPU."""

from __future__ import annotations

import platform

import mlx.core as mx

LOG2_E = 1.4426950408889634


def exp(x: mx.array) -> mx.array:
    """e^x, float32, to some 1e-6 relative where the result is above 1e-36 (as ``mx.exp``).

    In MLX's wheel for x86-64 the CPU's exp takes two to three times as long as its power.
    """
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    if on_cpu and platform.machine() in ("x86_64", "AMD64"):
        return mx.power(2.0, x * LOG2_E)
    return mx.exp(x)
