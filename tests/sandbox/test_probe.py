"""What ``simko-mlx doctor --sandbox`` says, and its exit code."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest
from click.testing import CliRunner

from cli.doctor import command
from simko_mlx.sandbox import probe as probes
from simko_mlx.sandbox import run as runs
from simko_mlx.sandbox.backend import Backend
from simko_mlx.sandbox.probe import Line, probe
from simko_mlx.sandbox.run import Outcome
from simko_mlx.sandbox.values import encode
from tests.sandbox import live

LAYERS = ["sandbox", "user", "files", "network", "environment", "processes", "memory", "time"]


def found(**changes: str) -> dict[str, str]:
    tried = ("read a file", "write beside it", "write to /usr", "connect", "fork", "signal")
    held = dict.fromkeys((*tried, "allocate"), "")
    return {**held, "environment": "HOME LANG PATH", "python": "3.12.0", **changes}


@pytest.fixture
def inside(monkeypatch):
    """What a program finds, and how long ones end, as the test says."""

    def says(finds: dict[str, str], sleeper: str = "timeout", platform: str = "linux"):
        def run(job, backend, limits):
            if job.calls:
                return Outcome("ok", records=[{"value": encode(finds)}])
            memory = "memory" if limits.memory < 100 << 20 else sleeper
            return Outcome(memory)

        monkeypatch.setattr(probes.runs, "run", run)
        backend = Backend(platform, "l", "/opt/py/bin/python", "/opt/py", None)
        monkeypatch.setattr(probes, "choose", lambda sandbox: backend)

    return says


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_each_layer_has_a_line(inside, platform):
    inside(found(), platform=platform)
    lines = probe({"enabled": True})
    assert [line.layer for line in lines] == LAYERS
    assert all(line.holds for line in lines), lines


@pytest.mark.parametrize(
    ("changes", "layer"),
    [
        ({"read a file": "x"}, "files"), ({"write beside it": "done"}, "files"),
        ({"write to /usr": "done"}, "files"), ({"connect": "done"}, "network"),
        ({"environment": "HOME SECRET_TOKEN"}, "environment"), ({"fork": "done"}, "processes"),
        ({"signal": "done"}, "processes"), ({"allocate": "1073741824"}, "memory"),
    ],
)  # fmt: skip
def test_a_layer_that_does_not_hold_fails_alone(inside, changes, layer):
    inside(found(**changes))
    assert [line.layer for line in probe({"enabled": True}) if not line.holds] == [layer]


def test_a_program_that_is_not_ended_is_told(inside):
    inside(found(), sleeper="ok")
    assert [line.layer for line in probe({}) if not line.holds] == ["time"]


def test_a_sandbox_that_does_not_start_is_one_line(inside, monkeypatch):
    inside({})
    outcome = Outcome("infra", "bwrap: No permissions")
    monkeypatch.setattr(probes.runs, "run", lambda *_: outcome)
    assert probe({}) == [Line("sandbox", False, "bubblewrap: bwrap: No permissions")]


def test_the_command_prints_a_line_each_and_its_exit_code_tells(monkeypatch):
    seen = []

    def fake(sandbox):
        seen.append(sandbox)
        return [Line("files", True, "shut"), Line("network", len(seen) < 3, "\x1b[31mopen")]

    monkeypatch.setattr(probes, "probe", fake)
    ask = CliRunner().invoke
    done = ask(command, ["--sandbox"], standalone_mode=False)
    assert (done.return_value, len(done.output.splitlines())) == (0, 2)
    assert done.output.startswith("ok    files ") and "\x1b" not in done.output
    done = ask(command, ["--sandbox", "54321", "--json"], standalone_mode=False)
    assert json.loads(done.output)[0] == {"layer": "files", "holds": True, "said": "shut"}
    done = ask(command, ["--sandbox"], standalone_mode=False)
    assert done.return_value == 1 and "FAIL  network" in done.output
    assert [(s["enabled"], s["uid"]) for s in seen] == [(True, None), (True, 54321), (True, None)]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="for root on Linux")
def test_root_without_another_user_is_told_so():
    (line,) = probe({"enabled": True, "uid": None})
    assert not line.holds and "verifier.sandbox.uid" in line.said


@pytest.mark.slow
def test_on_this_machine_all_of_it_holds_in_two_seconds():
    live.backend()
    runs.check_works(live.backend())  # so that files are cached
    began = time.monotonic()
    lines = probe(live.settings())
    assert [line.layer for line in lines] == LAYERS
    assert all(line.holds for line in lines), lines
    assert time.monotonic() - began < 4  # 2 s, and a busy machine
