"""Calls the user's reward function as TRL does, and reads what it returns.

    def reward(prompts, completions, completion_ids, **columns) -> list[float | None]

One call judges one whole group. Only what the signature accepts is passed, by keyword:

- ``prompts``, ``completions``, ``completion_ids``: one entry per completion.
- every column of the problem's row, repeated for each completion, except ``prompt``,
  ``completion`` and ``completion_ids`` (TRL leaves these out).
- ``answer`` and ``answers``: the problem's answer as text, unless the row has such a column;
  ``types``: its column ``type``. mlx-lm-lora's reward functions ask for these.
- a function with ``**kwargs`` gets all of it. TRL's ``trainer_state``, ``log_extra`` and
  ``log_metric`` are not passed: without a trainer of TRL there is nothing to hand over.

As in TRL the format follows the data set: where the row holds its prompt as a list of messages
(a conversational data set), prompts are lists of messages and completions are
``[{"role": "assistant", "content": text}]``; where it is a plain string, both are strings.
(TRL looks at the column ``prompt``; here it may have any name.)

None means "not applicable" and gives a verdict without reward. The function may be async.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sized
from numbers import Real
from typing import Any

from simko_mlx.imports import describe, import_function, raised_at
from simko_mlx.types import UserError, Verdict, require
from simko_mlx.verifiers import asynchronous

NOT_APPLICABLE = Verdict(None, False, "not applicable")
_OURS = ("prompt", "completion", "completion_ids")


class RewardFunction:
    """The user's function; calling it with a request of the pool gives a verdict per completion."""

    def __init__(self, path: str, correct_at: float, options: Mapping[str, Any] | None = None):
        """``options`` are passed by name with every call."""
        self.path = path
        self.options = dict(options or {})
        self.correct_at = correct_at
        self.function = import_function(path, "verifier.name", with_cwd=True)
        self.names, self.required = _parameters(self.function)
        for name in self.options:
            require(
                self.names is None or name in self.names,
                f"The reward function {path} has no parameter {name!r}, which verifier.options "
                "sets.",
            )
        self.wants_ids = self.names is None or "completion_ids" in self.names

    def __call__(self, request: dict[str, Any]) -> list[Verdict]:
        """Raises UserError when the function raises or returns something else than it should."""
        values = self._arguments(request)
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        # The one place where code that isn't ours is called: whatever it raises is its author's
        # mistake to hear about, and must not end the worker without a word.
        try:
            returned = asynchronous.result(self.function(**values))
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            place = raised_at(error, getattr(code, "co_filename", None))
            raise UserError(
                f"The reward function {self.path} raised {describe(error)} at {place}; correct it "
                "there."
            ) from error
        return self._verdicts(returned, len(request["completions"]))

    def _arguments(self, request: dict[str, Any]) -> dict[str, Any]:
        texts, columns = request["completions"], request["columns"]
        each = {name: value for name, value in columns.items() if name not in _OURS}
        each.setdefault("answer", request["answer"])
        each.setdefault("answers", request["answer"])
        each.setdefault("types", columns.get("type"))
        values: dict[str, Any] = {name: [value] * len(texts) for name, value in each.items()}
        values |= self.options
        values["completion_ids"] = request.get("completion_ids")
        messages = request["messages"]
        if request["conversational"]:
            values["prompts"] = [[dict(message) for message in messages] for _ in texts]
            values["completions"] = [[{"role": "assistant", "content": text}] for text in texts]
        else:
            values["prompts"] = [messages[-1]["content"]] * len(texts)
            values["completions"] = texts
        for name in self.required:
            if name not in values:
                raise UserError(self._missing(name, values))
        if self.names is None:
            return values
        return {name: value for name, value in values.items() if name in self.names}

    def _missing(self, name: str, values: dict[str, Any]) -> str:
        close = difflib.get_close_matches(name, values, n=1)
        nearest = f"; the nearest is {close[0]}" if close else ""
        return (
            f"The reward function {self.path} has the parameter {name!r}, which no column of the "
            f"data has{nearest}: rename it, or give it a default (there are "
            f"{', '.join(sorted(values))})."
        )

    def _verdicts(self, returned: Any, wanted: int) -> list[Verdict]:
        is_list = isinstance(returned, Iterable) and isinstance(returned, Sized)
        if not is_list or isinstance(returned, (str, bytes, dict)):
            raise UserError(
                f"The reward function {self.path} returned a {type(returned).__name__}; it must "
                f"return a list with one reward per completion."
            )
        rewards = list(returned)
        if len(rewards) != wanted:
            raise UserError(
                f"The reward function {self.path} returned {len(rewards)} rewards for {wanted} "
                "completions; return exactly one for each."
            )
        return [self._verdict(reward, index) for index, reward in enumerate(rewards)]

    def _verdict(self, reward: Any, index: int) -> Verdict:
        if reward is None:
            return NOT_APPLICABLE
        # numpy, mlx and torch scalars are numbers to their author; item() gives Python's.
        number = reward.item() if hasattr(reward, "item") else reward
        if not isinstance(number, Real) or not math.isfinite(number):
            raise UserError(
                f"The reward function {self.path} returned {str(reward)[:60]!r} for completion "
                f"{index}; a reward is a finite number, or None where it doesn't apply."
            )
        return Verdict(float(number), float(number) >= self.correct_at)


def _parameters(function: Callable[..., Any]) -> tuple[set[str] | None, list[str]]:
    """(names that it accepts, None for all; names that it can't do without)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some callables written in C have no signature
        return None, []
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [p for p in parameters if p.kind in by_name]
    required = [p.name for p in named if p.default is inspect.Parameter.empty]
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None, required
    return {p.name for p in named}, required
