"""Estimators as pure functions of counts and arrays of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from simko_mlx.types import LENGTH, ScoredGroup

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

    Problems are the independent units (clusters); the completions of one problem are not. This is
    Wilson's score interval with an effective sample size m p (1 - p) / variance: m problems whose
    values are all 0 or 1 count as m coin tosses, problems with values in between say more. The
    ratio is taken after z^2/2 imaginary problems at 0 and as many at 1 have joined, so that a
    sample in which nothing varies yet (0 %, 100 %, or a handful of problems) does not pass for
    certainty. ``estimate`` is the plain mean.

    Raises:
        ValueError: there are no values.
    """
    m = len(values)
    if m == 0:
        raise ValueError("an interval needs at least one value")
    mean = min(1.0, max(0.0, sum(values) / m))
    half = z * z / 2
    prior = (sum(values) + half) / (m + 2 * half)
    spread = sum((v - prior) ** 2 for v in values) + half * (prior**2 + (1 - prior) ** 2)
    size = m * max(1.0, prior * (1 - prior) / (spread / (m + 2 * half)))
    centre = (mean + half / size) / (1 + 2 * half / size)
    error = z * sqrt(mean * (1 - mean) / size + half / (2 * size * size)) / (1 + 2 * half / size)
    return Interval(mean, min(mean, max(0.0, centre - error)), max(mean, min(1.0, centre + error)))


def paired_difference(before: Sequence[float], after: Sequence[float], z: float = Z95) -> Interval:
    """95 % interval of the mean of after - before over the same problems, in [-1, 1]."""
    if len(before) != len(after):
        raise ValueError("a paired difference needs the same problems on both sides")
    halves = [(b - a + 1) / 2 for a, b in zip(before, after, strict=True)]
    half = clustered_interval(halves, z)
    return Interval(*(2 * x - 1 for x in (half.estimate, half.low, half.high)))


def group_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """A step's rewards and lengths by their names in metrics.jsonl; shares lie in [0, 1]."""
    verdicts = [v for scored in groups for v in scored.verdicts]
    completions = [c for scored in groups for c in scored.group.completions]
    rewards = [v.reward for v in verdicts if v.reward is not None]
    tokens = sum(len(c.token_ids) for c in completions)
    return {
        **({"reward/mean": sum(rewards) / len(rewards)} if rewards else {}),
        "reward/correct": sum(v.correct for v in verdicts) / len(verdicts),
        "reward/mixed_groups": sum(any(s.advantages) for s in groups) / len(groups),
        "reward/unscorable": sum(v.reward is None for v in verdicts) / len(verdicts),
        "rollout/tokens": float(tokens),
        "rollout/length": tokens / len(completions),
        "rollout/truncated": sum(c.stop_reason == LENGTH for c in completions) / len(completions),
    }
