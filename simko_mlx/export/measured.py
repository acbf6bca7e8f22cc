"""What a run measured of one checkpoint: its evaluations, and the log of the steps up to it.

Only figures of that very step and scale count. Nothing is measured here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simko_mlx import checkpoint
from simko_mlx.evaluate import Evaluation, kept_path
from simko_mlx.export.source import Source
from simko_mlx.metrics import Interval, clustered_interval, paired_difference, pass_at_k

START = "start"  # the label of a run's first evaluation where it started from an adapter


@dataclass(frozen=True)
class TrainingLog:
    """The steps up to the checkpoint, as metrics.jsonl has them.

    ``rewards`` are (step, mean reward), None where nothing could be scored; ``points`` (step,
    pass@1) of the evaluations on the way, with ``point_settings`` (problems, n) where all have the
    same. Seconds and ``peak_gb`` are None where no line has them.
    """

    rewards: tuple[tuple[int, float | None], ...] = ()
    points: tuple[tuple[int, float], ...] = ()
    point_settings: tuple[int, int] | None = None
    step_seconds: float | None = None
    evaluation_seconds: float | None = None
    peak_gb: float | None = None


@dataclass(frozen=True)
class Measured:
    """``trained`` is the checkpoint's evaluation; ``before`` those of the base and of the adapter
    that was started from, where they can be compared with it; ``remarks`` say what can't.
    ``best`` is the run's own score of this step where it was the best, as state.json has it."""

    trained: Evaluation | None
    before: tuple[Evaluation, ...] = ()
    by_eval: bool = False  # measured by `simko-mlx eval`, not by the training run
    remarks: tuple[str, ...] = ()
    log: TrainingLog = field(default_factory=TrainingLog)
    best: dict[str, Any] | None = None


def read_measured(source: Source) -> Measured:
    """Reads what the run's folder has; files that are missing or damaged count as not there."""
    folder = source.run_dir / "evaluations"
    kept = _evaluations(kept_path(source.run_dir, source.step, source.scale))
    trained = _of_step(kept, source)
    by_eval = trained is not None
    if trained is None:
        kept = []
        trained = _of_step(_evaluations(folder / f"step-{source.step}.json"), source)
    log, best = _read_log(source), _best(source)
    if trained is None:
        return Measured(None, log=log, best=best)
    fitting: dict[str, Evaluation] = {}
    others: dict[str, Evaluation] = {}
    own = [e for name in ("base", START) for e in _evaluations(folder / f"{name}.json")]
    # A base is the same beside every step and scale.
    others_kept = [
        e for path in sorted(folder.glob("eval-step-*.json")) for e in _evaluations(path)
    ]
    for each in [*kept, *own, *others_kept]:
        if each.label in ("base", START):
            (fitting if comparable(each, trained) else others).setdefault(each.label, each)
    remarks = [_difference(e, trained) for name, e in others.items() if name not in fitting]
    if not fitting and not others:
        remarks.append("The base model was not measured with these settings.")
    before = tuple(fitting[name] for name in ("base", START) if name in fitting)
    return Measured(trained, before, by_eval, tuple(remarks), log, best)


def comparable(one: Evaluation, other: Evaluation) -> bool:
    """Whether two evaluations put the same questions in the same way."""
    return not _differing(one, other)


def _differing(one: Evaluation, other: Evaluation) -> list[str]:
    names = {
        "problem_ids": "other problems",
        "n": "another number of completions",
        "temperature": "another temperature",
        "max_completion_length": "another limit of tokens",
    }
    return [words for name, words in names.items() if getattr(one, name) != getattr(other, name)]


def _difference(one: Evaluation, trained: Evaluation) -> str:
    words = " and ".join(_differing(one, trained))
    name = "base model" if one.label == "base" else "start"
    return (
        f"The {name} was measured with {words}, so that its figures can't be set against these and "
        "are left out."
    )


def at_k(evaluation: Evaluation, k: int) -> Interval:
    """pass@k of an evaluation, also for a k of another one with as many completions."""
    known = evaluation.pass_at_k.get(k)
    return known or clustered_interval(_per_problem(evaluation, k))


def change(before: Evaluation, trained: Evaluation, k: int) -> Interval:
    """The change of pass@k over the same problems."""
    return paired_difference(_per_problem(before, k), _per_problem(trained, k))


def _per_problem(evaluation: Evaluation, k: int) -> list[float]:
    return [pass_at_k(evaluation.n, count, k) for count in evaluation.counts]


def _evaluations(path: Path) -> list[Evaluation]:
    """Those in a file of ``evaluations/``, of one or of several; none of a damaged file."""
    try:
        raw = json.loads(path.read_bytes())
        several = raw.get("evaluations", [raw])
        return [e for e in map(Evaluation.from_json, several) if _is_sound(e)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _is_sound(evaluation: Evaluation) -> bool:
    """Whether the parts of an evaluation fit each other; a file may have been edited."""
    n, ks = evaluation.n, evaluation.pass_at_k
    sizes = {evaluation.problems, len(evaluation.counts), len(evaluation.problem_ids)}
    return (
        len(sizes) == 1
        and bool(evaluation.counts)
        and bool(ks)
        and all(0 <= count <= n for count in evaluation.counts)
        and all(1 <= k <= n for k in ks)
    )


def _of_step(evaluations: list[Evaluation], source: Source) -> Evaluation | None:
    wanted = (f"step {source.step}", source.scale)  # labels go on with ", scale 0.5"
    found = [e for e in evaluations if (e.label.split(",")[0], e.scale) == wanted]
    return found[-1] if found else None


def _best(source: Source) -> dict[str, Any] | None:
    try:
        path = checkpoint.step_folder(source.run_dir, source.step) / "state.json"
        best = json.loads(path.read_bytes())["best"]
        return best if best is not None and best["step"] == source.step else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_log(source: Source) -> TrainingLog:
    steps: dict[int, dict[str, Any]] = {}
    tiers: dict[str, dict[int, dict[str, Any]]] = {"small": {}, "full": {}}
    for row in _rows(source.run_dir / "metrics.jsonl"):
        if 0 <= row["step"] <= source.step:
            kind = row.get("eval/tier")
            (steps if kind is None else tiers.get(str(kind), {}))[row["step"]] = row
    rewards = tuple((s, _float(steps[s].get("reward/mean"))) for s in sorted(steps) if s > 0)
    evaluations = tiers["small"] or tiers["full"]
    points = [(s, _float(evaluations[s].get("eval/pass@1"))) for s in sorted(evaluations)]
    settings = {(row.get("eval/problems"), row.get("eval/n")) for row in evaluations.values()}
    problems, n = settings.pop() if len(settings) == 1 else (None, None)
    same = (problems, n) if isinstance(problems, int) and isinstance(n, int) else None
    each = [row for rows in tiers.values() for row in rows.values()]
    peaks = [_float(row.get("mem/peak_gb")) for row in steps.values()]
    return TrainingLog(
        rewards=rewards,
        points=tuple((s, value) for s, value in points if value is not None),
        point_settings=same,
        step_seconds=_sum(row.get("time/step") for row in steps.values()),
        evaluation_seconds=_sum(row.get("time/eval") for row in each),
        peak_gb=max((p for p in peaks if p is not None), default=None),
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines that are whole; the last may have been cut by whatever ended the run."""
    try:
        content = path.read_bytes()
    except OSError:
        return
    for line in content.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and type(row.get("step")) is int:
            yield row


def _float(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _sum(values: Any) -> float | None:
    known = [v for v in map(_float, values) if v is not None]
    return sum(known) if known else None
