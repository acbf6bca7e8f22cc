"""How long one run in the sandbox takes: python -m benchmarks.sandbox [--uid N] [--runs N]

``start`` is until Python runs inside and has been checked from outside; ``whole`` until all of it
has ended. ``plain`` is the same Python without sandbox, for comparison.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time

from simko_mlx.sandbox.backend import Backend, choose
from simko_mlx.sandbox.limits import Limits
from simko_mlx.sandbox.run import OK, Call, Job, run

_JOBS = {
    "script": Job("print(int(input()) + 1)", stdin="1\n"),
    "calls": Job("def f(n):\n    return n + 1\n", calls=[Call("f", (1,))] * 5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uid", type=int, help="as root: the user that the sandbox runs as")
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    backend = choose({"enabled": True, "uid": options.uid})
    for name, job in _JOBS.items():
        starts, wholes = zip(*(_timed(job, backend) for _ in range(options.runs)), strict=True)
        print(f"{name:7} start {_figures(starts)}   whole {_figures(wholes)}")
    print(f"{'plain':7} whole {_figures([_plain(backend) for _ in range(options.runs)])}")


def _timed(job: Job, backend: Backend) -> tuple[float, float]:
    began = time.perf_counter()
    outcome = run(job, backend, Limits())
    whole = time.perf_counter() - began
    assert outcome.status == OK, outcome
    return outcome.start_seconds, whole


def _plain(backend: Backend) -> float:
    began = time.perf_counter()
    subprocess.run([backend.python, "-I", "-S", "-B", "-c", "print(2)"], capture_output=True)
    return time.perf_counter() - began


def _figures(seconds: list[float] | tuple[float, ...]) -> str:
    ordered = sorted(seconds)
    high = ordered[int(len(ordered) * 0.9)]
    return f"median {statistics.median(ordered) * 1000:5.1f} ms, 90 % within {high * 1000:5.1f} ms"


if __name__ == "__main__":
    main()
