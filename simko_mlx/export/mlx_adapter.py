"""The adapter for ``mlx_lm.load(adapter_path=...)``."""

from __future__ import annotations

import json
from typing import Any

from simko_mlx.export.source import Source, effective_weights
from simko_mlx.export.tensors import to_safetensors


def mlx_files(source: Source, dtype: str = "f32") -> dict[str, bytes]:
    """``adapters.safetensors`` and ``adapter_config.json``, file name -> content.

    Raises:
        UserError: a weight is too large for the type.
    """
    settings: dict[str, Any] = {k: v for k, v in source.settings.items() if k != "model"}
    if source.hub_model is not None:  # a folder's name says nothing on another machine
        settings["model"] = source.hub_model
    if source.is_lora:
        parameters = {**settings["lora_parameters"], "scale": source.lora_scale}
        settings["lora_parameters"] = parameters
    weights = to_safetensors(effective_weights(source), dtype, {"format": "mlx"})
    text = json.dumps(settings, indent=2)
    return {"adapters.safetensors": weights, "adapter_config.json": text.encode() + b"\n"}
