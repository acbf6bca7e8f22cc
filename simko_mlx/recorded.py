"""Completions that were recorded in a file, judged as a run would judge them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simko_mlx import data
from simko_mlx.config import Config
from simko_mlx.data.jsonl import rows as jsonl_rows
from simko_mlx.data.rows import BadRow, json_able, lookup
from simko_mlx.types import STOP, Completion, Problem, RolloutGroup, UserError, Verdict, require
from simko_mlx.verifiers.pool import VerifierPool

TEXTS = ("text", "completion", "completions", "response", "output")
IDS = ("problem", "id", "problem_id")


@dataclass(frozen=True)
class Judged:
    """One recorded completion, the line that it is in, and what the verifier says of it."""

    where: str
    problem: Problem
    text: str
    verdict: Verdict


def judge(config: Config, path: Path) -> tuple[list[Judged], list[str]]:
    """(every completion of a JSON-lines file with its verdict, notes on the data set).

    A row has a completion as ``text`` or ``completion``, or several as ``completions``, and names
    its problem by ``problem`` or ``id``, as ``rollouts.jsonl`` of a run does; or it has an answer
    of its own, at ``data.answer``, with the columns that the verifier needs.

    Raises:
        UserError: the file or one of its rows can't be used, or the verifier can't.
    """
    require(path.is_file(), f"There is no file {path}: name one with recorded completions.")
    rows = list(jsonl_rows(path))
    require(bool(rows), f"{path} has no rows: write one JSON object with a completion per line.")
    known, notes = _problems(config, rows)
    groups, wheres = [], []
    for where, row in rows:
        if isinstance(row, BadRow):
            raise UserError(f"{where}: {row}; correct it.")
        require(isinstance(row, Mapping), f"{where}: it is no object with named columns.")
        texts = _texts(row, where)
        completions = tuple(_completion(text, row) for text in texts)
        groups.append(RolloutGroup(_problem(row, known, config, where), (), completions))
        wheres.append(where)
    with VerifierPool(config.verifier) as pool:
        verdicts = pool.verify_groups(groups)
    judged = [
        Judged(where, group.problem, completion.text, verdict)
        for where, group, mine in zip(wheres, groups, verdicts, strict=True)
        for completion, verdict in zip(group.completions, mine, strict=True)
    ]
    return judged, notes


def _problems(config: Config, rows: list[tuple[str, Any]]) -> tuple[dict[str, Problem], list[str]]:
    """The problems of the config by their ids, where a row names one."""
    if not any(isinstance(row, Mapping) and _id(row) is not None for _, row in rows):
        return {}, []
    dataset = data.load(config.data)
    return {p.id: p for p in [*dataset.train, *dataset.heldout]}, dataset.notes


def _id(row: Mapping[str, Any]) -> str | None:
    return next((str(row[name]) for name in IDS if isinstance(row.get(name), (str, int))), None)


def _texts(row: Mapping[str, Any], where: str) -> list[str]:
    for name in TEXTS:
        if name in row:
            value = row[name]
            texts = [_text(part) for part in value] if _is_several(value) else [_text(value)]
            found = [text for text in texts if text is not None]
            if len(found) < len(texts) or not found:
                raise UserError(f"{where}: {name!r} is neither text nor a list of texts.")
            return found
    raise UserError(
        f"{where}: there is no completion; name it 'text', or 'completions' for several (the row "
        f"has {', '.join(map(str, row)) or 'nothing'})."
    )


def _is_several(value: Any) -> bool:
    return isinstance(value, list) and not (value and isinstance(value[0], Mapping))


def _text(value: Any) -> str | None:
    """Text, or that of a list with one message of the assistant's."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        value = value[-1].get("content")
    return value if isinstance(value, str) else None


def _completion(text: str, row: Mapping[str, Any]) -> Completion:
    ids = row.get("token_ids")
    known = isinstance(ids, list) and all(isinstance(i, int) for i in ids)
    token_ids = tuple(ids) if known and ids else ()
    return Completion(token_ids, (0.0,) * len(token_ids), text, STOP)


def _problem(
    row: Mapping[str, Any], known: Mapping[str, Problem], config: Config, where: str
) -> Problem:
    name = _id(row)
    if name in known:
        return known[str(name)]
    columns = json_able(row)
    try:
        answer = lookup(columns, config.data.answer, "data.answer")
    except BadRow as error:
        reason = f"no problem of the data has the id {name!r}" if name else "it names no problem"
        raise UserError(
            f"{where}: {reason}, and it has no answer of its own ({error}): correct the id, or add "
            "the answer."
        ) from error
    messages: tuple[dict[str, str], ...] = (
        {"role": "user", "content": str(row.get("prompt", ""))},
    )
    return Problem(name or where, messages, str(answer), columns)
