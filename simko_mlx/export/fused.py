"""A model with the adapter's effect in its own weights.

The base model's files are written anew, tensor by tensor: what training changed is computed in
float32 and rounded once, all else is copied. So names, config, tokenizer and chat template are the
base's, and the folder loads wherever the base does. That needs the base's files to hold the adapted
weights as mlx-lm has them, which is compared, not believed; otherwise mlx-lm loads, fuses and
writes the model (``fused_loaded.py``).
"""

from __future__ import annotations

import errno
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from simko_mlx.export.base import Base
from simko_mlx.export.base_files import copy_files, new_config, require_space
from simko_mlx.export.changes import Change, LoraChange, Replacement, check_finite
from simko_mlx.export.fused_loaded import overflow_note, write_loaded
from simko_mlx.export.source import Source
from simko_mlx.export.tensor_files import (
    FLOATS,
    INDEX,
    NAMES,
    Stored,
    Written,
    cut,
    read_header,
    to_bytes,
    write_files,
    write_index,
)
from simko_mlx.export.tensors import DTYPES
from simko_mlx.model_files import load_files
from simko_mlx.types import UserError

EMBEDDINGS = (nn.Embedding, nn.QuantizedEmbedding)
LINEARS = (nn.Linear, nn.QuantizedLinear)
QUANTIZED = (nn.QuantizedEmbedding, nn.QuantizedLinear)


def write_fused(source: Source, base: Base, folder: Path, dtype: str | None = None) -> list[str]:
    """Writes the fused model into a folder; sentences that the user should read.

    Args:
        source: the run's checkpoint and the scale of its effect.
        base: its base model.
        folder: made if need be; files of the same names are overwritten.
        dtype: f32, f16 or bf16 for all floating-point weights. None: each as in the base, where
            that is quantised as its scales.

    Raises:
        UserError: the weights are not finite, the model can't be loaded, or the disk is full.
    """
    notes = fuse(source, base, folder, dtype)
    if base.quantization is not None and not _is_quantized(folder):
        notes.append(_dequantized_note(base, folder))
    return notes


def fuse(source: Source, base: Base, folder: Path, dtype: str | None = None) -> list[str]:
    """The same without a word about quantisation."""
    check_finite(source)
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        model, _ = load_files(base.path, base.name, lazy=True)
        rewriting = _Rewriting(source, base, model, dtype)
        problem = rewriting.problem()
        if problem is None:
            return rewriting.write(folder)
        return [
            f"{problem}, so the model is written as mlx-lm lays it out: it loads in mlx-lm and "
            "LM Studio, but not in transformers.",
            *write_loaded(source, base, folder, dtype),
        ]


def _is_quantized(folder: Path) -> bool:
    config = json.loads((folder / "config.json").read_bytes())
    return "quantization" in config or "quantization_config" in config


def _dequantized_note(base: Base, folder: Path) -> str:
    bits = (base.quantization or {}).get("bits")
    form = f"quantised to {bits} bits" if bits else "quantised"
    small = ["mlx_lm.convert", "--hf-path", str(folder), "-q", "--mlx-path", f"{folder}-quantized"]
    return (
        f"The base model is {form}; the fused one is in full precision, since rounding its weights "
        "again would round away part of what was learnt. Where that is too large: "
        f"`{shlex.join(small)}`, and measure what it costs."
    )


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"There is no space to write the model in {folder}: free some, or give another --out."
        ) from error


