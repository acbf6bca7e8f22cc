"""The base model of a run, as its own files describe it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from simko_mlx.config import Config
from simko_mlx.export.source import hub_id
from simko_mlx.hub import looks_like_id
from simko_mlx.model_files import find_model
from simko_mlx.types import require
from simko_mlx.weights_file import check_safetensors


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file; ``dtype`` as the file names it, "BF16"."""

    dtype: str
    shape: tuple[int, ...]
    file: str


@dataclass(frozen=True)
class Base:
    """A base model's files.

    ``hub_id`` and ``revision`` (a commit) where it came from the Hub; ``tensors`` its own weight
    index; ``quantization`` as its config.json has it; ``licence`` (with a name and a link where
    it is "other") and ``made_from`` (the model that it was made from) as its README.md says.
    """

    name: str
    path: Path
    hub_id: str | None
    revision: str | None
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    licence: str | None
    made_from: str | None
    licence_name: str | None = None
    licence_link: str | None = None

    @property
    def type(self) -> str:
        """The family, as mlx-lm and transformers name it."""
        return str(self.config.get("model_type"))

    @property
    def quantization(self) -> dict[str, Any] | None:
        return self.config.get("quantization") or self.config.get("quantization_config")

    @property
    def tied(self) -> bool:
        """Whether the head is the token embedding's own matrix, as far as the files tell."""
        if self.config.get("tie_word_embeddings") is True:
            return True  # though some files hold a copy of it
        return not any(name.rpartition(".")[0].endswith("lm_head") for name in self.tensors)

    def shape(self, module: str) -> tuple[int, ...] | None:
        """The shape of a module's weight before it was quantised; None where there is none."""
        weight = self.tensors.get(f"{module}.weight")
        scales = self.tensors.get(f"{module}.scales")
        if weight is None or scales is None:
            return None if weight is None else weight.shape
        form = self.quantization or {}
        own = form.get(module)
        group_size = (own if isinstance(own, dict) else form).get("group_size", 64)
        return (*scales.shape[:-1], scales.shape[-1] * group_size)


def describe_base(config: Config) -> Base:
    """Looks at the base model of a run, downloading it if need be; no weight is loaded.

    Raises:
        UserError: it is not where it was, or as ``find_model``.
    """
    name = config.model
    require(
        name == "embedded" or Path(name).expanduser().exists() or looks_like_id(name),
        f"The run's base model {name!r} is not there (a relative path is meant from where the run "
        "was started): put it back, or correct model in the run's config.yaml.",
    )
    path = find_model(config.model, config.model_revision)
    # Not strictly: models such as Mamba 2 have an Infinity there.
    settings = json.loads((path / "config.json").read_bytes())
    require(
        isinstance(settings, dict),
        f"{path / 'config.json'} is not a JSON object: download the model again.",
    )
    model = hub_id(config)
    snapshot = path.name if path.parent.name == "snapshots" else None
    card = _card(path)
    made_from = card.get("base_model")
    made_from = _text(made_from[0] if isinstance(made_from, list) and made_from else made_from)
    licences = card.get("license")
    licences = ", ".join(map(str, licences)) if isinstance(licences, list) else licences
    return Base(
        name=config.model,
        path=path,
        hub_id=model,
        revision=snapshot if model else None,
        tensors=_index(path),
        config=settings,
        licence=_text(licences),
        licence_name=_text(card.get("license_name")),
        licence_link=_text(card.get("license_link")),
        # Of a model that was converted from a folder, mlx-lm names that folder, of another machine.
        made_from=made_from if made_from and is_id(made_from) else None,
    )


def is_id(name: str) -> bool:
    """Whether a name can be that of a model on the Hub, and is no folder's path."""
    return re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) is not None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _card(path: Path) -> dict[str, Any]:
    """The metadata of a model's README.md; empty where there is none, or none that can be read."""
    from huggingface_hub import metadata_load

    try:
        return metadata_load(path / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _index(path: Path) -> dict[str, Tensor]:
    return {
        name: Tensor(entry.dtype, entry.shape, file.name)
        for file in sorted(path.glob("model*.safetensors"))
        for name, entry in check_safetensors(file).items()
    }
