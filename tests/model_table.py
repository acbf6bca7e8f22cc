"""Prints the table of docs/models.md: ``python -m tests.model_table [family ...]``.

The first run on a CPU takes some minutes: a compiled step's kernels are made by the C++ compiler.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from simko_mlx.losses import find_loss
from simko_mlx.step import Step
from tests.families import FALLBACK, FAMILIES
from tests.model_checks import Case, decode_gap, gradient, make_case, off_by, sample

HEADER = (
    *("family", "features kept in the test", "way", "compiled", "ragged decoding", "shared"),
    *("gradient difference", "decode-train difference"),
)


def row(case: Case) -> list[str]:
    """One family's cells."""
    step = Step(case.policy, case.config(optim__compile=True), find_loss("grpo"))
    compiled = (False, True) if step.compiles else (False,)
    gradients = [gradient(case, "full")] + [
        gradient(case, optim__compile=compile, grad_checkpoint=checkpoint)
        for compile in compiled
        for checkpoint in (False, True)
    ]
    ways = [(width, shared) for width in (3, 64) for shared in (True, False)]
    gaps = [decode_gap(case, sample(case, width, shared=shared)) for width, shared in ways]
    return [
        case.name,
        {**FAMILIES, **FALLBACK}[case.name].features,
        case.policy.way,
        "yes" if step.compiles else "no",
        "no" if case.ragged else "yes",
        "no" if case.policy.unshared else "yes",
        f"{max(off_by(found, case.by_hand) for found in gradients):.0e}",
        f"{max(gaps):.0e}",
    ]


def line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    print(line(HEADER))
    print(line(["---"] * len(HEADER)))
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or [*FAMILIES, *FALLBACK]:
            place = Path(folder) / name.replace(" ", "-")
            print(line(row(make_case(place, name))), flush=True)


if __name__ == "__main__":
    main()
