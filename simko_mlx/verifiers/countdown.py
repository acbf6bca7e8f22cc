"""Exact verifier of Strategy-Countdown (`simko_mlx.data.countdown` describes the world).

A correct completion is one exact sequence of tokens between single spaces: the strategy letter,
the three digits in that strategy's order, an operator before each further digit, and every result
right and within 0..99, the last one equal to the target. Nothing is evaluated as code, nothing is
normalised, and no input makes it raise: what is not exactly right is wrong, with the reason.
"""

from collections.abc import Mapping
from typing import Any

from simko_mlx.types import UserError, Verdict

_ORDERS = {"L": (0, 1, 2), "R": (2, 1, 0), "O": (0, 2, 1)}
# The only spellings of a number. Looking a token up here, instead of int(), is what refuses "03",
# "+3", "1_6", full-width and superscript digits, and numbers thousands of digits long.
_NUMBERS = {str(n): n for n in range(100)}
_N_TOKENS = 10  # strategy, digit, then twice: operator, digit, "=", result
_MAX_CHARS = 40  # the longest correct completion has 25 characters


def verify(completion: str, answer: str, columns: Mapping[str, Any]) -> Verdict:
    """Judge one decoded completion (without its stop token).

    `answer` is the target as text; `columns["numbers"]` the three digits as given in the prompt.
    Reward is 1.0 or 0.0, and `detail` says briefly why a completion is wrong.

    Raises:
        UserError: the row has no numbers, so that it is of another data set.
    """
    numbers = columns.get("numbers")
    if not isinstance(numbers, list):
        raise UserError(
            "The verifier countdown judges problems of data.source=countdown alone: set "
            "verifier.name to the verifier of your data, such as number."
        )
    reason = _fault(completion, answer, numbers)
    return Verdict(reward=float(not reason), correct=not reason, detail=reason, taken=completion)


def _fault(completion: str, answer: str, numbers: list[int]) -> str:
    """Why the completion is wrong; empty if it is right."""
    if len(completion) > _MAX_CHARS:
        return f"too long: {len(completion)} characters"
    tokens = completion.split(" ")
    if len(tokens) != _N_TOKENS:
        return f"{len(tokens)} tokens instead of {_N_TOKENS}"
    order = _ORDERS.get(tokens[0])
    if order is None:
        return f"no strategy {tokens[0]!r}"
    digits = [numbers[i] for i in order]
    if _NUMBERS.get(tokens[1]) != digits[0]:
        return f"{tokens[0]} starts with {digits[0]}, not {tokens[1]!r}"
    value = digits[0]
    for place, digit in enumerate(digits[1:]):
        operator, operand, equals, result = tokens[2 + 4 * place : 6 + 4 * place]
        if _NUMBERS.get(operand) != digit:
            return f"expected the digit {digit}, not {operand!r}"
        if equals != "=":
            return f"expected '=', not {equals!r}"
        expected = _apply(operator, value, digit)
        if expected is None:
            return f"no operator {operator!r}"
        if _NUMBERS.get(result) != expected:  # also refuses an expected value outside 0..99
            return f"{value} {operator} {digit} is not {result!r}"
        value = expected
    return "" if tokens[-1] == answer else f"reached {value}, not the target {answer}"


def _apply(operator: str, left: int, right: int) -> int | None:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    return None
