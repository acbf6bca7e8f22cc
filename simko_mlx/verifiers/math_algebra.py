r"""Whether two expressions are equal, by math-verify and sympy, at a bounded cost.

math-verify reads the LaTeX; both sides are evaluated to many digits, at a few points where they
have letters, which costs little and always ends, where simplifying may not; math-verify compares
what can't be evaluated so. What sympy would choke on is refused before it sees it: by its text
(length, depth, commands, towers of powers), then by the size that its value could have. No alarm is
set: the pool's deadline is the backstop.

sympy and math-verify are imported when the first pair is compared, which takes about a second.
"""

from __future__ import annotations

import contextlib
import logging
import re
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

from simko_mlx.types import UserError

MAX_CHARACTERS = 300  # of an expression; the longest of the MATH training problems has 88
MAX_NESTING = 8  # brackets in brackets
MAX_NODES = 400  # of an expression's tree
MAX_BITS = 40_000  # of a value on the way; 2^{4950} is an answer in MATH
MAX_ARGUMENT_BITS = 200  # of an angle: its sine needs as many digits more
BUDGET = 1200  # characters that are read for one completion
DIGITS = 40  # of the evaluation
CLOSE = 30  # digits in which equal constants agree; at points, half as many
POINTS = ("1.3717421", "2.7133297", "0.6180771")  # what is tried for letters

_COMMANDS = frozenset(
    [
        *("frac", "sqrt", "cdot", "times", "div", "pi", "infty", "binom", "le", "ge", "ne", "exp"),
        *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "log", "ln"),
        *("sinh", "cosh", "tanh", "alpha", "beta", "gamma", "delta", "epsilon", "theta", "phi"),
        *("lambda", "mu", "omega", "rho", "sigma", "tau", "zeta", "eta", "varphi", "psi", "kappa"),
        *("lfloor", "rfloor", "lceil", "rceil", "lvert", "rvert", "ell", "xi", "nu"),
    ]
)
_ALLOWED = re.compile(r"(?:\\[A-Za-z]+|[0-9A-Za-z+\-*/^_(){}\[\]|!.'= <>])*+")
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{5,}|(?<![A-Za-z\\])[A-Z]{2,}(?![a-z])")
_FUNCTION = re.compile(
    r"(?<![A-Za-z\\])(arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|log|ln)(?![a-z])"
)
_FACTORIAL = re.compile(r"!{2}|[)}]!|[0-9]{4}!")
_SIGNS = re.compile(r"(?:[-+] ?){3}|(?:\|[^|]*+){5}")  # slow to parse
_BINOMIAL = re.compile(r"\\binom(?!\{[0-9a-z]{1,3}\}\{[0-9a-z]{1,3}\})")
_DECIMAL = re.compile(r"(?<![0-9.])([0-9]*)\.([0-9]+)(?![0-9.])")
_TOWER = re.compile(r"\^ ?(?:\{[^}]*[0-9e})\]] ?\^|[0-9A-Za-z] ?\^|\{?-?[0-9]{6})")
_LETTER = r"(?:[A-Za-z]|\\(?:alpha|beta|gamma|theta|phi|pi|omega)(?![A-Za-z]))"
_ARGUMENT = re.compile(
    r"(\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)) ?(\^ ?(?:\{ ?[0-9] ?\}|[0-9]))? ?"
    rf"((?:\\frac\{{[^{{}}]*\}}\{{[^{{}}]*\}} ?{_LETTER}?)|(?=[0-9A-Za-z\\])[0-9]* ?{_LETTER}?)"
    r"(?![A-Za-z0-9.{(^_/])"
)
# Before a bracket: the parser reads x(5) as a function of 5, and (2)(3) and 2(3) as mixed numbers.
_TIMES = re.compile(
    r"((?<![0-9_^A-Za-z.}])[0-9]+|\)|\\pi|(?<![A-Za-z\\])[a-eg-zA-EH-OQ-Z]|(?<![A-Za-z\\])[a-z]"
    r"\^(?:[0-9]|\{[0-9]+\})) ?(?=\()"
)


class _TooMuch(Exception):
    """Evaluating it could take too long."""


@dataclass
class Budget:
    """The characters that may still be read for one completion."""

    characters: int = BUDGET


