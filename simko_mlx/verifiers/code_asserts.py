"""Reads ``assert f(arguments) == literal`` without executing any of it.

Understood beside that form: ``literal == f(...)``, ``is None``, ``f(...)`` and ``not f(...)``,
``and``, ``set(f(...)) == ...`` (and sorted, len and the like), ``math.isclose(f(...), literal)``,
``abs(f(...) - literal) < literal``, ``Solution().f(...)``. A literal may use arithmetic on numbers,
repetition, ``set(...)`` and the like, ``float("inf")``, and names that were given a literal above.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from simko_mlx.sandbox.run import Call
from simko_mlx.verifiers.code_checks import WRAPPERS, Check, Unscorable, near, within

_LARGEST = 1_000_000  # items of a repetition, bits of a number
_LISTED = ("set", "frozenset", "sorted", "list", "tuple", "sum", "min", "max", "dict")
_MAKERS: dict[str, Callable[..., Any]] = {
    "set": set, "frozenset": frozenset, "tuple": tuple, "list": list, "dict": dict, "float": float,
    "int": int, "str": str, "bytes": bytes, "complex": complex, "sorted": sorted, "len": len,
    "range": range, "sum": sum, "abs": abs, "round": round, "bool": bool, "min": min, "max": max,
}  # fmt: skip
_MATHS = {"math.inf": math.inf, "math.nan": math.nan, "math.pi": math.pi, "math.e": math.e}
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Mod: operator.mod,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Pow: operator.pow,
    ast.LShift: operator.lshift, ast.BitXor: operator.xor, ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_, ast.RShift: operator.rshift,
}  # fmt: skip


class _NotLiteral(Exception):
    """This expression isn't made of literals."""


