"""Problems of a task of reasoning-gym: ``gym:chain_sum``.

``data.size`` problems to train on and ``data.heldout`` others, all made from ``data.seed``. The
verifier of the same name scores their answers with the entry that each row holds.

They are made in a process of their own: some tasks depend on the order of sets of texts, which
Python shuffles anew in each process, or draw from the generator that all share.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

from simko_mlx.config import DataConfig
from simko_mlx.data.dataset import Dataset, content_hash, hold_out, unique_ids
from simko_mlx.data.rows import json_able
from simko_mlx.types import Problem, UserError
from simko_mlx.verifiers import gym

# Where several answers are right, a task names one of them in its metadata.
_EXAMPLES = ("possible_answer", "example_answer", "example_correct_answer")


def load(config: DataConfig) -> Dataset:
    """The problems of the task that ``data.source`` names, the same ones every time.

    Raises:
        UserError: reasoning-gym isn't installed, there is no such task, or it can't make so many.
    """
    task = config.source.partition(":")[2]
    gym.check(task)
    found = entries(task, config.seed, config.size + config.heldout)
    problems, _ = unique_ids(map(problem, found), config.source)
    return hold_out(problems, config.heldout, config.source)


_PROGRAM = """
import json, sys
settings = json.loads(sys.argv[1])
sys.path[:] = settings["path"]
from simko_mlx.data.gym import make
out, sys.stdout = sys.stdout, sys.stderr
json.dump(make(settings["task"], settings["seed"], settings["size"]), out)
"""


def entries(task: str, seed: int, size: int) -> list[dict]:
    """What ``make`` makes, in a process where texts have the same hash each time.

    Raises:
        UserError: the task can't make so many.
    """
    path = [os.path.abspath(entry) for entry in sys.path]
    settings = {"task": task, "seed": seed, "size": size, "path": path}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM, json.dumps(settings)],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"gym:{task} can't make {size} problems from seed {seed} ({last[:300]}): lower "
            "data.size or data.heldout, or choose another data.seed or task."
        )
    return json.loads(done.stdout)


def make(task: str, seed: int, size: int) -> list[dict]:
    """The entries of reasoning-gym, in JSON's types."""
    data = gym.dataset(task, seed=seed, size=size)
    made = []
    for place in range(size):
        random.seed(f"{seed} {place}")  # for tasks that don't keep to a generator of their own
        entry = data[place]
        made.append(json_able({key: entry[key] for key in ("question", "answer", "metadata")}))
    return made


def problem(entry: dict) -> Problem:
    """One entry, which stays in the columns."""
    messages = ({"role": "user", "content": entry["question"]},)
    answer = _answer(entry)
    return Problem(content_hash(messages, answer), messages, answer, entry)


def _answer(entry: dict) -> str:
    if isinstance(entry["answer"], str):
        return entry["answer"]
    found = next((entry["metadata"][k] for k in _EXAMPLES if k in entry["metadata"]), "")
    return found if isinstance(found, str) else json.dumps(found)
