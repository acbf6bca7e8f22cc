"""Time and memory of calls and of phases, for the benchmarks.

Needs MLX and nothing else, so that a process of another project can measure itself with it.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


def fields(path: str) -> list[tuple[str, str]]:
    """The "name: value" lines of a file in /proc; none where there is no such file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    split = (line.partition(":") for line in lines)
    return [(name.strip(), value.strip()) for name, _, value in split]


@dataclass(frozen=True)
class Measured:
    """One timed call. ``peak`` and ``before`` are MLX's count of bytes; ``process`` is by how much
    the process grew at its largest, as the system sees it (0 where it doesn't tell). On the CPU the
    two differ: MLX allocates results up to ten operations ahead, the system counts touched pages.
    """

    wall: float
    cpu: float
    peak: int
    before: int
    process: int


def measure(call: Callable[[], Any]) -> tuple[Measured, Any]:
    """Runs ``call``, which must evaluate what it computes."""
    import mlx.core as mx

    before, resident = mx.get_active_memory(), reset_process_peak()
    mx.reset_peak_memory()
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    process = process_growth(resident)
    return Measured(wall, cpu, mx.get_peak_memory(), before, process), result


@dataclass(frozen=True)
class Lap:
    """One phase: seconds, and MLX's count of bytes at its largest and before it."""

    wall: float
    cpu: float
    peak: int
    before: int


class Stopwatch:
    """Consecutive phases of steps, each of which must evaluate what it computes."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Lap]] = []

    def start(self) -> None:
        """A step begins, and with it its first phase."""
        self.steps.append({})
        self._begin()

    def lap(self, name: str) -> None:
        """A phase ends, and the next begins."""
        import mlx.core as mx

        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self.steps[-1][name] = Lap(wall, cpu, mx.get_peak_memory(), self._before)
        self._begin()

    def as_json(self, drop: int) -> list[dict[str, Any]]:
        """The steps after the first ``drop``, which warm up."""
        return [{name: asdict(lap) for name, lap in step.items()} for step in self.steps[drop:]]

    def enough(self, drop: int, steps: int, seconds: float) -> bool:
        """Whether ``steps`` are measured, or at least one and the time is used up."""
        done = self.steps[drop:]
        used = sum(lap.wall for step in done for lap in step.values())
        return len(done) >= steps or (bool(done) and used > seconds)

    def _begin(self) -> None:
        import mlx.core as mx

        self._before = mx.get_active_memory()
        mx.reset_peak_memory()
        self._wall, self._cpu = time.perf_counter(), time.process_time()


def count_parameters(model: Any) -> dict[str, int]:
    """All numbers of a model, LoRA's included, and those that train."""
    from mlx.utils import tree_flatten

    kinds = {"parameters": model.parameters(), "trainable": model.trainable_parameters()}
    return {
        name: sum(int(array.size) for _, array in tree_flatten(tree))  # type: ignore[misc]
        for name, tree in kinds.items()
    }


def process_growth(resident: int) -> int:
    """Bytes that the process had at its largest beyond these; 0 where the system doesn't tell."""
    return max(0, process_bytes("VmHWM") - resident) if resident else 0


def process_bytes(name: str) -> int:
    found = dict(fields("/proc/self/status")).get(name)
    return int(found.split()[0]) * 1024 if found else 0


def reset_process_peak() -> int:
    """Starts the process's peak afresh (Linux only); the bytes that it holds now, or 0."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # gives back what is freed, or its second use goes unseen
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except (OSError, AttributeError):
        return 0
    return process_bytes("VmRSS")
