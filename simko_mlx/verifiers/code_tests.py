"""A problem's tests, in the forms that data sets have them, as what to run and what to expect.

- cases of standard input and output: ``[{"input": ..., "output": ...}, ...]``, or
  ``{"inputs": [...], "outputs": [...]}``;
- calls of one function: ``{"fn_name": ..., "inputs": [[argument, ...], ...], "outputs": [...]}``;
- asserts, as a list or a text: ``assert f(1, [2]) == 3``. HumanEval's ``def check(candidate)`` is
  read as its asserts.

Each may be given as JSON in a text. Of an assert only the arguments enter the sandbox, as plain
data: nothing of it is executed, so that it must have a form that is understood here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simko_mlx.sandbox.run import Call
from simko_mlx.sandbox.values import NotPlain, decode, encode
from simko_mlx.types import UserError
from simko_mlx.verifiers.code_asserts import read
from simko_mlx.verifiers.code_checks import Check, Unscorable

COLUMNS = ("tests", "test_list", "test", "input_output", "test_cases")


@dataclass(frozen=True)
class Scripts:
    """Runs of the program with (standard input, expected standard output)."""

    cases: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Calls:
    """``readings``: ways to read the expected values; one of them must hold throughout."""

    readings: tuple[tuple[Check, ...], ...]

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(check.call for check in self.readings[0])

    @property
    def functions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(call.function for call in self.calls))


def find(columns: Mapping[str, Any], answer: str, column: str | None) -> Any:
    """What the problem has as its tests.

    Raises:
        UserError: it has no such column.
    """
    if column is None:
        return next((columns[name] for name in COLUMNS if columns.get(name)), answer)
    value: Any = columns
    if column in columns:
        return columns[column]
    for part in column.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Sequence) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise UserError(
                f"verifier.options.tests is {column!r}, but a problem has only the columns "
                f"{', '.join(map(str, columns)) or 'none'}: name the one that holds its tests."
            )
    return value


def parse(value: Any, entry_point: str | None = None) -> Scripts | Calls:
    """The tests that ``find`` found.

    Raises:
        Unscorable: they have none of the forms above.
    """
    if isinstance(value, str):
        text = value.strip()
        if text[:1] not in ("{", "["):
            return _asserts([value], entry_point)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Unscorable("the problem's tests are no JSON") from error
    if isinstance(value, Mapping):
        if "inputs" in value and "outputs" in value:
            return _pairs(value)
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        raise Unscorable("the problem has no tests")
    if all(isinstance(item, str) for item in value):
        return _asserts(value, entry_point)
    if not all(isinstance(item, Mapping) and {"input", "output"} <= set(item) for item in value):
        raise Unscorable("the problem's tests are neither asserts nor cases with input and output")
    if any(item.get("testtype") == "functional" for item in value):
        raise Unscorable("tests of the type functional name no function")
    return _scripts([item["input"] for item in value], [item["output"] for item in value])


def _pairs(value: Mapping[str, Any]) -> Scripts | Calls:
    inputs, outputs = value["inputs"], value["outputs"]
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise Unscorable("inputs and outputs of the problem's tests are no lists")
    if len(inputs) != len(outputs) or not inputs:
        raise Unscorable(f"the tests have {len(inputs)} inputs and {len(outputs)} outputs")
    if not value.get("fn_name"):
        return _scripts(inputs, outputs)
    name = str(value["fn_name"])
    calls = [Call(name, _arguments(item)) for item in inputs]
    # Some sets write expected values as JSON in a text, others have texts that are just that: "12".
    read = [_from_json(item) for item in outputs]
    expected = [read] + [outputs] * any(isinstance(item, str) for item in outputs)
    # Some sets wrap every expected value into a list of one, without saying so.
    if all(isinstance(item, list) and len(item) == 1 for item in read):
        expected.append([item[0] for item in read])
    return _plain(
        tuple(Check(call, item, as_json=True) for call, item in zip(calls, reading, strict=True))
        for reading in expected
    )


def _plain(readings: Iterable[tuple[Check, ...]]) -> Calls:
    """Raises Unscorable where something can't be handed to a program, or come back from one."""
    found = Calls(tuple(readings))
    try:
        for checks in found.readings:
            decode(encode([check.expected for check in checks]))
        for call in found.calls:
            decode(encode([*call.arguments, *call.named.values()]))
    except NotPlain as error:
        raise Unscorable(f"a value in the tests is {error}") from error
    return found


def _arguments(item: Any) -> tuple[Any, ...]:
    if isinstance(item, str):  # one argument a line
        try:
            return tuple(json.loads(line) for line in item.strip().split("\n"))
        except (ValueError, RecursionError) as error:
            raise Unscorable("an input of the tests holds no arguments in JSON") from error
    if not isinstance(item, list):
        raise Unscorable("an input of the tests is no list of arguments")
    return tuple(item)


def _from_json(item: Any) -> Any:
    try:
        return json.loads(item) if isinstance(item, str) else item
    except (ValueError, RecursionError):
        return item


def _scripts(inputs: Sequence[Any], outputs: Sequence[Any]) -> Scripts:
    cases = [(_lines(i), _lines(o)) for i, o in zip(inputs, outputs, strict=True)]
    return Scripts(tuple(cases))


def _lines(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "\n".join(_lines(item) for item in value)
    if not isinstance(value, (str, int, float)):
        raise Unscorable("an input or output of the tests is no text")
    return str(value)


def _asserts(texts: Sequence[str], entry_point: str | None) -> Calls:
    checks = [check for text in texts for check in read(text, entry_point)]
    if not checks:
        raise Unscorable("the problem has no asserts")
    return _plain([tuple(checks)])
