"""LoRA layers on a base model: new ones, or those of an adapter of mlx-lm's or PEFT's."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

from simko_mlx import hub, peft_adapter
from simko_mlx.config import Config, to_dict
from simko_mlx.types import UserError, require
from simko_mlx.weights_file import Entry, check_safetensors, is_number, read_json_object

WEIGHTS, SETTINGS = "adapters.safetensors", "adapter_config.json"


def new_adapter(model: nn.Module, config: Config) -> dict[str, Any]:
    """Puts fresh LoRA layers on a model, where the config wants them; mlx-lm's adapter settings.

    Raises:
        UserError: the settings don't fit the model.
    """
    policy = config.policy
    if policy.fine_tune_type == "lora":
        try:
            linear_to_lora_layers(model, policy.num_layers, to_dict(policy.lora_parameters))
        except ValueError as error:
            raise UserError(f"policy.lora_parameters does not fit this model: {error}.") from error
    return {
        "fine_tune_type": policy.fine_tune_type,
        "model": config.model,
        "num_layers": policy.num_layers,
        "lora_parameters": to_dict(policy.lora_parameters),
    }


def find_adapter(config: Config) -> Path:
    """The folder of the adapter that ``policy.adapter_path`` names, downloaded if need be.

    Raises:
        UserError: there is no such folder or repository, or no adapter in it.
    """
    name, revision = str(config.policy.adapter_path), config.policy.adapter_revision
    path = Path(name).expanduser()
    if path.exists():
        require(
            revision is None,
            f"policy.adapter_revision is {revision!r}, but the adapter {name!r} is on this machine "
            "and has no revisions: leave it out.",
        )
        files = (file for file in (*path.glob("*"), *path.glob("mlx/*")) if file.is_file())
        return path / _choose([file.relative_to(path).as_posix() for file in files], name)[0]
    require(hub.looks_like_id(name), f"policy.adapter_path is {name!r}: there is no such folder.")
    hub.refuse_revision(name, "policy.adapter_path", "policy.adapter_revision")
    repo = hub.Repo(name, revision, "adapter", "policy.adapter_path", "policy.adapter_revision")
    folder, wanted = _choose(hub.file_names(repo), name)
    return hub.download(repo, [*wanted, "README.md"]) / folder


def _choose(names: list[str], adapter: str) -> tuple[str, list[str]]:
    """Among the files of an adapter: the folder to take (PEFT's beside mlx-lm's in ``mlx/`` is how
    they are pushed), and the files in it."""
    for folder, weights in (("", WEIGHTS), ("mlx/", WEIGHTS), ("", peft_adapter.WEIGHTS)):
        wanted = [folder + weights, folder + SETTINGS]
        if wanted[0] in names:
            missing = f"{adapter} is not an adapter: it has {wanted[0]}, but no {wanted[1]}."
            require(wanted[1] in names, missing)
            return folder, wanted
    require(
        not any(name.endswith((".bin", ".pt", ".pth")) for name in names),
        f"{adapter} holds its weights as a pickle, which may run a program when it is loaded: save "
        "it as adapter_model.safetensors with PEFT.",
    )
    raise UserError(
        f"{adapter} is not an mlx-lm adapter: it has no {WEIGHTS}, nor PEFT's "
        f"{peft_adapter.WEIGHTS}."
    )


def start_from(model: nn.Module, adapter: Path, config: Config) -> dict[str, Any]:
    """Puts an adapter of mlx-lm's or PEFT's form on a model; its settings in mlx-lm's.

    Raises:
        UserError: it is damaged, or doesn't fit the model or the config.
    """
    folder, wanted = _choose([file.name for file in adapter.glob("*")], str(adapter))
    if wanted[0] != peft_adapter.WEIGHTS:
        return _start_from(model, adapter / folder, str(adapter), config)
    with TemporaryDirectory() as temporary:
        for name, content in peft_adapter.mlx_form(adapter).items():
            Path(temporary, name).write_bytes(content)
        settings = _start_from(model, Path(temporary), str(adapter), config)
        mx.eval([v for n, v in _flat(model).items() if n.endswith((".lora_a", ".lora_b"))])
        return settings


def _start_from(model: nn.Module, folder: Path, name: str, config: Config) -> dict[str, Any]:
    entries = check_safetensors(folder / WEIGHTS)
    settings = read_json_object(folder / SETTINGS)
    kind = settings.get("fine_tune_type", "lora")
    require(kind in ("lora", "full"), f"{name} is a {kind} adapter, which can't be trained here.")
    require(
        kind == config.policy.fine_tune_type,
        f"{name} is a {kind} adapter but policy.fine_tune_type is "
        f"{config.policy.fine_tune_type}: set it to {kind}, or start from another adapter.",
    )
    if kind == "lora":
        _check_settings(settings, entries, folder)
    try:
        load_adapters(model, str(folder))
    except (ValueError, KeyError, AttributeError) as error:
        text = " ".join(str(error).replace(str(folder), name).split())[:300]
        raise UserError(f"{name} does not fit the model {config.model}: {text}.") from error
    if kind == "lora":
        _check_loaded(model, entries, name, config)
    return {**settings, "model": config.model}


def _check_settings(settings: dict[str, Any], entries: dict[str, Entry], folder: Path) -> None:
    """What mlx-lm would take as it is: with NaN for a scale or a rank of a billion."""
    path, parameters = folder / SETTINGS, settings.get("lora_parameters")
    fix = "restore the file, or start from another adapter"
    require(isinstance(parameters, dict), f"{path}: lora_parameters is no JSON object: {fix}.")
    assert isinstance(parameters, dict)
    lora = {n: e for n, e in entries.items() if n.endswith((".lora_a", ".lora_b"))}
    ranks = {e.shape[-1 if n.endswith("a") else -2] for n, e in lora.items() if len(e.shape) > 1}
    rank = parameters.get("rank")
    for key, value, fine, must in (
        ("rank", rank, lambda v: type(v) is int and v > 0, "a whole number above 0"),
        ("scale", parameters.get("scale"), is_number, "a finite number"),
        (
            "dropout",
            parameters.get("dropout"),
            lambda v: is_number(v) and 0 <= v < 1,
            "a number from 0 up to, not including, 1",
        ),
        (
            "keys",
            parameters.get("keys"),
            lambda v: v is None or (isinstance(v, list) and all(isinstance(k, str) for k in v)),
            "a list of names of layers",
        ),
    ):
        shown = json.dumps(value)[:60]
        require(fine(value), f"{path}: lora_parameters.{key} is {shown}, not {must}: {fix}.")
    layers = json.dumps(settings.get("num_layers"))[:60]
    require(
        type(settings.get("num_layers")) is int,
        f"{path}: num_layers is {layers}, not a whole number: {fix}.",
    )
    require(bool(lora), f"{folder / WEIGHTS} has no LoRA matrices: {fix}.")
    # Before layers of that rank are made.
    require(
        rank in ranks,
        f"{path}: lora_parameters.rank is {rank}, but the matrices of {WEIGHTS} have rank "
        f"{', '.join(map(str, sorted(ranks))) or 'none'}: {fix}.",
    )


def _check_loaded(model: nn.Module, entries: dict[str, Entry], name: str, config: Config) -> None:
    """mlx-lm leaves layers without weights in the file as they begin, and takes any number."""
    flat = _flat(model)
    lora = {n: v for n, v in flat.items() if n.endswith((".lora_a", ".lora_b"))}
    missing = sorted(lora.keys() - entries.keys())
    require(
        not missing,
        f"{name} does not fit the model {config.model}: {len(missing)} of its LoRA matrices are "
        f"missing, such as {missing[0] if missing else ''}.",
    )
    wrong = [n for n in sorted(lora) if not mx.all(mx.isfinite(lora[n])).item()]
    require(
        not wrong,
        f"{name}: {wrong[0] if wrong else ''} holds NaN or infinity: start from another adapter.",
    )


def _flat(model: nn.Module) -> dict[str, mx.array]:
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(model.parameters())))


def ignored_settings(settings: dict[str, Any], config: Config) -> list[str]:
    """A note where the config asks for another LoRA than the adapter that is started from."""
    wanted = {"num_layers": config.policy.num_layers, **to_dict(config.policy.lora_parameters)}
    given = {"num_layers": settings.get("num_layers"), **(settings.get("lora_parameters") or {})}
    differing = [key for key in wanted if key in given and wanted[key] != given[key]]
    if config.policy.fine_tune_type == "full" or not differing:
        return []
    values = ", ".join(f"{key} {_short(given[key])}" for key in differing)
    return [f"The adapter's own LoRA settings are used: {values}."]


def _short(value: Any) -> str:
    return f"of {len(value)} layers" if isinstance(value, list) and len(value) > 3 else str(value)
