"""Estimators against enumeration and simulation."""

from __future__ import annotations

import random
from itertools import combinations
from math import comb, sqrt

import numpy as np
import pytest

from simko_mlx.metrics import (
    clustered_interval,
    paired_difference,
    pass_at_k,
)


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(n):
    for c in range(n + 1):
        correct = [i < c for i in range(n)]
        for k in range(1, n + 1):
            subsets = list(combinations(correct, k))
            share = sum(any(s) for s in subsets) / len(subsets)
            assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(1024, 1, 512), (2000, 3, 1000), (10_000, 7, 64)])
def test_pass_at_k_is_stable_for_large_n(n, c, k):
    assert pass_at_k(n, c, k) == pytest.approx(1 - comb(n - c, k) / comb(n, k), rel=1e-9)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize("m", [5, 20, 100, 1000])
def test_intervals_at_0_and_100_percent_are_wilsons(m):
    z2 = 1.959963984540054**2
    zero = clustered_interval([0.0] * m)
    assert (zero.estimate, zero.low) == (0.0, 0.0)
    assert zero.high == pytest.approx(z2 / (m + z2))
    one = clustered_interval([1.0] * m)
    assert (one.estimate, one.high) == (1.0, 1.0)
    assert one.low == pytest.approx(1 - zero.high)


def test_binary_values_give_wilsons_interval():
    """29 of 100: the textbook formula, written out."""
    p, m, z = 0.29, 100, 1.959963984540054
    interval = clustered_interval([1.0] * 29 + [0.0] * 71)
    centre = (p + z * z / (2 * m)) / (1 + z * z / m)
    error = z * sqrt(p * (1 - p) / m + z * z / (4 * m * m)) / (1 + z * z / m)
    assert interval.low == pytest.approx(centre - error, abs=1e-9)
    assert interval.high == pytest.approx(centre + error, abs=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "m", "n"),
    [(0.2, 1.8, 100, 16), (2, 18, 100, 32), (0.05, 5, 100, 16), (9, 1, 50, 8), (0.3, 0.3, 30, 4)],
)
def test_intervals_cover_the_truth(a, b, m, n):
    """Problems differ in difficulty (Beta), completions are drawn within them."""
    rng = np.random.default_rng(1)
    truth, hits, trials, widths = a / (a + b), 0, 600, []
    for _ in range(trials):
        difficulty = rng.beta(a, b, size=m)
        values = rng.binomial(n, difficulty) / n
        interval = clustered_interval(values.tolist())
        hits += interval.low <= truth <= interval.high
        widths.append(interval.high - interval.low)
    assert hits / trials >= 0.93
    # Honest, not just wide: within a factor of 2.5 of the normal interval's width.
    spread = sqrt(truth * (1 - truth) / (a + b + 1) * (1 + (a + b) / n))
    assert np.mean(widths) <= 2.5 * 2 * 1.96 * spread / sqrt(m)


def test_more_completions_per_problem_do_not_count_as_more_problems():
    few = clustered_interval([0.0, 1.0] * 10)
    assert few.high - few.low > 0.35


def test_paired_difference_is_tighter_than_two_intervals():
    rng = random.Random(0)
    before = [rng.random() * 0.8 for _ in range(100)]
    after = [b + 0.1 for b in before]
    difference = paired_difference(before, after)
    assert difference.estimate == pytest.approx(0.1)
    assert difference.low > 0.0
    alone = clustered_interval(after)
    assert difference.high - difference.low < 2 * (alone.high - alone.low)
    with pytest.raises(ValueError, match="same problems"):
        paired_difference(before, after[1:])
