"""What a run has come to: tables of its evaluations, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from . import ui

if TYPE_CHECKING:
    from rich.console import Console

    from simko_mlx.config import Config
    from simko_mlx.evaluate import Evaluation
    from simko_mlx.trainer import RunSummary

GAP = 2  # cells between two columns
LONGEST_PART = 38  # cells of a part's name, so that two columns of figures fit beside it


def show(result: RunSummary, config: Config, console: Console | None = None) -> None:
    """The end of a training run."""
    console = console or ui.console()
    evaluations = {
        name: evaluation
        for name, evaluation in (
            (result.base.label if result.base else "base", result.base),
            (f"trained (step {result.step})", result.trained),
        )
        if evaluation is not None
    }
    show_evaluations(evaluations, console)
    if result.best_step is not None and result.best_step != result.step:
        _say(console, f"The best checkpoint by {config.eval.metric} is step {result.best_step}.")
    _next_steps(result, config, console)


def show_evaluations(evaluations: Mapping[str, Evaluation], console: Console | None = None) -> None:
    """Tables with a column per evaluation: pass@k, concentration, pass@1 of parts."""
    if not evaluations:
        return
    console = console or ui.console()
    for table in _pass_at_k_tables(evaluations, console.width):
        console.print(table)
        console.print()
    console.print(_concentration_table(evaluations))
    parts = _parts_table(evaluations)
    console.print()
    if parts.row_count:
        console.print(parts)
        console.print()
    for text in _remarks(evaluations):
        _say(console, text)


def where_to_go_on(run_dir: Path) -> str:
    """For a run that was interrupted."""
    names = (path.name.removeprefix("step-") for path in run_dir.glob("checkpoints/step-*"))
    steps = [int(name) for name in names if name.isdecimal()]
    if not steps:
        return f"Stopped before the first checkpoint of {run_dir}; start again."
    last = max(steps)
    resume = shlex.join(["simko-mlx", "train", "--resume", str(run_dir)])
    return f"Stopped; {run_dir} is saved at step {last}. Go on with: {resume}"


def _pass_at_k_tables(evaluations: Mapping[str, Evaluation], width: int) -> list[Table]:
    """One table, or several where a terminal of this width can't hold all k side by side."""
    ks = sorted({k for e in evaluations.values() for k in e.pass_at_k})
    chance = _chance_rows(evaluations)
    rows = {name: [_percent(values.get(k)) for k in ks] for name, values in chance.items()}
    for name, evaluation in evaluations.items():
        found = evaluation.pass_at_k
        rows[name] = [ui.interval(found[k]) if k in found else "-" for k in ks]
    if change := _change(list(evaluations.values()), ks):
        rows["change"] = change
    first = max(map(len, ["% solved", *rows]))
    widths = [max(len(row[i]) for row in rows.values()) + GAP for i in range(len(ks))]
    tables = []
    for part in _parts(widths, width - first):
        table = _table("% solved", *(f"pass@{ks[i]}" for i in part))
        for name, row in rows.items():
            style = "dim" if name in chance else None
            table.add_row(name, *(row[i] for i in part), style=style)
        tables.append(table)
    return tables


def _parts(widths: list[int], room: int) -> list[list[int]]:
    """Column numbers in groups that fit into the room, at least one each."""
    parts: list[list[int]] = []
    left = 0
    for index, width in enumerate(widths):
        if not parts or width > left:
            parts.append([])
            left = room
        parts[-1].append(index)
        left -= width
    return parts


def _change(evaluations: list[Evaluation], ks: list[int]) -> list[str]:
    """From the first to the second over the same problems: narrower than two separate intervals
    would suggest. Empty where problems or k differ."""
    from simko_mlx.metrics import paired_difference, pass_at_k

    if len(evaluations) != 2 or evaluations[0].problem_ids != evaluations[1].problem_ids:
        return []
    cells = []
    for k in ks:
        if any(k > e.n for e in evaluations):
            return []
        before, after = ([pass_at_k(e.n, c, k) for c in e.counts] for e in evaluations)
        cells.append(ui.interval(paired_difference(before, after), "+"))
    return cells


