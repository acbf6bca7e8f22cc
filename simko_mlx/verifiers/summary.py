"""What can be checked of a summary: its length, the facts in it, what it copied, and ROUGE.

Only what an option asks for counts. The reward is the mean of these parts, each from 0 to 1; a
summary is correct when it has the right length, every fact and no span copied that is too long,
and ROUGE reaches ``min_rouge``. Words are compared without regard to case and punctuation.

These are proxies: none of them sees whether a summary is true or reads well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from simko_mlx.types import UserError, Verdict, require

_ROUGE_WORDS = 5000  # the longest common subsequence costs words times words


def verify(
    completion: str,
    answer: str,
    columns: Mapping[str, Any],
    *,
    words: Sequence[int] | None = None,
    facts: str | None = None,
    max_copied: int | None = None,
    source: str = "source",
    rouge: str | None = None,
    min_rouge: float = 0.0,
) -> Verdict:
    """Judges a summary.

    Args:
        words: the least and the greatest number of words.
        facts: the column with the facts to be found, each a text or a list of alternatives.
        max_copied: the longest run of words that it may share with the column ``source``.
        rouge: rouge1, rouge2, rougeL or another that the package rouge-score knows: the F measure
            against the row's answer.
        min_rouge: what that must reach for a correct summary.

    Raises:
        UserError: no option asks for anything, or a column isn't what it should be.
    """
    said = words_of(completion)
    scores: list[float] = []
    faults: list[str] = []
    if words is not None:
        _add(scores, faults, _length(said, words), f"{len(said)} words")
    if facts is not None:
        missing, total = _missing(said, columns.get(facts), facts)
        share = 1 - len(missing) / total
        _add(scores, faults, share, f"missing: {', '.join(missing)}"[:200])
    if max_copied is not None:
        span = copied(said, words_of(_text(columns.get(source), source)), max_copied + 1)
        _add(scores, faults, float(bool(said) and not span), f"copied: {span}"[:200])
    if rouge is not None:
        score = _rouge(completion, answer, rouge) if len(said) <= _ROUGE_WORDS else 0.0
        _add(scores, faults, score, f"{rouge} {score:.3f}", score >= min_rouge)
    require(
        bool(scores),
        "The verifier summary has nothing to check: set one of its options words, facts, "
        "max_copied and rouge.",
    )
    correct = bool(said) and not faults
    return Verdict(sum(scores) / len(scores), correct, "; ".join(faults))


def words_of(text: str) -> list[str]:
    return re.findall(r"\w++", text.casefold())


def copied(said: list[str], source: list[str], length: int) -> str:
    """The first run of so many words that both have; empty if there is none."""
    runs = {tuple(source[i : i + length]) for i in range(len(source) - length + 1)}
    for i in range(len(said) - length + 1):
        if (run := tuple(said[i : i + length])) in runs:
            return " ".join(run)
    return ""


def _add(
    scores: list[float], faults: list[str], score: float, fault: str, fine: bool | None = None
) -> None:
    scores.append(score)
    if not (score == 1 if fine is None else fine):
        faults.append(fault)


def _length(said: list[str], bounds: Sequence[int]) -> float:
    numbers = isinstance(bounds, Sequence) and all(isinstance(b, int) for b in bounds)
    if not numbers or len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]:
        raise UserError(
            f"verifier.options.words is {bounds!r}: give the least and the greatest number of "
            "words, as in [20, 60]."
        )
    return float(bool(said) and bounds[0] <= len(said) <= bounds[1])


def _missing(said: list[str], facts: Any, column: str) -> tuple[list[str], int]:
    """(the facts of which no alternative is there, how many facts there are)."""
    if not isinstance(facts, list) or not facts:
        raise UserError(
            f"The column {column!r} must hold a list of facts, each a text or a list of "
            "alternatives: correct verifier.options.facts, or the data."
        )
    text = f" {' '.join(said)} "
    missing = []
    for fact in facts:
        ways = fact if isinstance(fact, list) else [fact]
        wanted = [" ".join(words_of(_text(way, column))) for way in ways]
        require(
            bool(wanted) and all(wanted), f"The column {column!r} has a fact without words: fix it."
        )
        if not any(f" {way} " in text for way in wanted):
            missing.append(str(ways[0]))
    return missing, len(facts)


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"The verifier summary needs text in the column {column!r}: name another.")
    return value


def _rouge(completion: str, answer: str, kind: str) -> float:
    require(
        re.fullmatch(r"rouge(?:L|Lsum|[1-9])", kind) is not None,
        f"verifier.options.rouge is {kind!r}: choose rouge1, rouge2, rougeL or rougeLsum.",
    )
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise UserError("ROUGE needs the extra: pip install 'simko-mlx[summary]'.") from error
    return float(RougeScorer([kind]).score(answer, completion)[kind].fmeasure)
