"""Problems from a JSON-lines or Parquet file on this machine. Nothing is ever downloaded."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from simko_mlx.config import DataConfig
from simko_mlx.data.dataset import Dataset, hold_out, unique_ids, without_overlap
from simko_mlx.data.rows import BadRow, to_problem
from simko_mlx.types import Problem, UserError, require

# (where a row is, the row or the reason why it can't be read)
Rows = Iterator[tuple[str, Any]]
_BATCH = 1000


def load(config: DataConfig) -> Dataset:
    """The problems of ``data.path``; held out are those of ``data.eval_path``, or a few of them.

    Raises:
        UserError: a file is missing or unreadable, has bad rows that aren't to be dropped, or has
            too few.
    """
    require(config.path is not None, "data.path is not set: name the file with the problems.")
    problems, notes = read(str(config.path), config)
    if config.eval_path is None:
        dataset = hold_out(problems, config.heldout, str(config.path))
    else:
        heldout, more = read(config.eval_path, config)
        notes += more
        dataset = without_overlap(problems, heldout, str(config.path))
    return Dataset(dataset.train, dataset.heldout, notes + dataset.notes)


def read(path: str, config: DataConfig) -> tuple[list[Problem], list[str]]:
    """(the problems of one file, notes on what was dropped or renamed)."""
    file = Path(path).expanduser()
    require(not file.is_dir(), f"{path} is a folder: name the file in it.")
    require(file.is_file(), f"There is no file {path}: correct data.path or data.eval_path.")
    rows = parquet_rows(file) if _is_parquet(file, config) else jsonl_rows(file)
    return collect(rows, path, config)


def collect(
    rows: Iterable[tuple[str, Any]], name: str, config: DataConfig
) -> tuple[list[Problem], list[str]]:
    """(the problems of these rows, notes).

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
    problems, renamed = unique_ids(problems, name)
    return problems, notes + renamed


def _is_parquet(file: Path, config: DataConfig) -> bool:
    """By its first bytes: the format of data.eval_path need not be that of data.path."""
    with _open(file) as stream:
        parquet = stream.read(4) == b"PAR1"
    if file == Path(config.path or "").expanduser() and parquet != (config.source == "parquet"):
        actual = "a Parquet file" if parquet else "no Parquet file"
        wanted = "parquet" if parquet else "jsonl"
        raise UserError(
            f"data.source is {config.source} but {file} is {actual}: set data.source={wanted}, or "
            "correct data.path."
        )
    return parquet


def _open(file: Path):
    try:
        return open(file, "rb")
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror or error}.") from error


def jsonl_rows(file: Path) -> Rows:
    """Every line that isn't blank.

    Raises:
        UserError: a line isn't UTF-8.
    """
    with _open(file) as stream:
        for number, line in enumerate(stream, 1):
            where = f"{file}:{number}"
            try:
                text = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{where}: byte {error.start + 1} of this line is not UTF-8; save the file as "
                    "UTF-8 text with one JSON object per line."
                ) from error
            if text.strip():
                yield where, _json(text)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return BadRow(f"not JSON, {error.msg[0].lower()}{error.msg[1:]} at column {error.colno}")
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        return BadRow("not JSON that can be read, it has a huge number or is nested too deeply")


def parquet_rows(file: Path) -> Rows:
    """Every row, nested columns as dictionaries and lists.

    Raises:
        UserError: duckdb isn't installed, or can't read the file.
    """
    try:
        import duckdb
    except ImportError as error:
        raise UserError(
            "Reading Parquet files needs the extra: pip install 'simko-mlx[data]'."
        ) from error
    # Nothing may be fetched: not the file (it exists on this machine) and no extension.
    config: dict[str, Any] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    pattern = re.sub(r"([*?\[])", r"[\1]", str(file.resolve()))  # a name, not a glob
    try:
        with duckdb.connect(":memory:", config=config) as connection:
            cursor = connection.execute("SELECT * FROM read_parquet(?)", [pattern])
            names = [column[0] for column in cursor.description or []]
            number = 0
            while batch := cursor.fetchmany(_BATCH):
                for values in batch:
                    number += 1
                    yield f"{file} row {number}", dict(zip(names, values, strict=True))
    except duckdb.Error as error:
        first = str(error).split("\n", 1)[0]
        raise UserError(f"{file} can't be read as Parquet ({first}): replace the file.") from error
