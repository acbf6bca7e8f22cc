r"""The form of a final answer: a tuple, an interval, a matrix, a list, an equation, or a leaf.

LaTeX says the same thing in many ways. ``read`` takes away what changes nothing (spacing,
``\left``, ``\dfrac`` for ``\frac``, degree signs, units) and tells what counts apart: order counts
in a tuple and not in a list or a set, brackets count in an interval, rows and columns in a matrix.
What remains are leaves, expressions that ``math_algebra`` compares. Everything here is text in,
text out; no call looks at more than ``MAX_LENGTH`` characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from simko_mlx.verifiers.numbers import DEGREES, parse, without_unit

MAX_LENGTH = 2000  # of an answer; the longest of the MATH training problems has 159
MAX_ITEMS = 200  # separators of an answer; more are compared as text
MAX_DEPTH = 4  # of forms in forms

LEAF, LIST, TUPLE, EQUATION = "leaf", "list", "tuple", "equation"


@dataclass(frozen=True)
class Form:
    """``text`` is what a leaf says, or what encloses a tuple: "()" also of an open interval, "[)",
    "matrix", "row"."""

    kind: str
    items: tuple[Form, ...] = ()
    text: str = ""


_UNICODE = {
    **{"\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u00f7": "/"},
    **{"\u03c0": r"\pi ", "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge "},
    **{"\u222a": r"\cup ", "\u2208": r"\in ", "\u00b1": r"\pm ", "\u2260": r"\ne "},
    **{"\u00b0": r"^\circ ", "\u221a": r"\sqrt ", "\u03b8": r"\theta ", "\u2205": r"\emptyset "},
    **{"\u00b2": "^2", "\u00b3": "^3", "\u00a0": " ", "\u202f": " ", "\u2009": " "},
    **{"\u211d": r"\mathbb{R}", "\u27e8": r"\langle ", "\u27e9": r"\rangle "},
}
_SPACING = re.compile(
    r"(?P<row>\\\\(?:\[[0-9.]+(?:pt|em|ex|mm|cm)\])?)"
    r"|(?P<none>(?<=[0-9])(?:\{,\}|\\,)(?=[0-9])|\\!|\$|\\\$|\*\*$"
    r"|\\(?:left|right)(?:\.|(?![A-Za-z]))"
    r"|\\(?:[bB]igg?[lrm]?|displaystyle|limits|nolimits)(?![A-Za-z]))"
    r"|\\[,;:> ]|\\q?quad(?![A-Za-z])|[\s~]+"
)
_LETTERS = r"(?![A-Za-z])"
_SAME = (
    (re.compile(rf"\\[dtc]frac{_LETTERS}|\\[dtc]frac(?=[0-9])"), r"\\frac"),
    (re.compile(rf"\\(?:leq|leqslant){_LETTERS}|<="), r"\\le "),
    (re.compile(rf"\\(?:geq|geqslant){_LETTERS}|>="), r"\\ge "),
    (re.compile(rf"\\lt{_LETTERS}"), "<"),
    (re.compile(rf"\\gt{_LETTERS}"), ">"),
    (re.compile(rf"\\neq{_LETTERS}|!="), r"\\ne "),
    (re.compile(rf"\\lbrace{_LETTERS}"), r"\\{"),
    (re.compile(rf"\\rbrace{_LETTERS}"), r"\\}"),
    (re.compile(rf"\\(?:cup|lor){_LETTERS}"), ","),
    (re.compile(rf"\\(?:varnothing|emptyset){_LETTERS}"), r"\\{\\}"),
    (re.compile(r"\\mathbb ?(?:\{R\}|R)|\\R(?![A-Za-z])"), r"(-\\infty,\\infty)"),
    (re.compile(r"\+ ?\\infty"), r"\\infty"),
    (re.compile(r"\\(?:mathbf|boldsymbol|bm|mathit) ?\{([^{}]*)\}"), r"\1"),
    (re.compile(r"(?<![\\A-Za-z])sqrt ?\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\A-Za-z])(sqrt(?=\{)|pi(?![A-Za-z]))"), r"\\\1"),
    (re.compile(r"(?<![\\A-Za-z])(?:infinity|infty|oo)(?![A-Za-z])"), r"\\infty"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
)
_AND = re.compile(
    r",? ?(?:\\(?:text|mbox|textrm|mathrm) ?\{ ?,? ?(?:and|or) ?\}|(?<![A-Za-z])(?:and|or)"
    r"(?![A-Za-z])) ?"
)
_WORDS = re.compile(r"\\(?:text|mbox|textbf|textrm|textnormal|mathrm|mathbf|hbox) ?\{([^{}]*)\}")
_TOKEN = re.compile(r"\\(?:begin|end)\{[a-z]*\*?\}|\\[A-Za-z]+|\\.|[(){}\[\]]|[=<>,;&|]", re.DOTALL)
_OPENS = ("(", "[", "{", r"\{", r"\langle")
_CLOSES = (")", "]", "}", r"\}", r"\rangle")
_MATRIX = re.compile(
    r"(?P<factor>[^\\{}()\[\]=]*|-?\\frac\{[^{}]*\}\{[^{}]*\})"
    r"[(\[]? ?\\begin\{(?P<name>(?:[pbBv]|small)?matrix|array)\*?\}(?P<body>.*)"
    r"\\end\{[a-zA-Z]+\*?\} ?[)\]]?",
    re.DOTALL,
)
_NAME = re.compile(
    r"(?:[A-Za-z]{1,2}|\\[a-z]+)(?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9]+\}))? ?(?:\( ?[a-z] ?\))?"
)
_REPEATING = re.compile(
    r"(?<![0-9.])([0-9]{0,20})\.([0-9]{0,20})\\overline ?\{([0-9]{1,20})\}(?![0-9.])"
)
_ANGLE = re.compile(
    rf"((?<![A-Za-z])(?:sin|cos|tan|cot|sec|csc) ?\(? ?)([0-9]{{1,6}}) ?(?:{DEGREES.pattern})"
)
# The part before the condition of { x | x > 3 }.
_BUILDER = re.compile(
    r"[A-Za-z] ?(?:\\in ?\(-\\infty, ?\\infty\))? ?(?:\\mid(?![A-Za-z])|\||:) ?(?=.*[<>=\\])"
)
_LESS, _MORE = ("<", r"\le"), (">", r"\ge")


def read(text: str) -> list[Form]:
    """The form of an answer; both, where a comma may separate thousands or the members of a list.

    An answer that is too long, or is made of too many parts, is one leaf.
    """
    if len(text) > MAX_LENGTH:
        return [Form(LEAF, text=text)]
    text = tidy(text)
    if sum(text.count(c) for c in ",;&=<>") > MAX_ITEMS:
        return [Form(LEAF, text=text)]
    forms = [_form(text.replace(",", ", "), MAX_DEPTH)]
    grouped = re.sub(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])", _ungrouped, text)
    if grouped != text:
        forms.append(_form(grouped, MAX_DEPTH))
    return forms


def _ungrouped(match: re.Match[str]) -> str:
    return match[0].replace(",", "")


def tidy(text: str) -> str:
    """One spelling of what LaTeX can say in several."""
    for character, latex in _UNICODE.items():
        text = text.replace(character, latex)
    text = _ANGLE.sub(r"\1\\frac{\2\\pi}{180}", _SPACING.sub(_space, text))
    text = DEGREES.sub("", text)
    text = _REPEATING.sub(_repeating, text)
    whole = _WORDS.fullmatch(text.strip(" ."))
    if whole:
        text = whole[1]
    text = _AND.sub(", ", text)
    for pattern, spelling in _SAME:
        text = pattern.sub(spelling, text)
    text = re.sub(r"\ball real numbers\b|\breals\b", r"(-\\infty,\\infty)", text)
    text = _braced(_braced(text, r"\frac", 2), r"\sqrt", 1)
    return re.sub(r", ?(?:, ?)+", ", ", text).strip(" ,")


def _space(match: re.Match[str]) -> str:
    if match["row"]:
        return r" \\ "
    return "" if match["none"] is not None else " "


def _repeating(match: re.Match[str]) -> str:
    r"""``0.1\overline{6}`` as a fraction: 16 less 1, over 90."""
    whole, once, again = match.groups()
    top = int(whole + once + again) - int(whole + once or "0")
    return rf"\frac{{{top}}}{{{'9' * len(again)}{'0' * len(once)}}}"


def _braced(text: str, command: str, arguments: int) -> str:
    r"""``\frac12`` and ``\sqrt 3`` with their braces: ``\frac{1}{2}``, ``\sqrt{3}``."""
    head, *rest = re.split(re.escape(command) + _LETTERS, text)
    out = [head]
    for part in rest:
        option = re.match(r" ?\[[^\[\]]*\]", part) if command == r"\sqrt" else None
        taken, part = (option[0].strip(), part[option.end() :]) if option else ("", part)
        for _ in range(arguments):
            part = part.lstrip(" ")
            if part.startswith("{") or not part:
                size = _closing(part)
                taken += part[:size]
            else:
                found = re.match(r"\\[A-Za-z]+|.", part, re.DOTALL)
                size = found.end() if found else 0
                taken += "{" + part[:size] + "}"
            part = part[size:]
        out.append(command + taken + part)
    return "".join(out)


def _closing(text: str) -> int:
    """Where the group ends that the text begins with; 0 if it doesn't end."""
    depth = 0
    for token in re.finditer(r"\\.|[{}]", text):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return token.end()
    return 0


