"""Problems of reasoning-gym, ``gym:<task>``, scored by the task's own ``score_answer``.

The row holds the task's entry: ``question``, ``answer`` and ``metadata``, as the problem source
``gym:<task>`` makes it (``simko_mlx/data/gym.py``). The answer is what stands in the completion's
last ``<answer>...</answer>``; without such tags all of the completion is. The reward is the task's
score, which may give something for a near miss or a mere try; correct is a score of 1.

Tasks that reward wrong answers in full, or refuse their own, are in ``gym_tasks.py`` with the
reason; ``benchmarks/gym_tasks.py`` is how they were found.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from simko_mlx.types import UserError, Verdict
from simko_mlx.verifiers.gym_tasks import EVALUATED, EXCLUDED, TUPLES

MAX_CHARS = 20_000  # of an answer; the longest of a task's own that were seen have 2,000

# Some tasks hand the answer to Python's eval or to SymPy's parser, which evaluates it as well: they
# get to see only what can call nothing but these functions.
_FUNCTIONS = frozenset(
    [
        *("Abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "cot", "csc"),
        *("exp", "ln", "log", "pi", "sec", "sin", "sinh", "sqrt", "tan", "tanh"),
    ]
)
_CHARACTERS = re.compile(r"[\w\s+\-*/^().,=]*")
# As ["a", "b"]: without parentheses nothing is called.
_LIST = re.compile(r"[\w\s\[\],.'\"\-]*")
_ATTRIBUTE = re.compile(r"\.\s*[^\W\d]|__")


def make(task: str) -> Callable[..., Verdict]:
    """The verifier of one task.

    Raises:
        UserError: reasoning-gym isn't installed, has no such task, or it is excluded.
    """
    score = scorer(task)

    def verify(completion: str, answer: str, columns: Mapping[str, Any]) -> Verdict:
        entry = entry_of(columns, task)
        taken = answer_of(completion)
        if not taken:
            return Verdict(0.0, False, "no answer", taken)
        if len(taken) > MAX_CHARS:
            return Verdict(0.0, False, f"an answer of {len(taken)} characters", taken[:100])
        if task in EVALUATED and taken != entry["answer"] and not harmless(taken):
            return Verdict(0.0, False, "not what this task may evaluate", taken)
        # Code that isn't ours, over text that it may not expect.
        try:
            reward = float(score(taken, entry))
        except Exception as error:
            if taken == entry["answer"]:
                raise
            if isinstance(entry["answer"], str):
                score(entry["answer"], entry)  # raises, too, where the row is to blame
            return Verdict(0.0, False, f"the task raised {type(error).__name__}", taken)
        return Verdict(reward, reward >= 1, "" if reward >= 1 else f"score {reward:.3g}", taken)

    return verify


@cache
def scorer(task: str) -> Callable[[str, Mapping[str, Any]], float]:
    """``score_answer`` of a task with its default settings."""
    check(task)
    return dataset(task, size=1, seed=0).score_answer


def dataset(task: str, **settings: Any) -> Any:
    """A data set of reasoning-gym."""
    import reasoning_gym

    return reasoning_gym.create_dataset(task, **settings)


def check(task: str) -> None:
    """Raises UserError unless reasoning-gym is installed and has this task, which may be used."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError(
            "The tasks gym:... need the extra: pip install 'simko-mlx[gym]'."
        ) from error
    if task in EXCLUDED:
        raise UserError(f"gym:{task} can't be used: {EXCLUDED[task]}. Choose another task.")
    if task not in DATASETS:
        known = sorted(set(DATASETS) - set(EXCLUDED))
        close = difflib.get_close_matches(task, known, n=1, cutoff=0.4)
        nearest = f"the nearest is gym:{close[0]}" if close else f"gym:{known[0]} is one"
        raise UserError(f"reasoning-gym has no task {task!r}: {nearest} of {len(known)}.")


def entry_of(columns: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The entry of reasoning-gym that a row holds."""
    entry = {key: columns.get(key) for key in ("question", "answer", "metadata")}
    if not isinstance(entry["metadata"], Mapping):
        raise UserError(
            f"The verifier gym:{task} needs the columns question, answer and metadata of "
            f"reasoning-gym: set data.source=gym:{task}."
        )
    if task in TUPLES:
        entry["metadata"] = _tuples(entry["metadata"])
    return entry


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def answer_of(completion: str) -> str:
    """What stands in the last pair of tags; all of it without one."""
    end = completion.rfind("</answer>")
    start = completion.rfind("<answer>", 0, end) if end >= 0 else -1
    return (completion[start + len("<answer>") : end] if start >= 0 else completion).strip()


def harmless(text: str) -> bool:
    """Whether evaluating a text can call nothing but a few functions of numbers."""
    if _ATTRIBUTE.search(text):
        return False
    if _LIST.fullmatch(text):
        return True
    names = re.findall(r"[^\W\d]\w*", text)
    return bool(_CHARACTERS.fullmatch(text)) and all(len(n) == 1 or n in _FUNCTIONS for n in names)
