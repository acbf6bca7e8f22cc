"""exp for whole rows of logits: of all that happens to a logit, what takes the longest on a CPU."""

from __future__ import annotations

import platform

import mlx.core as mx

LOG2_E = 1.4426950408889634


def exp(x: mx.array, scale: float = 1.0) -> mx.array:
    """e^(scale x), float32, to some 1e-6 relative where the result is above 1e-36 (as ``mx.exp``).

    In MLX's wheel for x86-64 the CPU's exp takes two to three times as long as its power.
    """
    if has_slow_exp():
        return mx.power(2.0, x * (scale * LOG2_E))
    return mx.exp(x if scale == 1.0 else x * scale)


def softmax(x: mx.array) -> mx.array:
    """Softmax over the last axis, of what is finite in at least one place; in x's dtype."""
    if not has_slow_exp():
        return mx.softmax(x, axis=-1, precise=True)
    wide = x.astype(mx.float32)
    shares = exp(wide - wide.max(axis=-1, keepdims=True))
    return (shares / shares.sum(axis=-1, keepdims=True)).astype(x.dtype)


def has_slow_exp() -> bool:
    """Whether MLX's exp is the slow one here."""
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    return on_cpu and platform.machine() in ("x86_64", "AMD64")
