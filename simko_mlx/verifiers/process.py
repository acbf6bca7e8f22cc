"""The parent's end of one worker: start it, talk to it without ever blocking, kill it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

from simko_mlx.verifiers import protocol

# sys.path comes from the parent, so that the worker imports the same code; -P keeps a json.py in
# the current folder from being taken for the library's.
_BOOTSTRAP = (
    "import json, sys; options = json.loads(sys.argv[1]); sys.path[:] = options['path']; "
    "from simko_mlx.verifiers.worker import main; main(options)"
)
_CHUNK = 1 << 16


class WorkerDied(Exception):
    """The worker is gone, or speaks no sense."""


class WorkerProcess:
    """One worker. ``requests``, ``replies`` and ``output``, what it writes to standard output and
    error (None once it has closed both), are the descriptors to select on."""

    def __init__(self, settings: dict[str, Any]):
        """``settings``: what ``worker.load`` takes."""
        child_reads, self.requests = os.pipe()
        self.replies, child_writes = os.pipe()
        self.output: int | None
        self.output, child_prints = os.pipe()
        options = {
            **settings,
            "parent": os.getpid(),
            "path": [os.path.abspath(entry) for entry in sys.path],
            "requests": child_reads,
            "replies": child_writes,
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOTSTRAP, json.dumps(options)],
                stdin=subprocess.DEVNULL,
                stdout=child_prints,
                stderr=child_prints,
                pass_fds=(child_reads, child_writes),
                start_new_session=True,  # a terminal's Ctrl-C must not reach it
            )
        except BaseException:
            os.close(self.requests)
            os.close(self.replies)
            os.close(self.output)
            raise
        finally:
            os.close(child_reads)
            os.close(child_writes)
            os.close(child_prints)
        for descriptor in (self.requests, self.replies, self.output):
            os.set_blocking(descriptor, False)
        self._outgoing = memoryview(b"")
        self._incoming = bytearray()
        self._closed = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def sending(self) -> bool:
        return len(self._outgoing) > 0

    def send(self, message: dict[str, Any]) -> None:
        """Queues a message; flush() whenever ``requests`` is writable."""
        self._outgoing = memoryview(protocol.encode(message))

    def flush(self) -> None:
        """Raises WorkerDied when the worker no longer reads."""
        try:
            while self._outgoing:
                written = os.write(self.requests, self._outgoing[:_CHUNK])
                self._outgoing = self._outgoing[written:]
        except BlockingIOError:
            return
        except OSError as error:
            raise WorkerDied(str(error)) from error

    def receive(self) -> dict[str, Any] | None:
        """The next message, or None while it isn't complete.

        Raises:
            WorkerDied: the worker ended, or sent what is no message.
        """
        try:
            while data := os.read(self.replies, _CHUNK):
                self._incoming += data
            ended = True
        except BlockingIOError:
            ended = False
        except OSError:
            ended = True
        try:
            message = protocol.decode(self._incoming)
        except ValueError as error:
            raise WorkerDied("it sent no JSON") from error
        if message is None and ended:
            raise WorkerDied("it ended")
        return message

    def read_output(self) -> bytes:
        """What the worker has written since, up to 64 KiB."""
        if self.output is None:
            return b""
        try:
            data = os.read(self.output, _CHUNK)
        except BlockingIOError:
            return b""
        if not data:
            os.close(self.output)
            self.output = None
        return data

    def output_left(self) -> bytes:
        """The last words of a worker that was killed, up to 64 KiB."""
        data = self.read_output()
        if self.output is not None:
            os.close(self.output)
            self.output = None
        return data

    def kill(self) -> None:
        """Ends the worker and the processes of its session; returns within seconds at worst."""
        if self._closed:
            return
        self._closed = True
        os.close(self.requests)
        os.close(self.replies)
        # Not waited for yet, so its process id can't have been given to another.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
