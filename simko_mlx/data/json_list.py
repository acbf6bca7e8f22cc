"""Problems from a JSON file: a list of objects, or an object that holds one under a key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simko_mlx.data.rows import Rows
from simko_mlx.data.text import lines
from simko_mlx.types import UserError


def rows(file: Path) -> Rows:
    """Every element of the list. The whole file is read into memory.

    Raises:
        UserError: it isn't JSON, or holds no list, or several.
    """
    text = "".join(line for _, line in lines(file, "one JSON list"))
    for number, row in enumerate(_list(_json(text, file), file), 1):
        yield f"{file} element {number}", row


def _json(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{file}:{error.lineno}"
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            raise UserError(
                f"{where}: a second JSON value begins here: for one object per line set "
                "data.source=jsonl."
            ) from error
        reason = f"{error.msg[0].lower()}{error.msg[1:]}"
        raise UserError(f"{where}: not JSON, {reason} at column {error.colno}; correct it.") from (
            error
        )
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        raise UserError(
            f"{file} can't be read as JSON, it has a huge number or is nested too deeply: correct "
            "it."
        ) from error


def _list(value: Any, file: Path) -> list[Any]:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise UserError(f"{file} is neither a JSON list of objects nor an object that holds one.")
    lists = {key: item for key, item in value.items() if isinstance(item, list)}
    if len(lists) == 1:
        return next(iter(lists.values()))
    names = ", ".join(list(lists or value)[:10]) or "none"
    raise UserError(
        f"{file} is an object with {len(lists) or 'no'} lists (its keys: {names}): leave only the "
        "list of problems, or write them as JSON lines."
    )
