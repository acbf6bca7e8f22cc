"""Problems from a JSON-lines file: one object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simko_mlx.data.rows import BadRow, Rows
from simko_mlx.data.text import lines
from simko_mlx.types import UserError


def rows(file: Path) -> Rows:
    """Every line that isn't blank.

    Raises:
        UserError: a line isn't UTF-8, or the file is one JSON value.
    """
    for number, text in lines(file, "one JSON object per line"):
        if not text.strip():
            continue
        row = _json(text.rstrip())
        if number == 1 and (text.strip() == "[" or _is_table(row)):
            raise UserError(
                f"{file} is one JSON list, not one object per line: for data.path set "
                "data.source=json, elsewhere call it .json."
            )
        yield f"{file}:{number}", row


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return BadRow(f"not JSON, {error.msg[0].lower()}{error.msg[1:]} at column {error.colno}")
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        return BadRow("not JSON that can be read, it has a huge number or is nested too deeply")


def _is_table(row: Any) -> bool:
    return isinstance(row, list) and bool(row) and all(isinstance(item, dict) for item in row)
