"""Judged completions as lines and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import ui

if TYPE_CHECKING:
    from simko_mlx.recorded import Judged
    from simko_mlx.types import Verdict

EXCERPT = 60  # characters


def lines(one: Judged) -> list[str]:
    return block(one.problem.id, one.problem.answer, one.text, one.verdict)


def block(problem: str, answer: str, text: str, verdict: Verdict) -> list[str]:
    """A completion with what was taken for its answer, and what the verifier says of it."""
    word = "correct" if verdict.correct else "wrong"
    if verdict.reward is None:
        word = "not scorable"
    reward = "" if verdict.reward is None else f"  reward {verdict.reward:.3g}"
    why = f": {ui.clean(verdict.detail)}" if verdict.detail else ""
    taken = "nothing" if verdict.taken is None else repr(_excerpt(verdict.taken))
    taken = "all of it" if verdict.taken == text else taken
    return [
        f"{ui.clean(problem)}  {word}{reward}{why}",
        f"    took    {ui.clean(taken)}",
        f"    answer  {ui.clean(repr(_excerpt(answer)))}",
        f"    text    {ui.clean(_around(text, verdict.taken))}",
    ]


def _excerpt(text: str) -> str:
    return text if len(text) <= EXCERPT else text[: EXCERPT - 3] + "..."


def _around(text: str, taken: str | None) -> str:
    """The text about the last place of what was taken; its end where that isn't found."""
    place = text.rfind(taken) if taken else -1
    end = len(text) if place < 0 or taken is None else min(len(text), place + len(taken) + 10)
    start = max(0, end - EXCERPT)
    return "..." * (start > 0) + text[start:end] + "..." * (end < len(text))


def to_json(one: Judged) -> dict[str, Any]:
    verdict = one.verdict
    return {
        "where": one.where,
        "problem": one.problem.id,
        "answer": one.problem.answer,
        "text": one.text,
        "correct": verdict.correct,
        "reward": verdict.reward,
        "taken": verdict.taken,
        "detail": verdict.detail,
        "fault": verdict.fault,
    }


def summary(judged: list[Judged]) -> dict[str, Any]:
    rewards = [one.verdict.reward for one in judged if one.verdict.reward is not None]
    return {
        "completions": len(judged),
        "correct": sum(one.verdict.correct for one in judged),
        "not_scorable": len(judged) - len(rewards),
        "mean_reward": sum(rewards) / len(rewards) if rewards else None,
    }


def sentence(found: dict[str, Any]) -> str:
    count, correct = found["completions"], found["correct"]
    mean = found["mean_reward"]
    parts = [f"{correct:,} of {count:,} correct ({100 * correct / count:.1f}%)"]
    if mean is not None:
        parts.append(f"mean reward {mean:.3g}")
    if found["not_scorable"]:
        parts.append(f"{found['not_scorable']:,} not scorable")
    return ", ".join(parts)
