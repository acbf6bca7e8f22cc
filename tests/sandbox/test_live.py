"""Programs in this machine's sandbox: none that cheats is paid, none that is right is refused.

As root the sandbox runs as another user. Skipped, with the reason, where there is no sandbox.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simko_mlx.config import SandboxConfig, VerifierConfig
from simko_mlx.sandbox import linux
from simko_mlx.sandbox import run as runs
from simko_mlx.sandbox.limits import MEGABYTE, Limits
from simko_mlx.sandbox.run import Call, Job
from simko_mlx.types import Completion, Problem, RolloutGroup
from simko_mlx.verifiers.code import verify
from simko_mlx.verifiers.pool import VerifierPool
from tests.sandbox import live
from tests.sandbox.forms import ANSWERS, TRICKS
from tests.sandbox.hacks import HACKS
from tests.sandbox.honest import HONEST
from tests.sandbox.problems import CALLS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def judged(code: str, columns, **options):
    live.backend()
    fenced = f"Here it is:\n```python\n{code}\n```"
    return verify(fenced, "x", columns, sandbox=live.settings(), **options)


@pytest.mark.parametrize("name", HACKS)
def test_no_hack_is_paid(name):
    columns, code = HACKS[name]
    verdict = judged(code, columns)
    assert (verdict.reward, verdict.correct, verdict.fault) == (0.0, False, False)
    assert verdict.detail


@pytest.mark.parametrize("name", TRICKS)
def test_no_trick_is_paid(name):
    columns, text = TRICKS[name]
    live.backend()
    verdict = verify(text, "x", columns, sandbox=live.settings())
    assert (verdict.reward, verdict.correct, verdict.fault) == (0.0, False, False)
    assert verdict.detail


@pytest.mark.parametrize("name", ANSWERS)
def test_no_right_answer_is_refused(name):
    columns, text = ANSWERS[name]
    live.backend()
    longer = {"wall_seconds": 20.0, "cpu_seconds": 10.0, "total_seconds": 60.0}
    verdict = verify(text, "x", columns, sandbox=live.settings(), **longer)
    assert (verdict.reward, verdict.correct, verdict.detail) == (1.0, True, "")


@pytest.mark.parametrize("name", HONEST)
def test_no_right_program_is_refused(name):
    columns, code = HONEST[name]
    verdict = judged(code, columns, wall_seconds=20.0, cpu_seconds=10.0, total_seconds=60.0)
    assert (verdict.reward, verdict.correct, verdict.detail) == (1.0, True, "")


def test_there_are_many_of_each():
    assert len(HACKS) >= 60 and len(HONEST) >= 60


def outcome(code: str, **limits):
    return runs.run(Job(code, stdin=""), live.backend(), Limits(**limits))


@pytest.mark.parametrize(
    ("code", "status", "detail"),
    [
        ("print(1)", "ok", ""),
        ("x = []\nfor _ in range(64): x.append(bytearray(16 << 20))", "memory", "out of memory"),
        ("import os\nos.kill(os.getpid(), 9)", "crashed", "ended by signal 9"),
        ("print('x' * (1 << 20))", "output", "more than 65,536 bytes of output"),
        ("import time\ntime.sleep(8)", "timeout", "still running after 1 s"),
    ],
)
def test_statuses(code, status, detail):
    found = outcome(code, wall=1.0 if status == "timeout" else 8.0)
    assert (found.status, found.detail) == (status, detail)


def test_processor_time_is_limited():
    code = "import time\nuntil = time.monotonic() + 10\nwhile time.monotonic() < until: pass"
    found = outcome(code, wall=9.5, cpu=0.5)
    assert (found.status, found.detail) == ("timeout", "more than 0.5 s of processor time")


def test_runs_do_not_see_each_other():
    first = outcome("open('mine', 'w').write('x')\nprint(open('mine').read())")
    second = outcome("import os\nprint(os.listdir('.'), os.listdir('/dev/shm'))")
    assert (first.stdout, second.stdout) == (b"x\n", b"[] []\n")


def test_the_same_program_gives_the_same_output():
    code = "print({'a', 'b', 'c', 'd', 'e'}, hash('x'))"
    assert len({outcome(code).stdout for _ in range(3)}) == 1


def test_a_package_that_is_not_there_is_told():
    code = "import numpy as np\ndef f(n): return int(np.sum(np.arange(n + 1) ** 2))"
    assert "No module named 'numpy'" in judged(code, CALLS).detail


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_a_process_without_the_sandboxs_marks_is_not_trusted():
    assert "CapEff" in linux.unsafe(os.getpid(), os.geteuid()) or os.geteuid() != 0
    assert "NoNewPrivs" in linux.unsafe(os.getpid(), os.geteuid())
    assert "Uid" in linux.unsafe(os.getpid(), os.geteuid() + 1)


@pytest.mark.skipif(sys.platform != "linux", reason="the way in is bwrap's")
def test_a_sandbox_that_was_not_dropped_runs_nothing(monkeypatch):
    """One that lacks a namespace, and one whose user isn't who it should be."""
    backend = live.backend()
    whole = linux.options

    def shares_uts(backend, limits):
        words = [word for word in whole(backend, limits) if word != "--unshare-all"]
        at = words.index("--hostname")
        del words[at : at + 2]
        return ["--unshare-ipc", "--unshare-pid", "--unshare-net", *words]

    monkeypatch.setattr(linux, "options", shares_uts)
    found = runs.run(Job("print('ran')", stdin=""), backend, Limits())
    assert (found.status, found.stdout) == ("infra", b"") and "uts namespace" in found.detail
    monkeypatch.setattr(linux, "options", whole)
    checked = linux.unsafe
    monkeypatch.setattr(linux, "unsafe", lambda pid, uid: checked(pid, uid + 1))
    found = runs.run(Job("print('ran')", stdin=""), backend, Limits())
    assert (found.status, found.stdout) == ("infra", b"") and "Uid" in found.detail


