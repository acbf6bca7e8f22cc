"""A model's files: where they are, whether they are whole, and what mlx-lm makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import safetensors
from mlx_lm.utils import (
    DEFAULT_ALLOW_PATTERNS,
    _get_classes,
    load_config,
    load_model,
    load_tokenizer,
)

from simko_mlx.types import UserError, require

EMBEDDED = Path(__file__).parent / "assets" / "countdown_tiny"
# Models of recipes that a shipped script makes, and how it is run.
MADE = {"models/constraints-tiny": "python -m simko_mlx.assets.pretrain_constraints"}


def find_model(name: str, *, weights: bool = True) -> Path:
    """The local folder of a model, downloaded from the Hub if need be; without its weights, where
    they aren't wanted.

    Raises:
        UserError: the folder is no model, or the Hub has none of that name or can't be reached.
    """
    if name == "embedded":
        return EMBEDDED
    path = Path(name).expanduser()
    if not path.exists():
        require(
            name not in MADE,
            f"model is {name!r}, which this folder hasn't got yet: make it, in some minutes, with "
            f"`{MADE.get(name)}`.",
        )
        looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1
        require(not looks_local, f"model is {name!r}: there is no such folder.")
        path = _from_hub(name, weights)
    require(path.is_dir(), f"model is {name!r}: it must be a folder, as mlx_lm.convert makes it.")
    require((path / "config.json").is_file(), f"model is {name!r}: that folder has no config.json.")
    files = sorted(path.glob("model*.safetensors"))
    require(
        bool(files) or not weights, f"model is {name!r}: that folder has no model*.safetensors."
    )
    for file in files:
        check_safetensors(file)
    tokenizers = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    has_tokenizer = any((path / t).is_file() for t in tokenizers) or any(path.glob("*.tiktoken"))
    require(has_tokenizer, f"model is {name!r}: that folder has no tokenizer.json.")
    return path


def _from_hub(name: str, weights: bool) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        patterns = [p for p in DEFAULT_ALLOW_PATTERNS if weights or "safetensors" not in p]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise UserError(
            f"model {name} is gated: accept its licence on the Hub, then run `hf auth login`."
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"model is {name!r}: there is neither such a folder nor such a model on the Hub "
            "(a private one needs `hf auth login`)."
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"model {name} is not on this machine and the Hub can't be reached: check the network, "
            "or give the path of a downloaded model."
        ) from error


def check_safetensors(path: Path) -> None:
    """Refuses a malformed file; MLX would load some of them, with wrong values.

    Raises:
        UserError: the file can't be read whole.
    """
    try:
        with safetensors.safe_open(path, framework="np"):
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged ({error}): download or convert the model again."
        ) from error


def load_files(path: Path, name: str, *, lazy: bool = False) -> tuple[nn.Module, Any]:
    from huggingface_hub.errors import StrictDataclassError

    usual = (ValueError, KeyError, TypeError, OSError, AttributeError, RuntimeError)
    try:
        model, config = load_model(path, lazy=lazy)
        if not lazy:
            to_column_major(model)
        return model, load_tokenizer(path, eos_token_ids=config.get("eos_token_id"))
    except (*usual, StrictDataclassError) as error:
        # mlx-lm and transformers let through whatever a model's files make them raise.
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"mlx-lm can't load the model {name}: {text}.") from error


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


def outline_files(name: str) -> tuple[nn.Module, Any, Path]:
    """Model, tokenizer and folder, with no weight in memory: of a folder lazily, of a model on the
    Hub from its settings alone, so that nothing large is downloaded.

    Raises:
        UserError: as ``find_model``, or mlx-lm can't make the model.
    """
    path = find_model(name, weights=False)
    if any(path.glob("model*.safetensors")):
        return *load_files(path, name, lazy=True), path
    try:
        config = load_config(path)
        model_class, args_class = _get_classes(config)
        model = model_class(args_class.from_dict(config))
        dtype = getattr(mx, str(config.get("dtype") or config.get("torch_dtype")), mx.bfloat16)
        model.set_dtype(dtype)
        quantization = config.get("quantization") or {}
        if quantization:
            form = {key: quantization[key] for key in ("group_size", "bits")}
            nn.quantize(model, **form, mode=quantization.get("mode", "affine"))
        return model, load_tokenizer(path, eos_token_ids=config.get("eos_token_id")), path
    except (ValueError, KeyError, TypeError, OSError, AttributeError) as error:
        raise UserError(f"mlx-lm can't make the model {name}: {error}.") from error


def context_length(path: Path) -> int | None:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    for section in (config, config.get("text_config") or {}):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if isinstance(section.get(key), int):
                return section[key]
    return None
