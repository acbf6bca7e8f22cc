"""A completion must follow a template of tags: each once, in order, with nothing outside them.

In ``<think>...</think><answer>...</answer>`` the dots stand for some text. White space between tags
doesn't count. What is inside is judged by other verifiers: combine them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from simko_mlx.types import UserError, Verdict

TEMPLATE = "<think>...</think><answer>...</answer>"


def verify(
    completion: str, answer: str, columns: Mapping[str, Any], *, template: str = TEMPLATE
) -> Verdict:
    """What the last tag holds is ``taken``.

    Raises:
        UserError: ``template`` isn't a row of tags with dots in them.
    """
    place = 0
    content = ""
    for name in _tags(template):
        for tag in (f"<{name}>", f"</{name}>"):
            count = completion.count(tag)
            if count != 1:
                return Verdict(0.0, False, f"{tag} occurs {count} times")
        start, end = completion.find(f"<{name}>"), completion.find(f"</{name}>")
        if start < place or end < start:
            return Verdict(0.0, False, f"<{name}> is out of order")
        if completion[place:start].strip():
            return Verdict(0.0, False, f"text before <{name}>")
        content = completion[start + len(name) + 2 : end].strip()
        if not content:
            return Verdict(0.0, False, f"<{name}> is empty")
        place = end + len(name) + 3
    if completion[place:].strip():
        return Verdict(0.0, False, "text after the last tag", content)
    return Verdict(1.0, True, "", content)


@lru_cache(maxsize=16)
def _tags(template: str) -> tuple[str, ...]:
    pieces = re.findall(r"<([^<>/\s]+)>\s*\.\.\.\s*</\1>|(\S)", template)
    names = [name for name, _ in pieces]
    if not names or "" in names or len(set(names)) < len(names):
        raise UserError(
            f"verifier.options.template is {template[:80]!r}: write different tags one after the "
            f"other, as in {TEMPLATE}."
        )
    return tuple(names)