def _group(*texts: str) -> RolloutGroup:
    problem = Problem("p", ({"role": "user", "content": "?"},), "x", CALLS)
    return RolloutGroup(problem, (), tuple(Completion((), (), text, "stop") for text in texts))


def test_through_the_pool_of_workers():
    live.backend()
    right = "```python\ndef f(n): return n * (n + 1) * (2 * n + 1) // 6\n```"
    endless = "```python\ndef f(n):\n    while True: pass\n```"
    sandbox = SandboxConfig(**live.settings())
    config = VerifierConfig("code", {"wall_seconds": 1.0}, sandbox=sandbox)
    with VerifierPool(config) as pool:
        ((first, second, third),) = pool.verify_groups([_group(right, endless, "I don't know.")])
    assert first.correct and first.taken is not None and first.taken.startswith("def f")
    assert (second.reward, second.detail[:7]) == (0.0, "timeout")
    assert (third.reward, third.fault) == (0.0, False)


_WORKER = """
from simko_mlx.sandbox import run
from simko_mlx.sandbox.limits import Limits
from tests.sandbox import live

class Noted(run._Session):
    def _await_ready(self):
        super()._await_ready()
        print(self.sandbox.process.pid, flush=True)

run._Session = Noted
run.run(run.Job("import time; time.sleep(10)", stdin=""), live.backend(), Limits(wall=10))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_worker_takes_the_program_with_it():
    """The program ends by itself after ten seconds at most."""
    live.backend()
    with subprocess.Popen(
        [sys.executable, "-c", _WORKER], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        pids = [int(worker.stdout.readline())]
        for pid in pids:
            pids += linux._children(pid)
        assert len(pids) >= 3 and all(map(_alive, pids))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    until = time.monotonic() + 3
    while any(map(_alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(_alive, pids))


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False


def test_a_record_as_large_as_expected_is_fine():
    job = Job("def f(n): return list(range(n))", calls=[Call("f", (50_000,))])
    limits = Limits(output=2 * MEGABYTE)
    found = runs.run(job, live.backend(), limits)
    assert found.records == [{"value": list(range(50_000))}]
