"""Constraints on a completion's form, as IFEval states them: the reward is the share that it meets.

The row names them in ``instruction_id_list`` ("length_constraints:number_words") and gives their
parameters in ``kwargs``, one mapping for each, where nulls stand for what another constraint uses.
All of the completion counts, and an empty one meets nothing. The checks, and where they depart
from Google's, are in ``constraints_checks.py``.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from simko_mlx.types import UserError, Verdict, require
from simko_mlx.verifiers.constraints_checks import CHECKS

_IDS, _KWARGS = "instruction_id_list", "kwargs"
_TYPES: dict[str, Any] = {"str": str, "float": (int, float), "list[str]": list}
_KINDS = {"str": "a text", "float": "a number", "list[str]": "a list of texts"}


def verify(
    completion: str, answer: str, columns: Mapping[str, Any], *, all_or_nothing: bool = False
) -> Verdict:
    """``all_or_nothing``: the reward is 1 where all constraints are met, else 0.

    Raises:
        UserError: the row names an unknown constraint, or lacks one's parameters.
    """
    ids, kwargs = columns.get(_IDS), columns.get(_KWARGS) or []
    if not isinstance(ids, list) or not ids:
        raise UserError(
            f"The verifier constraints needs the column {_IDS} with a list of names such as "
            "'punctuation:no_comma': choose data with such a column, or another verifier."
        )
    require(
        isinstance(kwargs, list) and len(kwargs) in (0, len(ids)),
        f"The column {_KWARGS} must be a list with one mapping for each entry of {_IDS}.",
    )
    checks = [
        (name, given(name, kwargs[place] if kwargs else {})) for place, name in enumerate(ids)
    ]
    filled = bool(completion.strip())
    failed = [
        name for name, values in checks if not (filled and CHECKS[name](completion, **values))
    ]
    share = 1 - len(failed) / len(checks)
    reward = float(not failed) if all_or_nothing else share
    return Verdict(reward, not failed, f"failed: {', '.join(failed)}" if failed else "")


def given(name: Any, kwargs: Any) -> dict[str, Any]:
    """A check's parameters, out of what the row gives.

    Raises:
        UserError: there is no such check, or a parameter is missing or of another type.
    """
    if name not in CHECKS:
        close = difflib.get_close_matches(str(name), CHECKS, n=1, cutoff=0.3)
        nearest = f"; the nearest is {close[0]}" if close else ""
        raise UserError(f"{_IDS} names the constraint {name!r}, which doesn't exist{nearest}.")
    values = kwargs if isinstance(kwargs, Mapping) else {}
    found = {}
    for key, kind in _parameters(name).items():
        value = values.get(key)
        fits = isinstance(value, _TYPES[kind]) and not isinstance(value, bool)
        if fits and isinstance(value, list):
            fits = bool(value) and all(isinstance(item, str) for item in value)
        require(
            fits, f"The constraint {name} needs {_KINDS[kind]} as {key} in the row's {_KWARGS}."
        )
        found[key] = value
    return found


@cache
def _parameters(name: str) -> dict[str, str]:
    parameters = inspect.signature(CHECKS[name]).parameters.values()
    return {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
