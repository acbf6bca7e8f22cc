"""``simko-mlx plan``: what it prints, and what its exit code says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def test_it_tells_what_a_run_takes(simko):
    done = simko("plan")
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    lines = done.stdout.splitlines()
    for name in ("weights", "optimizer", "rollout", "evaluation", "step", "peak"):
        assert sum(line.startswith(name) for line in lines) == 1, name
    assert "It fits." in lines
    assert max(map(len, lines)) <= 80
    assert not any(line.startswith("change") for line in lines)


def test_json_is_json_and_nothing_else(simko):
    done = simko("plan", "--json", "--memory", "16GB", "--set", "data.size=40")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["fits"]
    assert found["limit"] == int(16e9 * 2 / 3)
    told = found["forecast"]
    assert told["peak"] == max(told["rollout"], told["evaluation"], told["step"])
    assert told["shape"]["rollout"]["rows"] == 128


def test_what_does_not_fit_is_exit_code_1(simko):
    done = simko("plan", "--memory", "1MB")
    assert done.returncode == 1
    assert "It does NOT fit, and no setting of batches would help" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.slow
def test_what_is_told_to_change_makes_it_fit(simko):
    keys = {
        "memory.limit": 0.012, "optim.microbatch_tokens": 0, "rollout.group_size": 32,
        "rollout.max_completion_length": 48, "rollout.batch_size": 8, "eval.before": "false",
        "eval.after": "false", "eval.every": 0,
    }  # fmt: skip
    sets = [f"--set={key}={value}" for key, value in keys.items()]
    before = simko("plan", *sets)
    assert before.returncode == 1, before.stdout
    line = next(x for x in before.stdout.splitlines() if x.startswith("  --set"))
    again = simko("plan", *sets, *line.partition("(")[0].split())
    assert again.returncode == 0, again.stdout
    assert "It fits." in again.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--memory", "much"], "16GB"),
        (["--memory", "0GB"], "16GB"),
        (["--memory", "16XB"], "16GB"),
        (["-c", "nosuch"], "countdown-tiny"),
        (["--model", "./nothing"], "no such folder"),
        (["--set", "rollout.group_size=1"], "at least 2"),
        (["--nosuch"], "--nosuch"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(simko, args, words):
    done = simko("plan", *args)
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout == "" and "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path, environment):
    command = f"'{sys.executable}' -m cli plan | head -n 1"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert "prompts of" in done.stdout
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
