"""Group advantages against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from simko_mlx.advantages import group_advantages


@pytest.mark.parametrize("rewards", [[1, 0, 0, 1], [0.2, 0.9, -3.0], [1, 0], [5.0, 5.0, 5.1]])
def test_advantages_are_standardised_with_the_unbiased_deviation(rewards):
    values = np.array(rewards, dtype=float)
    centred = values - values.mean()
    expected = centred / (values.std(ddof=1) + 1e-6)
    assert group_advantages(rewards) == pytest.approx(expected.tolist())
    assert group_advantages(rewards, scale=False) == pytest.approx(centred.tolist())
    best = int(values.argmax())
    assert group_advantages(rewards)[best] > 0


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
def test_equal_rewards_give_exactly_zero(value):
    assert group_advantages([value] * 7) == [0.0] * 7


def test_what_cannot_be_scored_takes_no_part():
    with_none = group_advantages([1.0, None, 0.0, None])
    assert [with_none[0], with_none[2]] == group_advantages([1.0, 0.0])
    assert with_none[1] == with_none[3] == 0.0
    assert group_advantages([None, 1.0, None]) == [0.0, 0.0, 0.0]
    assert group_advantages([None, None]) == [0.0, 0.0]
