"""One program from start to end: started, checked, handed over, listened to, ended."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from simko_mlx.sandbox import frames
from simko_mlx.sandbox.backend import Backend
from simko_mlx.sandbox.limits import Limits, rlimits
from simko_mlx.sandbox.runner import Pipes
from simko_mlx.sandbox.values import encode
from simko_mlx.types import UserError

OK, TIMEOUT, MEMORY = "ok", "timeout", "memory"
OUTPUT, CRASHED, INFRA = "output", "crashed", "infra"
START_SECONDS = 10.0  # until Python runs inside: some 20 ms unless the machine is busy
SOURCE_BYTES = 256 * 1024
_CHUNK = 1 << 16
_POLL = 0.03  # seconds between looks at the memory, where the system doesn't limit it
_TAIL = 4000


@dataclass(frozen=True)
class Call:
    """``wanted``: what comes out, if it is no plain data, is wanted as the "list" of its items (a
    generator), or as its truth, a "bool" (a match of ``re``)."""

    function: str
    arguments: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)
    wanted: str = ""


@dataclass(frozen=True)
class Job:
    """A program, and either its standard input (a script) or calls of its functions. ``typing``:
    the names of that module are known without an import."""

    source: str
    stdin: str | None = None
    calls: Sequence[Call] = ()
    typing: bool = False

    def request(self) -> dict[str, Any]:
        calls = [
            [call.function, encode(list(call.arguments)), encode(call.named), call.wanted]
            for call in self.calls
        ]
        return {
            "source": self.source,
            "stdin": self.stdin,
            "typing": self.typing,
            "calls": calls,
        }


CONTROL = Job("def one():\n    return 1\n", calls=[Call("one")])
"""A program that can't fail: where it does, something else is wrong."""


@dataclass(frozen=True)
class Outcome:
    """``status`` is one of the names above: "ok" says that it ended by itself and without error,
    not that anything is right; "infra" that the program is not to blame. ``records`` are what
    came over the pipe for results, unbelieved."""

    status: str
    detail: str = ""
    stdout: bytes = b""
    records: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    start_seconds: float = 0.0


class Sandbox(Protocol):
    process: Any
    pipes: Pipes

    def distrust(self) -> str: ...

    def excess(self) -> str: ...

    def end(self) -> None: ...


def start(backend: Backend, limits: Limits) -> Sandbox:
    if backend.platform == "darwin":
        from simko_mlx.sandbox.macos import MacSandbox

        return MacSandbox(backend, limits)
    from simko_mlx.sandbox.linux import LinuxSandbox

    return LinuxSandbox(backend, limits)


def run(job: Job, backend: Backend, limits: Limits) -> Outcome:
    """Runs the program in a fresh sandbox and ends whatever is left of it.

    Must be called from a thread that lives as long as the run: on Linux the sandbox ends with it.
    """
    try:
        job.source.encode("utf-8")
    except UnicodeEncodeError:
        return Outcome(CRASHED, "the code is no UTF-8 text")
    if len(job.source.encode("utf-8")) > SOURCE_BYTES:
        return Outcome(CRASHED, f"the code is longer than {SOURCE_BYTES // 1024} KiB")
    began = time.monotonic()
    try:
        sandbox = start(backend, limits)
    except OSError as error:
        return Outcome(INFRA, f"the sandbox can't be started ({error.strerror or error})")
    try:
        return _Session(sandbox, backend, limits, began).finish(job)
    finally:
        sandbox.end()


def check_works(backend: Backend) -> None:
    """Raises UserError, with what the system said, unless a program runs in this sandbox."""
    outcome = run(CONTROL, backend, Limits())
    if outcome.status == OK and outcome.records == [{"value": 1}]:
        return
    hint = "run simko-mlx doctor --sandbox to see what is missing"
    if "uid map" in outcome.detail or "namespace" in outcome.detail:
        hint = (
            "allow user namespaces (on Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns"
            "=0, or an AppArmor profile for bwrap; in a container: a less strict seccomp profile)"
        )
    elif "disable-userns" in outcome.detail:
        hint = "install bubblewrap 0.8 or newer"
    raise UserError(f"The sandbox does not work here ({outcome.detail or outcome.status}): {hint}.")


class _Over(Exception):
    """The run ends here."""

    def __init__(self, status: str, detail: str = ""):
        super().__init__(detail)
        self.status, self.detail = status, detail


