"""Pass rates that were measured before: which problems they leave to train on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simko_mlx.config import DataConfig
from simko_mlx.data import jsonl
from simko_mlx.data.dataset import Dataset
from simko_mlx.types import UserError, require


def read(path: str) -> dict[str, float]:
    """Problem id -> pass rate, of lines like {"id": "7", "pass_rate": 0.25, "samples": 8}. Of an
    id that was measured twice the later line counts.

    Raises:
        UserError: there is no such file, or a line is something else.
    """
    file = Path(path).expanduser()
    require(
        file.is_file(),
        f"There is no file {path}: correct data.pass_rates, or measure with "
        f"`simko-mlx probe CONFIG --write {path}`.",
    )
    rates: dict[str, float] = {}
    for where, row in jsonl.rows(file):
        row = row if isinstance(row, Mapping) else {}
        name, rate = row.get("id"), row.get("pass_rate")
        if not isinstance(name, str) or rate is None or not _is_rate(rate):
            raise UserError(
                f'{where}: write each line as {{"id": "7", "pass_rate": 0.25}}, the rate between '
                "0 and 1, as `simko-mlx probe` does."
            )
        rates[name] = float(rate)
    return rates


def _is_rate(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= 1


def select(dataset: Dataset, config: DataConfig) -> Dataset:
    """Leaves out problems to train on whose pass rate is out of bounds. Held-out problems stay:
    an evaluation of easy ones only would say little.

    Raises:
        UserError: no problem was measured, or nothing is left to train on.
    """
    if config.pass_rates is None:
        return dataset
    rates = read(config.pass_rates)
    measured = [p for p in dataset.train if p.id in rates]
    require(
        bool(measured),
        f"None of the {len(dataset.train):,} problems to train on is in {config.pass_rates}: "
        "measure these problems, and with the same data.id.",
    )
    low = 0.0 if config.min_pass_rate is None else config.min_pass_rate
    high = 1.0 if config.max_pass_rate is None else config.max_pass_rate
    keep = config.unmeasured == "keep"
    kept = [p for p in dataset.train if (low <= rates[p.id] <= high if p.id in rates else keep)]
    require(
        bool(kept),
        f"No problem has a pass rate from {low:g} to {high:g}: change data.min_pass_rate or "
        "data.max_pass_rate.",
    )
    notes = list(dataset.notes)
    unmeasured = len(dataset.train) - len(measured)
    outside = len(measured) - sum(p.id in rates for p in kept)
    if outside:
        notes.append(
            f"{outside:,} of {len(measured):,} measured problems have a pass rate outside "
            f"{low:g} to {high:g}: left out."
        )
    if unmeasured:
        what = "kept" if keep else "left out"
        notes.append(
            f"{unmeasured:,} problems are not in {config.pass_rates}: {what}, as data.unmeasured "
            "says."
        )
    mine = {p.id: rates[p.id] for p in kept if p.id in rates}
    return dataclasses.replace(dataset, train=kept, notes=notes, pass_rates=mine)
