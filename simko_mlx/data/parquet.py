"""Problems from a Parquet file, read by duckdb (the extra ``data``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from simko_mlx.data.rows import Rows
from simko_mlx.types import UserError

_BATCH = 1000


def rows(file: Path) -> Rows:
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
