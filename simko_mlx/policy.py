"""The policy: a base model of mlx-lm with a LoRA adapter (or all of its weights) to train.

LoRA weights and, with ``fine_tune_type: full``, all weights are float32: updates of 1e-5 would
vanish in bfloat16. The reference policy is the base model itself, with LoRA switched off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import safetensors
import safetensors.numpy
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import (
    DEFAULT_ALLOW_PATTERNS,
    get_total_parameters,
    load_model,
    load_tokenizer,
)

from simko_mlx.config import Config, to_dict
from simko_mlx.head_tap import HeadTap, find_head
from simko_mlx.kernels import (
    HeadStatistics,
    chunk_tokens,
    head_statistics,
    logit_statistics,
    selfcheck,
)
from simko_mlx.prompts import PromptEncoder, stop_tokens
from simko_mlx.types import TokenBatch, UserError, require

EMBEDDED = Path(__file__).parent / "assets" / "countdown_tiny"


class Policy:
    """A loaded model with its tokenizer, prompts, stop tokens and trainable parameters."""

    def __init__(self, model: nn.Module, tokenizer: Any, path: Path, config: Config):
        self.model = model
        self.tokenizer = tokenizer
        self.path = path
        self.config = config
        self.prompts = PromptEncoder(tokenizer, config.prompt)
        self.stop_tokens = stop_tokens(tokenizer, path)
        self.context = _context_length(path)
        self.adapter_config: dict[str, Any] = {}
        self.notes: list[str] = []
        self.ragged: bool | None = None  # see rollout.can_decode_ragged
        self.tap: HeadTap | None = None  # see tap_head; without one, logits are held in full
        self.head_problem: str | None = None
        self.head_backend = "reference"

    @property
    def max_prompt_length(self) -> int | None:
        """Prompt tokens that leave room for a whole completion; None where nothing limits them."""
        limits = [self.config.prompt.max_length]
        if self.context is not None:
            limits.append(self.context - self.config.rollout.max_completion_length)
        known = [limit for limit in limits if limit is not None]
        return max(0, min(known)) if known else None

    @property
    def parameters(self) -> int:
        return int(get_total_parameters(self.model))

    @property
    def trainable(self) -> int:
        return sum(v.size for v in named_arrays(self.model.trainable_parameters()).values())

    def tap_head(self) -> None:
        """Finds the model's head, so that statistics need no logits, and what computes them.

        Raises:
            UserError: ``optim.head_backend`` asks for Metal where there is none.
        """
        wanted = self.config.optim.head_backend
        require(
            wanted != "metal" or selfcheck.has_metal(),
            "optim.head_backend is metal, but MLX runs on no Metal device here: set it to auto.",
        )
        found = find_head(self.model)
        if isinstance(found, str):
            self.head_problem = f"The head of this model can't be taken apart ({found})"
            self.notes.append(
                f"{self.head_problem}: training holds full logits, which takes more memory."
            )
            return
        self.tap = found
        self.head_backend = wanted
        if wanted == "auto":
            kernels = selfcheck.verdict(found.shape())
            self.head_backend = "metal" if kernels.ok else "portable"
            if not kernels.ok and selfcheck.has_metal():
                self.notes.append(selfcheck.off_message(kernels))

    def statistics(
        self, batch: TokenBatch, *, simko_k: int, temperature: float, gradient: bool = True
    ) -> HeadStatistics:
        """Statistics (B, T) of the batch's completion tokens under the current weights.

        Where ``loss_mask`` is 0 nothing is computed and everything is 0. ``gradient`` False is for
        measuring, and cheaper.
        """
        rows, width = batch.tokens.shape
        places = mx.array(np.flatnonzero(np.array(batch.loss_mask)).astype(np.int32))
        tokens = batch.tokens.reshape(-1)[places]
        if self.tap is None:
            logits = self.model(batch.input_ids)[:, batch.prompt_length - 1 :]
            logits = logits.reshape(rows * width, -1)[places]
            stats = logit_statistics(logits, tokens, simko_k=simko_k, temperature=temperature)
            return _spread(stats, places, rows, width)
        hidden = self.tap.hidden(batch.input_ids)[:, batch.prompt_length - 1 :]
        head = self.tap.head()
        training = "recompute" if self.tap.trains else "tail"
        # The same chunks with and without a gradient, for the same digits.
        chunk = self.config.optim.head_chunk or chunk_tokens(
            head.vocabulary, mode=training, metal=self.head_backend == "metal"
        )
        stats = head_statistics(
            hidden.reshape(rows * width, -1)[places],
            tokens,
            head,
            simko_k=simko_k,
            temperature=temperature,
            mode=training if gradient else "nograd",
            chunk=chunk,
            backend=self.head_backend,
        )
        return _spread(stats, places, rows, width)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The base model for the length of the block: every LoRA scale is 0."""
        layers = [m for m in self.model.modules() if "lora_a" in m]
        scales = [m.scale for m in layers]
        for layer in layers:
            layer.scale = 0.0
        try:
            yield
        finally:
            for layer, scale in zip(layers, scales, strict=True):
                layer.scale = scale

    def trainable_arrays(self) -> dict[str, np.ndarray]:
        """Name -> float32 array of everything that trains, as mlx-lm names it."""
        flat = named_arrays(self.model.trainable_parameters())
        return {name: np.array(value.astype(mx.float32)) for name, value in flat.items()}

    def adapter_files(self) -> dict[str, bytes]:
        """The two files of an adapter as ``mlx_lm.load(adapter_path=...)`` reads them."""
        weights = safetensors.numpy.save(self.trainable_arrays(), metadata={"format": "mlx"})
        text = json.dumps(self.adapter_config, indent=2)
        return {"adapters.safetensors": weights, "adapter_config.json": text.encode() + b"\n"}


