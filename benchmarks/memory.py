"""How well the memory of a run is told before it: forecasts against runs of the real trainer.

For each row a small random model and a data set are made on the spot. One process tells the memory
as `simko-mlx plan` does, from the model's outline; another trains with the same config, three
steps, and reads MLX's count at its largest: in the first two steps for each phase by itself
(decoding a step's completions, updating the weights; the evaluation is the one before training), in
the last for the whole step, as the trainer logs it (mem/peak_gb). A reward that differs within each
group makes that none is skipped.

Errors are forecast / measured - 1. "outline" is what telling took of MLX's memory, and "seconds"
how long, loading of the libraries aside; "start" what loading the model and its self-tests took at
their largest.

What it doesn't measure: Metal, unless it runs there; the process's own memory, which differs from
MLX's count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import common
import mlx.core as mx
from common import MIB
from memory_cells import CELLS, STEPS, Cell, make

PHASES = ("rollout", "evaluation", "step", "peak")
QUICK = (0, 4, 8, 12)


def tell(cell: Cell, folder: Path) -> dict[str, Any]:
    """The child that predicts."""
    from simko_mlx.memory import longest_prompt
    from simko_mlx.planner import forecast
    from simko_mlx.policy import load_outline

    config = cell.config(folder)
    began = time.perf_counter()
    mx.reset_peak_memory()
    policy = load_outline(config)
    prompt, notes = longest_prompt(policy, config)
    assert prompt == cell.prompt and not notes, (prompt, notes)
    found = forecast(policy, config, prompt)
    seconds = time.perf_counter() - began
    return found.to_json() | {"outline": mx.get_peak_memory(), "seconds": seconds}


class Phases:
    """Peaks of the phases, in all steps but the last."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self.steps = 0

    def watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self.steps == STEPS - 1:
                return call(*args, **kwargs)
            self.peaks.setdefault("start", mx.get_peak_memory())
            mx.reset_peak_memory()
            result = call(*args, **kwargs)
            self.peaks[name] = max(self.peaks.get(name, 0), mx.get_peak_memory())
            self.steps += name == "step"
            return result

        return run


def train_here(cell: Cell, folder: Path) -> dict[str, Any]:
    """The child that measures."""
    from simko_mlx import collect, run_evaluations
    from simko_mlx.learner import Learner
    from simko_mlx.loggers import Silent
    from simko_mlx.trainer import train

    phases = Phases()
    collect.rollout = phases.watched("rollout", collect.rollout)
    run_evaluations.evaluate = phases.watched("evaluation", run_evaluations.evaluate)
    Learner.learn = phases.watched("step", Learner.learn)  # type: ignore[method-assign]
    mx.reset_peak_memory()
    train(cell.config(folder), folder / "run", Silent())
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    steps = [row for row in rows if "mem/peak_gb" in row]
    assert not any(row["optim/skipped_groups"] for row in steps)
    logged = round(steps[-1]["mem/peak_gb"] * 1e9)
    most = max(logged, *(phases.peaks[name] for name in PHASES[:3]))
    return phases.peaks | {"logged": logged, "peak": most}


def run_here(spec: dict[str, Any]) -> dict[str, Any]:
    folder = Path(spec["folder"])
    os.chdir(folder)  # data and reward function are found there
    cell = CELLS[spec["cell"]]
    return tell(cell, folder) if spec["task"] == "tell" else train_here(cell, folder)


def run_cell(number: int, timeout: float) -> dict[str, Any]:
    cell = CELLS[number]
    row: dict[str, Any] = {"name": cell.name, "run": cell.run, "cell": asdict(cell)}
    with tempfile.TemporaryDirectory() as folder:
        make(cell, Path(folder))
        mx.clear_cache()
        for task in ("tell", "train"):
            spec = {"task": task, "cell": number, "folder": folder}
            found = common.run_cell(str(Path(__file__).resolve()), spec, timeout=timeout)
            row[task] = found
            if "error" in found:
                return row | {"error": found["error"]}
    told, measured = row["tell"], row["train"]
    return row | {"errors": {name: told[name] / measured[name] - 1 for name in PHASES}}


def show(rows: Sequence[dict[str, Any]]) -> str:
    header = ["model", "run", *(f"{name} MiB" for name in PHASES)]
    header += ["logged", "start", "outline", "seconds"]
    lines, notes = [], []
    for row in rows:
        if "error" in row:
            notes.append(f"{row['name']} {row['run']}: {row['error']}")
            continue
        told, measured = row["tell"], row["train"]
        pairs = [
            f"{told[name] / MIB:.1f} {measured[name] / MIB:.1f} {row['errors'][name]:+.1%}"
            for name in PHASES
        ]
        others = [measured["logged"], measured["start"], told["outline"]]
        line = [row["name"], row["run"], *pairs, *(f"{x / MIB:.1f}" for x in others)]
        lines.append([*line, f"{told['seconds']:.1f}"])
    return "\n".join([common.table(header, lines, left=2), *notes])


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and worst error without their signs, of each phase."""
    out: dict[str, Any] = {}
    for name in PHASES:
        errors = [abs(row["errors"][name]) for row in rows if "errors" in row]
        out[name] = {"median": statistics.median(errors), "worst": max(errors)} if errors else {}
    return out


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="four rows only")
    add("--rows", type=int, nargs="+", metavar="N", help="these rows only, counted from 0")
    add("--timeout", type=float, default=900.0, help="seconds per process (default 900)")
    add("--json", metavar="FILE", help="also write everything to FILE")
    add("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.rows = args.rows or (QUICK if args.quick else range(len(CELLS)))
    if not all(0 <= number < len(CELLS) for number in args.rows):
        parser.error(f"there are rows 0 to {len(CELLS) - 1}")
    return args


def main() -> None:
    args = parse()
    if args.cell is not None:
        print(json.dumps(run_here(json.loads(args.cell))))
        return
    facts = common.machine()
    common.print_machine(facts)
    rows = []
    for number in args.rows:
        rows.append(run_cell(number, args.timeout))
        common.write_json(args.json, {"machine": facts, "rows": rows})  # what there is so far
    print("each phase: forecast, measured, error")
    print(show(rows) + "\n")
    found = summary(rows)
    for name, figures in found.items():
        if figures:
            print(f"{name:10}  median {figures['median']:.1%}, worst {figures['worst']:.1%}")
    common.write_json(args.json, {"machine": facts, "rows": rows, "summary": found})


if __name__ == "__main__":
    main()
