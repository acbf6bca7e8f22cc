"""Verifiers say what a completion is worth. This package imports neither mlx nor numpy.

A built-in verifier is a function ``verify(completion, answer, columns) -> Verdict`` in a file of
its own, named in the table below. A user's verifier is an import path ``package.module:function``
to a reward function with TRL's signature, see ``user.py``. Both run in worker processes that can
be killed, see ``pool.py``.
"""

from __future__ import annotations

import difflib

from simko_mlx.types import UserError

VERIFIERS: dict[str, str] = {
    "countdown": "simko_mlx.verifiers.countdown:verify",
    "number": "simko_mlx.verifiers.number:verify",
    "exact": "simko_mlx.verifiers.exact:verify",
}


def check_name(name: str) -> None:
    """Raises UserError, with the nearest name, unless this is a built-in or an import path."""
    if name in VERIFIERS or ":" in name:
        return
    close = difflib.get_close_matches(name.lower(), VERIFIERS, n=1)
    nearest = f"did you mean {close[0]}? " if close else ""
    raise UserError(
        f"verifier.name is {name!r}: {nearest}Choose one of {', '.join(VERIFIERS)}, or write your "
        "own function as package.module:function."
    )
