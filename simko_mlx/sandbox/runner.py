"""The command that runs inside, and the pipes to it."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

from simko_mlx.sandbox.limits import Limits, rlimits


class Pipes:
    """``requests`` to write the program to, ``results`` to read records from; ``inner`` are the
    ends of the sandbox's side."""

    def __init__(self) -> None:
        reads, self.requests = os.pipe()
        self.results, writes = os.pipe()
        self.inner = (reads, writes)
        self._open = {*self.inner, self.requests, self.results}
        os.set_blocking(self.requests, False)
        os.set_blocking(self.results, False)

    def close_inner(self) -> None:
        for fd in self.inner:
            self.close_one(fd)

    def close_one(self, fd: int) -> None:
        if fd in self._open:
            self._open.remove(fd)
            os.close(fd)

    def close(self) -> None:
        for fd in list(self._open):
            self.close_one(fd)


def python_command(
    python: str, platform: str, limits: Limits, pipes: Pipes, hidden: str | None = None
) -> list[str]:
    """``hidden`` is a file outside that must not be seen.

    Not ``-I``: it would ignore the fixed hash seed. What else it keeps out, the environment and
    the current folder, is ours here anyway, and the latter leaves sys.path before the program runs.
    """
    settings = {
        "requests": pipes.inner[0],
        "results": pipes.inner[1],
        "limits": rlimits(limits, platform),
        # bwrap's own process in there has the program's user, so that the program might make it
        # work for itself: it gets the same limits.
        "limited": [0, 1] if platform == "linux" else [0],
        "hidden": hidden,
    }
    return [python, "-s", "-S", "-B", "-X", "utf8", "-c", source(), json.dumps(settings)]


@cache
def source() -> str:
    folder = Path(__file__).parent
    return "\n".join(
        (folder / name).read_text(encoding="utf-8") for name in ("values.py", "child.py")
    )