class _Session:
    """What is heard from one sandbox."""

    def __init__(self, sandbox: Sandbox, backend: Backend, limits: Limits, began: float):
        self.sandbox, self.backend, self.limits = sandbox, backend, limits
        self.began = began
        self.handed_over = began
        process = sandbox.process
        self.results = sandbox.pipes.results
        self.out, self.err = process.stdout.fileno(), process.stderr.fileno()
        self.heard = {self.results: bytearray(), self.out: bytearray(), self.err: bytearray()}
        self.open = set(self.heard)
        self.outgoing = memoryview(b"")
        for fd in (self.out, self.err):
            os.set_blocking(fd, False)

    def finish(self, job: Job) -> Outcome:
        ready = False
        try:
            self._await_ready()
            ready = True
            self.handed_over = time.monotonic()
            self.outgoing = memoryview(frames.frame(job.request()))
            self._listen(self.handed_over + self.limits.wall)
            status, detail = self._ending()
        except _Over as over:
            status, detail = over.status, over.detail
        if not ready:
            status = INFRA
        return self._outcome(status, detail)

    def _outcome(self, status: str, detail: str) -> Outcome:
        now = time.monotonic()
        found: list[dict[str, Any]] = []
        if status == OK:
            try:
                found = frames.records(self.heard[self.results])
            except frames.Malformed as error:
                status, detail = CRASHED, f"it sent {error}"
        return Outcome(
            status,
            detail,
            bytes(self.heard[self.out]),
            found,
            now - self.handed_over,
            self.handed_over - self.began,
        )

    def _await_ready(self) -> None:
        """Until Python inside says that it has limited itself, and all holds as seen from here."""
        deadline = self.began + START_SECONDS
        record = None
        while record is None:
            if self.results not in self.open or time.monotonic() > deadline:
                said = _last_line(self.heard[self.err])
                self._pause()
                said = _last_line(self.heard[self.err]) or said
                raise _Over(INFRA, f"the sandbox did not start ({said or 'it said nothing'})")
            self._step(deadline)
            try:
                record, end = frames.first(self.heard[self.results])
            except frames.Malformed as error:
                raise _Over(INFRA, f"the sandbox sent {error}") from error
        del self.heard[self.results][:end]
        limits = record.get("limits")
        wanted = rlimits(self.limits, self.backend.platform)
        if not isinstance(limits, list) or not limits:
            raise _Over(INFRA, "the sandbox did not tell its limits")
        for found in limits:
            if reason := _loose(found, wanted):
                raise _Over(INFRA, reason)
        if record.get("sees") is not False:
            raise _Over(INFRA, "the sandbox sees files outside")
        if reason := self.sandbox.distrust():
            raise _Over(INFRA, reason)
        if self.heard[self.results] or self.heard[self.out]:
            raise _Over(INFRA, "the sandbox spoke before it was asked")

    def _pause(self) -> None:
        """What a launcher that failed has to say about it."""
        until = time.monotonic() + 0.5
        while self.err in self.open and time.monotonic() < until:
            self._step(until)

    def _listen(self, deadline: float) -> None:
        """Until nobody holds the other ends any more."""
        while self.open:
            if time.monotonic() >= deadline:
                raise _Over(TIMEOUT, f"still running after {self.limits.wall:g} s")
            self._step(deadline)
            if sum(map(len, self.heard.values())) > self.limits.output:
                raise _Over(OUTPUT, f"more than {self.limits.output:,} bytes of output")
            if reason := self.sandbox.excess():
                raise _Over(MEMORY, reason)
        while self.sandbox.process.poll() is None:  # closed its ends, and goes on
            if time.monotonic() >= deadline:
                raise _Over(TIMEOUT, f"still running after {self.limits.wall:g} s")
            if reason := self.sandbox.excess():
                raise _Over(MEMORY, reason)
            time.sleep(0.002)

    def _step(self, deadline: float) -> None:
        """One wait for something to read or to write."""
        wait = max(0.0, deadline - time.monotonic())
        if self.backend.platform == "darwin":
            wait = min(wait, _POLL)
        with selectors.DefaultSelector() as selector:
            for fd in self.open:
                selector.register(fd, selectors.EVENT_READ)
            if self.outgoing:
                selector.register(self.sandbox.pipes.requests, selectors.EVENT_WRITE)
            events = selector.select(wait)
        for key, _ in events:
            if key.fd == self.sandbox.pipes.requests:
                self._write()
            else:
                self._read(key.fd)

    def _write(self) -> None:
        try:
            written = os.write(self.sandbox.pipes.requests, self.outgoing[:_CHUNK])
        except BlockingIOError:
            return
        except BrokenPipeError:  # ended already: what it said tells why
            written = len(self.outgoing)
        self.outgoing = self.outgoing[written:]
        if not self.outgoing:
            self.sandbox.pipes.close_one(self.sandbox.pipes.requests)

    def _read(self, fd: int) -> None:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return
        self.heard[fd] += data
        if not data:
            self.open.discard(fd)

    def _ending(self) -> tuple[str, str]:
        """What the exit code says; it can only ever speak against the program."""
        code = self.sandbox.process.returncode
        said = _last_line(self.heard[self.err])
        if code == 0:
            return OK, ""
        number = -code if code < 0 else code - 128
        if number == 24 or (number == 9 and self._spent() >= self.limits.cpu):
            return TIMEOUT, f"more than {self.limits.cpu:g} s of processor time"
        if number > 0:
            return CRASHED, f"ended by signal {number}"
        if said.startswith("MemoryError"):
            return MEMORY, "out of memory"
        return CRASHED, said or f"exit code {code}"

    def _spent(self) -> float:
        return time.monotonic() - self.handed_over


def _loose(found: Any, wanted: dict[str, tuple[int, int]]) -> str:
    """Which limits did not take; empty where all are as tight as wanted (unlimited is -1)."""
    for name, most in wanted.items():
        values = found.get(name) if isinstance(found, dict) else None
        pairs = zip(values, most, strict=False) if isinstance(values, list) else ()
        if [0 <= value <= limit for value, limit in pairs] != [True, True]:
            return f"limits did not take: {name} is {values}, not {list(most)}"
    return ""


def _last_line(data: bytearray) -> str:
    lines = bytes(data[-_TAIL:]).decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
