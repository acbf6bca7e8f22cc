"""One program from start to end, in a process without sandbox: what becomes of it, and of us."""

from __future__ import annotations

import os
import time

import pytest

from simko_mlx.sandbox import run as runs
from simko_mlx.sandbox.backend import Backend
from simko_mlx.sandbox.limits import Limits
from simko_mlx.sandbox.run import Call, Job, run
from simko_mlx.types import UserError
from tests.sandbox.plain import run_plain

FAST = Limits(wall=2.0)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_script_reads_a_file_and_prints(monkeypatch):
    code = "import os\nprint(input(), os.fstat(0).st_size)\nexit()"
    outcome = run_plain(monkeypatch, Job(code, stdin="hällo\nrest"), FAST)
    assert (outcome.status, outcome.detail) == ("ok", "")
    assert outcome.stdout.decode() == "hällo 11\n" and outcome.records == []


def test_calls_give_a_record_each(monkeypatch):
    code = "print('noise')\ndef f(a, b=0): return (a, b)"
    calls = [Call("f", (1,)), Call("f", ([2],), {"b": {"c": 3}})]
    outcome = run_plain(monkeypatch, Job(code, calls=calls), FAST)
    assert outcome.status == "ok"
    assert outcome.records == [
        {"value": {"t": [1, 0]}},
        {"value": {"t": [[2], {"d": [["c", 3]]}]}},
    ]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("1/0", "ZeroDivisionError: division by zero"),
        ("def f(): raise SystemExit(0)", "SystemExit: 0"),
        ("def f(:", "SyntaxError"),
        ("def g(): pass", "NameError: the code defines no 'f'"),
        ("import numpy_is_not_here", "ModuleNotFoundError: No module named 'numpy_is_not_here'"),
        ("def f(): raise MemoryError", "MemoryError"),
    ],
)
def test_an_error_is_the_last_record(monkeypatch, code, error):
    outcome = run_plain(monkeypatch, Job(code, calls=[Call("f")] * 3), FAST)
    assert outcome.status == "ok" and len(outcome.records) == 1
    assert outcome.records[0]["error"].startswith(error)


@pytest.mark.parametrize(
    ("code", "status", "detail"),
    [
        ("import sys\nsys.exit(3)", "crashed", "exit code 3"),
        ("raise KeyError('x')", "crashed", "KeyError: 'x'"),
        ("raise MemoryError", "memory", "out of memory"),
        ("import os\nos.abort()", "crashed", "ended by signal 6"),
        ("print('x' * 70_000)", "output", "more than 65,536 bytes of output"),
        (
            "import sys\nsys.stderr.write('x' * 70_000)",
            "output",
            "more than 65,536 bytes of output",
        ),
        ("import time\ntime.sleep(30)", "timeout", "still running after 0.5 s"),
        ("import os, time\nos.closerange(0, 64)\ntime.sleep(30)", "timeout", "still running"),
        ("import sys\nsys.stdin.read()\nimport time\ntime.sleep(30)", "timeout", "still running"),
    ],
)
def test_what_a_script_can_do_wrong(monkeypatch, code, status, detail):
    began = time.monotonic()
    outcome = run_plain(monkeypatch, Job(code, stdin=""), Limits(wall=0.5))
    assert (outcome.status, outcome.detail[: len(detail)]) == (status, detail)
    assert time.monotonic() - began < 8


def test_processor_time_is_limited(monkeypatch):
    code = "import time\nuntil = time.monotonic() + 8\nwhile time.monotonic() < until: pass"
    outcome = run_plain(monkeypatch, Job(code, stdin=""), Limits(wall=9, cpu=0.5))
    assert (outcome.status, outcome.detail) == ("timeout", "more than 0.5 s of processor time")


def test_a_large_request_does_not_block(monkeypatch):
    """A program that never gets to read it, and one that does."""
    job = Job("print(len(input()))", stdin="x" * 3_000_000)
    assert run_plain(monkeypatch, job, FAST).stdout == b"3000000\n"