def _top(text: str) -> Iterator[re.Match[str]]:
    """The tokens that stand in no brackets, and the brackets themselves."""
    depth = 0
    for token in _TOKEN.finditer(text):
        found = token[0]
        if found in _CLOSES or found.startswith(r"\end{"):
            depth = max(depth - 1, 0)
        if depth == 0:
            yield token
        if found in _OPENS or found.startswith(r"\begin{"):
            depth += 1


def _split(text: str, *separators: str) -> tuple[list[str], list[str]]:
    """(the parts between the separators, the separators), at the top level."""
    parts, found, start = [], [], 0
    for token in _top(text):
        if token[0] in separators:
            parts.append(text[start : token.start()].strip())
            found.append(token[0])
            start = token.end()
    return [*parts, text[start:].strip()], found


def _enclosed(text: str) -> tuple[str, str, str] | None:
    """(opening bracket, content, closing bracket) where one pair encloses the whole."""
    tokens = list(_top(text))
    if len(tokens) != 2:
        return None
    first, last = tokens
    if first[0] not in _OPENS or last[0] not in _CLOSES:
        return None
    if first.start() != 0 or last.end() != len(text):
        return None
    return first[0], text[first.end() : last.start()].strip(), last[0]


def _form(text: str, depth: int) -> Form:
    text = text.strip().rstrip(".").rstrip() if not text.endswith(r"\.") else text.strip()
    if depth == 0 or ("=" not in text and parse(text) is not None):
        return Form(LEAF, text=text)
    parts, _ = _split(text, ",", ";")
    if len(parts) > 1:
        return _list([part for part in parts if part], depth)
    enclosed = _enclosed(text)
    if enclosed is not None:
        form = _brackets(*enclosed, depth)
        if form is not None:
            return form
    matrix = _MATRIX.fullmatch(text)
    if matrix is not None:
        return _matrix(matrix, depth)
    return _relation(text, depth) or Form(LEAF, text=without_unit(text))


