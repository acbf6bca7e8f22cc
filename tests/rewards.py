"""Reward functions for short runs, in a file that a worker process imports quickly."""

from __future__ import annotations


def lower_case(completions: list[str]) -> list[float]:
    """How much of a completion is lower case: random models differ in that, too."""
    return [sum(c.islower() for c in text) / max(1, len(text)) for text in completions]


def sometimes(completions: list[str], answer: list[str]) -> list[float | None]:
    """The last number decides; what has a minus sign isn't applicable."""
    return [
        None if "-" in text else float(text.endswith(f" {gold}"))
        for text, gold in zip(completions, answer, strict=True)
    ]


def shows_work(completions: list[str], answer: list[str], **columns: object) -> list[float]:
    """An answer alone isn't enough."""
    return [float(text.endswith(f"= {a}")) for text, a in zip(completions, answer, strict=True)]
