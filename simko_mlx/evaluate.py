"""pass@k and over-concentration on held-out problems. (Interface first; the body follows.)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simko_mlx.metrics import Interval


@dataclass(frozen=True)
class Evaluation:
    """One evaluation with all the settings that are part of its result.

    ``pass_at_k`` maps k to the estimate with its interval; ``chance`` maps k to the pass@k of a
    policy without preference among valid answers, where the problems know it. ``rank_probs`` are
    the mean probabilities of the rank-1, 2 and 3 candidates at T = 1 over all tokens,
    ``fork_rank_probs`` over forking tokens; ``entropy`` is in nats per token. ``groups`` gives
    pass@1 for parts of the problems ("strategy L").
    """

    label: str
    problems: int
    n: int
    temperature: float
    max_completion_length: int
    pass_at_k: dict[int, Interval]
    chance: dict[int, float] | None
    entropy: float
    rank_probs: tuple[float, float, float]
    fork_rank_probs: tuple[float, float, float]
    mean_length: float
    truncated: float
    unscorable: float
    groups: dict[str, Interval]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        raise RuntimeError