def _list(parts: list[str], depth: int) -> Form:
    items: list[Form] = []
    for part in parts:
        sides = part.split(r"\pm")
        signs = ("+", "-") if len(sides) == 2 and not part.startswith(("(", r"\{")) else ("",)
        for sign in signs:
            items.append(_form(_signed(sides, sign) if sign else part, depth - 1))
    return items[0] if len(items) == 1 else Form(LIST, tuple(items))


def _signed(sides: list[str], sign: str) -> str:
    before = sides[0].strip()
    plus = "" if sign == "+" and (not before or before.endswith("=")) else sign
    return f"{before} {plus} {sides[1].strip()}".strip()


def _brackets(opening: str, content: str, closing: str, depth: int) -> Form | None:
    parts, _ = _split(content, ",", ";")
    if opening == r"\{":
        parts, _ = _split(_BUILDER.sub("", content), ",", ";")
        return _list(parts, depth) if content else Form(LIST)
    if opening == "{":
        return _form(content, depth - 1)
    if len(parts) > 1:
        pair = "()" if opening == r"\langle" else opening + closing
        return Form(TUPLE, tuple(_form(part, depth - 1) for part in parts), pair)
    # Parentheses around one thing say nothing.
    return _form(content, depth - 1) if opening == "(" else None


def _matrix(match: re.Match[str], depth: int) -> Form:
    factor, body = match["factor"].strip(), match["body"]
    factor = "-1" if factor == "-" else factor
    if match["name"] == "array":
        body = re.sub(r"^ ?\{[clr| ]*\}", "", body)
    rows = [row for row in _split(body, r"\\")[0] if row]
    items = []
    for row in rows:
        cells = [rf"{factor} \cdot ({c})" if factor else c for c in _split(row, "&")[0]]
        items.append(Form(TUPLE, tuple(_form(cell, depth - 1) for cell in cells), "row"))
    return Form(TUPLE, tuple(items), "vmatrix" if match["name"] == "vmatrix" else "matrix")


