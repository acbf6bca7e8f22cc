"""Hostile programs in this machine's sandbox. Collected with SIMKO_HOSTILE=1 only, see conftest.py.

Never as root without a verified change of user: where that can't be had the suite fails as "not
run". What each probe may do is said in ``escapes.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simko_mlx.sandbox import linux, seccomp
from simko_mlx.sandbox import run as runs
from simko_mlx.sandbox.limits import Limits
from simko_mlx.sandbox.run import Call, Job
from simko_mlx.sandbox.values import decode
from tests.sandbox import live
from tests.sandbox.escapes import BOMBS, INSIDE, OUTSIDE, PRELUDE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these probes are Linux's")
SYSCTLS = (
    "kernel/core_pattern", "kernel/hostname", "kernel/sysrq", "kernel/pid_max", "kernel/panic",
    "kernel/threads-max", "kernel/randomize_va_space", "kernel/dmesg_restrict", "kernel/shmmax",
    "kernel/msgmax", "kernel/perf_event_paranoid", "vm/overcommit_memory", "vm/swappiness",
    "vm/max_map_count", "vm/panic_on_oom", "vm/oom_kill_allocating_task", "fs/file-max",
    "fs/suid_dumpable", "fs/protected_symlinks", "net/ipv4/ip_forward",
)  # fmt: skip


def user() -> int:
    return live.UID if os.geteuid() == 0 else os.geteuid()


def processes() -> set[int]:
    """Those of the sandbox's user, where it is nobody else's."""
    if os.geteuid() != 0:
        return set()
    found = set()
    for name in os.listdir("/proc"):
        if name.isdecimal() and linux._status(int(name)).get("Uid", "").split()[:1] == [
            str(user())
        ]:
            found.add(int(name))
    return found


def snapshot() -> dict[str, Any]:
    def read(path: str) -> str:
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    listening = [
        line.split()[1] for line in read("/proc/net/tcp").splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[7] == str(user()) and os.geteuid() == 0
    ]  # fmt: skip
    return {
        "sysctls": {name: read(f"/proc/sys/{name}") for name in SYSCTLS},
        "listeners": sorted(listening),
        "processes": processes(),
        "shm": sorted(name for name in os.listdir("/dev/shm") if "nonce" in name),
    }


@pytest.fixture(scope="module", autouse=True)
def verified() -> Iterator[None]:
    """The change of user, seen from outside, before anything runs; no trace afterwards."""
    if live.why_not():
        pytest.fail(f"not run: {live.why_not()}")
    backend = live.backend()
    sandbox = linux.LinuxSandbox(backend, Limits())
    try:
        session = runs._Session(sandbox, backend, Limits(), time.monotonic())
        session._await_ready()
        init = sandbox.init
        assert init is not None
        (inside,) = linux._children(init)
        status = linux._status(inside)
    finally:
        sandbox.end()
    uids = status.get("Uid", "").split()
    if len(uids) != 4 or "0" in uids or status.get("CapEff", "1").strip("0"):
        pytest.fail(f"not run: the user did not change ({uids}, {status.get('CapEff')})")
    if status.get("NoNewPrivs") != "1":
        pytest.fail("not run: new privileges are possible")
    before = snapshot()
    yield
    assert snapshot() == before


@pytest.fixture(scope="module")
def own() -> Iterator[dict[str, Any]]:
    """What there is to reach, all of it made here, and the same user's as the probes."""
    nonce = f"nonce{os.getpid()}x{time.time_ns()}"
    folder = Path(tempfile.mkdtemp(prefix=nonce))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        secret = os.urandom(8).hex()
        canary, scratch, work = folder / "canary", folder / "scratch", folder / "work"
        canary.write_text(secret)
        scratch.write_text("")
        work.mkdir()
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port6 = 0
        with contextlib.suppress(OSError):
            six = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
            port6 = six.getsockname()[1]
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        for name in ("\0" + nonce, str(folder / "unix")):
            unix = stack.enter_context(socket.socket(socket.AF_UNIX))
            unix.bind(name)
            unix.listen(8)
        datagram = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        datagram.bind("\0" + nonce + "d")
        if os.geteuid() == 0:
            for path in (folder, *folder.iterdir()):
                os.chown(path, user(), user())
        # One to look for: of the same user, with a mark in its environment and command line.
        other = subprocess.Popen(
            [sys.executable if user() == os.geteuid() else "/usr/bin/python3", "-I", "-S", "-c",
             f"import sys; {nonce!r}; sys.stdin.read()"],
            stdin=subprocess.PIPE, env={nonce: "1"}, cwd="/", **_as_user(),
        )  # fmt: skip
        stack.callback(other.wait)
        assert other.stdin is not None
        stack.callback(other.stdin.close)
        yield {
            "canary": str(canary), "scratch": str(scratch), "folder": str(folder),
            "work": str(work), "secret": secret, "nonce": nonce, "variable": nonce,
            "port": tcp.getsockname()[1], "port6": port6, "udp": udp.getsockname()[1],
            "abstract": nonce, "unix": str(folder / "unix"), "pid": other.pid,
            "host": socket.gethostname(), "mounts": _a_mount(), "prefix": live.backend().prefix,
            "outside": False,
        }  # fmt: skip
        other.stdin.close()
        other.wait()


