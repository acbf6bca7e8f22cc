r"""Multiple choice: the completion must state one of the row's choices, by letter or in full.

A choice is stated in ``\boxed{B}`` or ``<answer>B</answer>``, after "answer", "choice" or "option"
and one of ``is : =`` ("The answer is (B)."), or as the last line or the whole completion ("B",
"(b)", "B. Paris", "Paris"). The last such statement decides. One that names several choices
("A or B", "B, not C") is wrong, whichever they are; what comes after "because" or "since" isn't
part of it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from simko_mlx.types import UserError, Verdict, require

_LOOKED_AT = 50  # statements, the last ones
_MAX_CHARS = 600  # of one statement
_BOX = re.compile(r"\\boxed\{\s{0,4}(?:\\(?:text|textbf|mathrm|mathbf)\{)?([^{}]{0,600}+)\}")
_TAG = re.compile(r"<answer>([^<>]{0,600}+)</answer>")
_MARKER = re.compile(
    r"\b(?:answer|choice|option)\b[*_]{0,3}\s{0,3}(?:is\b\s{0,3}:?|:|=)(?=([^\n]{0,600}+))",
    re.IGNORECASE,
)
_OTHERS = re.compile(r"\\boxed|</answer>")
_REASON = re.compile(r"\b(?:because|since)\b", re.IGNORECASE)
_AROUND = " \t\r\n.,:;!*_`\"'$()[]{}\u201c\u201d\u2019"


def verify(
    completion: str,
    answer: str,
    columns: Mapping[str, Any],
    *,
    column: str = "choices",
    letters: str | None = None,
    index: bool = False,
) -> Verdict:
    """Judges one completion.

    Args:
        column: holds the choices: a list of texts, which get the letters A, B, C ...; a mapping
            from letter to text; or lists of both under "label" and "text".
        letters: the letters, as in "ABCD", where the prompt alone has the texts.
        index: the row's answer is the choice's place, counted from 0; else its letter or text.

    Raises:
        UserError: the row has no choices, or its answer is none of them.
    """
    choices = dict.fromkeys(letters, "") if letters else _choices(columns.get(column), column)
    right = _right(answer, choices, index)
    for text, marked in reversed(_statements(completion)):
        if named := stated(text, choices, marked):
            correct = named == {right}
            detail = "names several choices" if len(named) > 1 else ""
            return Verdict(float(correct), correct, detail if not correct else "", text.strip())
    return Verdict(0.0, False, "states no choice")


def stated(text: str, choices: Mapping[str, str], marked: bool = True) -> set[str]:
    """The letters of the choices that a statement names; empty if it is no statement of one.

    ``marked``: it stands in a box or after "answer is". Otherwise "A thought." names nothing, only
    "A" and "A. ..." do.
    """
    text = _REASON.split(text, maxsplit=1)[0].strip(_AROUND)
    by_text = {label for label, full in choices.items() if full and _plain(full) == _plain(text)}
    if len(by_text) == 1:
        return by_text
    labels = "|".join(re.escape(label) for label in sorted(choices, key=len, reverse=True))
    if alone := re.fullmatch(rf"(?:option |choice )?\(?({labels})\)?", text, re.IGNORECASE):
        return {label for label in choices if label.upper() == alone[1].upper()}
    lettered = re.match(rf"({labels})[).:]", text, re.IGNORECASE)
    if lettered and (rest := _plain(text[lettered.end() :])):  # "(b) Paris"
        label = next(label for label in choices if label.upper() == lettered[1].upper())
        if rest == _plain(choices[label]):
            return {label}
    first = re.match(rf"(?:(?:option|choice)\s)?({labels})(?![^\W_]|['\u2019])", text)
    if first is None:
        named = _mentioned(text, choices) if marked else set()
        return named if len(named) > 1 else set()
    rest = text[first.end() :]
    if not marked and rest[:1] not in (")", ".", ":"):
        return set()
    if choices[first[1]] and _plain(rest) == _plain(choices[first[1]]):
        return {first[1]}
    return {first[1]} | _mentioned(rest, choices)


def _mentioned(text: str, choices: Mapping[str, str]) -> set[str]:
    """The choices whose letter or text stands anywhere in a statement."""
    plain = _plain(text)
    ways = [(label, label, text) for label in choices]
    ways += [(label, _plain(full), plain) for label, full in choices.items() if _plain(full)]
    return {
        label
        for label, way, where in ways
        if re.search(rf"(?<![^\W_]){re.escape(way)}(?![^\W_]|['\u2019])", where)
    }


def _statements(completion: str) -> list[tuple[str, bool]]:
    """(text, whether it was marked as the answer) in the order in which they stand; the last line
    is the last."""
    found: list[tuple[int, str]] = []
    for pattern in (_BOX, _TAG, _MARKER):
        last = deque(pattern.finditer(completion), maxlen=_LOOKED_AT)
        found.extend((match.start(), match[1]) for match in last)
    statements = [(text, True) for _, text in sorted(found)]
    line = completion[-10 * _MAX_CHARS :].strip().rsplit("\n", 1)[-1]
    if len(line) <= _MAX_CHARS and not _MARKER.search(line) and not _OTHERS.search(line):
        statements.append((line, False))
    return statements


def _choices(value: Any, column: str) -> dict[str, str]:
    """Letter -> text."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        texts = value["text"]
        labels = value.get("label") or list(ascii_uppercase[: len(texts)])
        value = dict(zip(labels, texts, strict=False)) if len(labels) == len(texts) else None
    elif isinstance(value, list) and len(value) <= len(ascii_uppercase):
        value = dict(zip(ascii_uppercase, value, strict=False))
    if not isinstance(value, Mapping) or not value:
        raise UserError(
            f"The verifier choice found no choices in the column {column!r}: name the column in "
            "its option column, or give the letters in its option letters."
        )
    # A column of a table has the letters of all rows, null where a row has fewer.
    return {str(label): str(text) for label, text in value.items() if text is not None}


def _right(answer: str, choices: Mapping[str, str], index: bool) -> str:
    answer = answer.strip()
    labels = list(choices)
    if index:
        known = answer.isdecimal() and int(answer[:9]) < len(labels)
        require(known, f"The answer {answer[:60]!r} is no place among {len(labels)} choices.")
        return labels[int(answer)]
    fits = [label for label in labels if label.upper() == answer.strip("().").upper()]
    fits = fits or [label for label in labels if choices[label] and choices[label] == answer]
    if len(fits) != 1:
        raise UserError(
            f"The answer {answer[:60]!r} is none of the choices {', '.join(labels)}, nor one's "
            "text: correct data.answer, or set the option index where it is a place from 0."
        )
    return fits[0]


def _plain(text: str) -> str:
    return " ".join(text.strip(_AROUND).casefold().split())