def _spread(stats: HeadStatistics, places: mx.array, rows: int, width: int) -> HeadStatistics:
    """Statistics of the tokens at these places -> (rows, width), 0 elsewhere."""
    if places.size == rows * width:
        return stats.reshape(rows, width)
    # Gathered, not scattered: that works for every type. The row after the last is for padding.
    index = mx.full((rows * width,), places.size, dtype=mx.int32)
    index[places] = mx.arange(places.size, dtype=mx.int32)
    padded = (mx.concatenate([x, mx.zeros((1, *x.shape[1:]), dtype=x.dtype)]) for x in stats)
    return HeadStatistics(*(x[index] for x in padded)).reshape(rows, width)


def named_arrays(tree: Any) -> dict[str, mx.array]:
    """A tree of parameters or optimizer state as dotted name -> array."""
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(tree)))


def load_policy(config: Config, *, adapter: Path | None = None) -> Policy:
    """Loads the model and makes it trainable.

    Args:
        config: model, policy, prompt and rollout sections are read.
        adapter: start from this adapter folder; default ``policy.adapter_path``.

    Raises:
        UserError: one sentence that names the path or key and the fix.
    """
    path = find_model(config.model)
    model, tokenizer = _load(path, config.model)
    policy = Policy(model, tokenizer, path, config)
    if adapter is None and config.policy.adapter_path is not None:
        adapter = Path(config.policy.adapter_path).expanduser()
    require(
        config.policy.fine_tune_type == "lora" or not _is_quantized(model),
        "policy.fine_tune_type is full but the model is quantised: use lora, or a model that is "
        "not quantised.",
    )
    mx.random.seed(config.seed)
    model.freeze()
    if adapter is not None:
        policy.adapter_config = _start_from(model, adapter, config)
        policy.notes += _ignored(policy.adapter_config, config)
    else:
        policy.adapter_config = _new_adapter(model, config)
    _make_trainable(policy)
    mx.eval(model.parameters())
    model.eval()
    require(
        policy.trainable > 0,
        "Nothing would train: policy.lora_parameters.keys matches no layer of this model.",
    )
    policy.tap_head()
    return policy


