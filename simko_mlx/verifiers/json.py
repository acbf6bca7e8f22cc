"""The completion's JSON must fit a JSON Schema, and may have to equal the answer.

What counts is the last fenced block (```` ``` ````) of the completion, or all of it where it has
none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from simko_mlx.types import UserError, Verdict, require

_MESSAGE_CHARS = 200


def verify(
    completion: str,
    answer: str,
    columns: Mapping[str, Any],
    *,
    schema: Mapping[str, Any] | None = None,
    column: str | None = None,
    compare: bool = False,
) -> Verdict:
    """``schema``, or the row's ``column`` (an object, or text), is the JSON Schema; without one any
    JSON fits. ``compare``: the value must equal the row's answer, which is JSON too.

    Raises:
        UserError: the schema is none, or the answer is to be compared and isn't JSON.
    """
    require(
        schema is None or column is None,
        "The verifier json takes one of the options schema and column: leave one out.",
    )
    wanted = _parsed(answer, "The row's answer") if compare else None
    given = _schema(columns.get(column), column) if column is not None else schema
    fits = None if given is None else _validator(json.dumps(given, sort_keys=True))
    text = last_block(completion)
    try:
        value = json.loads(text, parse_constant=_no_constant)
        wrong = None if fits is None else _misfit(fits, value)
        if wrong is not None:
            return Verdict(0.0, False, f"schema: {wrong[:_MESSAGE_CHARS]}", text)
        if compare and not same(value, wanted):
            return Verdict(0.0, False, "differs from the answer", text)
    except ValueError as error:  # of which JSONDecodeError is one
        return Verdict(0.0, False, f"not JSON: {str(error)[:_MESSAGE_CHARS]}", text)
    except RecursionError:
        return Verdict(0.0, False, "nested too deeply", text)
    return Verdict(1.0, True, "", text)


def last_block(text: str) -> str:
    """What stands between the last pair of fences, without its language; else all."""
    blocks = text.split("```")[1:-1:2]
    if not blocks:
        return text.strip()
    first, newline, rest = blocks[-1].partition("\n")
    is_language = bool(newline) and first.strip().isalnum()
    return (rest if is_language else blocks[-1].removeprefix("json")).strip()


def same(left: Any, right: Any) -> bool:
    """Equal as JSON: true isn't 1, but 1 is 1.0; the order of names doesn't matter."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def _schema(value: Any, column: str) -> Any:
    if isinstance(value, str):
        value = _parsed(value, f"The column {column!r}")
    # A column of a table has the keys of all rows, null where a row doesn't use them.
    if not isinstance(value, Mapping):
        raise UserError(f"The column {column!r} holds no JSON Schema: it must be an object.")
    return {key: item for key, item in value.items() if item is not None}


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{what} isn't JSON ({str(error)[:_MESSAGE_CHARS]}), which the verifier json needs: "
            "correct the data, or the verifier's options."
        ) from error


def _misfit(fits: Any, value: Any) -> str | None:
    """What of a value doesn't fit the schema."""
    from referencing.exceptions import Unresolvable

    try:
        error = next(fits.iter_errors(value), None)
    except ArithmeticError:  # "multipleOf" of a number near the largest
        return "a number out of range"
    except (Unresolvable, re.error) as failed:
        raise UserError(
            f"The schema of the verifier json can't be used ({failed}): correct its pattern or "
            "$ref; nothing is fetched."
        ) from failed
    return None if error is None else error.message


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    try:
        from jsonschema import SchemaError, validators
        from referencing import Registry
    except ImportError as error:
        raise UserError(
            "Checking a JSON Schema needs the extra: pip install 'simko-mlx[json]'."
        ) from error
    parsed = json.loads(schema)
    chosen = validators.validator_for(parsed, default=validators.Draft202012Validator)
    try:
        chosen.check_schema(parsed)
    except SchemaError as error:
        raise UserError(
            f"The schema of the verifier json is none ({error.message[:_MESSAGE_CHARS]}): correct "
            "it."
        ) from error
    # An empty registry: nothing is fetched for a "$ref" to another place.
    return chosen(parsed, registry=Registry())
