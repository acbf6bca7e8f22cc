r"""Mathematical answers, with math-verify (``pip install 'simko-mlx[math]'``).

What counts as a completion's answer is its last ``\boxed{...}``; else what follows its last
``####`` or ``Answer:``; else its last formula between dollar signs or ``\( \)``; else, where that
is short, all of it; else its last number. Without a box, only what stands in its last
``<answer>...</answer>`` is looked at, if it has such tags. The answer of a problem may be a whole
solution that ends in one of the first two.

Plain numbers are compared exactly, as the verifier ``number`` does, and equal texts are equal.
Otherwise the form of the problem's answer says what counts (``math_forms``): the order in a tuple,
not in a list or a set; the brackets of an interval; rows and columns of a matrix; all members of a
list. Its parts are compared by value, exactly: ``\frac{\sqrt2}{2}`` is ``1/\sqrt{2}`` and not
0.7071. ``x = 5`` counts for ``5``, and ``2x+1`` for ``y = 2x+1``. Units and degree signs are
ignored; ``50\%`` counts for 50 and for 0.5, and they for it. A factored polynomial equals its
expansion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from simko_mlx.types import Verdict
from simko_mlx.verifiers.math_algebra import Budget, equal, require_library
from simko_mlx.verifiers.math_forms import EQUATION, LEAF, LIST, MAX_LENGTH, Form, read
from simko_mlx.verifiers.numbers import (
    boxed,
    final,
    is_name,
    last_number,
    marked,
    parse,
    parse_gold,
    plain,
    short,
    tagged,
    unfinished,
)

MAX_WHOLE = 100  # characters of a completion that is nothing but an answer
MAX_LIST = 50  # members of a list that are paired

_MARKER = re.compile(r"answer(?: is)?\**:\**[ \t]*", re.IGNORECASE)
_FORMULA = re.compile(r"\$([^$]{1,500}+)\$|\\\(([^$]{1,500}?)\\\)|\\\[([^$]{1,500}?)\\\]")
_SENTENCE = re.compile(
    r"(?<![\\A-Za-z{])(?!(?:and|or|pi|sqrt|sin|cos|tan|log|ln)\b)[A-Za-z]{2,}['\u2019]?\s"
)
_PERCENT = re.compile(r"\\?%|\\text ?\{ ?percent ?\}|\bpercent\b")
_BASED = re.compile(r"([0-9A-F]+)_\{?([0-9]+)\}?")


def verify(completion: str, answer: str, columns: Mapping[str, Any]) -> Verdict:
    """Reward 1.0 or 0.0, or None where the problem has no answer to compare with.

    Raises:
        UserError: math-verify is not installed.
    """
    require_library()
    gold = _of_problem(answer)
    if not gold.strip():  # as of a solution that ends in an empty box
        return Verdict(None, False, "the problem has no answer")
    given = _of_completion(final(completion), unfinished(completion))
    if not given.strip():
        return Verdict(0.0, False, "no answer")
    correct = _agree(gold, given)
    detail = "" if correct else f"{short(given)!r}, not {short(gold)!r}"
    return Verdict(float(correct), correct, detail, short(given, 200))


def _of_problem(answer: str) -> str:
    content = boxed(answer)
    return content if content is not None else _after_marker(answer) or answer


def _of_completion(text: str, unfinished: bool) -> str:
    content = boxed(text)
    if content is not None:
        return content
    text = tagged(text) or text
    after = _after_marker(text)
    if after:
        return after
    if unfinished:
        return ""
    formula = None
    for formula in _FORMULA.finditer(text[-2000:]):  # noqa: B007  the last one
        pass
    if formula is not None:
        return next(group for group in formula.groups() if group is not None)
    if len(text) <= MAX_WHOLE and not _SENTENCE.search(text):
        return text
    number = last_number(text)
    return "" if number is None else str(number)


def _after_marker(text: str) -> str:
    """What follows the last ``####`` or ``Answer:`` on its line."""
    lines = marked(text)
    last = list(_MARKER.finditer(text))[-1:]
    if last:
        lines.extend(text[last[0].end() :][:2000].lstrip().split("\n", 1)[:1])
    line = lines[-1].strip() if lines else ""
    formula = _FORMULA.search(line)
    if formula is not None:
        return next(group for group in formula.groups() if group is not None)
    # "Answer: there are 5 of them."
    number = last_number(line) if len(_SENTENCE.findall(line)) > 2 else None
    return line.strip("*` ") if number is None else str(number)