class _Rewriting:
    """The base model's files, and what becomes of each of their tensors."""

    def __init__(self, source: Source, base: Base, model: nn.Module, dtype: str | None):
        self.source = source
        self.base = base
        self.model = model
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        self.parameters = dict(cast(list[tuple[str, mx.array]], tree_flatten(model.parameters())))
        self.dtype = None if dtype is None else NAMES[DTYPES[dtype]]
        self.metadata: dict[str, str] = {}
        self.stored: dict[str, Stored] = {}
        for name in sorted({tensor.file for tensor in base.tensors.values()}):
            metadata, tensors = read_header(base.path / name)
            self.metadata |= metadata
            self.stored |= {tensor.name: tensor for tensor in tensors}
        self.changes: dict[str, Change] = {}
        self.overflows: dict[str, int] = {}

    # --- whether it can be done ----------------------------------------------------------------

    def problem(self) -> str | None:
        """Why the files can't be written anew as they are laid out: a clause, or None."""
        found = self._lora() if self.source.is_lora else self._full()
        return found or self._quantized_problem()

    def _lora(self) -> str | None:
        weights = self.source.weights
        for name in sorted({n.rpartition(".")[0] for n in weights}):
            module = self.modules.get(name)
            if type(module) not in (*EMBEDDINGS, *LINEARS):
                return f"{name} is no plain layer in mlx-lm"
            change = LoraChange(
                weights[f"{name}.lora_a"],
                weights[f"{name}.lora_b"],
                self.source.lora_scale,
                transposed=type(module) in LINEARS,
            )
            parts = ("weight", "scales", "biases") if type(module) in QUANTIZED else ("weight",)
            for part in parts:
                problem = self._differs(f"{name}.{part}")
                if problem:
                    return problem
            self.changes[f"{name}.weight"] = change
        return None

    def _full(self) -> str | None:
        for name, trained in self.source.weights.items():
            problem = self._differs(name)
            if problem:
                return problem
            self.changes[name] = Replacement(trained, self.source.scale)
        return None

    def _differs(self, name: str) -> str | None:
        """Why a tensor of the files is not the model's parameter of that name."""
        if name.endswith(".biases") and name not in self.parameters:
            return None  # of modes of quantisation that have none
        stored = self.stored.get(name)
        if stored is None:
            return f"The base model's files have no {name}"
        parameter = self.parameters.pop(name)
        known = {**FLOATS, "U32": mx.uint32, "U8": mx.uint8}
        same = (
            stored.shape == parameter.shape
            and known.get(stored.dtype) == parameter.dtype
            and bool(mx.array_equal(stored.array(), parameter, equal_nan=True).item())
        )
        # It has been read for the comparison, and must not stay.
        self.model.update(tree_unflatten([(name, mx.zeros(0))]))
        return None if same else f"{name} is laid out differently in the base model's files"

    def _quantized_problem(self) -> str | None:
        for name, tensor in self.stored.items():
            module, _, leaf = name.rpartition(".")
            if leaf != "weight" or tensor.dtype != "U32" or f"{module}.scales" not in self.stored:
                continue
            if type(self.modules.get(module)) not in QUANTIZED:
                return f"{module} is quantised and no plain layer in mlx-lm"
        return None

    # --- doing it ------------------------------------------------------------------------------

    def write(self, folder: Path) -> list[str]:
        written = [self._written(tensor) for tensor in self.stored.values()]
        kept = [tensor for tensor in written if tensor is not None]
        shards = self._shards(kept)
        require_space(folder, sum(tensor.size for tensor in kept))
        write_files(folder, shards, self.metadata or {"format": "pt"})
        index = self.base.path / INDEX
        if index.is_file() or len(shards) > 1:
            old = json.loads(index.read_bytes()).get("metadata") if index.is_file() else None
            write_index(folder, shards, old or {})
        dequantized = any(self._is_quantized(tensor) for tensor in self.stored.values())
        named = self.dtype or (self._commonest(kept) if dequantized else None)
        written_as = str(FLOATS[named]).removeprefix("mlx.core.") if named else None
        config = new_config(self.base.path, dequantized=dequantized, dtype=written_as)
        copy_files(self.base.path, folder, config)
        return [overflow_note(name, count) for name, count in self.overflows.items()]

    def _is_quantized(self, tensor: Stored) -> bool:
        module, _, leaf = tensor.name.rpartition(".")
        return leaf == "weight" and tensor.dtype == "U32" and f"{module}.scales" in self.stored

    def _commonest(self, tensors: list[Written]) -> str | None:
        sizes = dict.fromkeys(FLOATS, 0)
        for tensor in tensors:
            if tensor.dtype in sizes:
                sizes[tensor.dtype] += tensor.size
        return max(sizes, key=lambda name: sizes[name]) if any(sizes.values()) else None

    def _shards(self, tensors: list[Written]) -> dict[str, list[Written]]:
        """As the base's where each tensor keeps its size, else cut anew."""
        stored = self.stored
        if any(t.size != stored[t.name].end - stored[t.name].start for t in tensors):
            return cut(tensors)
        shards: dict[str, list[Written]] = {}
        for tensor in tensors:
            shards.setdefault(stored[tensor.name].file.name, []).append(tensor)
        return shards

    def _written(self, tensor: Stored) -> Written | None:
        """What becomes of one tensor; None where it goes."""
        module, _, leaf = tensor.name.rpartition(".")
        quantized = f"{module}.weight" in self.stored and self._is_quantized(
            self.stored[f"{module}.weight"]
        )
        if quantized and leaf in ("scales", "biases"):
            return None
        if leaf == "weight" and module.endswith("lm_head") and self._is_copy(tensor.name):
            return None
        if quantized and leaf == "weight":
            scales = self.stored[f"{module}.scales"]
            own = scales.dtype if scales.dtype in FLOATS else "BF16"
            layer: Any = self.modules[module]
            shape = (*tensor.shape[:-1], tensor.shape[-1] * 32 // layer.bits)
            return self._made(tensor.name, self.dtype or own, shape)
        castable = self.dtype is not None and tensor.dtype in FLOATS
        dtype = self.dtype if castable and self.dtype else tensor.dtype
        if tensor.name in self.changes or dtype != tensor.dtype:
            return self._made(tensor.name, dtype, tensor.shape)
        size = tensor.end - tensor.start
        return Written(tensor.name, tensor.dtype, tensor.shape, size, tensor.chunks)

    def _is_copy(self, name: str) -> bool:
        """Whether a head in the files is a copy of embeddings that change: the model ties them."""
        parameter = name in self.changes or name in self.parameters
        changed = (self.modules.get(n.rpartition(".")[0]) for n in self.changes)
        return not parameter and any(isinstance(module, EMBEDDINGS) for module in changed)

    def _made(self, name: str, dtype: str, shape: tuple[int, ...]) -> Written:
        size = int(np.prod(shape)) * FLOATS[dtype].size
        return Written(name, dtype, shape, size, partial(self._make, name, dtype))

    def _make(self, name: str, dtype: str) -> Iterator[memoryview]:
        weight = self._full_precision(name)
        change = self.changes.get(name)
        if change is not None:
            weight = mx.array(change.apply(np.asarray(weight)))
        rounded = weight.astype(FLOATS[dtype])
        if dtype == "F16":
            lost = mx.isfinite(weight) & ~mx.isfinite(rounded)
            count = int(np.array(lost).sum())
            if count:
                self.overflows[name] = count
        yield to_bytes(rounded)

    def _full_precision(self, name: str) -> mx.array:
        """A weight of the base in float32, dequantised without rounding to 16 bits in between."""
        stored = self.stored[name]
        if not self._is_quantized(stored):
            return stored.array().astype(mx.float32)
        module = name.rpartition(".")[0]
        layer: Any = self.modules[module]
        parts = [self.stored.get(f"{module}.{part}") for part in ("scales", "biases")]
        scales, biases = (None if part is None else part.array() for part in parts)
        assert scales is not None  # _is_quantized
        if layer.mode == "affine":
            scales = scales.astype(mx.float32)
            biases = None if biases is None else biases.astype(mx.float32)
        weight = mx.dequantize(
            stored.array(), scales, biases, layer.group_size, layer.bits, layer.mode
        )
        return weight.astype(mx.float32)
