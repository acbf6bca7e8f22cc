"""Where configuration values come from: defaults < file < environment < flags < --set.

Everything is checked here, before any model is touched: unknown keys (with the nearest valid
name), wrong types, duplicate keys, each with the place where it was written.
"""

from __future__ import annotations

import difflib
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from simko_mlx.config import Config, key_types, set_key, to_dict
from simko_mlx.config_checks import validate
from simko_mlx.types import UserError, require

ENV_PREFIX = "SIMKO_MLX__"
DEFAULT_RECIPE = "countdown-tiny"
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")

# What people who come from mlx-lm, TRL or the paper's code try first.
ELSEWHERE = {
    "num_generations": "rollout.group_size", "beta": "loss.kl_coef", "epsilon": "loss.clip_low",
    "epsilon_high": "loss.clip_high", "iters": "steps", "max_steps": "steps",
    "mix_topk_coef": "loss.alpha", "tau": "loss.entropy_quantile", "top_k": "loss.simko_k",
    "lambda_top1": "loss.rank1_penalty", "max_tokens": "rollout.max_completion_length",
    "resume_adapter_file": "policy.adapter_path", "rank": "policy.lora_parameters.rank",
    "save_every": "checkpoint.every", "steps_per_eval": "eval.every", "loss_type": "loss.name",
    "enable_thinking": "prompt.thinking", "reward_funcs": "verifier.name",
    "data": "data.path", "train_type": "policy.fine_tune_type", "adapter_path": "output_dir",
    "per_device_train_batch_size": "rollout.problems_per_step", "batch_size": "rollout.batch_size",
    "lr": "optim.learning_rate", "iterations": "steps", "max_seq_length": "prompt.max_length",
    "max_prompt_length": "prompt.max_length", "grad_clip": "optim.max_grad_norm",
    "save_total_limit": "checkpoint.keep", "save_steps": "checkpoint.every",
    "dataset_name": "data.path", "dataset_config": "data.subset", "dataset_train_split":
    "data.split", "prompt_feature": "data.prompt", "num_fewshot": "prompt.few_shot",
}  # fmt: skip


@dataclass
class Resolved:
    """A validated config, and for each dotted key the place that its value came from."""

    config: Config
    origins: dict[str, str]
    recipe: str


