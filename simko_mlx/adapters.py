"""LoRA layers on a base model: new ones, or those of an mlx-lm adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

from simko_mlx.config import Config, to_dict
from simko_mlx.model_files import check_safetensors
from simko_mlx.types import UserError, require


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


def start_from(model: nn.Module, adapter: Path, config: Config) -> dict[str, Any]:
    """Puts an mlx-lm adapter on a model; its settings.

    Raises:
        UserError: it is damaged, or doesn't fit the model or the config.
    """
    for name in ("adapter_config.json", "adapters.safetensors"):
        message = f"{adapter} is not an mlx-lm adapter: it has no {name}."
        require((adapter / name).is_file(), message)
    check_safetensors(adapter / "adapters.safetensors")
    try:
        settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        kind = settings.get("fine_tune_type", "lora")
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{adapter / 'adapter_config.json'} is not a JSON object: restore it, or start from "
            "another adapter."
        ) from error
    require(
        kind in ("lora", "full"), f"{adapter} is a {kind} adapter, which can't be trained here."
    )
    require(
        kind == config.policy.fine_tune_type,
        f"{adapter} is a {kind} adapter but policy.fine_tune_type is "
        f"{config.policy.fine_tune_type}: set it to {kind}, or start from another adapter.",
    )
    try:
        load_adapters(model, str(adapter))
    except (ValueError, KeyError, AttributeError) as error:
        text = " ".join(str(error).split())[:300]
        raise UserError(f"{adapter} does not fit the model {config.model}: {text}.") from error
    return {**settings, "model": config.model}


def ignored_settings(settings: dict[str, Any], config: Config) -> list[str]:
    """A note where the config asks for another LoRA than the adapter that is started from."""
    wanted = {"num_layers": config.policy.num_layers, **to_dict(config.policy.lora_parameters)}
    given = {"num_layers": settings.get("num_layers"), **(settings.get("lora_parameters") or {})}
    differing = [key for key in wanted if key in given and wanted[key] != given[key]]
    if config.policy.fine_tune_type == "full" or not differing:
        return []
    values = ", ".join(f"{key} {given[key]}" for key in differing)
    return [f"The adapter's own LoRA settings are used: {values}."]
