"""Problems that are made instead of read: the embedded world, and the user's own sources."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from simko_mlx.config import DataConfig
from simko_mlx.data.dataset import Dataset, hold_out
from simko_mlx.data.files import collect
from simko_mlx.imports import describe, import_function, raised_at
from simko_mlx.types import Problem, UserError


def countdown(config: DataConfig) -> Dataset:
    """``data.size`` problems of Strategy-Countdown, and ``data.heldout`` of its held-out split.

    Raises:
        UserError: the world holds fewer.
    """
    from simko_mlx.data.countdown import generate

    try:
        train = generate(split="train", size=config.size, seed=config.seed)
        heldout = generate(split="heldout", size=config.heldout, seed=config.seed)
    except ValueError as error:
        raise UserError(f"{error} The keys are data.size and data.heldout.") from error
    return Dataset(train, heldout)


def user_source(config: DataConfig) -> Dataset:
    """Calls ``package.module:function(config)``, which returns a Dataset, or Problems or rows as a
    list; of a list some are held out as of a file.

    Raises:
        UserError: it can't be imported, raised, or returned something else.
    """
    path = config.source
    function = import_function(path, "data.source", with_cwd=True)
    code = getattr(function, "__code__", None)
    # Code that isn't ours: whatever it raises is its author's mistake to hear about.
    try:
        with redirect_stdout(sys.stderr):  # `eval --json` prints JSON and nothing else
            found = function(config)
            found = found if isinstance(found, (Dataset, Mapping, str)) else list(found)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        place = raised_at(error, getattr(code, "co_filename", None))
        raise UserError(
            f"The problem source {path} raised {describe(error)} at {place}; correct it there."
        ) from error
    if isinstance(found, Dataset):
        _check(found.train + found.heldout, path)
        return found
    if not isinstance(found, list):
        raise UserError(
            f"The problem source {path} returned a {type(found).__name__}; return a Dataset, or a "
            "list of Problems or rows."
        )
    rows = ((f"{path} row {number}", row) for number, row in enumerate(found, 1))
    problems, notes = collect(rows, path, config)
    dataset = hold_out(problems, config.heldout, path)
    return Dataset(dataset.train, dataset.heldout, notes + dataset.notes)


def _check(problems: list[Any], path: str) -> None:
    for number, problem in enumerate(problems, 1):
        if not isinstance(problem, Problem):
            raise UserError(
                f"The problem source {path} returned a Dataset whose element {number} is a "
                f"{type(problem).__name__}; make it a Problem."
            )
