"""The whole completion must be the answer; white space around either doesn't count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simko_mlx.types import Verdict


def verify(completion: str, answer: str, columns: Mapping[str, Any]) -> Verdict:
    taken = completion.strip()
    correct = taken == answer.strip()
    return Verdict(float(correct), correct, "" if correct else "differs from the answer", taken)
