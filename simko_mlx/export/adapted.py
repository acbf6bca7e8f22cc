"""The base model with a run's adapter on it, in MLX."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from simko_mlx.export.source import Source
from simko_mlx.types import require


def named(model: nn.Module) -> dict[str, mx.array]:
    """Dotted name -> parameter."""
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(model.parameters())))


def put_on(model: nn.Module, source: Source) -> None:
    """Gives a base model what a run has trained, at the scale of the source.

    Raises:
        UserError: the model has no such weights.
    """
    if source.is_lora:
        put_lora_on(model, source.settings["num_layers"], _parameters(source))
    has = named(model)
    changed = []
    for name, trained in source.weights.items():
        require(
            name in has and has[name].shape == trained.shape,
            f"The run trained {name}, and {source.config.model} has no such weight: is it still "
            "the model that the run was made with?",
        )
        array = mx.array(trained)
        if not source.is_lora and source.scale != 1:
            start = has[name].astype(mx.float32)
            array = start + source.scale * (array - start)
        changed.append((name, array))
    model.update(tree_unflatten(changed))
    model.eval()


def put_lora_on(model: nn.Module, num_layers: int, parameters: dict[str, Any]) -> None:
    """Puts LoRA layers on a model as mlx-lm does; they have no effect yet."""
    linear_to_lora_layers(model, num_layers, {"dropout": 0.0, **parameters})


def _parameters(source: Source) -> dict[str, Any]:
    return {**source.settings["lora_parameters"], "scale": source.lora_scale, "dropout": 0.0}
