"""Problems from a CSV file: a header of column names, then one row a problem, all of it text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from simko_mlx.data.rows import BadRow, Rows
from simko_mlx.data.text import lines
from simko_mlx.types import UserError, require

DELIMITERS = ",;\t"
FIELD_CHARACTERS = 1 << 27  # csv's own limit of 131,072 is below a long solution


def rows(file: Path) -> Rows:
    """Every row that isn't blank, by the names of the header. What separates the columns (comma,
    semicolon or tab) is told from the header; quoted fields may hold it, and line breaks.

    Raises:
        UserError: there is no header, it has a name twice, or a line isn't UTF-8.
    """
    texts = (text for _, text in lines(file, "a header and one row per problem"))
    first = next(texts, "")
    csv.field_size_limit(FIELD_CHARACTERS)
    reader = csv.reader(chain([first], texts), delimiter=_delimiter(first), strict=True)
    records = _records(reader, file)
    where, header = next(records, (str(file), []))
    if isinstance(header, BadRow):
        raise UserError(f"{where}: {header}; the first row must be the header, correct it.")
    require(bool(header), f"{file} has no rows: name a file with a header and problems.")
    names = [name.strip() for name in header]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"{where}: the header names {twice!r} twice; rename one of them.")
    for where, fields in records:
        if isinstance(fields, BadRow):
            yield where, fields
        elif len(fields) == len(names):
            yield where, dict(zip(names, fields, strict=True))
        elif fields:
            words = f"it has {len(fields)} fields, but the header has {len(names)}"
            yield where, BadRow(words)


def _records(reader: Any, file: Path) -> Iterator[tuple[str, list[str] | BadRow]]:
    while True:
        where = f"{file}:{reader.line_num + 1}"
        try:
            yield where, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            unclosed = "unexpected end of data" in str(error)
            reason = "a quote that opens in this row is never closed" if unclosed else str(error)
            yield where, BadRow(f"not CSV, {reason}")


def _delimiter(header: str) -> str:
    """The one that occurs most often outside of quotes, the first of those on a tie."""
    outside = "".join(header.split('"')[::2])
    return max(DELIMITERS, key=outside.count)