def _as_user() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    return {"user": user(), "group": user(), "extra_groups": []}


def _a_mount() -> str:
    """The options of this machine's root, which only its own list of mounts has."""
    first = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return next(line for line in first if " / / " in line)[:40]


def program(body: str) -> str:
    return f"{PRELUDE}\ndef f(o):\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}\n"


def inside(body: str, own: dict[str, Any], limits: Limits | None = None) -> Any:
    job = Job(program(body), calls=[Call("f", (own,))])
    outcome = runs.run(job, live.backend(), limits or Limits(wall=9.0, processes=32))
    assert outcome.status == "ok", outcome
    assert "error" not in outcome.records[0], outcome.records
    return decode(outcome.records[0]["value"])


def outside(body: str, own: dict[str, Any]) -> Any:
    """The same probe without a sandbox, as the same user."""
    code = program(body) + f"import json\nprint(json.dumps(f({dict(own, outside=True)!r})))\n"
    python = sys.executable if user() == os.geteuid() else "/usr/bin/python3"
    given = os.open(own["canary"], os.O_RDONLY), os.open(own["folder"], os.O_RDONLY)
    try:
        done = subprocess.run(
            ["timeout", "-k", "1", "10", python, "-I", "-S", "-c", code],
            env={own["variable"]: "1"}, cwd=own["work"], capture_output=True, text=True,
            pass_fds=given, **_as_user(),
        )  # fmt: skip
    finally:
        for fd in given:
            os.close(fd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_there_are_many():
    assert len(OUTSIDE) + len(INSIDE) + len(BOMBS) >= 60


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_works_outside_does_not_inside(name, own):
    given = [os.open(own["canary"], os.O_RDONLY), os.open(own["folder"], os.O_RDONLY)]
    try:
        for fd in given:
            os.set_inheritable(fd, True)
        assert not inside(OUTSIDE[name], own)
    finally:
        for fd in given:
            os.close(fd)
    assert outside(OUTSIDE[name], own), "the probe itself does not work"
    assert Path(own["canary"]).read_text() == own["secret"]


@pytest.mark.parametrize("name", INSIDE)
def test_what_must_hold_inside(name, own):
    assert not inside(INSIDE[name], own)


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_ended(name):
    code, statuses = BOMBS[name]
    began = time.monotonic()
    source = f"import signal, time\nend = time.monotonic() + 10\n{code}\n"
    short = "timeout" in statuses
    limits = Limits(wall=1.5, cpu=1.0) if short else Limits(wall=9.0, cpu=8.0)
    outcome = runs.run(Job(source, stdin=""), live.backend(), limits)
    assert outcome.status in statuses, outcome
    assert time.monotonic() - began < (6 if short else 10)
    assert not processes() - {own_pid for own_pid in processes() if _is_the_other(own_pid)}


def _is_the_other(pid: int) -> bool:
    return b"sys.stdin.read()" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_system_calls_fail_by_the_filter(own):
    """With arguments that can only fail, so that what tells is the error: EPERM, not EINVAL."""
    column = list(seccomp.ARCHITECTURES).index(os.uname().machine)
    # Without arguments these do something, or -1 isn't invalid to them.
    leave = {"vhangup", "fork", "vfork", "personality", "syslog", "reboot", "sethostname", "acct"}
    leave.add("msgget")
    numbers = {n: v[column] for n, v in seccomp.DENIED.items() if v[column] is not None}
    body = f"""
        wrong = {{}}
        for name, number in { ({n: v for n, v in numbers.items() if n not in leave})!r}.items():
            result, error = call(number, -1, -1, -1, -1, -1, -1)
            if result != -1 or error != errno.EPERM: wrong[name] = (result, error)
        return wrong
    """
    assert inside(body, own) == {}
    # A positive control that is harmless anywhere: a socket of no family.
    control = f"return call({numbers['socket']}, -1, -1, -1)[1] != errno.EPERM"
    assert inside(control, own) is False and outside(control, own) is True


ALLOW_ALL = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
NETWORK = ("connect to a listener", "abstract unix socket")
FILES = ("read a file", "list a folder", "write beside a file", "symbolic link to a file")
PROCESSES = ("signal a process", "command lines of processes", "memory of a process")


@pytest.mark.parametrize("name", [*NETWORK, *FILES, *PROCESSES])
def test_namespaces_hold_without_the_filter(name, own, monkeypatch):
    monkeypatch.setattr(seccomp, "program", lambda machine: ALLOW_ALL)
    assert not inside(OUTSIDE[name], own)


def test_the_filter_was_off_in_these_tests(own, monkeypatch):
    monkeypatch.setattr(seccomp, "program", lambda machine: ALLOW_ALL)
    assert inside(OUTSIDE["memfd"], own) == "made"


def test_no_datagram_arrives_without_the_filter(own, monkeypatch):
    """Sent into the sandbox's own network it may be; it must not come here."""
    monkeypatch.setattr(seccomp, "program", lambda machine: ALLOW_ALL)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
        mine.bind(("127.0.0.1", 0))
        mine.settimeout(0.2)
        to = {**own, "udp": mine.getsockname()[1]}
        inside(OUTSIDE["send a datagram"], to)
        with pytest.raises(TimeoutError):
            mine.recv(1)
        assert outside(OUTSIDE["send a datagram"], to) == "sent"
        assert mine.recv(1) == b"x"


@pytest.mark.parametrize("name", [*NETWORK, "send a datagram"])
def test_the_filter_holds_without_a_network_namespace(name, own, monkeypatch):
    whole = linux.options

    def shared(backend, limits):
        words = whole(backend, limits)
        return [*words[:1], "--share-net", *words[1:]]

    monkeypatch.setattr(linux, "options", shared)
    monkeypatch.setattr(linux, "NAMESPACES", ("user", "pid", "mnt", "ipc", "uts"))
    assert not inside(OUTSIDE[name], own)
    monkeypatch.setattr(seccomp, "program", lambda machine: ALLOW_ALL)
    assert inside(OUTSIDE[name], own), "the network was not shared after all"


@pytest.mark.parametrize("name", ["memory", "mapped memory", "a large file", "more open files"])
def test_limits_hold_without_the_filter(name, own, monkeypatch):
    monkeypatch.setattr(seccomp, "program", lambda machine: ALLOW_ALL)
    assert not inside(OUTSIDE[name], own)


def test_processes_end_with_their_sandbox_without_the_filter(monkeypatch):
    """Children that ignore what they can, in sessions of their own, for ten seconds at most."""
    monkeypatch.setattr(seccomp, "program", lambda machine: ALLOW_ALL)
    code = textwrap.dedent(
        """
        import os, signal, time
        for _ in range(4):
            if os.fork() == 0:
                os.setsid()
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                if os.fork() == 0:
                    os.setsid()
                time.sleep(10)
                os._exit(0)
        print('forked')
        """
    )
    before = processes()
    began = time.monotonic()
    outcome = runs.run(Job(code, stdin=""), live.backend(), Limits(wall=2.0))
    assert outcome.stdout == b"forked\n"
    assert processes() <= before and time.monotonic() - began < 6


def test_a_killed_sandbox_is_all_dead_when_end_returns():
    backend = live.backend()
    sandbox = linux.LinuxSandbox(backend, Limits())
    session = runs._Session(sandbox, backend, Limits(), time.monotonic())
    session._await_ready()
    assert sandbox.init is not None
    pids = [sandbox.process.pid, sandbox.init, *linux._children(sandbox.init)]
    sandbox.end()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert sandbox.process.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