def _agree(gold: str, given: str) -> bool:
    if len(given) > max(MAX_LENGTH, 4 * len(gold)):
        return False
    values = parse_gold(gold), parse(given)
    percent = bool(_PERCENT.search(gold)), bool(_PERCENT.search(given))
    if None not in values and percent[0] == percent[1] and not ("=" in gold and "=" in given):
        return values[0] == values[1]
    if plain(gold) == plain(given):
        return True
    budget = Budget()
    return any(_same(a, b, budget) for a in read(gold) for b in read(given))


def _same(gold: Form, given: Form, budget: Budget) -> bool:
    if given.kind == EQUATION and gold.kind != EQUATION:
        return _same(gold, _unknown_first(given).items[1], budget)
    if gold.kind == EQUATION and given.kind != EQUATION:
        gold = _unknown_first(gold)
        return _only_names(gold.items[0]) and _same(gold.items[1], given, budget)
    if gold.kind != given.kind or len(gold.items) != len(given.items):
        return False
    if gold.kind == LEAF:
        return _same_leaf(gold.text, given.text, budget)
    if gold.kind == LIST:
        return _same_members(gold.items, given.items, budget)
    if gold.kind == EQUATION:
        return _same_equation(gold, given, budget)
    pairs = zip(gold.items, given.items, strict=True)
    return gold.text == given.text and all(_same(a, b, budget) for a, b in pairs)


def _same_members(gold: tuple[Form, ...], given: tuple[Form, ...], budget: Budget) -> bool:
    """Whether each has its partner; what equals one equals all that do, so the first will do."""
    if len(gold) > MAX_LIST:
        return False
    left = list(given)
    for member in gold:
        # Equal as text or number first: that costs nothing.
        by_ease = sorted(left, key=lambda other: other != member)
        partner = next((other for other in by_ease if _same(member, other, budget)), None)
        if partner is None:
            return False
        left.remove(partner)
    return True


def _same_equation(gold: Form, given: Form, budget: Budget) -> bool:
    gold, given = _unknown_first(gold), _unknown_first(given)
    if all(_same(a, b, budget) for a, b in zip(gold.items, given.items, strict=True)):
        return True
    if any(side.kind != LEAF for side in (*gold.items, *given.items)):
        return False
    one, other = ("=".join(side.text for side in form.items) for form in (gold, given))
    return equal(one, other, budget)


def _unknown_first(form: Form) -> Form:
    """``5 = x`` as ``x = 5``."""
    left, right = form.items
    turned = _only_names(right) and not _only_names(left)
    return Form(EQUATION, (right, left)) if turned else form


def _only_names(side: Form) -> bool:
    if side.kind != LEAF:  # (x, y) = (3, 4)
        return all(_only_names(item) for item in side.items)
    return is_name(side.text) and re.search("[A-Za-z]", side.text) is not None


def _as_quotient(text: str) -> str:
    """``3:5`` as 3/5; "05:00" and "4:51:06" are times."""
    return re.sub(r"^([1-9][0-9]*) *(?::|to) *([1-9][0-9]*)$", r"\1/\2", text)


def _same_leaf(gold: str, given: str, budget: Budget) -> bool:
    percent = bool(_PERCENT.search(gold)), bool(_PERCENT.search(given))
    if any(percent):
        gold, given = (_PERCENT.sub("", text).strip() for text in (gold, given))
    one, other = parse(_as_quotient(gold)), parse(_as_quotient(given))
    if one is not None and other is not None:
        return (
            one == other
            or (percent == (True, False) and one == 100 * other)
            or (percent == (False, True) and 100 * one == other)
        )
    based = [_BASED.fullmatch(plain(text)) for text in (gold, given)]
    if any(based):  # 1011_2: the base may be left out, and mustn't be another
        bases = [match[2] if match else None for match in based]
        digits = [
            match[1] if match else plain(t) for match, t in zip(based, (gold, given), strict=True)
        ]
        return digits[0] == digits[1] and (None in bases or bases[0] == bases[1])
    words = plain(gold)
    if words.casefold() == plain(given).casefold():
        return words == plain(given) or len(words) > 1
    return equal(gold, given, budget)
