"""Solved problems to put before a question (few-shot prompts)."""

from __future__ import annotations

import dataclasses
from hashlib import blake2b

from simko_mlx.config import DataConfig, PromptConfig
from simko_mlx.data import load
from simko_mlx.data.files import read
from simko_mlx.data.rows import BadRow, lookup, text_of
from simko_mlx.types import Problem, UserError, require

Messages = tuple[dict[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Example:
    """A problem's messages, and what is shown as the answer to them."""

    messages: Messages
    solution: str


def solved(prompt: PromptConfig, data: DataConfig) -> list[Example]:
    """One more than ``prompt.few_shot`` examples, so that none needs to be its own question's: the
    first of ``prompt.few_shot_path``, or problems to train on, chosen by a hash of their ids. None
    has the prompt of a held-out problem.

    Raises:
        UserError: there are too few, or one has no ``prompt.few_shot_answer``.
    """
    dataset = load(data)
    if prompt.few_shot_path is None:
        where = "the problems to train on"
        found = sorted(dataset.train, key=lambda p: _hash(p.id))
    else:
        where = prompt.few_shot_path
        found, _ = read(where, dataclasses.replace(data, limit=None), "prompt.few_shot_path")
    heldout = {_key(p.messages) for p in dataset.heldout}
    found = [p for p in found if _key(p.messages) not in heldout]
    needed = prompt.few_shot + (prompt.few_shot_path is None)  # each of these is a question, too
    require(
        len(found) >= needed,
        f"prompt.few_shot is {prompt.few_shot} but there are only {len(found)} examples in "
        f"{where} whose prompts aren't held out: lower it.",
    )
    return [_example(p, prompt.few_shot_answer) for p in found[: prompt.few_shot + 1]]


def before(examples: list[Example], problem: Problem, count: int) -> list[Example]:
    """The examples that come before a problem's question."""
    mine = _key(problem.messages)
    return [e for e in examples if _key(e.messages) != mine][:count]


def _example(problem: Problem, column: str | None) -> Example:
    messages = tuple(m for m in problem.messages if m["role"] != "system")
    if column is None:
        return Example(messages, problem.answer)
    try:
        solution = text_of(lookup(problem.columns, column, "prompt.few_shot_answer"))
        if not solution.strip():
            raise BadRow(f"its {column!r} is empty or no text")
    except BadRow as error:
        raise UserError(
            f"Problem {problem.id} can't be an example: {error}; correct prompt.few_shot_answer."
        ) from error
    return Example(messages, solution)


def _key(messages: Messages) -> tuple[tuple[str, str], ...]:
    """The prompt without its system message, which examples don't repeat."""
    return tuple((m["role"], m["content"]) for m in messages if m["role"] != "system")


def _hash(name: str) -> bytes:
    return blake2b(
        name.encode("utf-8", "surrogatepass"), digest_size=8, person=b"few-shot"
    ).digest()
