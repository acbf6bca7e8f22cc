"""The process that runs one verifier, for as long as its parent lives and lets it.

Requests and replies travel over two pipes of their own, so that what a verifier prints can't get
between them; its standard output goes to standard error. The worker ignores Ctrl-C (the parent
decides), and ends when the parent is gone, even in the middle of an endless loop.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simko_mlx.imports import describe, import_function, raised_at
from simko_mlx.types import UserError, Verdict
from simko_mlx.verifiers import VERIFIERS, Part, check_part, combined, family, protocol
from simko_mlx.verifiers.user import RewardFunction

Judge = Callable[[dict[str, Any]], list[Verdict]]


def main(options: dict[str, Any]) -> None:
    """Serves requests until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent(options["parent"])
    with contextlib.suppress(AttributeError, OSError):
        # What was printed before a time-out's SIGKILL should still be seen.
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    for fd in (options["requests"], options["replies"]):
        os.set_inheritable(fd, False)
    with (
        os.fdopen(options["requests"], "rb") as requests,
        os.fdopen(options["replies"], "wb") as replies,
    ):
        try:
            judge, wants_ids = load(options["parts"], options["correct_at"], options["sandbox"])
            hello: dict[str, Any] = {"ready": True, "wants_ids": wants_ids}
            _limit_memory(options["memory"])
        except UserError as error:
            hello = {"error": str(error)}
        replies.write(protocol.encode(hello))
        replies.flush()
        while "ready" in hello and (request := protocol.read(requests)) is not None:
            with _fuse(request["seconds"]):
                reply = answer(judge, request)
            replies.write(protocol.encode(reply))
            replies.flush()


def load(
    parts: list[dict[str, Any]], correct_at: float, sandbox: dict[str, Any]
) -> tuple[Judge, bool]:
    """(the verifiers as one function of a request, whether it wants the token ids).

    Raises:
        UserError: one of them can't be imported, or doesn't take its options.
    """
    known = [Part(**part) for part in parts]
    judges = [_judge(part, correct_at, sandbox) for part in known]

    def judge(request: dict[str, Any]) -> list[Verdict]:
        columns = [one(request) for one in judges]
        return [combined(zip(known, row, strict=True)) for row in zip(*columns, strict=True)]

    return judge, any(getattr(one, "wants_ids", False) for one in judges)


def _judge(part: Part, correct_at: float, sandbox: dict[str, Any]) -> Judge:
    check_part(part)
    known = family(part.name)
    if known is None and part.name not in VERIFIERS:
        return RewardFunction(part.name, correct_at, part.options)
    if known is None:
        verify = import_function(VERIFIERS[part.name], "verifier.name")
        options = dict(part.options)
    else:
        verify, options = import_function(known[0], "verifier.name")(known[1], **part.options), {}
    if "sandbox" in inspect.signature(verify).parameters:
        options["sandbox"] = sandbox
    return lambda request: _each(part.name, verify, options, request)


def answer(judge: Judge, request: dict[str, Any]) -> dict[str, Any]:
    try:
        verdicts = judge(request)
    except UserError as error:
        return {"error": str(error)}
    except MemoryError:
        os._exit(1)  # the parent finds out which completion it was
    return {"verdicts": [[v.reward, v.correct, v.detail, v.taken, v.fault] for v in verdicts]}


def _each(
    name: str, verify: Callable[..., Verdict], options: dict[str, Any], request: dict[str, Any]
) -> list[Verdict]:
    return [_one(name, verify, options, request, text) for text in request["completions"]]


def _one(
    name: str,
    verify: Callable[..., Verdict],
    options: dict[str, Any],
    request: dict[str, Any],
    text: str,
) -> Verdict:
    try:
        return verify(text, request["answer"], request["columns"], **options)
    except UserError:
        raise
    except MemoryError:
        raise
    except RecursionError:
        return Verdict(0.0, False, "too deep for the verifier")
    # Built-in verifiers don't raise over a completion, but a row of another data set may lack
    # what they need, in ways that each of them knows best.
    except Exception as error:
        raise UserError(
            f"The verifier {name} raised {describe(error)} at {raised_at(error)}; does verifier."
            "name fit the problems of data.source?"
        ) from error


def _limit_memory(limit: int) -> None:
    """Ends this process when it takes more than ``limit`` bytes.

    macOS has no limit that binds: there a thread looks, which a loop in C may keep from doing so
    until the deadline. On Linux what can be allocated is limited, too.
    """
    on_linux = sys.platform == "linux"
    pages = Path("/proc/self/statm")
    if on_linux:
        with contextlib.suppress(OSError, ValueError):
            used = int(pages.read_text().split()[0]) * resource.getpagesize()
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (used + limit, hard))
    # The most that a process has taken may begin with what its parent had.
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def taken() -> int:
        if on_linux:
            return int(pages.read_text().split()[1]) * resource.getpagesize()
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
        return most if most > inherited else 0

    def watch() -> None:
        while taken() <= limit:
            time.sleep(0.05)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
