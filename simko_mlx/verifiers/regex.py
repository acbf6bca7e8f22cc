"""The completion must match a regular expression (Python's ``re``), white space around it aside.

A pattern that backtracks over a long completion is ended by ``verifier.timeout``, and then gives
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from simko_mlx.types import UserError, Verdict, require


def verify(
    completion: str,
    answer: str,
    columns: Mapping[str, Any],
    *,
    pattern: str | None = None,
    column: str | None = None,
    search: bool = False,
) -> Verdict:
    """``pattern``, or the row's ``column``, is the expression; ``search``: it may match anywhere,
    not only the whole.

    Raises:
        UserError: there is no pattern, or it isn't one.
    """
    require(
        (pattern is None) != (column is None),
        "The verifier regex needs one of two options: pattern, or column, the column with each "
        "row's own pattern.",
    )
    source = columns.get(column) if column is not None else pattern
    where = f"the column {column!r}" if column is not None else "verifier.options.pattern"
    if not isinstance(source, str) or not source:
        raise UserError(f"The verifier regex found no text in {where}: write a pattern there.")
    expression = _compiled(source, where)
    text = completion.strip()
    found = expression.search(text) if search else expression.fullmatch(text)
    if found is None:
        return Verdict(0.0, False, "doesn't match the pattern")
    return Verdict(1.0, True, "", found.group())


@lru_cache(maxsize=1024)
def _compiled(source: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(source)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(
            f"{source[:80]!r} in {where} is no regular expression ({error}): correct it."
        ) from error
