"""Does the sandbox of this machine hold? One line for each of its layers, in under two seconds.

Harmless: what is reached for are a file, a listener and a process of our own.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simko_mlx.sandbox import run as runs
from simko_mlx.sandbox.backend import Backend, choose
from simko_mlx.sandbox.limits import MEGABYTE, Limits
from simko_mlx.sandbox.run import Call, Job
from simko_mlx.sandbox.values import NotPlain, decode
from simko_mlx.types import UserError

# What a program in there finds: each entry is what it managed to do, empty where it did not.
_PROGRAM = """
import os, socket, sys

def tries(what):
    try:
        return str(what() or "done")
    except (OSError, MemoryError):
        return ""

def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

def connect(port):
    with socket.socket() as s:
        s.settimeout(0.5)
        s.connect(("127.0.0.1", port))

def f(canary, port, pid, megabytes):
    return {
        "read a file": tries(lambda: open(canary).read()),
        "write beside it": tries(lambda: open(canary + ".new", "w").close()),
        "write to /usr": "done" if os.access("/usr", os.W_OK) else "",
        "connect": tries(lambda: connect(port)),
        "fork": tries(fork),
        "signal": tries(lambda: os.kill(pid, 0)),
        "allocate": tries(lambda: len(bytes(megabytes << 20))) if megabytes else "",
        "environment": " ".join(sorted(os.environ)),
        "python": "%d.%d.%d" % sys.version_info[:3],
    }
"""
_KNOWN = {"PATH", "LANG", "HOME", "PYTHONHASHSEED", "PWD", "LC_CTYPE", "__CF_USER_TEXT_ENCODING"}
_SLEEPER = "import time\ntime.sleep(5)\n"


@dataclass(frozen=True)
class Line:
    """``holds``: whether this layer does what it should; ``said`` describes it."""

    layer: str
    holds: bool
    said: str


def probe(sandbox: Mapping[str, Any]) -> list[Line]:
    """What is found with the config section ``verifier.sandbox``; never raises UserError."""
    try:
        backend = choose(sandbox)
    except UserError as error:
        return [Line("sandbox", False, str(error))]
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        canary = Path(folder).resolve() / "canary"
        canary.write_text(secrets.token_hex(8), encoding="ascii")
        os.chmod(folder, 0o755)  # so that the sandbox is what keeps another user out
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=1).close()  # it can be reached
        # macOS watches memory from outside, and would end the program for it.
        megabytes = 1024 if backend.platform == "linux" else 0
        call = Call("f", (str(canary), port, os.getpid(), megabytes))
        outcome = runs.run(Job(_PROGRAM, calls=[call]), backend, Limits())
    try:
        found = decode(outcome.records[0]["value"]) if outcome.records else {}
    except (KeyError, NotPlain):
        found = {}
    if outcome.status != runs.OK or not found:
        said = outcome.detail or str(outcome.records) or outcome.status
        return [Line("sandbox", False, f"{_name(backend)}: {said}")]
    return [*_lines(backend, found), _time(backend, outcome.start_seconds)]


def _lines(backend: Backend, found: Mapping[str, str]) -> list[Line]:
    environment = set(found["environment"].split()) - _KNOWN
    limits = Limits()
    user = "yourself" if backend.uid is None else f"user {backend.uid}"
    seen = "no privileges, namespaces and system call filter, seen from outside"
    lines = [
        Line("sandbox", True, f"{_name(backend)}, Python {found['python']} in {backend.prefix}"),
        Line("user", True, f"{user}: {seen if backend.platform == 'linux' else 'no privileges'}"),
        _shut("files", found, ("read a file", "write beside it", "write to /usr")),
        _shut("network", found, ("connect",)),
        Line(
            "environment",
            not environment,
            f"shows {' '.join(sorted(environment))}" if environment else "empty",
        ),
        _shut("processes", found, ("fork", "signal")),
    ]
    if backend.platform == "linux":
        said = f"more than {limits.memory // MEGABYTE} MB can't be had"
        lines.append(Line("memory", not found["allocate"], found["allocate"] or said))
    else:
        lines.append(_watched(backend))
    return lines


def _shut(layer: str, found: Mapping[str, str], attempts: tuple[str, ...]) -> Line:
    done = [attempt for attempt in attempts if found[attempt]]
    said = f"a program can {', '.join(done)}" if done else f"can't {', can not '.join(attempts)}"
    return Line(layer, not done, said.replace("can not", "can't"))


def _watched(backend: Backend) -> Line:
    """Memory that is polled from outside: a program that takes 128 MB of 64 must be ended."""
    job = Job("x = bytearray(128 << 20)\nimport time\ntime.sleep(1)\n", stdin="")
    outcome = runs.run(job, backend, replace(Limits(), memory=64 * MEGABYTE))
    return Line("memory", outcome.status == runs.MEMORY, f"watched: {outcome.status}")


def _time(backend: Backend, start: float) -> Line:
    """A program that goes on for too long must be gone when its time is over."""
    began = time.monotonic()
    outcome = runs.run(Job(_SLEEPER, stdin=""), backend, replace(Limits(), wall=0.3))
    taken = time.monotonic() - began
    holds = outcome.status == runs.TIMEOUT and taken < 4
    said = f"a start takes {start * 1000:.0f} ms; an endless program of 0.3 s was "
    return Line("time", holds, said + (f"ended after {taken:.2f} s" if holds else outcome.status))


def _name(backend: Backend) -> str:
    return "bubblewrap" if backend.platform == "linux" else "seatbelt (sandbox-exec)"
