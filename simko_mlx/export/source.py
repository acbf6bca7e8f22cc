"""What is exported: the adapter of one checkpoint of a run, with the scale of its effect."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import safetensors.numpy
from mlx.utils import tree_flatten

from simko_mlx import checkpoint
from simko_mlx.config import Config
from simko_mlx.config_sources import from_run
from simko_mlx.model_files import find_model, load_files
from simko_mlx.types import UserError, require

LARGEST = 1_000_000  # scale: above, what it multiplies could become infinite
PATIENCE = 10  # attempts to read a checkpoint of a run that goes on


@dataclass(frozen=True)
class Source:
    """A checkpoint of a run.

    ``settings`` are mlx-lm's ``adapter_config.json``, ``weights`` its ``adapters.safetensors``
    (float32). ``scale`` multiplies the adapter's effect: 0 is the base model, 1 the trained one.
    """

    run_dir: Path
    config: Config
    step: int
    settings: dict[str, Any]
    weights: dict[str, np.ndarray]
    scale: float = 1.0

    @property
    def is_lora(self) -> bool:
        """Whether this is a LoRA adapter, not weights that were trained themselves."""
        return self.settings.get("fine_tune_type", "lora") == "lora"

    @property
    def hub_model(self) -> str | None:
        """The base model's id on the Hub; None where it is a folder or the embedded one."""
        return hub_id(self.config)

    @property
    def lora_scale(self) -> float:
        """What mlx-lm multiplies ``x @ lora_a @ lora_b`` by, the scale of the effect included."""
        return float(self.settings["lora_parameters"]["scale"]) * self.scale


def hub_id(config: Config) -> str | None:
    """The id of a config's model on the Hub; None where it is a folder or the embedded one."""
    local = config.model == "embedded" or Path(config.model).expanduser().exists()
    return None if local else config.model


def read_source(run_dir: Path, step: int | str = "last", scale: float = 1.0) -> Source:
    """Reads the checkpoint of a step, of the last one, or of the best by ``eval.metric``.

    Raises:
        UserError: no such run or checkpoint, or it is damaged, or the scale is no sensible number.
    """
    require(
        math.isfinite(scale) and 0 <= scale <= LARGEST,
        f"The scale is {scale}: give a number from 0 upwards (0 is the base model, 1 as trained), "
        f"to {LARGEST:,} at most.",
    )
    config = from_run(run_dir / "config.yaml")
    number = _number(run_dir, step)
    for _ in range(PATIENCE):
        before = checkpoint.steps(run_dir)
        try:
            source = _read(run_dir, config, number, scale)
            break
        except (FileNotFoundError, UserError):
            # A run that goes on removes old checkpoints, perhaps the one that was being read.
            if number is not None or checkpoint.steps(run_dir) == before:
                raise
    else:
        raise UserError(
            f"{run_dir} makes checkpoints too fast to be read: wait until it has ended."
        )
    return source


def _read(run_dir: Path, config: Config, number: int | None, scale: float) -> Source:
    loaded = checkpoint.load(run_dir, number)
    if loaded is None:
        raise UserError(f"{run_dir} has no checkpoint yet: train it first.")
    folder, state = loaded
    settings = json.loads((folder / "adapter_config.json").read_bytes())
    weights = safetensors.numpy.load((folder / "adapters.safetensors").read_bytes())
    return Source(run_dir, config, int(state["step"]), settings, weights, scale)


def _number(run_dir: Path, step: int | str) -> int | None:
    if step == "last":
        return None
    if step != "best":
        return int(step)
    newest = checkpoint.load(run_dir)
    best = newest[1]["best"] if newest else None
    if best is None:
        raise UserError(
            f"{run_dir} doesn't know its best step, since it made no small evaluations (eval.every "
            "is 0): name a step, or leave --step out for the last."
        )
    return int(best["step"])


def effective_weights(source: Source) -> dict[str, np.ndarray]:
    """The weights (float32) that have the scaled effect.

    Of LoRA they are the adapter's own, since the scale is in its settings; of weights that were
    trained themselves, base + scale * (trained - base).
    """
    if source.is_lora or source.scale == 1:
        return source.weights
    path = find_model(source.config.model, source.config.model_revision)
    model, _ = load_files(path, source.config.model, lazy=True)
    base = dict(cast(list[tuple[str, mx.array]], tree_flatten(model.parameters())))
    scaled = {}
    for name, trained in source.weights.items():
        start = np.array(base[name].astype(mx.float32))
        scaled[name] = start + np.float32(source.scale) * (trained - start)
    return scaled
