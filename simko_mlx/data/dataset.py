"""A set of problems, split into those to train on and those held out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from simko_mlx.types import Problem, UserError, require


@dataclass(frozen=True)
class Dataset:
    """``notes`` are sentences that the user should read: what was dropped, renamed or moved.

    ``pass_rates`` are those that were measured, by problem id; see ``pass_rates.py``.
    """

    train: list[Problem]
    heldout: list[Problem]
    notes: list[str] = field(default_factory=list)
    pass_rates: Mapping[str, float] = field(default_factory=dict)


def content_hash(messages: Sequence[dict[str, str]], answer: str) -> str:
    """What a problem is called when its row has no id: 16 hex digits of prompt and answer."""
    return _hash([[[m["role"], m["content"]] for m in messages], answer])


def unique_ids(problems: Iterable[Problem], where: str) -> tuple[list[Problem], list[str]]:
    """Problems whose ids differ: the second of a name gets "#2". Notes say how many did."""
    taken: set[str] = set()
    counts: dict[str, int] = {}
    renamed = 0
    result = []
    for problem in problems:
        name = problem.id
        while name in taken:
            counts[problem.id] = counts.get(problem.id, 1) + 1
            name = f"{problem.id}#{counts[problem.id]}"
        taken.add(name)
        renamed += name != problem.id
        result.append(problem if name == problem.id else replace(problem, id=name))
    if not renamed:
        return result, []
    return result, [f"{_rows(renamed)} of {where} had an id twice: the later ones got #2, #3 ..."]


def without_repeats(problems: list[Problem], where: str) -> tuple[list[Problem], list[str]]:
    """One problem of each prompt: the one whose content has the smallest hash, so that the order
    of the rows doesn't decide which answer counts. Notes say how many were left out."""
    chosen: dict[str, tuple[str, int]] = {}
    answers: dict[str, set[str]] = {}
    for i, problem in enumerate(problems):
        prompt, mine = _prompt(problem), (content_hash(problem.messages, problem.answer), i)
        chosen[prompt] = min(mine, chosen.get(prompt, mine))
        answers.setdefault(prompt, set()).add(problem.answer)
    dropped = len(problems) - len(chosen)
    if not dropped:
        return problems, []
    kept = {i for _, i in chosen.values()}
    differ = sum(len(some) > 1 for some in answers.values())
    more = f" ({differ:,} of those prompts have answers that differ)" if differ else ""
    note = f"{_rows(dropped)} of {where} repeated a prompt{more}: left out, see data.deduplicate."
    return [problem for i, problem in enumerate(problems) if i in kept], [note]


def repeats(problems: Iterable[Problem]) -> int:
    """How many problems have the prompt of one before them."""
    found = [_prompt(problem) for problem in problems]
    return len(found) - len(set(found))


def hold_out(problems: list[Problem], count: int, where: str) -> Dataset:
    """Holds out the ``count`` different prompts whose content has the smallest hash.

    Neither the order of the rows nor a seed matters, so that adding rows moves few problems and a
    shuffled file has the same held-out set. Every other row with a held-out prompt leaves the
    training set too.

    Raises:
        UserError: nothing would be left to train on.
    """
    if count == 0:
        return Dataset(problems, [])
    hashes = [content_hash(p.messages, p.answer) for p in problems]
    order = sorted(range(len(problems)), key=lambda i: (hashes[i], problems[i].id))
    chosen: dict[str, int] = {}
    for i in order:
        if len(chosen) == count:
            break
        chosen.setdefault(_prompt(problems[i]), i)
    train = [p for p in problems if _prompt(p) not in chosen]
    require(
        len(chosen) == count and bool(train),
        f"data.heldout is {count} but {where} has only {_rows(len(problems))} with "
        f"{len({_prompt(p) for p in problems})} different prompts: lower data.heldout, or name "
        "held-out problems with data.eval_path.",
    )
    dropped = len(problems) - count - len(train)
    note = f"{_rows(dropped)} of {where} repeated a held-out prompt: left out."
    return Dataset(train, [problems[i] for i in chosen.values()], [note] if dropped else [])


def without_overlap(train: list[Problem], heldout: list[Problem], where: str) -> Dataset:
    """Takes every row out of ``train`` whose prompt is held out.

    Raises:
        UserError: nothing would be left to train on.
    """
    prompts = {_prompt(p) for p in heldout}
    kept = [p for p in train if _prompt(p) not in prompts]
    if train and not kept:
        raise UserError(
            f"Every prompt of {where} is also among the held-out problems, so that nothing is left "
            "to train on: name other problems to hold out (data.eval_path or data.eval_split)."
        )
    dropped = len(train) - len(kept)
    note = f"{_rows(dropped)} of {where} had a held-out prompt: left out."
    return Dataset(kept, heldout, [note] if dropped else [])


def _prompt(problem: Problem) -> str:
    return _hash([[m["role"], m["content"]] for m in problem.messages])


def _hash(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return blake2b(text.encode("ascii"), digest_size=8).hexdigest()


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
