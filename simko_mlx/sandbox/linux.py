"""The sandbox on Linux: bubblewrap's namespaces, a system call filter, resource limits.

Started with an empty environment and, where we are root, as the user of the config. What it sees
is /usr and the folder of its Python, both read-only, a /proc of its own, and two small folders in
memory. bwrap ends it when the thread that started it ends (``--die-with-parent``).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import select
import signal
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from simko_mlx.sandbox import seccomp
from simko_mlx.sandbox.backend import Backend
from simko_mlx.sandbox.limits import Limits
from simko_mlx.sandbox.runner import Pipes, python_command

FOLDER = "/tmp"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": FOLDER, "PYTHONHASHSEED": "0"}
NAMESPACES = ("user", "pid", "net", "mnt", "ipc", "uts")
_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64")


def options(backend: Backend, limits: Limits) -> list[str]:
    """bwrap's options, without descriptors."""
    words = ["--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
    words += ["--die-with-parent", "--new-session", "--hostname", "sandbox", "--clearenv"]
    for name, value in ENVIRONMENT.items():
        words += ["--setenv", name, value]
    words += ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:  # links into /usr, or folders of their own on older systems
        if os.path.islink(f"/{name}"):
            words += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            words += ["--ro-bind", f"/{name}", f"/{name}"]
    size = str(limits.folder)
    words += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", size]
    words += ["--tmpfs", "/dev/shm", "--perms", "0700", "--size", size, "--tmpfs", FOLDER]
    if backend.prefix != "/usr" and not backend.prefix.startswith("/usr/"):
        words += ["--ro-bind", backend.prefix, backend.prefix]
    return [*words, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", FOLDER]


class LinuxSandbox:
    """One start of bwrap. ``init`` is the first process in there, as seen from out here."""

    def __init__(self, backend: Backend, limits: Limits):
        _adopt_orphans()
        self.backend = backend
        self.init: int | None = None
        self._init_fd: int | None = None
        self.pipes = Pipes()
        info, info_writes = os.pipe()
        self._info = info
        self._information = b""
        words = b"".join(word.encode() + b"\0" for word in options(backend, limits))
        given = (_readable(words), _readable(seccomp.program(platform.machine())))
        to_pass = (*given, info_writes, *self.pipes.inner)
        command = [backend.launcher, "--args", str(given[0]), "--seccomp", str(given[1])]
        command += ["--info-fd", str(info_writes), "--"]
        command += python_command(backend.python, "linux", limits, self.pipes)
        user: dict[str, Any] = {}
        if backend.uid is not None:
            user = {"user": backend.uid, "group": backend.uid, "extra_groups": []}
        try:
            self.process = subprocess.Popen(
                command,
                env={},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=to_pass,
                start_new_session=True,  # a terminal's Ctrl-C must not reach it
                **user,
            )
        except BaseException:
            os.close(info)
            self.pipes.close()
            raise
        finally:
            for fd in (*given, info_writes):
                os.close(fd)
            self.pipes.close_inner()

    def distrust(self) -> str:
        """Why the program must not be handed over; empty where all holds, as seen from outside."""
        init = self._find_init()
        if init is None:
            return "bwrap did not say which process it started"
        inside = _children(init)
        if len(inside) != 1:
            return f"there are {len(inside)} processes in the sandbox instead of one"
        user = os.geteuid() if self.backend.uid is None else self.backend.uid
        return unsafe(inside[0], user) or unsafe(init, user)

    def excess(self) -> str:
        """Nothing to watch: limits and sizes bind, and there is one process only."""
        return ""

    def end(self) -> None:
        """Ends all that runs in there, and returns when nothing does."""
        self._find_init()
        if self._init_fd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init_fd, signal.SIGKILL)
            # Readable once the first process of the namespace has ended, which it does last.
            poll = select.poll()
            poll.register(self._init_fd, select.POLLIN)
            poll.poll(5000)
        # Not waited for yet, so that its process id can't be another's. Its group is its own.
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        if self._init_fd is not None:
            # bwrap may have gone first: then its dead child is ours to look after.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self._init_fd, os.WEXITED | os.WNOHANG)
            os.close(self._init_fd)
            self._init_fd = None
        os.close(self._info)
        self.pipes.close()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _find_init(self) -> int | None:
        if self.init is not None or self.process.returncode is not None:
            return self.init
        while select.select([self._info], [], [], 0)[0]:
            data = os.read(self._info, 4096)
            self._information += data
            if not data:
                break
        try:
            pid = int(json.loads(self._information)["child-pid"])
            fd = os.pidfd_open(pid)
        except (ValueError, KeyError, ProcessLookupError):
            return None
        parents = (str(self.process.pid), str(os.getpid()))
        if _status(pid).get("PPid") not in parents:  # ended, and its id is another's by now
            os.close(fd)
            return None
        self.init, self._init_fd = pid, fd
        return pid


def unsafe(pid: int, uid: int) -> str:
    """Why that process isn't what it should be before it may run a program; empty if it is."""
    status = _status(pid)
    wrong = [
        f"{name} {status.get(name, 'unknown')}"
        for name, wanted in {
            "Uid": [str(uid)] * 4,
            "Gid": [str(os.getegid() if uid == os.geteuid() else uid)] * 4,
            "CapInh": ["0" * 16],
            "CapPrm": ["0" * 16],
            "CapEff": ["0" * 16],
            "CapBnd": ["0" * 16],
            "CapAmb": ["0" * 16],
            "NoNewPrivs": ["1"],
            "Seccomp": ["2"],
        }.items()
        if status.get(name, "").split() != wanted
    ]
    if uid == 0:
        wrong.append("it is root")
    if wrong:
        return "the process in the sandbox has " + ", ".join(wrong)
    for name in NAMESPACES:
        try:
            if os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}"):
                return f"the sandbox has no {name} namespace of its own"
        except OSError as error:
            return f"the sandbox's {name} namespace can't be read ({error.strerror})"
    return ""


@cache
def _adopt_orphans() -> None:
    """bwrap ends without waiting for its child. Were that left to process 1, which in many
    containers never looks after anybody, every run would leave a dead process behind."""
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    split = (line.partition(":") for line in lines.splitlines())
    return {name: value.strip() for name, _, value in split}


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return [int(word) for word in text.split()]
    except OSError:  # a kernel without that file
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        return [child for child in pids if _status(child).get("PPid") == str(pid)]


def _readable(data: bytes) -> int:
    """A descriptor to read these bytes from; they fit into a pipe."""
    reads, writes = os.pipe()
    with os.fdopen(writes, "wb") as stream:
        stream.write(data)
    return reads
