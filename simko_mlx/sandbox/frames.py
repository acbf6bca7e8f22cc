"""The records that come out of a sandbox: four bytes of length, then JSON. Nothing in them is
believed, they are only ever compared."""

from __future__ import annotations

import json
import struct
from typing import Any

_LENGTH = struct.Struct("!I")


class Malformed(Exception):
    """These bytes are no whole records."""


def frame(message: dict[str, Any]) -> bytes:
    body = json.dumps(message, ensure_ascii=True).encode("ascii")
    return _LENGTH.pack(len(body)) + body


def first(data: bytes | bytearray) -> tuple[dict[str, Any] | None, int]:
    """(the first record or None while it isn't complete, how many bytes it takes).

    Raises:
        Malformed: it is no object in JSON.
    """
    if len(data) < _LENGTH.size:
        return None, 0
    end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
    if len(data) < end:
        return None, 0
    try:
        record = json.loads(bytes(data[_LENGTH.size : end]).decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise Malformed("a record that is no JSON") from error
    if not isinstance(record, dict):
        raise Malformed("a record that is no object")
    return record, end


def records(data: bytes | bytearray) -> list[dict[str, Any]]:
    """All of them.

    Raises:
        Malformed: there is something else, or the last one isn't complete.
    """
    found = []
    rest = memoryview(data)
    while rest:
        record, end = first(bytes(rest[: _LENGTH.size + _length(rest)]))
        if record is None:
            raise Malformed("an incomplete record")
        found.append(record)
        rest = rest[end:]
    return found


def _length(data: memoryview) -> int:
    return _LENGTH.unpack_from(data)[0] if len(data) >= _LENGTH.size else 0