@pytest.mark.parametrize("source", ["x = '\ud800'", "#" * 300_000])
def test_code_that_can_not_be_handed_over_starts_nothing(monkeypatch, source):
    monkeypatch.setattr(runs, "start", None)
    outcome = run(Job(source, stdin=""), Backend("none", "", "", ""), FAST)
    assert outcome.status == "crashed" and outcome.detail.startswith("the code is")


def test_a_sandbox_that_can_not_be_trusted_runs_nothing(monkeypatch, folder):
    job = Job("open('ran', 'w')", stdin="")
    outcome = run_plain(monkeypatch, job, FAST, reason="it is root")
    assert (outcome.status, outcome.detail) == ("infra", "it is root")
    time.sleep(0.1)
    assert not (folder / "ran").exists()


def test_limits_that_did_not_take_run_nothing(monkeypatch, folder):
    wanted = runs.rlimits
    other = Limits(file_size=1 << 10)
    monkeypatch.setattr(runs, "rlimits", lambda limits, platform: wanted(other, platform))
    outcome = run_plain(monkeypatch, Job("open('ran', 'w')", stdin=""), FAST)
    assert outcome.status == "infra" and outcome.detail.startswith("limits did not take")
    assert not (folder / "ran").exists()


def test_memory_that_is_watched_from_outside(monkeypatch):
    job = Job("import time\ntime.sleep(5)\n", stdin="")
    outcome = run_plain(monkeypatch, job, FAST, too_much="out of memory")
    assert outcome.status in ("memory", "timeout")


class Silent:
    """A launcher that fails."""

    def __init__(self, command):
        import subprocess

        from simko_mlx.sandbox.runner import Pipes

        self.pipes = Pipes()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=self.pipes.inner
        )
        self.pipes.close_inner()

    def end(self):
        self.process.kill()
        self.process.wait()
        self.pipes.close()
        self.process.stdout.close()
        self.process.stderr.close()


NONE = Backend("none", "", "", "")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["/bin/sh", "-c", "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1"],
         "setting up uid map: Permission denied"),
        (["/bin/sh", "-c", "exit 0"], "it said nothing"),
    ],
)  # fmt: skip
def test_a_launcher_that_fails_is_no_fault_of_the_program(monkeypatch, command, said):
    monkeypatch.setattr(runs, "start", lambda backend, limits: Silent(command))
    outcome = run(Job("", stdin=""), NONE, FAST)
    assert outcome.status == "infra" and said in outcome.detail


def test_a_sandbox_that_never_gets_ready(monkeypatch):
    monkeypatch.setattr(runs, "START_SECONDS", 0.3)
    monkeypatch.setattr(runs, "start", lambda backend, limits: Silent(["/bin/sleep", "20"]))
    began = time.monotonic()
    assert run(Job("", stdin=""), NONE, FAST).status == "infra"
    assert time.monotonic() - began < 5


def test_a_launcher_that_is_not_there(monkeypatch):
    def start(backend, limits):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(runs, "start", start)
    outcome = run(Job("", stdin=""), NONE, FAST)
    assert outcome.status == "infra" and "No such file" in outcome.detail


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("bwrap: setting up uid map: Permission denied", "apparmor_restrict"),
        ("bwrap: No permissions to create new namespace", "user namespaces"),
        ("bwrap: Unknown option --disable-userns", r"bubblewrap 0\.8"),
        ("something else", "doctor --sandbox"),
    ],
)
def test_a_machine_without_a_working_sandbox_is_told_what_to_do(monkeypatch, said, hint):
    outcome = runs.Outcome("infra", said)
    monkeypatch.setattr(runs, "run", lambda *_: outcome)
    with pytest.raises(UserError, match=hint):
        runs.check_works(NONE)


def test_nothing_stays_open(monkeypatch):
    def descriptors() -> int:
        return len(os.listdir("/dev/fd"))

    run_plain(monkeypatch, Job("print(1)", stdin=""), FAST)
    before = descriptors()
    for code in ("print(1)", "1/0", "import os\nos._exit(0)"):
        run_plain(monkeypatch, Job(code, stdin=""), FAST)
        run_plain(monkeypatch, Job(code, calls=[Call("f")]), FAST)
    run_plain(monkeypatch, Job("", stdin=""), FAST, reason="no")
    assert descriptors() == before
