"""The data set of a classic environment of the package ``verifiers``: ``environment:gsm8k``.

Its training problems, and as held-out ones the first of its evaluation data set; without such a
data set some are held out as of a file. The verifier of the same name judges them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

from simko_mlx.config import DataConfig
from simko_mlx.data.dataset import Dataset, hold_out, without_overlap
from simko_mlx.data.files import collect
from simko_mlx.data.rows import BadRow, json_able, to_problem
from simko_mlx.imports import describe, raised_at
from simko_mlx.types import Problem, UserError
from simko_mlx.verifiers import environment

# Where the rubric looks elsewhere for what is right, as in the column info.
NO_ANSWER = "see info"
# Attributes of an environment that has an evaluation data set of its own.
_EVALUATION = ("eval_dataset", "eval_dataset_source")


def load(config: DataConfig) -> Dataset:
    """The problems of the environment that ``data.source`` names.

    Raises:
        UserError: it can't be loaded, or its data set has rows that are no problems.
    """
    name = config.source.partition(":")[2]
    with redirect_stdout(sys.stderr):
        loaded = environment.load(name, "data.source")
        train = _rows(loaded.get_dataset, config.source)
        has_own = any(getattr(loaded, key, None) is not None for key in _EVALUATION)
        heldout = _rows(loaded.get_eval_dataset, config.source) if has_own else None
    problems, notes = collect(_problems(train, config), config.source, config)
    if heldout is None:
        dataset = hold_out(problems, config.heldout, config.source)
    else:
        held, more = collect(_problems(heldout, config), config.source, config)
        notes += more
        dataset = without_overlap(problems, held[: config.heldout], config.source)
    return Dataset(dataset.train, dataset.heldout, notes + dataset.notes)


def _rows(get: Any, source: str) -> list[Any]:
    # Code that isn't ours, which may download what it needs.
    try:
        return list(get())
    except (Exception, SystemExit) as error:
        raise UserError(
            f"The data set of {source} raised {describe(error)} at {raised_at(error)}; correct it "
            "there."
        ) from error


def _problems(rows: Iterable[Any], config: DataConfig) -> Iterable[tuple[str, Problem | BadRow]]:
    config = replace(config, prompt="prompt", answer="answer", id=None)
    for number, row in enumerate(rows, 1):
        where = f"{config.source} row {number}"
        try:
            columns = json_able(row)
            shown = columns
            if isinstance(columns, Mapping) and columns.get("answer") in (None, ""):
                shown = {**columns, "answer": NO_ANSWER}
            yield where, replace(to_problem(shown, config), columns=columns)
        except BadRow as error:
            yield where, error
