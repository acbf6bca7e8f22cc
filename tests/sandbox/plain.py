"""Starts Python without any sandbox, for tests of what happens around one. Own programs only."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

from simko_mlx.sandbox import run
from simko_mlx.sandbox.backend import Backend
from simko_mlx.sandbox.limits import Limits
from simko_mlx.sandbox.runner import Pipes, python_command


class PlainSandbox:
    """``reason`` is what ``distrust`` finds, ``too_much`` what ``excess`` does."""

    def __init__(self, backend: Backend, limits: Limits, reason: str = "", too_much: str = ""):
        self.pipes = Pipes()
        self.reason, self.too_much = reason, too_much
        self.ended = False
        self.process: Any = subprocess.Popen(
            python_command(backend.python, "none", limits, self.pipes),
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=self.pipes.inner,
        )
        self.pipes.close_inner()

    def distrust(self) -> str:
        return self.reason

    def excess(self) -> str:
        return self.too_much

    def end(self) -> None:
        self.ended = True
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.pipes.close()
        self.process.stdout.close()
        self.process.stderr.close()


def run_plain(monkeypatch, job: run.Job, limits: Limits, **given: Any) -> run.Outcome:
    """``run.run`` in a process without sandbox, in the current folder."""
    made = []

    def start(backend: Backend, limits: Limits) -> PlainSandbox:
        made.append(PlainSandbox(backend, limits, **given))
        return made[-1]

    monkeypatch.setattr(run, "start", start)
    backend = Backend("none", "none", sys.executable, sys.base_prefix)
    try:
        return run.run(job, backend, limits)
    finally:
        assert all(sandbox.ended for sandbox in made)
