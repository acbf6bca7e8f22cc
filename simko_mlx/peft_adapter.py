"""A LoRA adapter that PEFT saved, in mlx-lm's form.

mlx-lm has one rank and one scale for all layers. Matrices of a smaller rank are filled up with
zeros, and where PEFT scales a layer differently, its ``lora_b`` is multiplied: what the adapter
does to the model stays the same.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import safetensors.numpy

from simko_mlx.peft_format import adapted_modules, from_peft
from simko_mlx.types import UserError, require
from simko_mlx.weights_file import check_safetensors, is_number, read_json_object

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
# Settings with which a PEFT adapter is more than two matrices for each layer.
MORE = (
    "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "layer_replication",
    "alora_invocation_tokens", "use_qalora", "target_parameters", "use_bdlora", "arrow_config",
    "kasa_config", "monteclora_config",
)  # fmt: skip
# Ways to start that change the base model's own weights, too.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_INSTEAD = "start from an adapter of plain LoRA"


def mlx_form(folder: Path) -> dict[str, bytes]:
    """The adapter of a folder as mlx-lm's two files, name -> content.

    Raises:
        UserError: the adapter is damaged, or says what mlx-lm's LoRA can't.
    """
    path = folder / SETTINGS
    settings = read_json_object(path)
    _check(settings, path)
    weights = _weights(folder)
    modules = adapted_modules(weights)
    require(bool(modules), f"{folder / WEIGHTS} has no LoRA matrices: {_INSTEAD}.")
    ranks = {module: _rank(weights, module, folder / WEIGHTS) for module in modules}
    scales = {module: _scale(settings, module, ranks[module], path) for module in modules}
    scale, rank = Counter(scales.values()).most_common(1)[0][0], max(ranks.values())
    for module in modules:
        a, b = weights[f"{module}.lora_a"], weights[f"{module}.lora_b"]
        if scales[module] != scale:
            b = b * np.float32(scales[module] / scale)
        more = rank - ranks[module]
        weights[f"{module}.lora_a"] = np.ascontiguousarray(np.pad(a, ((0, 0), (0, more))))
        weights[f"{module}.lora_b"] = np.ascontiguousarray(np.pad(b, ((0, more), (0, 0))))
    parameters = {
        "rank": rank,
        "scale": scale,
        "dropout": settings.get("lora_dropout", 0.0),
        "keys": modules,
    }
    ours = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    return {
        "adapters.safetensors": safetensors.numpy.save(weights, {"format": "mlx"}),
        "adapter_config.json": json.dumps(ours, indent=2).encode() + b"\n",
    }


def _check(settings: dict[str, Any], path: Path) -> None:
    kind = settings.get("peft_type")
    require(
        kind == "LORA", f"{path}: peft_type is {kind!r}, which can't be trained here: {_INSTEAD}."
    )
    for key in MORE:
        value = settings.get(key)
        short = "set" if isinstance(value, (dict, list)) else json.dumps(value)
        require(not value, f"{path}: {key} is {short}, which mlx-lm's LoRA hasn't: {_INSTEAD}.")
    bias = settings.get("bias", "none")
    require(bias == "none", f"{path}: bias is {bias!r}, and biases can't be trained: {_INSTEAD}.")
    start = settings.get("init_lora_weights", True)
    require(
        not (isinstance(start, str) and start.lower().startswith(CHANGES_BASE)),
        f"{path}: init_lora_weights is {start!r}, which changes the base model as well: convert "
        "the adapter to plain LoRA with PEFT (save_pretrained with path_initial_model_for_weight_"
        "conversion).",
    )
    wrong = f"{path}: {{}} is {{!r}}, which must be {{}}: restore the file."
    rslora = settings.get("use_rslora", False)
    require(isinstance(rslora, bool), wrong.format("use_rslora", rslora, "true or false"))
    dropout = settings.get("lora_dropout", 0.0)
    fine = is_number(dropout) and 0 <= dropout < 1
    require(fine, wrong.format("lora_dropout", dropout, "from 0 up to, not including, 1"))
    _alpha_fits(settings.get("lora_alpha"), "lora_alpha", path)
    patterns = settings.get("alpha_pattern") or {}
    require(isinstance(patterns, dict), wrong.format("alpha_pattern", patterns, "an object"))
    for key, value in patterns.items():
        _alpha_fits(value, f"alpha_pattern of {key}", path)
        # A regular expression of a stranger's may take for ever.
        require(
            re.fullmatch(r"\^?[\w.\\]+\$?", key) is not None,
            f"{path}: alpha_pattern has the key {key!r}, and only names of layers are read here: "
            "write each layer's name out.",
        )


def _alpha_fits(value: Any, name: str, path: Path) -> None:
    require(
        is_number(value) and value > 0,
        f"{path}: {name} is {value!r}, which must be a number above 0: restore the file.",
    )


def _weights(folder: Path) -> dict[str, np.ndarray]:
    """The matrices under mlx-lm's names, float32."""
    path = folder / WEIGHTS
    check_safetensors(path)
    # MLX's reader, because numpy has no bfloat16.
    loaded: Any = mx.load(str(path))
    tensors = {name: np.array(value.astype(mx.float32)) for name, value in loaded.items()}
    try:
        weights = from_peft(tensors)
    except KeyError as error:
        raise UserError(
            f"{path}: {error.args[0]} is no matrix of plain LoRA: {_INSTEAD}."
        ) from error
    return weights


def _rank(weights: Mapping[str, np.ndarray], module: str, path: Path) -> int:
    a, b = weights[f"{module}.lora_a"], weights.get(f"{module}.lora_b")
    fits = b is not None and a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0] > 0
    require(fits, f"{path}: the two matrices of {module} don't fit together: restore the file.")
    return a.shape[1]


def _scale(settings: dict[str, Any], module: str, rank: int, path: Path) -> float:
    """As PEFT has it: the first pattern that matches a module's name or its last parts."""
    alpha = settings["lora_alpha"]
    for key, value in (settings.get("alpha_pattern") or {}).items():
        try:
            matches = re.match(rf"(.*\.)?({key})$", module)
        except re.error as error:
            raise UserError(
                f"{path}: alpha_pattern has the key {key!r}, which is no pattern: correct it."
            ) from error
        if matches:
            alpha = value
            break
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