def _relation(text: str, depth: int) -> Form | None:
    approximate, _ = _split(text, r"\approx")
    if len(approximate) > 1:
        return _form(next((side for side in approximate if side), ""), depth - 1)
    members, found = _split(text, r"\in")
    if found and _NAME.fullmatch(members[0]):
        return _form(members[-1], depth - 1)
    sides, signs = _split(text, r"\setminus", r"\backslash", r"\ne")
    if len(sides) == 2:
        whole = r"(-\infty,\infty)" if signs == [r"\ne"] else sides[0]
        named = signs != [r"\ne"] or _NAME.fullmatch(sides[0])
        return _without_points(_form(whole, depth - 1), _list(sides[1:], depth - 1), named)
    if r"\pm" in text:
        form = _list([text], depth)
        return form if form.kind == LIST else None
    sides, signs = _split(text, "=", *_LESS, *_MORE)
    if not signs or not all(sides):
        return None
    if set(signs) == {"="}:
        return Form(EQUATION, (_form(sides[0], depth - 1), _form(sides[-1], depth - 1)))
    return _interval(sides, signs, depth)


def _without_points(whole: Form, removed: Form, applies: object) -> Form | None:
    """The intervals that remain of one where numbers are taken away."""
    points = removed.items if removed.kind == LIST else (removed,)
    values = {parse(point.text): point for point in points if point.kind == LEAF}
    if not applies or None in values or len(values) != len(points) or not values:
        return None
    if whole.kind != TUPLE or len(whole.items) != 2 or len(whole.text) != 2:
        return None
    cuts = [values[value] for value in sorted(v for v in values if v is not None)]
    starts, ends = (whole.items[0], *cuts), (*cuts, whole.items[1])
    left = (whole.text[0], *"(" * len(cuts))
    right = (*")" * len(cuts), whole.text[1])
    pieces = zip(starts, ends, left, right, strict=True)
    return Form(LIST, tuple(Form(TUPLE, (a, b), opens + closes) for a, b, opens, closes in pieces))


def _interval(sides: list[str], signs: list[str], depth: int) -> Form | None:
    """The interval that ``a < x \\le b`` or ``x > a`` says; None of other inequalities."""
    if all(sign in _MORE for sign in signs):
        sides, signs = sides[::-1], [_LESS[_MORE.index(sign)] for sign in signs[::-1]]
    if not all(sign in _LESS for sign in signs) or len(signs) > 2:
        return None
    if len(signs) == 1 and _NAME.fullmatch(sides[0]) and not _NAME.fullmatch(sides[1]):
        sides, signs = [r"-\infty", *sides], ["<", *signs]
    elif len(signs) == 1:
        sides, signs = [*sides, r"\infty"], [*signs, "<"]
    if not _NAME.fullmatch(sides[1]):
        return None
    pair = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
    return Form(TUPLE, (_form(sides[0], depth - 1), _form(sides[2], depth - 1)), pair)
