"""What is said when nothing can be learnt."""

from __future__ import annotations

import pytest

from simko_mlx.advantages import group_advantages
from simko_mlx.advice import GAP, GAP_IN_HALF, REMIND, GapWatch, SignalWatch
from simko_mlx.types import LENGTH, STOP, Completion, Problem, RolloutGroup, ScoredGroup, Verdict


def group(rewards, stop=STOP):
    completions = tuple(Completion((1,), (0.0,), "x", stop) for _ in rewards)
    verdicts = tuple(Verdict(r, bool(r), "why not") for r in rewards)
    problem = Problem("p", (), "1")
    advantages = tuple(group_advantages(list(rewards)))
    return ScoredGroup(RolloutGroup(problem, (1,), completions), verdicts, advantages)


def watch(steps):
    it = SignalWatch(64, ["'</s>'"])
    return [it.look(step) or "" for step in steps]


def test_a_learning_run_hears_nothing():
    assert watch([[group([1, 0]), group([1, 1])]] * 30) == [""] * 30


def test_silence_is_said_after_three_steps_and_then_now_and_then():
    said = watch([[group([0, 0])]] * (3 + 2 * REMIND))
    assert [i for i, text in enumerate(said) if text] == [2, 2 + REMIND, 2 + 2 * REMIND]
    assert said[2].startswith("No learning signal for 3 steps: every completion is wrong")
    assert "end by themselves" in said[2]


def test_almost_no_signal_is_said_too():
    step = [group([0, 0], LENGTH)] * 19 + [group([1, 0])]
    (text,) = [t for t in watch([step] * 3) if t]
    assert text.startswith("Almost no learning signal for 3 steps (3 of 60 groups had different")
    assert "95% of the completions are cut at 64 tokens" in text and "'</s>'" in text
    assert "98% of the completions are wrong" in text


def test_all_correct_all_unscorable_and_all_equal_are_told_apart():
    assert "every completion is correct; choose harder" in watch([[group([1, 1])]] * 3)[2]
    assert "could not score a single completion (why not)" in watch([[group([None, None])]] * 3)[2]
    equal = watch([[group([1, 1]), group([0, 0])]] * 3)[2]
    assert "within each group all rewards are equal" in equal


def test_one_step_with_signal_starts_the_count_again():
    quiet, loud = [group([0, 0])], [group([0, 1])]
    said = watch([quiet, quiet, loud, quiet, quiet, quiet])
    assert [bool(t) for t in said] == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("dtype", "limit"),
    [("float32", GAP["float32"]), ("bfloat16", GAP_IN_HALF), ("float16", GAP_IN_HALF)],
)
def test_a_gap_is_told_when_rounding_does_not_explain_it(dtype, limit):
    watch = GapWatch(dtype)
    assert [watch.look(gap) for gap in (0.0, 0.5 * limit, limit)] == [None] * 3
    text = watch.look(1.01 * limit) or ""
    assert text.startswith("Warning: ") and dtype in text
    assert f"{1.01 * limit:.2g} between sampling and training" in text and f"({limit:.2g})" in text


def test_a_gap_is_told_again_when_it_has_grown_tenfold():
    watch = GapWatch("float32")
    gaps = [0.002, 0.002, 0.019, 0.0201, 0.0201, 0.2, 0.3, 0.001, 0.25, 30.0, float("inf")]
    said = [bool(watch.look(gap)) for gap in gaps]
    assert said == [True, False, False, True, False, False, True, False, False, True, True]
    assert watch.look(float("inf")) is None


def test_a_gap_that_is_no_number_is_left_to_others():
    watch = GapWatch("float32")
    assert watch.look(float("nan")) is None
    assert watch.look(0.002) is not None
