r"""The final number of a completion against the answer, exactly: fractions, no floats, no sympy.

What counts as the completion's final answer is, in this order: the content of its last
``\boxed{...}``; what follows its last ``####`` (or the heading ``# Answer``); its last number.
The first of these that exists decides, so that listing many numbers wins nothing. A completion that
breaks off inside a box, or is absurdly long, isn't searched for numbers.

``1,234``, ``3.50``, ``1/2``, ``\frac12``, ``8\frac47``, ``1e3``, ``$5``, ``10\%``, ``50^\circ``
and ``18 \text{ dollars}`` are read as numbers; percent signs and units are ignored. The answer of a
problem may be written in any of these ways, or be a whole solution that ends in one. An answer
that isn't a number (``x^2+1``, a matrix) is compared as text, LaTeX spacing aside, with the box,
with what follows ``####``, or with the whole completion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simko_mlx.types import Verdict
from simko_mlx.verifiers.numbers import (
    boxed,
    final,
    last_number,
    last_number_text,
    marked,
    parse,
    parse_gold,
    plain,
    short,
    unfinished,
)


def verify(completion: str, answer: str, columns: Mapping[str, Any]) -> Verdict:
    """Reward 1.0 or 0.0, or None where the problem has no answer to compare with.

    ``detail`` says what was read instead of the answer.
    """
    whole, completion = completion, final(completion)
    gold_text = _gold(answer)
    if not gold_text.strip():  # as of a solution that ends in an empty box
        return Verdict(None, False, "the problem has no answer")
    gold = parse_gold(gold_text)
    if gold is None:
        return _text_verdict(completion, gold_text)
    taken = boxed(completion)
    in_box = taken is not None
    value = None if taken is None else parse(taken)
    if not in_box:
        found = ((parse(text), text) for text in reversed(marked(completion)))
        value, taken = next(((v, text) for v, text in found if v is not None), (None, None))
        if value is None and not unfinished(whole):
            taken = last_number_text(completion)
            value = None if taken is None else last_number(taken)
    if value == gold:
        return Verdict(1.0, True, taken=taken)
    if value is None:
        return Verdict(0.0, False, "no number in the box" if in_box else "no number", taken)
    return Verdict(0.0, False, f"{short(str(value))}, not {short(gold_text)}", taken)


def _gold(answer: str) -> str:
    """The final answer of what the data set gives: itself, or the end of a solution."""
    content = boxed(answer)
    if content is not None:
        return content
    after = marked(answer)
    return after[-1] if after else answer


def _text_verdict(completion: str, gold: str) -> Verdict:
    content = boxed(completion)
    if content is None:
        after = marked(completion)
        content = after[-1] if after else completion
    if plain(content) == plain(gold):
        return Verdict(1.0, True, taken=content)
    return Verdict(0.0, False, f"{short(content)!r} differs from the answer", content)
