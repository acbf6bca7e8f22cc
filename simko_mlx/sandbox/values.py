"""Plain data as JSON that keeps types apart, and what it means for two values to be equal.

JSON's own values stand for themselves; the rest are objects with one key: ``{"t": [...]}`` is a
tuple, ``s`` a set, ``z`` a frozenset, ``d`` a dict as a list of pairs, ``b`` bytes in hex, ``i`` a
large int in hex, ``f`` a float that JSON lacks, ``c`` a complex, ``x`` the name of the type of what
is no plain data.

This text also runs inside the sandbox, in front of ``child.py``: it imports nothing of ours, and
is written for Python 3.8.
"""

from __future__ import annotations

from typing import Any

DEPTH = 100
_LARGE = 1 << 53


class NotPlain(Exception):
    """What arrived isn't what ``encode`` makes."""


def encode(value: Any, depth: int = 0) -> Any:
    """The value for ``json.dumps``. Subclasses are what their base class holds, so that a Counter
    is a dict and an IntEnum an int, and so that what they say of themselves counts for nothing."""
    if value is None or value is True or value is False:
        return value
    if depth > DEPTH:
        return {"x": "structure deeper than %d levels" % DEPTH}  # noqa: UP031
    if isinstance(value, int):
        number = int.__add__(value, 0)
        return number if -_LARGE < number < _LARGE else {"i": hex(number)}
    if isinstance(value, float):
        number = float.__pos__(value)
        finite = number == number and number not in (float("inf"), float("-inf"))
        return number if finite else {"f": float.__repr__(number)}
    if isinstance(value, str):
        return value if type(value) is str else "".join(str.__iter__(value))
    if isinstance(value, complex):
        return {"c": [encode(value.real), encode(value.imag)]}
    if isinstance(value, (bytes, bytearray)):
        return {"b": bytes(memoryview(value)).hex()}
    if isinstance(value, list):
        return [encode(item, depth + 1) for item in list.__iter__(value)]
    if isinstance(value, tuple):
        return {"t": [encode(item, depth + 1) for item in tuple.__iter__(value)]}
    if isinstance(value, dict):
        pairs = dict.items(value)
        return {"d": [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in pairs]}
    if isinstance(value, set):
        return {"s": [encode(item, depth + 1) for item in set.__iter__(value)]}
    if isinstance(value, frozenset):
        return {"z": [encode(item, depth + 1) for item in frozenset.__iter__(value)]}
    return {"x": type(value).__name__}


def decode(value: Any, depth: int = 0) -> Any:
    """The value that ``encode`` made this of.

    Raises:
        NotPlain: it made no such thing, or the value was none that we carry.
    """
    if depth > DEPTH + 1:
        raise NotPlain("too deep")
    if isinstance(value, list):
        return [decode(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise NotPlain("malformed")
    ((kind, inner),) = value.items()
    try:
        return _tagged(kind, inner, depth)
    except (TypeError, ValueError, OverflowError) as error:
        raise NotPlain("malformed") from error


def _tagged(kind: str, inner: Any, depth: int) -> Any:
    if kind == "x" and isinstance(inner, str):
        raise NotPlain("a %s, which is no plain data" % inner[:60])  # noqa: UP031
    if kind in ("b", "i", "f") and isinstance(inner, str):
        if kind == "b":
            return bytes.fromhex(inner)
        return int(inner, 16) if kind == "i" else float(inner)
    if kind not in ("t", "s", "z", "d", "c") or not isinstance(inner, list):
        raise NotPlain("malformed")
    items = [decode(item, depth + 1) for item in inner]
    if kind == "t":
        return tuple(items)
    if kind == "s":
        return set(items)
    if kind == "z":
        return frozenset(items)
    if kind == "d":
        return {key: item for key, item in items}  # noqa: C416  exactly two each
    real, imaginary = items
    if type(real) is not float or type(imaginary) is not float:
        raise NotPlain("malformed")
    return complex(real, imaginary)


def same(one: Any, other: Any, *, as_json: bool = False) -> bool:
    """Whether two plain values are equal as Python's ``==`` has it (1 is 1.0, a set is a
    frozenset, NaN is nothing), except that True is not 1 and False not 0, at any depth.

    Args:
        as_json: tuples are lists and whole-number keys are their text, as in what JSON can say.
    """
    return _key(one, as_json) == _key(other, as_json)


def _key(value: Any, as_json: bool) -> Any:
    """Something hashable that is equal for equal values only."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, float) and value != value:
        return ("nan", object())
    if isinstance(value, (list, tuple)):
        kind = "list" if as_json or isinstance(value, list) else "tuple"
        return (kind, tuple(_key(item, as_json) for item in value))
    if isinstance(value, dict):
        pairs = ((_name(k) if as_json else k, v) for k, v in value.items())
        return ("dict", frozenset((_key(k, as_json), _key(v, as_json)) for k, v in pairs))
    if isinstance(value, (set, frozenset)):
        return ("set", frozenset(_key(item, as_json) for item in value))
    return ("plain", value)


def _name(key: Any) -> Any:
    return str(key) if type(key) is int else key
