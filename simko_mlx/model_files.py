"""A model's files: where they are, whether they are whole, and what mlx-lm makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.nn as nn
import safetensors
from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS, load_model, load_tokenizer

from simko_mlx.types import UserError, require

EMBEDDED = Path(__file__).parent / "assets" / "countdown_tiny"


def find_model(name: str) -> Path:
    """The local folder of a model, downloaded from the Hub if need be.

    Raises:
        UserError: the folder is no model, or the Hub has none of that name or can't be reached.
    """
    if name == "embedded":
        return EMBEDDED
    path = Path(name).expanduser()
    if not path.exists():
        looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1
        require(not looks_local, f"model is {name!r}: there is no such folder.")
        path = _from_hub(name)
    require(path.is_dir(), f"model is {name!r}: it must be a folder, as mlx_lm.convert makes it.")
    require((path / "config.json").is_file(), f"model is {name!r}: that folder has no config.json.")
    weights = sorted(path.glob("model*.safetensors"))
    require(bool(weights), f"model is {name!r}: that folder has no model*.safetensors.")
    for file in weights:
        check_safetensors(file)
    tokenizers = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    has_tokenizer = any((path / t).is_file() for t in tokenizers) or any(path.glob("*.tiktoken"))
    require(has_tokenizer, f"model is {name!r}: that folder has no tokenizer.json.")
    return path


def _from_hub(name: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=DEFAULT_ALLOW_PATTERNS))
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


def load_files(path: Path, name: str) -> tuple[nn.Module, Any]:
    from huggingface_hub.errors import StrictDataclassError

    usual = (ValueError, KeyError, TypeError, OSError, AttributeError, RuntimeError)
    try:
        model, config = load_model(path)
        return model, load_tokenizer(path, eos_token_ids=config.get("eos_token_id"))
    except (*usual, StrictDataclassError) as error:
        # mlx-lm and transformers let through whatever a model's files make them raise.
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"mlx-lm can't load the model {name}: {text}.") from error


def context_length(path: Path) -> int | None:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    for section in (config, config.get("text_config") or {}):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if isinstance(section.get(key), int):
                return section[key]
    return None
