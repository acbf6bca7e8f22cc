"""Markdown in which text of others (a model's, a data set's, a path) can't become markup."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

REPLACEMENT = "\ufffd"
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~$&])")


def _clean(text: str) -> str:
    """The text with line breaks as \\n, and what reorders or hides text as U+FFFD."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(REPLACEMENT if _is_control(char) else char for char in text)


def _is_control(char: str) -> bool:
    hidden = char in _BIDI or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
    return hidden and char not in "\n\t"


def literal(value: Any) -> str:
    """A value as JSON and Python write it, on one line; what ``block`` would replace is escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(f"\\u{ord(char):04x}" if _is_control(char) else char for char in text)


def one_line(text: str) -> str:
    """The text on one line: breaks become arrows."""
    return _clean(text).strip().replace("\n", "\u21b5").replace("\t", " ")


def plain(text: str) -> str:
    """Text that is read as it stands, on one line, in a table too."""
    return _SPECIAL.sub(r"\\\1", one_line(text))


def code(text: str, *, cell: bool = False) -> str:
    """Text as code on one line; ``cell``: of a table, where a bar ends a cell even in code."""
    text = one_line(text)
    if not text:
        return "(empty)"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    edge = " " if text.startswith("`") or text.endswith("`") else ""
    text = f"{fence}{edge}{text}{edge}{fence}"
    return text.replace("|", "\\|") if cell else text


def block(text: str, language: str = "") -> str:
    """Text as a block of code, of which it can't break out."""
    text = _clean(text)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """A table of cells that are Markdown already; columns of ``numbers``, all but the first, are
    set to the right."""
    lines = [head, ["---", *["---:" if numbers else "---"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def listed(parts: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)


def link(text: str, url: str) -> str:
    return f"[{plain(text)}]({quote(url, safe='/:?=&#%')})"
