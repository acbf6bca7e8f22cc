"""Problems from a JSON file: a list of objects, or an object that holds one under a key.

Many files that are called .json hold one object a line, and are read as that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simko_mlx.data import jsonl
from simko_mlx.data.rows import Rows
from simko_mlx.data.text import lines
from simko_mlx.types import UserError


def rows(file: Path) -> Rows:
    """Every element of the list. The whole file is read into memory.

    Raises:
        UserError: it isn't JSON, or holds no list, or several.
    """
    text = "".join(line for _, line in lines(file, "one JSON list"))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from jsonl.rows(file)
            return
        reason = f"{error.msg[0].lower()}{error.msg[1:]} at column {error.colno}"
        raise UserError(f"{file}:{error.lineno}: not JSON, {reason}; correct it.") from error
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        raise UserError(
            f"{file} can't be read as JSON, it has a huge number or is nested too deeply: correct "
            "it."
        ) from error
    for number, row in enumerate(_list(value, file), 1):
        yield f"{file} element {number}", row


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
