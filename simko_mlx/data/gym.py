"""Problems of a task of reasoning-gym: ``gym:chain_sum``.

``data.size`` problems to train on and ``data.heldout`` others, all made from ``data.seed``. The
verifier of the same name scores their answers with the entry that each row holds.
"""

from __future__ import annotations

import json

from simko_mlx.config import DataConfig
from simko_mlx.data.dataset import Dataset, content_hash, unique_ids, without_overlap
from simko_mlx.data.rows import json_able
from simko_mlx.types import Problem, UserError
from simko_mlx.verifiers import gym

# Where several answers are right, a task names one of them in its metadata.
_EXAMPLES = ("possible_answer", "example_answer", "example_correct_answer")


def load(config: DataConfig) -> Dataset:
    """The problems of the task that ``data.source`` names.

    Raises:
        UserError: reasoning-gym isn't installed, or there is no such task.
    """
    task = config.source.partition(":")[2]
    gym.check(task)
    total = config.size + config.heldout
    try:
        entries = list(gym.dataset(task, seed=config.seed, size=total))
    # A generator that isn't ours, which may run out of problems.
    except (ValueError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"gym:{task} can't make {total} problems from seed {config.seed} ({error}): lower "
            "data.size or data.heldout."
        ) from error
    problems, _ = unique_ids(map(_problem, entries), config.source)
    # The held-out ones come first, so that data.size may change and they stay.
    return without_overlap(problems[config.heldout :], problems[: config.heldout], config.source)


def _problem(entry: dict) -> Problem:
    columns = json_able({key: entry[key] for key in ("question", "answer", "metadata")})
    messages = ({"role": "user", "content": columns["question"]},)
    answer = _answer(columns)
    return Problem(content_hash(messages, answer), messages, answer, columns)


def _answer(columns: dict) -> str:
    if isinstance(columns["answer"], str):
        return columns["answer"]
    found = next((columns["metadata"][k] for k in _EXAMPLES if k in columns["metadata"]), "")
    return found if isinstance(found, str) else json.dumps(found)
