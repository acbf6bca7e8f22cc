"""Rewards of a group -> advantages. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

EPSILON = 1e-6


def group_advantages(rewards: Sequence[float | None], *, scale: bool = True) -> list[float]:
    """A_i = (r_i - mean) / (std + 1e-6) over the group, std unbiased (as in the authors' code).

    A reward of None (can't be scored) takes no part: its advantage is 0 and the others are
    computed without it. Equal rewards give exactly 0, whatever rounding the mean has.
    ``scale`` False leaves out the division (Dr. GRPO, arXiv 2503.20783).
    """
    scored = [r for r in rewards if r is not None]
    if len(scored) < 2 or max(scored) == min(scored):
        return [0.0] * len(rewards)
    mean = sum(scored) / len(scored)
    divisor = 1.0
    if scale:
        variance = sum((r - mean) * (r - mean) for r in scored) / (len(scored) - 1)
        divisor = sqrt(variance) + EPSILON
    return [0.0 if r is None else (r - mean) / divisor for r in rewards]
