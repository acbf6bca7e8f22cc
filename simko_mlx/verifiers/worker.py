"""The process that runs one verifier, for as long as its parent lives and lets it.

Requests and replies travel over two pipes of their own, so that what a verifier prints can't get
between them; its standard output goes to standard error. The worker ignores Ctrl-C (the parent
decides), and ends when the parent is gone, even in the middle of an endless loop.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from simko_mlx.imports import describe, import_function, raised_at
from simko_mlx.types import UserError, Verdict
from simko_mlx.verifiers import VERIFIERS, protocol
from simko_mlx.verifiers.user import RewardFunction

Judge = Callable[[dict[str, Any]], list[Verdict]]


def main(options: dict[str, Any]) -> None:
    """Serves requests until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent(options["parent"])
    _redirect_stdout()
    for fd in (options["requests"], options["replies"]):
        os.set_inheritable(fd, False)
    with (
        os.fdopen(options["requests"], "rb") as requests,
        os.fdopen(options["replies"], "wb") as replies,
    ):
        try:
            judge, wants_ids = load(options["name"], options["correct_at"])
            hello: dict[str, Any] = {"ready": True, "wants_ids": wants_ids}
        except UserError as error:
            hello = {"error": str(error)}
        replies.write(protocol.encode(hello))
        replies.flush()
        while "ready" in hello and (request := protocol.read(requests)) is not None:
            with _fuse(request["seconds"]):
                reply = answer(judge, request)
            replies.write(protocol.encode(reply))
            replies.flush()


def load(name: str, correct_at: float) -> tuple[Judge, bool]:
    """(the verifier as a function of a request, whether it wants the token ids).

    Raises:
        UserError: it can't be imported.
    """
    if name in VERIFIERS:
        verify = import_function(VERIFIERS[name], "verifier.name")
        return lambda request: _each(name, verify, request), False
    function = RewardFunction(name, correct_at)
    return function, function.wants_ids


def answer(judge: Judge, request: dict[str, Any]) -> dict[str, Any]:
    try:
        verdicts = judge(request)
    except UserError as error:
        return {"error": str(error)}
    return {"verdicts": [[v.reward, v.correct, v.detail] for v in verdicts]}


def _each(name: str, verify: Callable[..., Verdict], request: dict[str, Any]) -> list[Verdict]:
    try:
        return [
            verify(text, request["answer"], request["columns"]) for text in request["completions"]
        ]
    # Built-in verifiers don't raise over a completion, but a row of another data set may lack
    # what they need, in ways that each of them knows best.
    except Exception as error:
        raise UserError(
            f"The verifier {name} raised {describe(error)} at {raised_at(error)}; does verifier."
            "name fit the problems of data.source?"
        ) from error


def _redirect_stdout() -> None:
    try:
        os.dup2(2, 1)
    except OSError:  # standard error is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with contextlib.suppress(AttributeError, OSError):
        # What was printed before a time-out's SIGKILL should still be seen.
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _end_with_parent(parent: int) -> None:
    """End when the parent does. A thread sees it everywhere, while Python code runs; on Linux the
    kernel does it even when a loop in C holds the interpreter."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            set_parent_death_signal = 1
            ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _fuse(seconds: float):
    """A bound in CPU time that needs neither the parent nor the interpreter, for the orphan whose
    loop in C keeps the watching thread from running. Generous: the parent's deadline is the rule,
    and a verifier may keep all processors busy until then."""
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_VIRTUAL, 10 + seconds * (os.cpu_count() or 1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
