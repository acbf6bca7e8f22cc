"""A classic environment of the package ``verifiers``: ``environment:gsm8k``.

What follows the colon is the environment's id, whose module has a ``load_environment()``, or an
import path ``package.module:function`` to such a function of no arguments. Its rubric's reward
functions judge our completions, each row being one of its data set's, which the problem source of
the same name delivers (``simko_mlx/data/environment.py``). The reward is their weighted sum.

Only single-turn environments: in any other the completion isn't the whole answer. ``verifiers``
itself is no dependency, and isn't imported here: the environment does that. "Classic" are those of
its versions 0.1, whose rubric is a list of functions.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from simko_mlx.imports import describe, import_function, raised_at
from simko_mlx.types import UserError, Verdict, require
from simko_mlx.verifiers import asynchronous

_GROUP = {"states", "prompts", "completions", "answers", "tasks", "infos"}
# Whatever a rubric's function asks of a rollout's state, as far as a single turn has it.
_STATE = {"turn": 1, "is_completed": True, "is_truncated": False, "error": None, "metrics": {}}


class Message(dict):
    """A message of a chat; some reward functions read ``m["content"]``, some ``m.content``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


def make(name: str, *, correct_at: float = 1.0) -> Callable[..., Verdict]:
    """The verifier of one environment; a reward from ``correct_at`` on counts as correct.

    Raises:
        UserError: there is no such environment, or it can't be used here.
    """
    environment = load(name, "verifier.name")
    scoring = list(reward_functions(environment.rubric, name))
    require(bool(scoring), f"environment:{name} has no reward functions: choose another verifier.")
    chat = getattr(environment, "message_type", "chat") == "chat"

    def verify(completion: str, answer: str, columns: Mapping[str, Any]) -> Verdict:
        values = _arguments(completion, answer, columns, chat)
        reward, parts = 0.0, []
        for function, weight, objects in scoring:
            found = _call(function, {**values, **objects}, name)
            reward += weight * found
            parts.append(f"{getattr(function, '__name__', 'function')} {found:.3g}")
        return Verdict(reward, reward >= correct_at, ", ".join(parts))

    return verify


def load(name: str, key: str) -> Any:
    """The environment that a name stands for; ``key`` is the config key that it was written in.

    Raises:
        UserError: it can't be loaded, or isn't a single-turn environment with a rubric.
    """
    path = name
    if ":" not in name:
        path = f"{name.split('/')[-1].replace('-', '_')}:load_environment"
    function = import_function(path, key, with_cwd=True)
    # Code that isn't ours: whatever it raises is its author's mistake to hear about.
    try:
        environment = function()
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{key} is 'environment:{name}': loading it raised {describe(error)} at "
            f"{raised_at(error)}; correct it there, or write a function of no arguments that loads "
            "it."
        ) from error
    kinds = {kind.__name__ for kind in type(environment).__mro__}
    require(
        hasattr(environment, "rubric") and hasattr(environment, "get_dataset"),
        f"environment:{name} is a {type(environment).__name__}, not a classic environment of "
        "verifiers (0.1) with a rubric and a data set: use one, or a reward function of your own.",
    )
    require(
        "SingleTurnEnv" in kinds,
        f"environment:{name} is a {type(environment).__name__}, which takes several turns or "
        "tools, and only single-turn environments can be used: choose one.",
    )
    return environment


def reward_functions(
    rubric: Any, name: str
) -> Iterator[tuple[Callable[..., Any], float, Mapping[str, Any]]]:
    """(function, weight, what it is handed beside the rollout) of a rubric or a group of them."""
    for inner in getattr(rubric, "rubrics", ()):
        yield from reward_functions(inner, name)
    functions = getattr(rubric, "funcs", None) or getattr(rubric, "reward_funcs", None) or []
    weights = getattr(rubric, "weights", None) or getattr(rubric, "reward_weights", None) or []
    objects = {"parser": getattr(rubric, "parser", None), **getattr(rubric, "class_objects", {})}
    for function, weight in zip(functions, weights, strict=True):
        group = _GROUP & set(inspect.signature(function).parameters)
        require(
            not group,
            f"environment:{name} has the reward function {getattr(function, '__name__', '')}, "
            "which compares a group's completions, and only functions of one completion can be "
            "used: choose another environment.",
        )
        yield function, float(weight), objects


def _arguments(
    completion: str, answer: str, columns: Mapping[str, Any], chat: bool
) -> dict[str, Any]:
    """All that a rubric's functions may ask for by name."""
    row = dict(columns)
    info = row.get("info") or {}
    if isinstance(info, str):
        try:
            info = json.loads(info)
        except ValueError as error:
            raise UserError(
                f"The column 'info' isn't JSON ({error}): correct the environment's data set."
            ) from error
    said = [Message(role="assistant", content=completion)] if chat else completion
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        prompt = [Message(m) if isinstance(m, Mapping) else m for m in prompt]
    row |= {"prompt": prompt, "completion": said, "info": info}
    row |= {"answer": row.get("answer", answer), "task": row.get("task", "default")}
    turn = {"prompt": prompt, "completion": said}
    return row | {"state": {**_STATE, **row, "input": dict(columns), "trajectory": [turn]}}


def _call(function: Callable[..., Any], values: Mapping[str, Any], name: str) -> float:
    """Raises UserError when the function raises, or returns no number."""
    parameters = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        values = {key: value for key, value in values.items() if key in parameters}
    code = getattr(inspect.unwrap(function), "__code__", None)
    # The rubric itself would turn what is raised here into a reward of 0, and nobody would know.
    try:
        return float(asynchronous.result(function(**values)))
    except (Exception, SystemExit) as error:
        place = raised_at(error, getattr(code, "co_filename", None))
        raise UserError(
            f"The reward function {getattr(function, '__name__', '')} of environment:{name} raised "
            f"{describe(error)} at {place}; correct it there."
        ) from error
