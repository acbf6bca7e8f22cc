"""What the benchmarks share: the machine, cells in processes of their own, tables, intervals.

Import it before ``mlx.core``: it imports simko_mlx, which loads OpenBLAS where there is one.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from meter import Measured as Measured
from meter import fields
from meter import measure as measure

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
    names = [v for k, v in fields("/proc/cpuinfo") if k == "model name"]
    return names[0] if names else platform.processor() or platform.machine()


def total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int:
    """Bytes that a process may use without swapping."""
    import mlx.core as mx

    info = mx.device_info() if mx.metal.is_available() else {}
    recommended = info.get("max_recommended_working_set_size")
    if recommended:
        return int(recommended)
    found = dict(fields("/proc/meminfo")).get("MemAvailable")
    return int(found.split()[0]) * 1024 if found else total_memory()


def run_cell(
    script: str,
    spec: Mapping[str, Any],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> dict[str, Any]:
    """``script --cell SPEC`` in a process of its own -> the JSON of its last line, or "error"."""
    command = [python, script, "--cell", json.dumps(spec)]
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
