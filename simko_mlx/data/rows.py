"""One row of a data set -> one Problem, or the reason why not."""

from __future__ import annotations

import base64
import datetime
import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from simko_mlx.config import DataConfig
from simko_mlx.data.dataset import content_hash
from simko_mlx.types import Problem

ROLES = ("system", "user", "assistant")

# (where a row is, the row or the BadRow that says why it can't be read)
Rows = Iterator[tuple[str, Any]]


class BadRow(Exception):
    """Why a row can't become a problem, as one clause."""


def to_problem(row: Any, config: DataConfig) -> Problem:
    """Maps a row by the dotted paths of the config. The whole row stays in ``columns``.

    Raises:
        BadRow: with what is missing or wrong.
    """
    if not isinstance(row, Mapping):
        raise BadRow(f"it is {_kind(row)}, not an object with named columns")
    columns: dict[str, Any] = json_able(row)
    messages = _messages(lookup(columns, config.prompt, "data.prompt"), config.prompt)
    answer = _answer(lookup(columns, config.answer, "data.answer"), config.answer)
    if config.id is None:
        name = content_hash(messages, answer)
    else:
        name = text_of(lookup(columns, config.id, "data.id"))
        if not name:
            raise BadRow(f"the id at {config.id!r} is missing or no text")
    return Problem(name, messages, answer, columns)


def lookup(row: Any, path: str, key: str) -> Any:
    """The value at a dotted path of names and list indices: ``prompt.0.content``.

    A column whose name has dots of its own is found by that name.

    Raises:
        BadRow: there is nothing; says how far the path goes, and the nearest name.
    """
    node, rest, seen = row, path, ""
    while rest:
        if isinstance(node, Mapping) and rest in node:
            return node[rest]
        part, _, rest = rest.partition(".")
        if isinstance(node, list) and part.lstrip("-").isdecimal():
            if not -len(node) <= int(part) < len(node):
                raise BadRow(f"{key} is {path!r}, but {seen!r} has {len(node)} elements")
            node = node[int(part)]
        elif isinstance(node, Mapping) and part in node:
            node = node[part]
        else:
            raise BadRow(_not_there(node, part, path, seen, key))
        seen = f"{seen}.{part}" if seen else part
    return node


def _not_there(node: Any, part: str, path: str, seen: str, key: str) -> str:
    holder = repr(seen) if seen else "the row"
    if not isinstance(node, Mapping):
        return f"{key} is {path!r}, but {holder} is {_kind(node)} and has no {part!r}"
    close = difflib.get_close_matches(part, list(node), n=1, cutoff=0.5)
    nearest = f"; the nearest is {close[0]!r}" if close else ""
    names = ", ".join(list(node)[:20]) or "none"
    return f"{key} is {path!r}, but {holder} has only the keys {names}{nearest}"


def _messages(value: Any, path: str) -> tuple[dict[str, str], ...]:
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise BadRow(f"the prompt at {path!r} is {_kind(value)}, neither text nor messages")
    if not value:
        raise BadRow(f"the prompt at {path!r} has no messages")
    messages = tuple(_message(item, index, path) for index, item in enumerate(value))
    if messages[-1]["role"] != "user":
        # A data set for supervised training: its last message gives the answer away.
        raise BadRow(
            f"the last message at {path!r} is the {messages[-1]['role']}'s; a prompt ends with the "
            "user's"
        )
    if not messages[-1]["content"].strip():
        raise BadRow(f"the prompt at {path!r} is empty")
    return messages


def _message(item: Any, index: int, path: str) -> dict[str, str]:
    where = f"message {index} at {path!r}"
    if not isinstance(item, Mapping) or "role" not in item or "content" not in item:
        raise BadRow(f"{where} is not an object with role and content")
    role, content = item["role"], item["content"]
    if role not in ROLES:
        raise BadRow(f"{where} has the role {role!r} instead of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise BadRow(f"the content of {where} is {_kind(content)}, not text")
    _check_text(content, where)
    return {"role": role, "content": content}


def _answer(value: Any, path: str) -> str:
    if isinstance(value, Mapping):
        names = ", ".join(value) or "none"
        raise BadRow(f"the answer at {path!r} is an object with the keys {names}; name one of them")
    if isinstance(value, list):
        raise BadRow(f"the answer at {path!r} is a list; name one of its elements, like {path}.0")
    text = text_of(value)
    if not text.strip():
        raise BadRow(f"the answer at {path!r} is {'empty' if value is not None else 'null'}")
    _check_text(text, f"the answer at {path!r}")
    return text


def text_of(value: Any) -> str:
    """Text as JSON writes it, whole numbers without ".0"; empty for what is no scalar."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not math.isfinite(value):
            return ""
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value) if isinstance(value, (str, int)) else ""


def _check_text(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"{where} has half of a surrogate pair, which no tokenizer takes") from error


def json_able(value: Any) -> Any:
    """The value in JSON's types: dates, decimals and bytes become text."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(name): json_able(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_able(item) for item in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):
        try:
            return bytes(value).decode("utf-8")
        except UnicodeDecodeError:
            return base64.b64encode(value).decode("ascii")
    return str(value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else "a value")
