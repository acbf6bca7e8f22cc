"""Estimators as pure functions of counts and arrays of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k completions is correct, from c of n correct.

    1 - C(n-c, k) / C(n, k), as the product of (1 - k / i) over i = n-c+1 .. n, which neither
    overflows nor cancels (Chen et al. 2021, arXiv 2107.03374).

    Raises:
        ValueError: unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    if n - c < k:
        return 1.0
    miss = 1.0
    for i in range(n - c + 1, n + 1):
        miss *= 1.0 - k / i
    return 1.0 - miss


def clustered_interval(values: Sequence[float], z: float = Z95) -> Interval:
    """95 % interval of the mean of per-problem values in [0, 1].

    Problems are the independent units (clusters), completions of one problem are not. Agresti and
    Coull's idea on problems: z^2/2 imaginary problems at 0 and as many at 1 join the sample, then
    mean and clustered standard error are taken. So the interval does not collapse when every value
    is 0, or 1, or the same. ``estimate`` is the plain mean.
    """
    m = len(values)
    if m == 0:
        raise ValueError("an interval needs at least one value")
    mean = sum(values) / m
    half = z * z / 2
    size = m + 2 * half
    centre = (sum(values) + half) / size
    spread = sum((v - centre) ** 2 for v in values)
    spread += half * (centre**2 + (1 - centre) ** 2)
    error = z * sqrt(spread / size / size)
    return Interval(mean, min(mean, max(0.0, centre - error)), max(mean, min(1.0, centre + error)))


def paired_difference(before: Sequence[float], after: Sequence[float], z: float = Z95) -> Interval:
    """95 % interval of the mean of after - before over the same problems, in [-1, 1]."""
    if len(before) != len(after):
        raise ValueError("a paired difference needs the same problems on both sides")
    halves = [(b - a + 1) / 2 for a, b in zip(before, after, strict=True)]
    half = clustered_interval(halves, z)
    return Interval(*(2 * x - 1 for x in (half.estimate, half.low, half.high)))


def quantile(values: Sequence[float], q: float) -> float:
    """Quantile by linear interpolation between the two nearest values."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
