"""The sandbox on macOS: a seatbelt profile, resource limits, and memory watched from outside.

``sandbox-exec`` is deprecated and undocumented, but what others use for the same purpose. With
every fork denied the program is one process, so that ending it ends all; a watcher outside the
sandbox ends it when we are gone, because macOS has no way to ask the kernel for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from simko_mlx.sandbox.backend import Backend
from simko_mlx.sandbox.limits import Limits
from simko_mlx.sandbox.runner import Pipes, python_command

PROFILE = """(version 1)
(deny default)
(import "dyld-support.sb")
(allow process-exec (literal (param "PY")) (literal (param "PY_APP")))
(allow signal (target self))
(allow process-info* (target self))
(allow sysctl-read
  (sysctl-name "hw.ncpu" "hw.pagesize" "hw.memsize" "kern.osrelease"))
(allow file-read-metadata (vnode-type DIRECTORY))
(allow file-read*
  (subpath (param "PREFIX")) (subpath "/usr/lib") (subpath "/System/Library")
  (literal "/dev/null") (literal "/dev/urandom"))
(allow file-read* file-write* (subpath (param "WORK")))
(allow file-write-data (literal "/dev/null"))
(deny process-fork)
(deny network*)
(deny mach-lookup)
(deny iokit-open)
(deny ipc-posix*)
"""
# Reads a pipe that only we hold open, then ends the process that it was told of.
_WATCHER = "import os,sys\nos.read(0,1)\nos.kill(int(sys.argv[1]),9)\n"
_FOOTPRINT = 16 + 7 * 8  # offset of ri_phys_footprint in struct rusage_info_v0, of 96 bytes
_FILES = 256
_LOOK_AT_FOLDER = 0.2  # seconds


def app_of(python: str) -> str:
    """What a framework build of Python starts in place of itself."""
    for parent in Path(python).parents:
        app = parent / "Resources" / "Python.app" / "Contents" / "MacOS" / "Python"
        if app.is_file():
            return str(app)
    return python


def command(backend: Backend, folder: str, inner: list[str]) -> list[str]:
    given = {
        "PY": backend.python,
        "PY_APP": app_of(backend.python),
        "PREFIX": backend.prefix,
        "WORK": folder,
    }
    words = [backend.launcher, "-p", PROFILE]
    for name, value in given.items():
        words += ["-D", f"{name}={value}"]
    return [*words, *inner]


class MacSandbox:
    """One start of sandbox-exec, which becomes the Python inside."""

    def __init__(self, backend: Backend, limits: Limits):
        self.limits = limits
        self.root = os.path.realpath(tempfile.mkdtemp(prefix="simko-sandbox-"))  # mode 0700
        self.folder = os.path.join(self.root, "work")
        os.mkdir(self.folder, 0o700)
        hidden = os.path.join(self.root, "hidden")
        Path(hidden).write_text(secrets.token_hex(16), encoding="ascii")
        self.pipes = Pipes()
        self._looked = 0.0
        self._watched: int | None = None
        inner = python_command(backend.python, "darwin", limits, self.pipes, hidden)
        environment = {
            "PATH": "/usr/bin:/bin",
            "LANG": "en_US.UTF-8",
            "HOME": self.folder,
            "PYTHONHASHSEED": "0",
        }
        try:
            self.process = subprocess.Popen(
                command(backend, self.folder, inner),
                env=environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=self.pipes.inner,
                start_new_session=True,
            )
        except BaseException:
            self.pipes.close()
            shutil.rmtree(self.root, ignore_errors=True)
            raise
        finally:
            self.pipes.close_inner()
        self._watcher = self._watch()

    def _watch(self) -> subprocess.Popen[bytes] | None:
        reads, self._watched = os.pipe()
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _WATCHER, str(self.process.pid)],
                stdin=reads,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={},
            )
        except OSError:
            return None
        finally:
            os.close(reads)

    def distrust(self) -> str:
        """That the profile holds is seen from inside (``sees``): a file beside the folder, which
        we can read and it must not."""
        if self._watcher is None or self._watcher.poll() is not None:
            return "the process that ends the sandbox with us can't be started"
        return ""

    def excess(self) -> str:
        """Memory and disk: what macOS doesn't limit by itself."""
        used = footprint(self.process.pid)
        if used is not None and used > self.limits.memory:
            return "out of memory"
        now = time.monotonic()
        if now - self._looked < _LOOK_AT_FOLDER:
            return ""
        self._looked = now
        return "too many files" if _too_full(self.folder, self.limits.folder) else ""

    def end(self) -> None:
        # The watcher first: it must not signal a process id that may be another's by then.
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.wait()
        if self._watched is not None:
            os.close(self._watched)
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        self.pipes.close()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        shutil.rmtree(self.root, ignore_errors=True)


def footprint(pid: int) -> int | None:
    """Bytes of memory that macOS charges the process with; None where it doesn't tell."""
    buffer = ctypes.create_string_buffer(512)
    if _libproc().proc_pid_rusage(pid, 0, buffer) != 0:
        return None
    return struct.unpack_from("<Q", buffer.raw, _FOOTPRINT)[0]


@cache
def _libproc() -> ctypes.CDLL:
    return ctypes.CDLL("/usr/lib/libproc.dylib")


def _too_full(folder: str, most: int) -> bool:
    files, size = 0, 0
    for entry_folder, _, names in os.walk(folder):
        for name in names:
            files += 1
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(entry_folder, name)).st_size
            if files > _FILES or size > most:
                return True
    return False
