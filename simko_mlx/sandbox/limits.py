"""How much a program may take, and which of it the system itself enforces."""

from __future__ import annotations

import math
from dataclasses import dataclass

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Of one run. Sizes are in bytes, ``output`` is standard output, standard error and results
    together; ``wall`` runs from when the program has been handed over."""

    wall: float = 5.0
    cpu: float = 4.0
    memory: int = 512 * MEGABYTE
    processes: int = 64  # threads, on Linux: more processes than one there can't be
    file_size: int = 8 * MEGABYTE
    folder: int = 16 * MEGABYTE
    open_files: int = 64
    output: int = 64 * 1024


def rlimits(limits: Limits, platform: str) -> dict[str, tuple[int, int]]:
    """Name in the module ``resource`` -> (soft, hard).

    macOS ignores or refuses a limit on address space, and counts processes over the whole desktop:
    there memory is polled from outside, and the profile forbids every fork.
    """
    seconds = math.ceil(limits.cpu)
    wanted = {
        "RLIMIT_CPU": (seconds, seconds + 1),  # first a signal that tells what happened
        "RLIMIT_FSIZE": (limits.file_size,) * 2,
        "RLIMIT_NOFILE": (limits.open_files,) * 2,
        "RLIMIT_CORE": (0, 0),
    }
    if platform == "linux":
        wanted["RLIMIT_AS"] = (limits.memory,) * 2
        wanted["RLIMIT_NPROC"] = (limits.processes,) * 2
        wanted["RLIMIT_MEMLOCK"] = (0, 0)
        wanted["RLIMIT_MSGQUEUE"] = (0, 0)
    return wanted
