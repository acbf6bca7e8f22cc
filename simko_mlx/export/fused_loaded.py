"""The fused model where mlx-lm lays weights out differently from the base's files: mlx-lm loads
the model, which takes its whole size in memory, and writes it in its own layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.utils import dequantize_model, save_model

from simko_mlx.export.adapted import named, put_on
from simko_mlx.export.base import Base
from simko_mlx.export.base_files import copy_files, new_config, require_space
from simko_mlx.export.source import Source
from simko_mlx.export.tensors import DTYPES
from simko_mlx.model_files import load_files
from simko_mlx.types import require

FLOATS = (mx.float32, mx.float16, mx.bfloat16)


def write_loaded(source: Source, base: Base, folder: Path, dtype: str | None) -> list[str]:
    """Writes the fused model as mlx-lm has it; notes as ``write_fused``'s.

    Raises:
        UserError: the adapter has a layer that the model hasn't, or one can't be dequantised.
    """
    model, _ = load_files(base.path, base.name, lazy=True)
    own = _own_types(model)
    quantized = any(hasattr(module, "bits") for module in model.modules())
    _to_full_scales(model)
    put_on(model, source)
    _fuse_lora(model)
    dequantize_model(model)
    left = [name for name, module in model.named_modules() if hasattr(module, "bits")]
    require(
        not left,
        f"{''.join(left[:1])} is quantised in a way that mlx-lm can't undo: use --to mlx.",
    )
    notes = _cast(model, own, None if dtype is None else DTYPES[dtype])
    types = {array.dtype for array in named(model).values()} & set(FLOATS)
    require_space(folder, sum(array.nbytes for array in named(model).values()))
    save_model(folder, model, donate_model=True)
    one = DTYPES[dtype] if dtype else (types.pop() if quantized and len(types) == 1 else None)
    written_as = None if one is None else str(one).removeprefix("mlx.core.")
    text_only = not any("vision_tower" in name for name, _ in model.named_modules())
    config = new_config(base.path, dequantized=quantized, dtype=written_as, text_only=text_only)
    copy_files(base.path, folder, config)
    return notes


def _own_types(model: nn.Module) -> dict[str, mx.Dtype]:
    """Name -> type that a parameter is to have; of a quantised layer that of its scales."""
    parameters = named(model)
    types = {}
    for name, array in parameters.items():
        scales = parameters.get(f"{name.rpartition('.')[0]}.scales")
        if array.dtype == mx.uint32 and scales is not None:
            types[name] = scales.dtype if scales.dtype in FLOATS else mx.bfloat16
        else:
            types[name] = array.dtype
    return types


def _to_full_scales(model: nn.Module) -> None:
    """Makes scales float32, so that weights aren't rounded before the change is added."""
    for module in model.modules():
        layer: Any = module
        if hasattr(layer, "bits") and layer.mode == "affine":
            layer.scales = layer.scales.astype(mx.float32)
            layer.biases = layer.biases.astype(mx.float32)


def _fuse_lora(model: nn.Module) -> None:
    fused = []
    for name, module in model.named_modules():
        layer: Any = module
        if "lora_a" not in layer:
            continue
        inner = layer.embedding if "embedding" in layer else layer.linear
        if inner.weight.dtype in FLOATS:  # mlx-lm computes the change in the weight's type
            inner.weight = inner.weight.astype(mx.float32)
        fused.append((name, layer.fuse(dequantize=True)))
    model.update_modules(tree_unflatten(fused))


def _cast(model: nn.Module, own: dict[str, mx.Dtype], dtype: mx.Dtype | None) -> list[str]:
    notes, changed = [], []
    for name, array in named(model).items():
        wanted = own.get(name, array.dtype)
        if dtype is not None and wanted in FLOATS:
            wanted = dtype
        rounded = array.astype(wanted)
        if wanted == mx.float16 and array.dtype != mx.float16:
            lost: Any = mx.sum(mx.isfinite(array) & ~mx.isfinite(rounded)).item()
            count = int(lost)
            if count:
                notes.append(overflow_note(name, count))
        changed.append((name, rounded))
    model.update(tree_unflatten(changed))
    return notes


def overflow_note(name: str, count: int) -> str:
    return (
        f"{name}: {count:,} values are beyond what float16 can hold and became infinite; export "
        "with --dtype bf16 instead."
    )
