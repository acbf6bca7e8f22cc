"""Problems from a folder as mlx-lm's own training takes it: train.jsonl, valid.jsonl, test.jsonl.

Its rows are ``messages``, ``prompt`` with ``completion``, or ``text``; they are told apart row by
row. Held out are those of valid.jsonl, or of test.jsonl where that is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simko_mlx.config import DataConfig
from simko_mlx.data import jsonl
from simko_mlx.data.dataset import Dataset
from simko_mlx.data.files import Found, collect, read, split
from simko_mlx.data.rows import BadRow, Rows
from simko_mlx.types import require

HELD_OUT = ("valid.jsonl", "test.jsonl")
PROMPT, ANSWER = DataConfig.prompt, DataConfig.answer  # the columns' names by default


def load(config: DataConfig) -> Dataset:
    """The problems of ``data.path``, a folder.

    Raises:
        UserError: it has no train.jsonl, or a row is no problem and isn't to be dropped.
    """
    folder = Path(config.path or "").expanduser()
    require(
        folder.is_dir(),
        f"data.path is {config.path!r}: for data.source=mlx-lm name a folder with train.jsonl.",
    )
    names = sorted(path.name for path in folder.glob("*"))
    require(
        "train.jsonl" in names,
        f"{folder} has no train.jsonl (it has {', '.join(names[:10]) or 'nothing'}): name the "
        "folder that mlx-lm's --data takes.",
    )
    heldout: Found | None = None
    other = next((folder / name for name in HELD_OUT if name in names), None)
    if config.eval_path is not None:
        heldout = read(config.eval_path, config, "data.eval_path")
    elif other is not None:
        heldout = _read(other, config)
    return split(_read(folder / "train.jsonl", config), heldout, str(folder), config)


def _read(file: Path, config: DataConfig) -> Found:
    return collect(_rows(file, config), str(file), config)


def _rows(file: Path, config: DataConfig) -> Rows:
    for where, row in jsonl.rows(file):
        try:
            yield where, with_columns(row, config) if isinstance(row, Mapping) else row
        except BadRow as error:
            yield where, error


def with_columns(row: Mapping[str, Any], config: DataConfig) -> Mapping[str, Any]:
    """The row with the columns ``prompt`` and ``answer``, unless the config names others.

    Raises:
        BadRow: there is nothing that could be the answer.
    """
    row = dict(row)
    if config.prompt == PROMPT and PROMPT not in row:
        if "messages" in row:
            row[PROMPT], gold = _taken_apart(row["messages"])
            if gold is not None:
                row.setdefault(ANSWER, gold)
            elif config.answer == ANSWER and ANSWER not in row:
                raise BadRow(
                    "its messages don't end with the assistant's, so that there is no answer: name "
                    "the column that holds it in data.answer"
                )
        elif "text" in row:
            row[PROMPT] = row["text"]
            if config.answer == ANSWER and ANSWER not in row:
                raise BadRow(
                    "it has only text, and nothing says which part is the answer: name the column "
                    "that holds it in data.answer"
                )
    if "completion" in row:
        row.setdefault(ANSWER, row["completion"])
    return row


def _taken_apart(messages: Any) -> tuple[Any, Any]:
    """(the messages before the last one of the assistant's, what that one says or None)."""
    if not isinstance(messages, list) or not messages:
        return messages, None
    last = messages[-1]
    if isinstance(last, Mapping) and last.get("role") == "assistant":
        return messages[:-1], last.get("content")
    return messages, None
