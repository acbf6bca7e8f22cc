"""What the benchmarks share: the machine, cells in processes of their own, tables, intervals.

Import it before ``mlx.core``: it imports simko_mlx, which loads OpenBLAS where there is one.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from simko_mlx import OPENBLAS

MIB, GIB = 1 << 20, 1 << 30
RESAMPLES = 10_000


def machine() -> dict[str, Any]:
    """What the figures were measured on, and with."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(total_memory() / GIB, 1),
        "available_gib": round(available_memory() / GIB, 1),
        "os": f"{platform.system()} {platform.mac_ver()[0] or platform.release()}",
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
        "device": _device(),
        "openblas": OPENBLAS,
        "command": shlex.join(sys.orig_argv),
    }


def print_machine(facts: Mapping[str, Any]) -> None:
    f = facts
    print(f"machine   {f['cpu']}, {f['cores']} cores, {f['memory_gib']} GiB", end="")
    print(f" ({f['available_gib']} GiB available), MLX device {f['device']}")
    print(
        f"software  {f['os']}, Python {f['python']}, mlx {f['mlx']}, mlx-lm {f['mlx_lm']}", end=""
    )
    print(f", OpenBLAS {'yes' if f['openblas'] else 'no'}")
    print(f"command   {f['command']}\n", flush=True)


def _device() -> str:
    import mlx.core as mx

    return "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"


def _cpu_model() -> str:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    names = [v for k, v in _fields("/proc/cpuinfo") if k == "model name"]
    return names[0] if names else platform.processor() or platform.machine()


def _fields(path: str) -> list[tuple[str, str]]:
    """The "name: value" lines of a file in /proc; none where there is no such file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    split = (line.partition(":") for line in lines)
    return [(name.strip(), value.strip()) for name, _, value in split]


def total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int:
    """Bytes that a process may use without swapping."""
    import mlx.core as mx

    info = mx.device_info() if mx.metal.is_available() else {}
    recommended = info.get("max_recommended_working_set_size")
    if recommended:
        return int(recommended)
    found = dict(_fields("/proc/meminfo")).get("MemAvailable")
    return int(found.split()[0]) * 1024 if found else total_memory()


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

    before, resident = mx.get_active_memory(), _reset_process_peak()
    mx.reset_peak_memory()
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    process = max(0, _process_bytes("VmHWM") - resident) if resident else 0
    return Measured(wall, cpu, mx.get_peak_memory(), before, process), result


def _process_bytes(name: str) -> int:
    found = dict(_fields("/proc/self/status")).get(name)
    return int(found.split()[0]) * 1024 if found else 0


def _reset_process_peak() -> int:
    """Starts the process's peak afresh (Linux only); the bytes that it holds now, or 0."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # gives back what is freed, or its second use goes unseen
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except (OSError, AttributeError):
        return 0
    return _process_bytes("VmRSS")


def run_cell(
    script: str, spec: Mapping[str, Any], *, timeout: float, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """``script --cell SPEC`` in a process of its own -> the JSON of its last line, or "error"."""
    command = [sys.executable, script, "--cell", json.dumps(spec)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            env={**os.environ, **(env or {})},
        )
    except subprocess.TimeoutExpired:
        return {"error": f"timed out after {timeout:.0f} s"}
    if done.returncode < 0:
        return {"error": f"crashed: {signal.Signals(-done.returncode).name}"}
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no word"])[-1][:120]
        return {"error": f"failed: {last}"}
    return answer


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Columns as wide as their contents; the first ``left`` flush left, the others right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            c.ljust(w) if i < left else c.rjust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def ratio_interval(
    above: Sequence[Sequence[float]], below: Sequence[Sequence[float]], *, seed: int = 0
) -> tuple[float, float, float]:
    """The ratio of two medians with the 95 % percentile interval of its bootstrap distribution.

    Each is (rounds, values per round); rounds are drawn whole, so that what slowed a whole round
    down slows both.
    """
    one, two = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(len(one), size=(RESAMPLES, len(one)))
    medians = (np.median(x[drawn].reshape(RESAMPLES, -1), axis=1) for x in (one, two))
    low, high = np.percentile(np.divide(*medians), [2.5, 97.5])
    return float(np.median(one) / np.median(two)), float(low), float(high)


def write_json(path: str | None, content: Any) -> None:
    if path is not None:
        Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