def require_library() -> None:
    """Raises UserError unless math-verify is installed."""
    import importlib.util

    if importlib.util.find_spec("math_verify") is None:
        raise UserError(
            "The verifier math needs math-verify, which is not installed: run "
            "pip install 'simko-mlx[math]'."
        )


@cache
def _library() -> SimpleNamespace:
    import math_verify
    import sympy
    from latex2sympy2_extended import NormalizationConfig

    # It warns that no timeout is set.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    as_it_is = NormalizationConfig(basic_latex=False, boxed="none")
    config = math_verify.LatexExtractionConfig(
        boxed_match_priority=-1, normalization_config=as_it_is
    )
    return SimpleNamespace(math_verify=math_verify, sympy=sympy, config=(config,))


def equal(gold: str, given: str, budget: Budget) -> bool:
    """Whether two expressions have the same value, for all values of their variables."""
    if not (_readable(gold) and _readable(given)):
        return False
    budget.characters -= len(gold) + len(given)
    if budget.characters < 0:
        return False
    # Foreign code: over what it can't evaluate, sympy raises errors of many unrelated kinds.
    with contextlib.suppress(Exception):
        one, other = _parsed(gold), _parsed(given)
        return one is not None and other is not None and _same_value(one, other)
    return False


def _readable(text: str) -> bool:
    """Whether the text may be given to the parser at all."""
    if not text or len(text) > MAX_CHARACTERS or not _ALLOWED.fullmatch(text):
        return False
    depth = deepest = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING or depth != 0:
        return False
    if not _COMMANDS.issuperset(re.findall(r"\\([A-Za-z]+)", text)):
        return False
    return not (
        _WORD.search(_FUNCTION.sub("", text))
        or _FACTORIAL.search(text)
        or _BINOMIAL.search(text)
        or _TOWER.search(text)
        or _SIGNS.search(text)
    )


@cache
def _sympy_node_types() -> tuple[Any, ...]:
    s = _library().sympy
    return (
        *(s.Add, s.Mul, s.Pow, s.Number, s.NumberSymbol, s.Symbol, s.Abs, s.log, s.exp),
        *(s.sin, s.cos, s.tan, s.cot, s.sec, s.csc, s.asin, s.acos, s.atan, s.sinh, s.cosh),
        *(s.tanh, s.factorial, s.binomial, s.floor, s.ceiling, s.core.function.AppliedUndef),
        *(s.core.relational.Relational, s.core.numbers.ImaginaryUnit),
    )


def _parsed(text: str) -> Any:
    """The sympy expression that a text says; None if it says none."""
    library = _library()
    text = _ARGUMENT.sub(r"\1\2(\3)", _FUNCTION.sub(r"\\\1", text))
    text = _TIMES.sub(r"\1 \\cdot ", _DECIMAL.sub(_fraction, text))
    found = library.math_verify.parse(
        f"${text}$", library.config, fallback_mode="no_fallback", parsing_timeout=None
    )
    if not found or not isinstance(found[0], library.sympy.Basic):
        return None
    s = library.sympy
    letters = {x: s.I if x.name == "i" else s.Symbol(x.name) for x in found[0].atoms(s.Symbol)}
    with s.evaluate(False):
        return found[0].xreplace(letters)


def _fraction(match: re.Match[str]) -> str:
    """A decimal exactly: sympy would take it for a rounded one."""
    whole, digits = match.groups()
    return rf"\frac{{{whole}{digits}}}{{1{'0' * len(digits)}}}"


def _same_value(one: Any, other: Any) -> bool:
    s = _library().sympy
    for expression in (one, other):
        _size(expression, [MAX_NODES])
    relations = [isinstance(x, s.core.relational.Relational) for x in (one, other)]
    if any(relations):
        return all(relations) and _same_relation(one, other)
    free = one.free_symbols
    if not other.free_symbols <= free:
        return False
    # An absolute value is told from what is inside by letters below zero, where otherwise
    # sqrt(x^3) and x sqrt(x), which are the same to most who write them, would differ.
    signs = (1, -1) if one.has(s.Abs) != other.has(s.Abs) else (1,)
    digits = CLOSE // 2 if free else CLOSE
    return all(
        _close(*pair, digits)
        for sign in signs
        for pair in zip(_at_points(one, free, sign), _at_points(other, free, sign), strict=True)
    )


