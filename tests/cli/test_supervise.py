"""``train --supervise``: what is started again, how often, and with what."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import supervise
from simko_mlx.config import Config

ABORT, KILL = -signal.SIGABRT, -signal.SIGKILL
ARGUMENTS = {"start": ["--config", "gsm8k"], "go on": ["--steps=9"]}

Supervised = Callable[..., tuple[int, list[list[str]]]]


@pytest.fixture
def supervised(tmp_path: Path, monkeypatch) -> Supervised:
    """A run whose processes end with these codes -> its own code, and their command lines.
    ``saved``: there is a checkpoint after the first."""

    def run(codes: list[int], *, saved: bool = True, **keys: Any) -> tuple[int, list[list[str]]]:
        folder, commands, left = tmp_path / "run", [], list(codes)

        def wait(command: list[str]) -> int:
            commands.append(command[command.index("train") + 1 :])
            if saved:
                (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            return left.pop(0)

        monkeypatch.setattr(supervise, "_wait", wait)
        config = Config()
        config.rollout.group_size = 8
        for key, value in keys.items():
            setattr(config.optim, key, value)
        code = supervise.run(config, folder, ARGUMENTS, resume=False)
        assert not left, "it stopped too early"
        return code, commands

    return run


@pytest.mark.parametrize("code", [0, 1, 2, 130, 143])
def test_a_run_that_ends_by_itself_is_left_alone(supervised, code):
    found, commands = supervised([code])
    assert found == code and len(commands) == 1
    assert commands[0][:2] == ["--config", "gsm8k"] and commands[0][2] == "--output-dir"


def test_out_of_memory_goes_on_with_half_the_microbatch(supervised, tmp_path, capsys):
    code, commands = supervised([ABORT, ABORT, 0])
    assert code == 0
    resume = ["--resume", str(tmp_path / "run"), "--steps=9"]
    small = ["--set", "optim.microbatch_size=4", "--set", "optim.microbatch_tokens=0"]
    assert commands[1] == [*resume, *small]
    assert commands[2] == [*resume, *[x.replace("=4", "=2") for x in small]]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == (
        "The run was ended by SIGABRT (1 of 3): it goes on from the last checkpoint with "
        "optim.microbatch_size=4."
    )
    assert "(2 of 3)" in said[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_stopped_before_it_can_answer_is_not_started_again(supervised, number):
    code, commands = supervised([-number])
    assert code == 128 + number and len(commands) == 1


def test_without_a_checkpoint_it_starts_again(supervised, capsys):
    _, commands = supervised([KILL, 0], saved=False)
    assert commands[1][:2] == ["--config", "gsm8k"] and "--output-dir" in commands[1]
    assert "optim.microbatch_size=4" in commands[1]
    assert "it starts again" in capsys.readouterr().err


def test_after_three_restarts_for_one_cause_it_is_given_up(supervised, capsys):
    code, commands = supervised([ABORT] * 4)
    assert code == 1 and len(commands) == 4
    assert "error: the run was ended by SIGABRT 4 times; it is given up" in capsys.readouterr().err


def test_causes_are_counted_by_themselves(supervised):
    code, commands = supervised([ABORT, -signal.SIGSEGV, ABORT, -signal.SIGBUS, 0])
    assert code == 0 and len(commands) == 5
    assert "optim.microbatch_size=2" in commands[-1], "only running out of memory halves"


def test_single_completions_are_checkpointed(supervised):
    _, commands = supervised([KILL, 0], microbatch_size=1)
    assert commands[1][-2:] == ["--set", "grad_checkpoint=true"]


def test_what_a_run_is_given():
    options = {
        "config": "gsm8k", "sets": ("a.b=1",), "model": None, "steps": 3, "seed": 0,
        "plain": True, "until": None, "resume": None,
    }  # fmt: skip
    given = supervise.arguments(options)
    assert given["go on"] == ["--steps=3", "--seed=0", "--set", "a.b=1", "--plain"]
    assert given["start"] == ["--config", "gsm8k", *given["go on"]]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def test_sigterm_is_passed_on(tmp_path, environment):
    started = tmp_path / "started"
    child = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"pathlib.Path({str(started)!r}).touch()\n"
        "time.sleep(60)\n"
    )
    parent = (
        "import sys\nfrom cli import supervise\n"
        f"sys.exit(supervise._wait([sys.executable, '-c', {child!r}]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], env=environment, cwd=tmp_path)
    wait_for(started.exists)
    process.terminate()
    assert process.wait(timeout=30) == 143


def child_of(process: subprocess.Popen[str]) -> int | None:
    """The process that a supervisor has started."""
    done = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    )
    found = [int(pid) for pid in done.stdout.split()]
    return found[0] if found else None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's ps for a process's children")
def test_a_real_run_that_is_killed_goes_on_to_its_end(tmp_path, environment):
    keys = {
        "data.size": 40, "data.heldout": 4, "eval.before": "false", "eval.after": "false",
        "eval.every": 0, "checkpoint.every": 1, "memory.dry_step": "false",
        "rollout.problems_per_step": 4, "rollout.group_size": 4,
    }  # fmt: skip
    sets = [f"--set={key}={value}" for key, value in keys.items()]
    command = [sys.executable, "-m", "cli", "train", "--supervise", "--steps", "12", "--plain"]
    process = subprocess.Popen(
        [*command, "--output-dir", "run", *sets], cwd=tmp_path, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: (tmp_path / "run" / "checkpoints" / "step-000002").is_dir())
    child = child_of(process)
    assert child is not None
    os.kill(child, signal.SIGKILL)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "The run was ended by SIGKILL (1 of 3): it goes on from the last checkpoint" in said
    assert "step 12/12" in out
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "reward/mean" in row] == list(range(1, 13))
    (state,) = (tmp_path / "run" / "checkpoints" / "step-000012").glob("state.json")
    plan = json.loads(state.read_text())["plan"]
    assert plan["execution"]["given"]["optim.microbatch_size"] == 2