def _chance_rows(evaluations: Mapping[str, Evaluation]) -> dict[str, dict[int, float]]:
    """Chance depends on the problems alone: one row, unless the evaluations used different ones."""
    rows: dict[str, dict[int, float]] = {}
    for name, evaluation in evaluations.items():
        if evaluation.chance is None:
            continue
        if not rows:
            rows["chance"] = dict(evaluation.chance)
        elif all(rows["chance"].get(k, c) == c for k, c in evaluation.chance.items()):
            rows["chance"].update(evaluation.chance)
        else:
            rows[f"chance ({name})"] = evaluation.chance
    return rows


def _concentration_table(evaluations: Mapping[str, Evaluation]) -> Table:
    table = _table("per token", "entropy", "rank-1", "rank-2", "rank-3", "fork rank-1", "length")
    for name, e in evaluations.items():
        probabilities = (f"{p:.3f}" for p in (*e.rank_probs, e.fork_rank_probs[0]))
        table.add_row(name, f"{e.entropy:.3f}", *probabilities, f"{e.mean_length:.1f}")
    return table


def _parts_table(evaluations: Mapping[str, Evaluation]) -> Table:
    table = _table("pass@1 in %", *evaluations)
    for part in dict.fromkeys(part for e in evaluations.values() for part in e.groups):
        cells = (e.groups.get(part) for e in evaluations.values())
        name = Text(ui.clean(part))
        name.truncate(LONGEST_PART, overflow="ellipsis")
        table.add_row(name, *("-" if c is None else ui.interval(c) for c in cells))
    return table


def _remarks(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """The settings, which are part of the result, and what else there is to know of it."""
    lines = [
        f"T {e.temperature:g}, {e.n} completions of at most {e.max_completion_length} tokens for "
        f"each of {e.problems} held-out problems; 95% intervals over problems."
        for e in evaluations.values()
    ]
    for what, share in (
        ("Cut off", "truncated"),
        ("Not scorable, counted as wrong", "unscorable"),
    ):
        found = {name: getattr(e, share) for name, e in evaluations.items()}
        if any(found.values()):
            lines.append(f"{what}: " + ", ".join(f"{n} {100 * s:.1f}%" for n, s in found.items()))
    for name, e in evaluations.items():
        if e.unscorable and e.bound:
            most = ", ".join(f"pass@{k} {100 * v:.1f}%" for k, v in e.bound.items())
            lines.append(f"{name} at most, if those were all right: {most}")
    lines += [f"{name}: {e.note}" for name, e in evaluations.items() if e.note]
    return list(dict.fromkeys(lines))


def _next_steps(result: RunSummary, config: Config, console: Console) -> None:
    run, adapter = str(result.run_dir), result.run_dir / "adapters"
    # A run that stopped early has steps left.
    more = ["--set", f"steps={result.step * 2}"] if result.step >= config.steps else []
    rows = [
        ("go on", ["simko-mlx", "train", "--resume", run, *more]),
        ("evaluate", ["simko-mlx", "eval", run, "--base"]),
    ]
    if adapter.is_dir():
        rows.insert(0, ("adapter", [str(adapter)]))
        load = ["mlx_lm.generate", "--model", _model(config), "--adapter-path", str(adapter)]
        rows.append(("use it", [*load, "--prompt", "..."]))
    console.print()
    for name, words in rows:
        # Unwrapped, so that a command can be copied in one piece.
        console.print(Text(f"{name:9} {shlex.join(words)}"), soft_wrap=True)


def _model(config: Config) -> str:
    if config.model != "embedded":
        return config.model
    import simko_mlx.assets

    return str(Path(str(simko_mlx.assets.__file__)).parent / "countdown_tiny")


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=not index)
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _say(console: Console, text: str) -> None:
    console.print(Text(text))