def recipe_path(name: str) -> Path:
    """The YAML file of a recipe: a path as it is, or the name of one that ships with the package.

    Raises:
        UserError: there is no such file.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    here = Path(__file__).parent
    # Installed as package data, or beside the package in a source checkout.
    folders = [here / "recipes", here.parent / "configs"]
    for folder in folders:
        for candidate in (folder / name, folder / f"{name}.yaml", folder / path.name):
            if candidate.is_file():
                return candidate
    shipped = sorted({f.stem for folder in folders for f in folder.glob("*.yaml")})
    raise UserError(
        f"There is no config file {name!r}: give a path, or one of the recipes "
        f"{', '.join(shipped)}."
    )


def resolve(
    path: str | None,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
) -> Resolved:
    """Merges all sources into one validated config.

    Args:
        path: a YAML file or recipe name; None for the recipe of the embedded model.
        environ: variables such as SIMKO_MLX__OPTIM__LEARNING_RATE=1e-5 are read from it.
        flags: dotted key -> value of command-line flags; None values are ignored.
        sets: "key=value" strings, the value in YAML.

    Raises:
        UserError: one sentence with file and line, variable or flag, and the fix.
    """
    file = recipe_path(path or DEFAULT_RECIPE)
    merge = _Merge()
    merge.file(file)
    merge.overrides(environ, flags, sets)
    merge.rescale_schedule()
    validate(merge.config)
    return Resolved(merge.config, merge.origins, file.stem)


def from_run(path: Path) -> Config:
    """The config that a run directory was made with.

    Raises:
        UserError: the file is missing or can't be read.
    """
    merge = _run_merge(path)
    validate(merge.config)
    return merge.config


def _run_merge(path: Path) -> _Merge:
    require(path.is_file(), f"{path.parent} is not a run directory: it has no {path.name}.")
    merge = _Merge()
    merge.file(path)
    return merge


def resume_config(
    run_dir: Path,
    *,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Resolved:
    """The config of a run, with what this command changes on top.

    Whether a run may go on with a changed key is for the trainer to say.

    Raises:
        UserError: there is no such run, or a change is not valid.
    """
    merge = _run_merge(run_dir / "config.yaml")
    merge.overrides(environ, flags, sets)
    merge.rescale_schedule()
    validate(merge.config)
    return Resolved(merge.config, merge.origins, run_dir.resolve().name)


def dump(config: Config) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


# Which arguments of mlx's schedules are rates.
_RATES = {
    "cosine_decay": (0, 2),
    "linear_schedule": (0, 1),
    "exponential_decay": (0,),
    "step_decay": (0,),
}


def _strength(origin: str) -> int:
    """How strong a source is: default < file < environment < flag < --set."""
    for rank, word in ((4, "--set"), (3, "flag --"), (2, "environment "), (0, "default")):
        if origin.startswith(word):
            return rank
    return 1


class _Merge:
    """A config under construction, with the origin of each value."""

    def __init__(self) -> None:
        self.config = Config()
        self.types = key_types()
        self.origins = dict.fromkeys(self.types, "default")

    def file(self, path: Path) -> None:
        try:
            root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} can't be read: {error}.") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            problem = getattr(error, "problem", None) or "it is not valid YAML"
            raise UserError(f"{where}: {problem}; correct the YAML there.") from error
        if root is None:
            return
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{path}: a config is a mapping of keys to values, like 'seed: 1'.")
        self._node(root, "", path, set())

    def overrides(
        self,
        environ: Mapping[str, str] | None,
        flags: Mapping[str, Any] | None,
        sets: Sequence[str],
    ) -> None:
        """What comes after the file, weakest first."""
        for name, text in sorted((os.environ if environ is None else environ).items()):
            if name.startswith(ENV_PREFIX):
                key = name[len(ENV_PREFIX) :].lower().replace("__", ".")
                self.set(key, _parse(text, f"environment variable {name}"), f"environment {name}")
        for key, value in (flags or {}).items():
            if value is not None:
                self.set(key, value, f"flag --{key.rsplit('.', 1)[-1].replace('_', '-')}")
        for item in sets:
            key, equals, text = item.partition("=")
            require(bool(equals), f"--set {item}: write it as key=value, e.g. --set seed=1.")
            self.set(key.strip(), _parse(text, f"--set {item}"), f"--set {item}")

    def _node(self, node: yaml.MappingNode, prefix: str, path: Path, seen: set[str]) -> None:
        """``seen``: the keys of the whole file; `a.b: 1` and `b: 1` under `a:` are the same."""
        for key_node, value_node in node.value:
            where = f"{path}:{key_node.start_mark.line + 1}"
            key = prefix + str(key_node.value)
            require(key not in seen, f"{where}: {key} is given twice; keep one of them.")
            seen.add(key)
            section = any(name.startswith(f"{key}.") for name in self.types)
            if section and isinstance(value_node, yaml.MappingNode):
                self._node(value_node, f"{key}.", path, seen)
            else:
                self.set(key, _construct(value_node, where), where)

    def set(self, key: str, value: Any, origin: str) -> None:
        if key not in self.types:
            inside = [name for name in self.types if name.startswith(f"{key}.")]
            if inside and isinstance(value, dict):
                for name, item in value.items():
                    self.set(f"{key}.{name}", item, origin)
                return
            if inside:
                raise UserError(
                    f"{origin}: {key} is a section, not a value; it has the keys "
                    f"{', '.join(sorted(name.removeprefix(key + '.') for name in inside))}."
                )
            raise UserError(f"{origin}: there is no key {key!r}{self._suggest(key)}.")
        set_key(self.config, key, _convert(key, value, self.types[key], origin))
        self.origins[key] = origin

    def rescale_schedule(self) -> None:
        """A learning rate that comes from a stronger source than the schedule sets its height.

        mlx-lm's schedules hold rates of their own; left alone, `--set optim.learning_rate` would
        change nothing in a recipe with a schedule.
        """
        rate, schedule = "optim.learning_rate", "optim.lr_schedule"
        optim = self.config.optim
        if optim.lr_schedule is None:
            return
        if _strength(self.origins[rate]) <= _strength(self.origins[schedule]):
            return
        arguments = optim.lr_schedule.get("arguments")
        places = _RATES.get(optim.lr_schedule.get("name", ""), ())
        if not isinstance(arguments, list):
            return
        places = [i for i in places if i < len(arguments)]
        if not all(isinstance(arguments[i], (int, float)) for i in places):
            return
        peak = max((arguments[i] for i in places), default=0)
        if peak > 0 and peak != optim.learning_rate:
            factor = optim.learning_rate / peak
            scaled = [
                a if i not in places else optim.learning_rate if a == peak else a * factor
                for i, a in enumerate(arguments)
            ]
            optim.lr_schedule = {**optim.lr_schedule, "arguments": scaled}
            self.origins[schedule] += f", rescaled to {rate}"

    def _suggest(self, key: str) -> str:
        last = key.rsplit(".", 1)[-1]
        if last in ELSEWHERE and ELSEWHERE[last] != key:
            return f"; here it is called {ELSEWHERE[last]}"
        same = [name for name in self.types if name.rsplit(".", 1)[-1] == last]
        close = same or difflib.get_close_matches(key, self.types, n=1, cutoff=0.6)
        if not close:
            lasts = {name.rsplit(".", 1)[-1]: name for name in self.types}
            close = [lasts[m] for m in difflib.get_close_matches(last, lasts, n=1, cutoff=0.6)]
        if not close:
            close = difflib.get_close_matches(key, self.types, n=1, cutoff=0.0)
        return f"; the nearest is {close[0]} (`simko-mlx train --dry-run` lists all keys)"


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date like 2026-13-45
        raise UserError(f"{where}: the value is not valid YAML; quote it.") from error


def _construct(node: yaml.Node, where: str) -> Any:
    try:
        return yaml.SafeLoader("").construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where}: the value is not valid YAML; quote it.") from error


def _convert(key: str, value: Any, hint: Any, origin: str) -> Any:
    """The value as the key's type, or a UserError. YAML reads 1e-4 as text: numbers in text are
    accepted where a number is wanted."""
    origin_type = get_origin(hint)
    if origin_type is Literal:
        choices = get_args(hint)
        # YAML 1.1 reads `never: off` style words as booleans; none of our choices is one.
        require(
            value in choices,
            f"{origin}: {key} is {value!r}; choose one of {', '.join(map(str, choices))}.",
        )
        return value
    if origin_type in (types.UnionType, typing.Union):
        if value is None:
            return None
        inner = next(arg for arg in get_args(hint) if arg is not type(None))
        return _convert(key, value, inner, origin)
    if origin_type is list:
        item = get_args(hint)[0]
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            value = str(value).split(",")
        if not isinstance(value, list):
            wanted = f"a list like [1, 2], each {_name(item)}"
            raise UserError(_wrong(key, value, wanted, origin))
        return [_convert(key, part, item, origin) for part in value]
    if origin_type is dict:
        require(isinstance(value, dict), _wrong(key, value, "a mapping", origin))
        return _numbers(value)
    return _scalar(key, value, hint, origin)


def _scalar(key: str, value: Any, hint: type, origin: str) -> Any:
    message = _wrong(key, value, _name(hint), origin)
    if hint is bool:
        require(isinstance(value, bool), message)
        return value
    if isinstance(value, (bool, dict, list)) or value is None:
        raise UserError(message)
    if hint is str:
        return str(value)
    try:
        number = float(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(message) from error
    require(number == number and abs(number) != float("inf"), message)
    if hint is float:
        return number
    require(number == int(number), message)
    # A whole number beyond 2**53 doesn't survive the way through a float.
    return value if isinstance(value, int) else int(number)


def _numbers(value: Any) -> Any:
    """Free-form values with 1e-4, which YAML reads as text, as the number that was meant."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        return float(value)
    return value


def _name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, str(hint))


def _wrong(key: str, value: Any, wanted: str, origin: str) -> str:
    return f"{origin}: {key} is {value!r}; it must be {wanted}."
