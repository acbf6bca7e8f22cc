"""One call of a program's function, and whether the data that came of it is what it should be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simko_mlx.sandbox.run import Call
from simko_mlx.sandbox.values import same

# What may stand around a call in an assert: applied to the plain data that came out.
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "set": set, "frozenset": frozenset, "sorted": sorted, "list": list, "tuple": tuple, "len": len,
    "dict": dict, "sum": sum, "abs": abs, "round": round, "bool": bool, "int": int, "float": float,
    "str": str, "min": min, "max": max,
}  # fmt: skip


class Unscorable(Exception):
    """Why this problem's tests can't judge anything, in one clause."""


@dataclass(frozen=True)
class Check:
    """One call and what is expected of it.

    ``wrappers`` are applied to what came out, the last first. ``how``: "equal", "truthy",
    "falsy", or a test of nearness (a function of the value and the expected one).
    """

    call: Call
    expected: Any = None
    how: str | Callable[[Any, Any], bool] = "equal"
    wrappers: tuple[str, ...] = ()
    as_json: bool = False

    def holds(self, value: Any) -> bool:
        """``value`` is plain data."""
        try:
            for name in reversed(self.wrappers):
                value = WRAPPERS[name](value)
            if self.how == "equal":
                return same(value, self.expected, as_json=self.as_json)
            if self.how in ("truthy", "falsy"):
                return bool(value) == (self.how == "truthy")
            assert callable(self.how)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            return number and self.how(value, self.expected)
        except (TypeError, ValueError, ArithmeticError):
            return False


def near(absolute: float, relative: float = 0.0) -> Callable[[Any, Any], bool]:
    """As math.isclose."""
    return lambda value, wanted: math.isclose(value, wanted, rel_tol=relative, abs_tol=absolute)


def within(tolerance: float, *, strictly: bool) -> Callable[[Any, Any], bool]:
    def holds(value: Any, wanted: Any) -> bool:
        distance = abs(value - wanted)
        return distance < tolerance if strictly else distance <= tolerance

    return holds
