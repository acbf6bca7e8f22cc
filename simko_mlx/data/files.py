"""Problems from a file on this machine, in one of a few formats. Nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from simko_mlx.config import DataConfig
from simko_mlx.data import csv_table, json_list, jsonl, parquet
from simko_mlx.data.dataset import (
    Dataset,
    hold_out,
    unique_ids,
    without_overlap,
    without_repeats,
)
from simko_mlx.data.rows import BadRow, Rows, to_problem
from simko_mlx.data.text import open_file
from simko_mlx.types import Problem, UserError, require

# A reader yields (where a row is, the row or a BadRow).
FORMATS: dict[str, Callable[[Path], Rows]] = {
    "jsonl": jsonl.rows,
    "json": json_list.rows,
    "csv": csv_table.rows,
    "parquet": parquet.rows,
}
SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}

# (the problems of one file or split, notes on what was dropped or renamed)
Found = tuple[list[Problem], list[str]]


def load(config: DataConfig) -> Dataset:
    """The problems of ``data.path``; held out are those of ``data.eval_path``, or a few of them.

    Raises:
        UserError: a file is missing or unreadable, has bad rows that aren't to be dropped, or has
            too few.
    """
    require(config.path is not None, "data.path is not set: name the file with the problems.")
    path = str(config.path)
    heldout = None if config.eval_path is None else read(config.eval_path, config, "data.eval_path")
    return split(read(path, config, "data.path"), heldout, path, config)


def split(train: Found, heldout: Found | None, name: str, config: DataConfig) -> Dataset:
    """A Dataset of what was found; without ``heldout``, some of the others are held out."""
    if heldout is None:
        dataset = hold_out(train[0], config.heldout, name)
        notes = train[1]
    else:
        dataset = without_overlap(train[0], heldout[0], name)
        notes = train[1] + heldout[1]
    return Dataset(dataset.train, dataset.heldout, notes + dataset.notes)


def read(path: str, config: DataConfig, key: str) -> Found:
    """The problems of one file, which the config's ``key`` names."""
    file = Path(path).expanduser()
    require(not file.is_dir(), f"{path} is a folder: name the file in it in {key}.")
    require(file.is_file(), f"There is no file {path}: correct {key}.")
    return collect(FORMATS[_format(file, config)](file), path, config)


def collect(rows: Iterable[tuple[str, Any]], name: str, config: DataConfig) -> Found:
    """The problems of these rows.

    Raises:
        UserError: a row is bad and data.bad_rows is "refuse", or no problem is left.
    """
    problems: list[Problem] = []
    bad: list[str] = []
    for where, row in islice(rows, config.limit):
        try:
            if isinstance(row, BadRow):
                raise row
            problems.append(row if isinstance(row, Problem) else to_problem(row, config))
        except BadRow as error:
            bad.append(f"{where}: {error}")
    total = len(problems) + len(bad)
    require(total > 0, f"{name} has no rows: name a file with problems.")
    if not problems and len(bad) > 1:
        raise UserError(
            f"All {total:,} rows of {name} are bad; {bad[0]}: correct the data.* keys or the rows."
        )
    if bad and (config.bad_rows == "refuse" or not problems):
        more = f" (and {len(bad) - 1:,} more bad rows)" if len(bad) > 1 else ""
        raise UserError(
            f"{bad[0]}{more}; correct it, or leave such rows out with --set data.bad_rows=drop."
        )
    notes = [f"{len(bad):,} of {total:,} rows of {name} left out; {bad[0]}."] if bad else []
    if config.deduplicate:
        problems, repeated = without_repeats(problems, name)
        notes += repeated
    problems, renamed = unique_ids(problems, name)
    return problems, notes + renamed


def _format(file: Path, config: DataConfig) -> str:
    """That of data.source for data.path; another file, such as data.eval_path, may have another,
    which its first bytes or its suffix tell."""
    with open_file(file) as stream:
        is_parquet = stream.read(4) == b"PAR1"
    named = config.source if config.source in FORMATS else "jsonl"
    by_suffix = SUFFIXES.get(file.suffix.lower(), named)
    if file != Path(config.path or "").expanduser():
        if is_parquet:
            return "parquet"
        return by_suffix if by_suffix != "parquet" else "jsonl"
    if is_parquet != (named == "parquet"):
        actual = "a Parquet file" if is_parquet else "no Parquet file"
        wanted = "parquet" if is_parquet else by_suffix if by_suffix != "parquet" else "jsonl"
        raise UserError(
            f"data.source is {config.source} but {file} is {actual}: set data.source={wanted}, or "
            "correct data.path."
        )
    # Neither can be read as the other, where .json and .jsonl may be called by each other's name.
    if {named, by_suffix} in ({"csv", "json"}, {"csv", "jsonl"}):
        raise UserError(
            f"data.source is {config.source} but {file} is called {file.suffix}: set "
            f"data.source={by_suffix}, or correct data.path."
        )
    return named
