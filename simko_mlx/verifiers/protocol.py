"""The frames between the pool and its workers: four bytes of length, then JSON in ASCII.

ASCII because a completion may hold anything that a tokenizer decodes to, lone surrogates
included: as escapes they pass through unharmed, in UTF-8 they don't exist.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

_LENGTH = struct.Struct("!I")
HEADER = _LENGTH.size


def encode(message: dict[str, Any]) -> bytes:
    # A problem source written in Python may put any object into a row's columns.
    body = json.dumps(message, ensure_ascii=True, default=str, skipkeys=True).encode("ascii")
    return _LENGTH.pack(len(body)) + body


def decode(buffer: bytearray) -> dict[str, Any] | None:
    """Takes the first frame out of the buffer; None while it isn't complete."""
    if len(buffer) < HEADER:
        return None
    end = HEADER + _LENGTH.unpack_from(buffer)[0]
    if len(buffer) < end:
        return None
    message = json.loads(bytes(buffer[HEADER:end]))
    del buffer[:end]
    return message


def read(stream: BinaryIO) -> dict[str, Any] | None:
    """The next frame of a blocking stream; None at its end."""
    header = stream.read(HEADER)
    if len(header) < HEADER:
        return None
    length = _LENGTH.unpack(header)[0]
    body = stream.read(length)
    return json.loads(body) if len(body) == length else None
