"""Runs that stop in time."""

from __future__ import annotations

import datetime
import time

import pytest

from simko_mlx import checkpoint
from simko_mlx.trainer import train
from simko_mlx.types import UserError
from simko_mlx.until import Until, parse_until
from tests.runs import Recorder, metrics, small_config

NOW = datetime.datetime(2026, 3, 14, 22, 30)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("07:00", "2026-03-15 07:00"),
        ("22:31", "2026-03-14 22:31"),
        ("22:30", "2026-03-15 22:30"),
        ("2026-03-16 01:00", "2026-03-16 01:00"),
        ("2026-03-16T01:00:30", "2026-03-16 01:00:30"),
    ],
)
def test_times(text, wanted):
    assert parse_until(text, NOW) == datetime.datetime.fromisoformat(wanted)


@pytest.mark.parametrize("text", ["7", "tomorrow", "25:00", "07:00 am", "", "2026-03-14 22:00"])
def test_what_is_no_time_to_come(text):
    with pytest.raises(UserError, match="--until is"):
        parse_until(text, NOW)


def test_a_step_that_would_end_too_late_is_not_begun():
    until = Until(100.0, reserve=20.0)
    assert not until.is_near(79.0) and until.is_near(80.0)
    for seconds in (5.0, 30.0, 1.0):
        until.step_took(seconds)
    assert not until.is_near(49.0) and until.is_near(50.0)
    for _ in range(5):
        until.step_took(1.0)
    assert not until.is_near(78.0)
    assert not Until(None).is_near(1e12)


def test_a_run_that_stops_in_time_goes_on_as_if_it_had_not(tmp_path):
    config = small_config(steps=3, checkpoint__every=100)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(config, whole, Recorder())

    class OneStep(Recorder):
        """The first step takes an hour, as the clock has it."""

        def step(self, values, groups):
            super().step(values, groups)
            if groups:
                patch.setattr(time, "time", lambda: clock + 3600)

    clock = time.time()
    with pytest.MonkeyPatch.context() as patch:
        recorder = OneStep()
        summary = train(config, stopped, recorder, until=clock + 3600)
    assert summary.step == 1 and checkpoint.load(stopped)[1]["step"] == 1
    assert "Stopped after step 1 of 3" in recorder.messages[-1]
    assert summary.trained is None or summary.trained.label == "step 1"
    train(config, stopped, Recorder(), resume=True)

    left, right = ([row for row in metrics(f) if "reward/mean" in row] for f in (whole, stopped))
    assert left == right and len(left) == 3
