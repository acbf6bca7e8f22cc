"""What a probe's figures say about the run that is planned. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simko_mlx.config import Config
from simko_mlx.types import LENGTH, ScoredGroup

MANY, SOME = 0.5, 0.1  # shares of problems, or of completions


@dataclass(frozen=True)
class Figures:
    """Shares: of problems whose completions are ``all_right``, ``all_wrong``, or have different
    rewards (``mixed``); of completions that are correct, cut off, or can't be scored."""

    problems: int
    group_size: int
    max_completion_length: int
    all_right: float
    all_wrong: float
    mixed: float
    correct: float
    truncated: float
    unscorable: float
    mean_length: float
    verify_share: float  # of a step's seconds
    workers: int

    @classmethod
    def of(
        cls, scored: Sequence[ScoredGroup], seconds: Mapping[str, float], config: Config
    ) -> Figures:
        verdicts = [v for one in scored for v in one.verdicts]
        completions = [c for one in scored for c in one.group.completions]
        problems, total = len(scored), len(completions)
        step = sum(seconds[name] for name in ("rollout", "verify", "update"))
        return cls(
            problems=problems,
            group_size=config.rollout.group_size,
            max_completion_length=config.rollout.max_completion_length,
            all_right=sum(all(v.correct for v in one.verdicts) for one in scored) / problems,
            all_wrong=sum(not any(v.correct for v in one.verdicts) for one in scored) / problems,
            mixed=sum(any(one.advantages) for one in scored) / problems,
            correct=sum(v.correct for v in verdicts) / total,
            truncated=sum(c.stop_reason == LENGTH for c in completions) / total,
            unscorable=sum(v.reward is None for v in verdicts) / total,
            mean_length=sum(len(c.token_ids) for c in completions) / total,
            verify_share=seconds["verify"] / max(1e-9, step),
            workers=config.verifier.workers,
        )


def advice(figures: Figures) -> list[str]:
    """Sentences on what to change, the most important first; empty where nothing stands out."""
    said = []
    if figures.unscorable > 0:
        said.append(
            f"{figures.unscorable:.0%} of the completions can't be scored: see `simko-mlx data "
            "check`, and whether verifier.name fits the problems."
        )
    if figures.truncated > SOME:
        said.append(
            f"{figures.truncated:.0%} of the completions were cut off at "
            f"{figures.max_completion_length} tokens: raise rollout.max_completion_length, or ask "
            "for shorter answers in prompt.template."
        )
    if figures.all_wrong > MANY:
        said.append(
            f"{figures.all_wrong:.0%} of the problems were never solved in {figures.group_size} "
            "tries and teach nothing: choose easier ones (--write, then data.pass_rates), raise "
            "rollout.group_size, or show the form of an answer (prompt.template, prompt.few_shot)."
        )
    if figures.all_right > MANY:
        said.append(
            f"{figures.all_right:.0%} of the problems were always solved and teach nothing: choose "
            "harder ones (--write, then data.pass_rates)."
        )
    if figures.mixed < MANY and not said:
        said.append(
            f"Only {figures.mixed:.0%} of the groups have different rewards: --write keeps the "
            "problems that are solved sometimes, and data.order=focus prefers such ones."
        )
    if figures.verify_share > MANY / 2:
        said.append(
            f"Verifying takes {figures.verify_share:.0%} of a step: raise verifier.workers "
            f"({figures.workers})."
        )
    return said