def _same_relation(one: Any, other: Any) -> bool:
    """Whether left less right of one is a multiple of the other's, positive in an inequality."""
    s = _library().sympy
    (first, strict), (second, kind) = _as_difference(one), _as_difference(other)
    free = first.free_symbols
    if strict != kind or free != second.free_symbols or not free:
        return False
    a = [s.N(x, DIGITS) for x in _at_points(first, free)]
    b = [s.N(x, DIGITS) for x in _at_points(second, free)]
    if 0 in a or 0 in b or not all(x.is_number for x in (*a, *b)):
        return False
    proportional = all(_close(x / a[0], y / b[0], CLOSE // 2) for x, y in zip(a, b, strict=True))
    return proportional and (kind in ("==", "!=") or bool(a[0] / b[0] > 0))


def _as_difference(relation: Any) -> tuple[Any, str]:
    s = _library().sympy
    left, right, sign = relation.lhs, relation.rhs, relation.rel_op
    if sign in (">", ">="):
        left, right, sign = right, left, sign.replace(">", "<")
    return s.Add(left, s.Mul(-1, right, evaluate=False), evaluate=False), sign


def _at_points(expression: Any, free: Any, sign: int = 1) -> list[Any]:
    """The expression with numbers for its letters, three times; itself where it has none."""
    s = _library().sympy
    if not free:
        return [expression]
    letters = sorted(free, key=lambda symbol: symbol.name)
    values = []
    for i in range(len(POINTS)):
        turns = ((i + j, j // len(POINTS)) for j in range(len(letters)))
        at = [sign * (s.Rational(POINTS[k % len(POINTS)]) + more) for k, more in turns]
        with s.evaluate(False):
            values.append(expression.xreplace(dict(zip(letters, at, strict=True))))
    return values


def _close(one: Any, other: Any, digits: int) -> bool:
    """Whether two constants agree to so many digits; in those of large ones, after the point."""
    s = _library().sympy
    a, b = s.N(one, 15), s.N(other, 15)
    if not (a.is_finite and b.is_finite):
        infinities = (s.oo, -s.oo)
        return one == other or (one.doit() in infinities and one.doit() == other.doit())
    size = max(abs(a), abs(b))
    if size < s.Float(10) ** -100:  # zero perhaps, which can't be told from what is tiny
        return _library().math_verify.verify(one, other, timeout_seconds=None)
    precision = DIGITS + max(0, int(s.log(size, 10)))
    difference = abs(s.N(one, precision) - s.N(other, precision))
    return bool(difference <= min(size, 1) * s.Float(10) ** -digits)


def _size(node: Any, nodes: list[int]) -> tuple[float, float]:
    """Bounds: log2 of the absolute value, and the bits that an exact value takes.

    Raises:
        _TooMuch: it is beyond the limits, or of a kind that isn't known.
    """
    s = _library().sympy
    nodes[0] -= 1
    if nodes[0] < 0 or not isinstance(node, _sympy_node_types()):
        raise _TooMuch
    if isinstance(node, s.Rational):
        over, under = node.p.bit_length(), node.q.bit_length()
        return max(0, over - under + 1), max(over, under)
    if not node.args:
        return 2.0, 64.0
    inner = [_size(argument, nodes) for argument in node.args]
    largest, bits = max(value for value, _ in inner), sum(bits for _, bits in inner)
    if isinstance(node, s.Pow | s.exp):
        largest, bits = _size_of_power(*node.as_base_exp())
    elif isinstance(node, s.Add):
        largest += len(inner).bit_length()
    elif isinstance(node, s.Mul):
        largest = sum(value for value, _ in inner)
    elif isinstance(node, s.factorial | s.binomial | s.sinh | s.cosh | s.tanh):
        largest = bits = 10 * _two_to(largest)
    elif largest > MAX_ARGUMENT_BITS:
        raise _TooMuch
    if bits > MAX_BITS or largest > MAX_BITS:
        raise _TooMuch
    return largest, bits


def _size_of_power(base: Any, exponent: Any) -> tuple[float, float]:
    s = _library().sympy
    value, bits = _size(base, [MAX_NODES])
    if isinstance(exponent, s.Rational):
        times = max(1.0, float(abs(exponent))) if abs(exponent) < MAX_BITS else MAX_BITS
        return (value if exponent > 0 else bits) * times, bits * times
    times = _two_to(_size(exponent, [MAX_NODES])[0])
    return bits * times, bits * times


def _two_to(power: float) -> float:
    if power > 16:
        raise _TooMuch
    return 2.0**power
