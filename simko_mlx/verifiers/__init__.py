"""Verifiers say what a completion is worth. This package imports neither mlx nor numpy.

A built-in verifier is a function ``verify(completion, answer, columns, *, option=default, ...) ->
Verdict`` in a file of its own, named in the table below; its keyword parameters are what
``verifier.options`` may set. A name with a colon whose first part is in ``FAMILIES`` is handed to
``make(rest, **options)``, which returns such a function. Any other is a user's verifier: an import
path ``package.module:function`` to a reward function with TRL's signature, see ``user.py``. All run
in worker processes that can be killed, see ``pool.py``.

A verifier's module is imported where its options are checked, too: what takes long to import
belongs inside its functions.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simko_mlx.config import VerifierConfig
from simko_mlx.imports import import_function
from simko_mlx.types import UserError, Verdict, require

VERIFIERS: dict[str, str] = {
    "countdown": "simko_mlx.verifiers.countdown:verify",
    "number": "simko_mlx.verifiers.number:verify",
    "exact": "simko_mlx.verifiers.exact:verify",
    "constraints": "simko_mlx.verifiers.constraints:verify",
}


# What comes before the colon, as in "gym:chain_sum".
FAMILIES: dict[str, str] = {}

Verify = Callable[..., Verdict]
KEYS = ("name", "options", "weight", "decides")


@dataclass(frozen=True)
class Part:
    """One of the verifiers that judge together: rewards add up by ``weight``; a completion is
    correct when every applicable one that ``decides`` says so."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    decides: bool = True


def parts_of(config: VerifierConfig) -> tuple[Part, ...]:
    """The verifiers that a config asks for.

    Raises:
        UserError: there is no such verifier, it has no such option, or ``combine`` is malformed.
    """
    if config.combine is None:
        parts = (Part(config.name, config.options or {}),)
    else:
        require(
            config.options is None,
            "verifier.options belongs to verifier.name: give each entry of verifier.combine its "
            "own options.",
        )
        require(bool(config.combine), "verifier.combine is empty: name at least one verifier.")
        parts = tuple(_part(entry, i) for i, entry in enumerate(config.combine))
    require(
        any(part.decides for part in parts),
        "verifier.combine has no entry that decides what is correct: leave out decides: false in "
        "one of them.",
    )
    for part in parts:
        check_part(part)
    return parts


def _part(entry: Mapping[str, Any], place: int) -> Part:
    where = f"verifier.combine.{place}"
    for key in entry:
        if key not in KEYS:
            close = difflib.get_close_matches(str(key), KEYS, n=1) or [", ".join(KEYS)]
            raise UserError(f"{where} has no key {key!r}; the nearest is {close[0]}.")
    require(isinstance(entry.get("name"), str), f"{where} has no name: name a verifier.")
    part = Part(**entry)
    is_number = isinstance(part.weight, (int, float)) and not isinstance(part.weight, bool)
    require(is_number, f"{where}.weight is {part.weight!r}: give a number.")
    require(
        isinstance(part.decides, bool), f"{where}.decides is {part.decides!r}: write true or false."
    )
    require(
        part.options is None or isinstance(part.options, Mapping),
        f"{where}.options is {part.options!r}: give a mapping.",
    )
    return Part(part.name, part.options or {}, float(part.weight), part.decides)


def family(name: str) -> tuple[str, str] | None:
    """(the import path of what makes the verifier, the rest of its name), for names such as
    "gym:chain_sum"."""
    prefix, colon, rest = name.partition(":")
    return (FAMILIES[prefix], rest) if colon and prefix in FAMILIES else None


def check_name(name: str) -> None:
    """Raises UserError, with the nearest name, unless this is a built-in or an import path."""
    if name in VERIFIERS or ":" in name:
        return
    names = [*VERIFIERS, *FAMILIES]
    close = difflib.get_close_matches(name.lower(), names, n=1)
    nearest = f"did you mean {close[0]}? " if close else ""
    if name in FAMILIES:
        nearest = f"write {name}:NAME. "
    raise UserError(
        f"verifier.name is {name!r}: {nearest}Choose one of {', '.join(VERIFIERS)}, or write your "
        "own function as package.module:function."
    )


def check_part(part: Part) -> None:
    """Raises UserError unless there is such a verifier, which has such options."""
    check_name(part.name)
    known = family(part.name)
    if known is None and part.name not in VERIFIERS:
        return  # a user's function: its worker says what it takes
    target = VERIFIERS[part.name] if known is None else known[0]
    takes = options_of(import_function(target, "verifier.name"))
    for name in part.options:
        if name not in takes:
            close = difflib.get_close_matches(str(name), takes, n=1, cutoff=0.4)
            nearest = f"; the nearest is {close[0]}" if close else ""
            has = f"it has {', '.join(takes)}" if takes else "it has none"
            raise UserError(f"The verifier {part.name} has no option {name!r}{nearest} ({has}).")


def options_of(verify: Callable[..., Any]) -> list[str]:
    """The names of a verifier's settings; ``sandbox`` is set by ``verifier.sandbox``."""
    parameters = inspect.signature(verify).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "sandbox"]


def combined(verdicts: Iterable[tuple[Part, Verdict]]) -> Verdict:
    """One verdict of several: the weighted sum of what applies, correct where all say so."""
    pairs = list(verdicts)
    if len(pairs) == 1 and pairs[0][0].weight == 1.0:
        return pairs[0][1]
    detail = "; ".join(f"{part.name}: {v.detail}" for part, v in pairs if v.detail)
    taken = next((v.taken for _, v in pairs if v.taken is not None), None)
    if any(v.fault for _, v in pairs):
        return Verdict(None, False, detail, taken, fault=True)
    applicable = [(part, v) for part, v in pairs if v.reward is not None]
    if not applicable:
        return Verdict(None, False, detail, taken)
    reward = sum(part.weight * (v.reward or 0.0) for part, v in applicable)
    deciding = [v.correct for part, v in applicable if part.decides]
    return Verdict(reward, bool(deciding) and all(deciding), detail, taken)