def load_base(config: Config) -> Policy:
    """The base model alone, to evaluate."""
    path = find_model(config.model)
    model, tokenizer = _load(path, config.model)
    policy = Policy(model, tokenizer, path, config)
    model.eval()
    policy.tap_head()
    return policy


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


def _load(path: Path, name: str) -> tuple[nn.Module, Any]:
    from huggingface_hub.errors import StrictDataclassError

    usual = (ValueError, KeyError, TypeError, OSError, AttributeError, RuntimeError)
    try:
        model, config = load_model(path)
        return model, load_tokenizer(path, eos_token_ids=config.get("eos_token_id"))
    except (*usual, StrictDataclassError) as error:
        # mlx-lm and transformers let through whatever a model's files make them raise.
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"mlx-lm can't load the model {name}: {text}.") from error


def _context_length(path: Path) -> int | None:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    for section in (config, config.get("text_config") or {}):
        for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if isinstance(section.get(key), int):
                return section[key]
    return None


def _is_quantized(model: nn.Module) -> bool:
    return any(hasattr(m, "bits") for m in model.modules())


def _new_adapter(model: nn.Module, config: Config) -> dict[str, Any]:
    policy = config.policy
    if policy.fine_tune_type == "lora":
        try:
            linear_to_lora_layers(model, policy.num_layers, to_dict(policy.lora_parameters))
        except ValueError as error:
            raise UserError(f"policy.lora_parameters does not fit this model: {error}.") from error
    return {
        "fine_tune_type": policy.fine_tune_type,
        "model": config.model,
        "num_layers": policy.num_layers,
        "lora_parameters": to_dict(policy.lora_parameters),
    }


def _start_from(model: nn.Module, adapter: Path, config: Config) -> dict[str, Any]:
    for name in ("adapter_config.json", "adapters.safetensors"):
        message = f"{adapter} is not an mlx-lm adapter: it has no {name}."
        require((adapter / name).is_file(), message)
    check_safetensors(adapter / "adapters.safetensors")
    try:
        settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        kind = settings.get("fine_tune_type", "lora")
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{adapter / 'adapter_config.json'} is not a JSON object: restore it, or start from "
            "another adapter."
        ) from error
    require(
        kind in ("lora", "full"), f"{adapter} is a {kind} adapter, which can't be trained here."
    )
    require(
        kind == config.policy.fine_tune_type,
        f"{adapter} is a {kind} adapter but policy.fine_tune_type is "
        f"{config.policy.fine_tune_type}: set it to {kind}, or start from another adapter.",
    )
    try:
        load_adapters(model, str(adapter))
    except (ValueError, KeyError, AttributeError) as error:
        text = " ".join(str(error).split())[:300]
        raise UserError(f"{adapter} does not fit the model {config.model}: {text}.") from error
    return {**settings, "model": config.model}


def _ignored(settings: dict[str, Any], config: Config) -> list[str]:
    """A note where the config asks for another LoRA than the adapter that is started from."""
    wanted = {"num_layers": config.policy.num_layers, **to_dict(config.policy.lora_parameters)}
    given = {"num_layers": settings.get("num_layers"), **(settings.get("lora_parameters") or {})}
    differing = [key for key in wanted if key in given and wanted[key] != given[key]]
    if config.policy.fine_tune_type == "full" or not differing:
        return []
    values = ", ".join(f"{key} {given[key]}" for key in differing)
    return [f"The adapter's own LoRA settings are used: {values}."]


def _make_trainable(policy: Policy) -> None:
    """Unfreezes what trains and makes it float32."""
    model = policy.model
    if policy.config.policy.fine_tune_type == "full":
        layers = policy.config.policy.num_layers
        if layers <= 0:
            model.unfreeze()
        else:
            for layer in list(model.layers or [])[-layers:]:
                layer.unfreeze()
    # What does not train keeps its type, as it has when mlx-lm loads base and adapter.
    model.update(tree_map(lambda a: a.astype(mx.float32), model.trainable_parameters()))
