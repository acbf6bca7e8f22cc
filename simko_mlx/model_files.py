"""A model's files: where they are, whether they are whole, and what mlx-lm makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import _get_classes, load_config, load_model, load_tokenizer

from simko_mlx import hub
from simko_mlx.rope_settings import overlooked
from simko_mlx.types import UserError, require
from simko_mlx.weights_file import check_safetensors

EMBEDDED = Path(__file__).parent / "assets" / "countdown_tiny"
# Models of recipes that a shipped script makes, and how it is run.
MADE = {"models/constraints-tiny": "python -m simko_mlx.assets.pretrain_constraints"}

# What is fetched of a model: mlx-lm's list less programs, with what a model card quotes. No
# pickles; nothing from folders, where repositories keep the model in other forms.
PATTERNS = (
    "*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "tiktoken.model", "*.txt",
    "*.jsonl", "*.jinja", "README.md", "LICENSE", "LICENSE.md",
)  # fmt: skip
UNWANTED = ("*/*",)
MAX_LAYERS = 10_000
_NEEDS_CODE = (
    "The model {name} needs {what}, and programs that come with a model are never run here: take "
    "a model that mlx-lm and transformers know."
)


def find_model(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The local folder of a model, downloaded from the Hub if need be; without its weights, where
    they aren't wanted.

    Raises:
        UserError: the folder is no model, or the Hub has none of that name or can't be reached, or
            a file is damaged.
    """
    here = name == "embedded" or Path(name).expanduser().exists()
    require(
        revision is None or not here,
        f"model_revision is {revision!r}, but model {name!r} is on this machine and has no "
        "revisions: leave it out.",
    )
    if name == "embedded":
        return EMBEDDED
    path = Path(name).expanduser()
    if not here:
        require(
            name not in MADE,
            f"model is {name!r}, which this folder hasn't got yet: make it, in some minutes, with "
            f"`{MADE.get(name)}`.",
        )
        path = _from_hub(name, revision, weights)
    require(path.is_dir(), f"model is {name!r}: it must be a folder, as mlx_lm.convert makes it.")
    require((path / "config.json").is_file(), f"model is {name!r}: that folder has no config.json.")
    _check_config(path, name)
    files = sorted(path.glob("model*.safetensors"))
    require(
        bool(files) or not weights,
        f"model is {name!r}: that folder has no model*.safetensors, and weights in other forms, "
        "such as pickles (*.bin), are not loaded: convert the model with mlx_lm.convert, or take "
        "another.",
    )
    for file in files:
        check_safetensors(file)
    tokenizers = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    has_tokenizer = any((path / t).is_file() for t in tokenizers) or any(path.glob("*.tiktoken"))
    require(has_tokenizer, f"model is {name!r}: that folder has no tokenizer.json.")
    return path


def _from_hub(name: str, revision: str | None, weights: bool) -> Path:
    require(hub.looks_like_id(name), f"model is {name!r}: there is no such folder.")
    hub.refuse_revision(name, "model", "model_revision")
    patterns = [p for p in PATTERNS if weights or not p.endswith(".safetensors")]
    return hub.download(hub.Repo(name, revision), patterns, UNWANTED)


def _check_config(path: Path, name: str) -> None:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path / 'config.json'} is not JSON ({error}): download the model again."
        ) from error
    require(
        isinstance(config, dict),
        f"{path / 'config.json'} is not a JSON object: download the model again.",
    )
    for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        layers = config.get(key)
        # Every layer is made before the weights are looked at.
        require(
            not isinstance(layers, int) or layers <= MAX_LAYERS,
            f"{path / 'config.json'}: {key} is {layers}, more than {MAX_LAYERS}: download the "
            "model again.",
        )
    code = config.get("model_file")
    require(code is None, _NEEDS_CODE.format(name=name, what=f"a program of its own, {code!r}"))


def load_files(path: Path, name: str, *, lazy: bool = False) -> tuple[nn.Module, Any]:
    from huggingface_hub.errors import StrictDataclassError

    usual = (ValueError, LookupError, TypeError, OSError, AttributeError, RuntimeError)
    try:
        settings = overlooked(load_config(path))
        model, config = load_model(path, lazy=lazy, model_config=settings)
        if not lazy:
            to_column_major(model)
        return model, _tokenizer(path, name, config.get("eos_token_id"))
    except (*usual, ArithmeticError, StrictDataclassError) as error:
        # mlx-lm and transformers let through whatever a model's files make them raise.
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"mlx-lm can't load the model {name}: {text}.") from error


def _tokenizer(path: Path, name: str, eos_token_ids: Any) -> Any:
    try:
        # Unset, transformers asks on the terminal whether a tokenizer's own code may run.
        return load_tokenizer(path, {"trust_remote_code": False}, eos_token_ids)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            what = "a program of its own for its tokenizer"
            raise UserError(_NEEDS_CODE.format(name=name, what=what)) from error
        raise


def load_only_tokenizer(path: Path, name: str) -> Any:
    """The tokenizer of a model's folder, which needs no weights.

    Raises:
        UserError: it can't be loaded, or needs a program that came with it.
    """
    try:
        return _tokenizer(path, name, load_config(path).get("eos_token_id"))
    except (ValueError, LookupError, TypeError, OSError, AttributeError, RuntimeError) as error:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"The tokenizer of the model {name} can't be loaded: {text}.") from error


def to_column_major(model: nn.Module) -> None:
    """Lays weights out as BLAS wants them on a CPU, with no change of values or shapes.

    A product of few rows, as in decoding, takes the time of copying the weights into BLAS's own
    order, which is less from this one. Only float32 goes through BLAS.
    """
    if mx.default_device().type != mx.DeviceType.cpu:
        return
    for part in model.modules():
        if type(part) in (nn.Linear, nn.Embedding) and part.weight.dtype == mx.float32:
            part.weight = mx.contiguous(part.weight.T).T
            mx.eval(part.weight)  # one at a time: the old one goes before the next comes


def outline_files(name: str, revision: str | None = None) -> tuple[nn.Module, Any, Path]:
    """Model, tokenizer and folder, with no weight in memory: of a folder lazily, of a model on the
    Hub from its settings alone, so that nothing large is downloaded.

    Raises:
        UserError: as ``find_model``, or mlx-lm can't make the model.
    """
    path = find_model(name, revision, weights=False)
    if any(path.glob("model*.safetensors")):
        return *load_files(path, name, lazy=True), path
    try:
        config = load_config(path)
        config |= overlooked(config)
        model_class, args_class = _get_classes(config)
        model = model_class(args_class.from_dict(config))
        dtype = getattr(mx, str(config.get("dtype") or config.get("torch_dtype")), mx.bfloat16)
        model.set_dtype(dtype)
        quantization = config.get("quantization") or {}
        if quantization:
            form = {key: quantization[key] for key in ("group_size", "bits")}
            nn.quantize(model, **form, mode=quantization.get("mode", "affine"))
        return model, _tokenizer(path, name, config.get("eos_token_id")), path
    except (
        *(ValueError, LookupError, TypeError, OSError, AttributeError, RuntimeError),
        ArithmeticError,
    ) as error:
        raise UserError(f"mlx-lm can't make the model {name}: {error}.") from error


def context_length(path: Path) -> int | None:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    for section in (config, config.get("text_config") or {}):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if isinstance(section.get(key), int):
                return section[key]
    return None
