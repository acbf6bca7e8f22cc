"""Reloads an export and compares its logits with those of the base model and the run's adapter.

All in float32, on the run's own first prompts: in MLX always, in transformers and peft where a
Python has them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import safetensors.numpy
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import get_total_parameters
from safetensors import SafetensorError

from simko_mlx import data
from simko_mlx.export.adapted import put_lora_on, put_on
from simko_mlx.export.base import Base
from simko_mlx.export.source import Source
from simko_mlx.export.tensor_files import FLOATS, has_names_of, read_header
from simko_mlx.export.torch_process import Answers, Failure, Job, ask_torch
from simko_mlx.kernels.budget import working_memory
from simko_mlx.model_files import PATTERNS, UNWANTED, context_length, load_files
from simko_mlx.peft_format import from_peft
from simko_mlx.prompts import PromptEncoder, prompt_limit
from simko_mlx.types import UserError, require

PROMPTS = 4
LAST = 64  # tokens of each prompt, from its end
BOUND = 1e-3  # of the largest logit, where nothing was rounded
BYTES_PER_WEIGHT = 5  # of a model in float32, with room to work
INSTALL = "python3 -m venv torch-env && torch-env/bin/pip install torch transformers peft"

Logits = list[np.ndarray]  # float32 (tokens, vocabulary), one a prompt


@dataclass(frozen=True)
class Difference:
    """How far an export's logits are from those of base and adapter.

    ``where`` is what loaded the export; ``largest`` the largest absolute difference, None where it
    couldn't be checked, and infinite where the export didn't load, as ``note`` says; ``bound`` is
    None where differences are expected, as from rounding to 16 bits.
    """

    where: str
    largest: float | None
    logits_largest: float
    tokens: int
    note: str = ""
    bound: float | None = None

    @property
    def ok(self) -> bool:
        """False where the export is not what was trained."""
        if self.largest is None:
            return True
        return math.isfinite(self.largest) if self.bound is None else self.largest <= self.bound


def check_export(
    kind: str, source: Source, base: Base, folder: Path, python: str | None = None
) -> list[Difference]:
    """Compares an export with what was trained, wherever it can be loaded.

    Args:
        kind: mlx, peft or fused.
        source: the run's checkpoint and the scale of its effect.
        base: its base model.
        folder: where the export was written.
        python: a Python with torch, transformers and peft; default this one.

    Raises:
        UserError: the run's problems can't be read, the export can't be loaded by mlx-lm, or that
            Python can't be run.
    """
    model, tokenizer = load_files(base.path, base.name, lazy=True)
    prompts = first_prompts(source, base, tokenizer)
    precise = BYTES_PER_WEIGHT * get_total_parameters(model) <= working_memory()
    put_on(model, source)
    reference = answers(model, prompts, precise=precise)
    del model
    comparison = _Comparison(kind, base, folder, reference, precise)
    found = [comparison.of("mlx-lm", _reloaded(kind, base, folder, prompts, precise=precise))]
    if kind != "mlx":
        found.append(_in_torch(comparison, prompts, python))
    return found


def first_prompts(source: Source, base: Base, tokenizer: Any) -> list[tuple[int, ...]]:
    """Token ids of the run's first prompts, encoded as in training.

    Raises:
        UserError: the run's problems can't be read, or none has a prompt that fits.
    """
    config = source.config
    problems = data.load(config.data).train[: 16 * PROMPTS]
    encoder = PromptEncoder(tokenizer, config.prompt, config.data)
    limit = prompt_limit(config, context_length(base.path))
    kept, _ = encoder.encode_all(problems, limit)
    require(bool(kept), "None of the run's first prompts fits the model: --check has no text.")
    return [ids for _, ids in kept[:PROMPTS]]


def answers(model: nn.Module, prompts: Sequence[Sequence[int]], *, precise: bool) -> Logits:
    """Logits of the last tokens of each prompt; ``precise`` makes the model float32 first."""
    if precise:
        model.set_dtype(mx.float32)
    model.eval()
    call: Any = model
    found = []
    for ids in prompts:
        logits = call(mx.array([list(ids)]))[0, -LAST:]
        found.append(np.array(logits.astype(mx.float32)))
    mx.clear_cache()  # another model comes next, perhaps in another process
    return found


def _reloaded(
    kind: str, base: Base, folder: Path, prompts: Sequence[Sequence[int]], *, precise: bool
) -> Logits:
    """What the export answers here, loaded from its folder."""
    try:
        if kind == "fused":
            model, _ = load_files(folder, str(folder), lazy=True)
        else:
            model, _ = load_files(base.path, base.name, lazy=True)
            if kind == "mlx":
                load_adapters(model, str(folder))
            else:
                _load_peft(model, folder)
        return answers(model, prompts, precise=precise)
    except (ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
        text = " ".join(str(error).split())[:300]
        raise UserError(f"The export in {folder} can't be loaded again: {text}.") from error


def _load_peft(model: nn.Module, folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_bytes())
    weights = from_peft(safetensors.numpy.load_file(folder / "adapter_model.safetensors"))
    modules = sorted({name.rpartition(".")[0] for name in weights})
    scale = config["lora_alpha"] / config["r"]
    # Whole paths as keys, and no layer to look for them in.
    put_lora_on(model, 0, {"rank": config["r"], "scale": scale, "keys": modules})
    arrays = [(name, mx.array(value)) for name, value in weights.items()]
    model.load_weights(arrays, strict=False)


@dataclass(frozen=True)
class _Comparison:
    kind: str
    base: Base
    folder: Path
    reference: Logits
    precise: bool

    @property
    def largest(self) -> float:
        return max(float(np.abs(logits).max()) for logits in self.reference)

    @property
    def tokens(self) -> int:
        return sum(len(logits) for logits in self.reference)

    def of(self, where: str, found: Logits, *, other_base: bool = False) -> Difference:
        pairs = zip(self.reference, found, strict=True)
        # Heads may be padded in one of the two.
        widths = [(a, b, min(a.shape[1], b.shape[1])) for a, b in pairs]
        differences = [float(np.abs(a[:, :w] - b[:, :w]).max()) for a, b, w in widths]
        rounded = self._rounded(other_base)
        bound = None if rounded else BOUND * self.largest
        # max() would overlook a NaN that isn't the first.
        return self._difference(where, float(np.max(differences)), rounded, bound)

    def not_checked(self, where: str, why: str) -> Difference:
        return self._difference(where, None, why)

    def failed(self, where: str, why: str) -> Difference:
        return self._difference(where, float("inf"), why, BOUND * self.largest)

    def _difference(
        self, where: str, largest: float | None, note: str, bound: float | None = None
    ) -> Difference:
        return Difference(where, largest, self.largest, self.tokens, note, bound)

    def _rounded(self, other_base: bool) -> str:
        """Why a difference is to be expected; empty where none is."""
        if not self.precise:
            return "not in float32, which this machine has no memory for"
        if other_base:
            return "on the base in full precision instead of the quantised one"
        types = {tensor.dtype for tensor in self.tensors()} & set(FLOATS) - {"F32"}
        if types:
            return f"the weights are rounded to {', '.join(sorted(types)).lower()}"
        if self.kind == "fused" and self.base.quantization is not None:
            return "the base is dequantised"
        return ""

    def tensors(self) -> list[Any]:
        return [
            t for file in sorted(self.folder.glob("*.safetensors")) for t in read_header(file)[1]
        ]


def _in_torch(
    comparison: _Comparison, prompts: Sequence[Sequence[int]], python: str | None
) -> Difference:
    where = "transformers" if comparison.kind == "fused" else "transformers + peft"
    dtype = "float32" if comparison.precise else "auto"
    other_base = False
    if comparison.kind == "fused":
        if not has_names_of(comparison.base, comparison.folder):
            return comparison.not_checked(where, "it is in mlx-lm's own layout")
        job = Job(comparison.folder, dtype=dtype)
    else:
        model = _peft_base(comparison)
        if isinstance(model, str):
            return comparison.not_checked(where, model)
        other_base = model != comparison.base.path
        job = Job(model, comparison.folder, dtype=dtype)
    found = ask_torch([job], prompts, last=LAST, python=python)
    return _judge(comparison, where, found, other_base)


def _judge(comparison: _Comparison, where: str, found: Answers, other_base: bool) -> Difference:
    if found.missing:
        return comparison.not_checked(
            where,
            f"the Python that was asked has no {', '.join(found.missing)}: `{INSTALL}`, then "
            "--python torch-env/bin/python",
        )
    where = " + ".join(f"{n} {found.versions[n]}" for n in where.split(" + "))
    result = found.results[0]
    if isinstance(result, Failure):
        # A base that transformers doesn't know says nothing about the export.
        if result.stage == "model":
            return comparison.not_checked(where, f"the model can't be loaded there: {result.text}")
        return comparison.failed(where, f"the adapter can't be loaded there: {result.text}")
    return comparison.of(where, result, other_base=other_base)


def _peft_base(comparison: _Comparison) -> Path | str:
    """The folder that the adapter's base is in for PEFT, or why there is none."""
    if comparison.base.quantization is None:
        return comparison.base.path
    from huggingface_hub import errors, snapshot_download

    config = json.loads((comparison.folder / "adapter_config.json").read_bytes())
    name = str(config["base_model_name_or_path"])
    if comparison.base.made_from is None:
        return "the quantised base's files don't say what it was made from: name that with --base"
    if Path(name).is_dir() and Path(name).resolve() != comparison.base.path.resolve():
        return Path(name)
    try:
        # Of what find_model fetches: huggingface_hub would miss the rest of the repository.
        folder = snapshot_download(
            name,
            local_files_only=True,
            allow_patterns=list(PATTERNS),
            ignore_patterns=list(UNWANTED),
        )
        return Path(folder)
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError):
        return (
            f"the base in full precision, {name}, is not on this machine: `hf download {name}` "
            "fetches it"
        )