def read(text: str, entry_point: str | None = None) -> list[Check]:
    """The asserts of a text. ``entry_point`` is the function that ``candidate`` stands for.

    Raises:
        Unscorable: it holds something else, or an assert of another form.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unscorable("the problem's tests are no Python") from error
    try:
        return list(_Reader(entry_point).statements(tree.body))
    except RecursionError as error:
        raise Unscorable("an assert of the problem is nested too deeply") from error


class _Reader:
    def __init__(self, entry_point: str | None):
        self.names: dict[str, Any] = {}
        self.aliases: dict[str, str] = {}
        # Some sets say "Solution().f" of a method, which is found by its name alone.
        self.entry_point = re.sub(r"^Solution(\(\))?\.", "", entry_point) if entry_point else None
        self.builtins = False  # whether a call of a builtin may be one of the program's function

    def statements(self, body: list[ast.stmt]) -> Iterator[Check]:
        for statement in body:
            if isinstance(statement, ast.Assert):
                yield from self.condition(statement.test, statement)
            elif isinstance(statement, ast.FunctionDef) and statement.name == "check":
                self._candidate(statement)
                yield from self.statements(statement.body)
            elif isinstance(statement, ast.Assign):
                self._assign(statement)
            elif not _harmless(statement):
                raise _refusal(statement)

    def _candidate(self, function: ast.FunctionDef) -> None:
        names = [argument.arg for argument in function.args.args]
        if len(names) != 1 or not self.entry_point:
            raise Unscorable(
                "the tests call a candidate but the problem's column entry_point doesn't name it"
            )
        self.aliases[names[0]] = self.entry_point

    def _assign(self, statement: ast.Assign) -> None:
        """Names for literals; what else is assigned matters once an assert uses it."""
        for target in statement.targets:
            if not isinstance(target, ast.Name):
                raise _refusal(statement)
            self.names.pop(target.id, None)
            try:
                self.names[target.id] = self.literal(statement.value)
            except _NotLiteral:
                if target.id in self.aliases:
                    raise _refusal(statement) from None

    def condition(self, test: ast.expr, whole: ast.stmt) -> Iterator[Check]:
        if isinstance(test, ast.Constant) and test.value:
            return  # HumanEval's "assert True"
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
            for part in test.values:
                yield from self.condition(part, whole)
            return
        self.builtins = False
        try:
            check = self._check(test)
        except _NotLiteral:
            check = None
        if check is None:
            raise _refusal(whole)
        yield check

    def _check(self, test: ast.expr) -> Check | None:
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            return self._comparison(test.left, test.ops[0], test.comparators[0])
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return self._bare(test.operand, "falsy")
        if isinstance(test, ast.Call) and _dotted(test.func) in ("math.isclose", "isclose"):
            return self._isclose(test)
        return self._bare(test, "truthy")

    def _bare(self, test: ast.expr, how: str) -> Check | None:
        side = self.side(test)
        if side is None:
            return None
        wrappers, call = side
        return Check(call if wrappers else replace(call, wanted="bool"), None, how, wrappers)

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Check | None:
        if isinstance(op, (ast.Lt, ast.LtE)):
            return self._distance(left, self.literal(right), strictly=isinstance(op, ast.Lt))
        if not isinstance(op, (ast.Eq, ast.Is)):
            return None
        # set([1]) is a literal; but some problems ask for a function that is called sum.
        for self.builtins in (False, True):
            for one, other in ((left, right), (right, left)):
                side = self.side(one)
                if side is not None and self._is_literal(other):
                    value = self.literal(other)
                    if isinstance(op, ast.Is) and not (value is None or isinstance(value, bool)):
                        return None
                    return Check(side[1], value, "equal", side[0])
        return None

    def _is_literal(self, node: ast.expr) -> bool:
        try:
            self.literal(node)
        except _NotLiteral:
            return False
        return True

    def _distance(self, left: ast.expr, tolerance: Any, *, strictly: bool) -> Check | None:
        """abs(f(x) - literal)"""
        if not isinstance(left, ast.Call) or _dotted(left.func) != "abs" or len(left.args) != 1:
            return None
        if not isinstance(tolerance, (int, float)):
            return None
        difference = left.args[0]
        if not isinstance(difference, ast.BinOp) or not isinstance(difference.op, ast.Sub):
            return None
        how = within(tolerance, strictly=strictly)
        return self._pair(difference.left, difference.right, how)

    def _isclose(self, test: ast.Call) -> Check | None:
        if len(test.args) != 2:
            return None
        given = {word.arg: self.literal(word.value) for word in test.keywords}
        relative, absolute = given.pop("rel_tol", 1e-9), given.pop("abs_tol", 0.0)
        numbers = all(isinstance(n, (int, float)) and n >= 0 for n in (relative, absolute))
        how = near(absolute, relative)
        return None if given or not numbers else self._pair(test.args[0], test.args[1], how)

    def _pair(self, one: ast.expr, other: ast.expr, how: Any) -> Check | None:
        for call, literal in ((one, other), (other, one)):
            side = self.side(call)
            if side is not None:
                value = self.literal(literal)
                if not isinstance(value, (int, float)):
                    return None
                return Check(side[1], value, how, side[0])
        return None

    def side(self, node: ast.expr) -> tuple[tuple[str, ...], Call] | None:
        """(what stands around it, the call) where this expression is a call of the candidate."""
        if not isinstance(node, ast.Call):
            return None
        name = _dotted(node.func)
        if name in WRAPPERS and len(node.args) == 1 and not node.keywords:
            inner = self.side(node.args[0])
            if inner is not None:
                names, call = inner
                if not names and (name in _LISTED or name == "bool"):
                    call = replace(call, wanted="bool" if name == "bool" else "list")
                return (name, *names), call
        function = self._function(node.func)
        if function is None or any(word.arg is None for word in node.keywords):
            return None
        try:
            arguments = tuple(self.literal(item) for item in node.args)
            named = {word.arg or "": self.literal(word.value) for word in node.keywords}
        except _NotLiteral:
            return None
        return (), Call(function, arguments, named)

    def _function(self, node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            name = self.aliases.get(node.id, node.id)
            builtin = name in _MAKERS and name != self.entry_point
            return None if builtin and not self.builtins else name
        of_solution = (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Call)
            and _dotted(node.value.func) == "Solution"
            and not node.value.args
        )
        return node.attr if isinstance(node, ast.Attribute) and of_solution else None

    def literal(self, node: ast.expr) -> Any:
        """The value of an expression of literals.

        Raises:
            _NotLiteral: it is none, or too large.
        """
        try:
            return self._literal(node)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise _NotLiteral from error

    def _literal(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and node.value is not Ellipsis:
            return node.value
        if isinstance(node, ast.Name) and node.id in self.names:
            return self.names[node.id]
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            kinds = {ast.List: list, ast.Tuple: tuple, ast.Set: set}
            return kinds[type(node)](self._literal(item) for item in node.elts)
        if isinstance(node, ast.Dict) and None not in node.keys:
            keys = [self._literal(key) for key in node.keys if key is not None]
            return dict(zip(keys, map(self._literal, node.values), strict=True))
        if isinstance(node, ast.UnaryOp):
            value = self._literal(node.operand)
            signs = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_}
            if type(node.op) in signs:
                return signs[type(node.op)](value)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _compute(node.op, self._literal(node.left), self._literal(node.right))
        if isinstance(node, ast.Attribute) and _dotted(node) in _MATHS:
            return _MATHS[_dotted(node)]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._made(node.func.id, node)
        raise _NotLiteral

    def _made(self, name: str, node: ast.Call) -> Any:
        if name not in _MAKERS or node.keywords or name == self.entry_point:
            raise _NotLiteral
        values = [self._literal(item) for item in node.args]
        large = any(isinstance(v, range) and len(v) > _LARGEST for v in values)
        if large or (name == "bytes" and any(isinstance(v, int) for v in values)):
            raise _NotLiteral
        return _MAKERS[name](*values)


def _compute(op: ast.operator, left: Any, right: Any) -> Any:
    """Arithmetic whose result is of a reasonable size."""
    sizes = [v.bit_length() if isinstance(v, int) else 64 for v in (left, right)]
    if isinstance(op, (ast.Pow, ast.LShift)):
        exponent = right if isinstance(right, int) else 64
        grown = sizes[0] * abs(exponent) if isinstance(op, ast.Pow) else sizes[0] + exponent
        if grown > _LARGEST:
            raise _NotLiteral
    if isinstance(op, ast.Mult):
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, (str, bytes, list, tuple)) and (
                len(sequence) * int(times) > _LARGEST
            ):
                raise _NotLiteral
    if isinstance(op, ast.Mod) and isinstance(left, (str, bytes)):
        raise _NotLiteral
    return _OPERATORS[type(op)](left, right)


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def _harmless(statement: ast.stmt) -> bool:
    """Imports, docstrings, a stray name, and the call of ``check`` at the end."""
    if isinstance(statement, (ast.Import, ast.ImportFrom, ast.Pass)):
        return True
    if not isinstance(statement, ast.Expr):
        return False
    value = statement.value
    is_check = isinstance(value, ast.Call) and _dotted(value.func) == "check"
    return is_check or isinstance(value, (ast.Constant, ast.Name))


def _refusal(statement: ast.stmt) -> Unscorable:
    text = " ".join(ast.unparse(statement).split())
    text = text if len(text) <= 80 else text[:77] + "..."
    return Unscorable(f"this test can't be read as assert f(literals) == literal: {text}")
