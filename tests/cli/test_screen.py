from __future__ import annotations

import io

import pytest
from rich.console import Console

from cli import live, screen, summary, ui
from simko_mlx.metrics import Interval
from tests.cli.fakes import INFO, evaluation, group, step


def filled(text: str = "L 3 + 5 = 8 * 2 = 16", prompt: str = "3 5 2 > 16 :") -> screen.Screen:
    found = screen.Screen(info=dict(INFO))
    for number in range(1, 6):
        found.hear(step(number, reward=number / 10), [group(text, prompt=prompt)])
        found.durations.append(2.0)
    found.phase = ("rollout", 64, 128, "1,234 tok/s")
    found.evaluation = "eval full base  pass@1 18.4%"
    found.messages += ["One.", "No learning signal for 3 steps: " + "all are wrong, " * 8]
    return found


@pytest.mark.parametrize(("width", "height"), [(80, 23), (40, 23), (120, 50), (40, 8), (10, 3)])
def test_the_picture_never_exceeds_the_terminal(width, height):
    lines = screen.render(filled("x" * 5000 + "\n" * 50, "y " * 900), width, height)
    assert 0 < len(lines) <= height
    assert max(line.cell_len for line in lines) <= width
    assert not any("\n" in line.plain for line in lines)


def test_the_picture_of_a_usual_terminal_holds_everything():
    text = "\n".join(line.plain for line in screen.render(filled(), 80, 23))
    for words in (
        "countdown-tiny · embedded · simko", "runs/countdown-tiny", "5/10  ETA 10 s", "64/128",
        "1,234 tok/s", "reward       0.500  ▁", "entropy", "rank-1", "0.41 GB",
        "reward 1, correct", "3 5 2 > 16 :", "L 3 + 5 = 8 * 2 = 16", "pass@1 18.4%", "One.",
        "! No learning signal",
    ):  # fmt: skip
        assert words in text


@pytest.mark.parametrize("messages", [[], ["One."], ["One.", "Two."], ["One.", "Two.", "Three."]])
def test_the_picture_before_the_first_step(messages):
    lines = screen.render(screen.Screen(info=dict(INFO), messages=messages), 80, 23)
    assert [line.plain for line in lines[4:]] == messages[-2:]
    assert screen.render(screen.Screen(), 80, 23)


def test_a_long_completion_keeps_its_end():
    lines = screen.render(filled("start " + "x" * 5000 + " \\boxed{42}"), 80, 23)
    text = "\n".join(line.plain for line in lines)
    assert "start xxx" in text and "\\boxed{42}" in text and "…" in text


def test_the_eta_follows_the_recent_speed():
    found = filled()
    found.durations.extend([4.0] * 10)
    assert found.eta() == "ETA 20 s"
    found.step = 10
    assert found.eta() == ""


def test_the_time_of_an_evaluation_is_not_taken_for_a_step(monkeypatch):
    clock = iter(range(0, 1000, 100))
    monkeypatch.setattr(live.time, "monotonic", lambda: float(next(clock)))
    view = live.LiveView(Console(file=io.StringIO()))
    view.step(step(1), [])
    view.step(step(2), [])
    before = list(view.screen.durations)
    view.step(live.StepMetrics(2, {"eval/pass@1": 0.5}), [])
    view.step(step(3), [])
    assert list(view.screen.durations) == before
    assert "pass@1 50.0%" in view.screen.evaluation


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\nc\td", "a↵b↵c d"),
        ("\x1b[2J\x07\x00\x9b", "\ufffd[2J\ufffd\ufffd\ufffd"),
        ("a\u202eb\u2066\u2028\ud800", "a\ufffdb\ufffd\ufffd\ufffd"),
        ("naïve [red] 你好 👩\u200d🔬", "naïve [red] 你好 👩\u200d🔬"),
    ],
)
def test_model_text_is_made_harmless(text, shown):
    assert ui.clean(text) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.4, "0 s"), (59, "59 s"), (72, "1:12"), (7385, "2:03:05"), (float("nan"), "?")],
)
def test_seconds(value, shown):
    assert ui.seconds(value) == shown


def test_spark():
    assert ui.spark([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert ui.spark([1, 1, 1], 8) == "▁▁▁"
    assert ui.spark([0, float("nan"), 1], 2) == "▁"
    assert ui.spark([], 8) == ""


def test_interval():
    assert ui.interval(Interval(0.184, 0.161, 0.209)) == "18.4 [16.1, 20.9]"
    assert ui.interval(Interval(0.01, -0.02, 0.04), "+") == "+1.0 [-2.0, 4.0]"


def test_json_has_no_nan():
    assert ui.finite({"a": [float("nan"), 1.5, (float("inf"),)]}) == {"a": [None, 1.5, [None]]}


@pytest.mark.parametrize(
    ("text", "warning"),
    [("No learning signal for 3 steps", True), ("Loading nanochat", False), ("loss is NaN", True)],
)
def test_what_stands_out(text, warning):
    assert ui.is_warning(text) is warning


@pytest.mark.parametrize("width", [80, 60, 40])
def test_tables_fit_the_terminal_whatever_the_k(width):
    found = {
        "base": evaluation("base", 0.2, (1, 2, 4, 8, 16, 32)),
        "trained (step 100)": evaluation("step 100", 0.3, (1, 2, 4, 8, 16, 32)),
    }
    file = io.StringIO()
    summary.show_evaluations(found, Console(file=file, width=width, force_terminal=False))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert file.getvalue().count("pass@32") == 1


def test_long_names_of_groups_leave_the_figures_their_room():
    import dataclasses

    found = evaluation("base", 0.2)
    name = "[bold]level[/bold] " + "a long name | " * 9
    found = dataclasses.replace(found, groups={name: Interval(0.184, 0.161, 0.209)})
    file = io.StringIO()
    summary.show_evaluations({"base": found, "trained": found}, Console(file=file, width=80))
    row = next(line for line in file.getvalue().splitlines() if "long name" in line)
    assert row.startswith("[bold]level[/bold] a long name")
    assert row.count("18.4 [16.1, 20.9]") == 2


def test_no_change_is_shown_between_different_problems():
    import dataclasses

    base, other = evaluation("base", 0.2), evaluation("step 1", 0.3)
    other = dataclasses.replace(other, problem_ids=("a", "b", "d"))
    file = io.StringIO()
    summary.show_evaluations({"base": base, "trained": other}, Console(file=file, width=80))
    assert "change" not in file.getvalue()


def test_where_to_go_on(tmp_path):
    assert "before the first checkpoint" in summary.where_to_go_on(tmp_path)
    for name in ("step-000010", "step-000100", "step-000200.part"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert "saved at step 100." in summary.where_to_go_on(tmp_path)
