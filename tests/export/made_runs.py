"""Base models that mlx-lm and transformers both load, and runs on them with random adapters.

The weights are random but keep the size of what goes through them, and an adapter's matrices are
large enough that it moves logits by 0.1 and more, so that a difference of 1e-4 means something.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import safetensors.numpy
from mlx.utils import tree_flatten

from simko_mlx import checkpoint
from simko_mlx.adapters import new_adapter
from simko_mlx.config import Config, semantic, set_key
from simko_mlx.config_sources import dump
from simko_mlx.model_files import load_files
from simko_mlx.policy import named_arrays
from tests.families import build
from tests.models import COMMON, make_tokenizer

ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
OWN: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 8},
    "mistral": {"head_dim": 8, "sliding_window": None},
    "gemma2": {
        "head_dim": 8,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 8,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "qwen3_moe": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "mlp_only_layers": [],
    },
}
GPT2 = {
    "n_ctx": 128,
    "n_positions": 128,
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 2,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
    "tie_word_embeddings": True,
}


def write_base(
    folder: Path,
    family: str,
    *,
    tied: bool = True,
    dtype: mx.Dtype = mx.float32,
    bits: int | None = None,
    mode: str = "affine",
    rope: dict[str, Any] | None = None,
) -> Path:
    """A random model in the layout of the family's files on the Hub; quantised as mlx-lm does.

    ``mode`` "mixed" gives the down projections 8 bits instead of ``bits``; ``rope`` are settings
    of rotary embeddings where transformers 5 writes them.
    """
    folder.mkdir(parents=True)
    size = make_tokenizer(folder)
    config: dict[str, Any] = {
        "model_type": family,
        "architectures": [ARCHITECTURES[family]],
        "vocab_size": size,
        "tie_word_embeddings": tied,
        "eos_token_id": 2,
        "torch_dtype": str(dtype).removeprefix("mlx.core."),
        **(GPT2 if family == "gpt2" else {**COMMON, "hidden_act": "silu", **OWN.get(family, {})}),
    }
    in_mlx = "llama" if family == "mistral" else family  # mlx-lm reads it as a llama
    model = build({**config, "model_type": in_mlx}, seed=zlib.crc32(family.encode()))
    model.set_dtype(dtype)
    if bits:
        config["quantization"] = quantize(model, bits, mode)
    if rope is not None:
        config = {k: v for k, v in config.items() if k != "rope_theta"} | {"rope_parameters": rope}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    tensors = {}
    for name, value in tree_flatten(model.parameters()):
        if family == "qwen3_moe" and ".switch_mlp." in name and not bits:
            for i in range(config["num_experts"]):
                tensors[name.replace("switch_mlp", f"experts.{i}")] = value[i]
        elif family == "gpt2":
            turned = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
            tensors[name.removeprefix("model.")] = mx.contiguous(value.T) if turned else value
        else:
            tensors[name] = value
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "pt"})
    return folder


def quantize(model: nn.Module, bits: int, mode: str) -> dict[str, Any]:
    """Quantises a model; what mlx-lm writes into its config.json."""
    form = {"group_size": 32, "bits": bits, "mode": "affine" if mode == "mixed" else mode}
    own: dict[str, Any] = {}

    def choose(name: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized"):
            return False
        if mode == "mixed" and name.endswith("down_proj"):
            own[name] = {**form, "bits": 8}
            return own[name]
        return True

    nn.quantize(model, **form, class_predicate=choose)
    return {**form, **own}


def write_run(
    folder: Path,
    base: Path,
    *,
    keys: list[str] | None = None,
    layers: int = -1,
    full: bool = False,
    size: float = 0.1,
) -> Path:
    """A run directory with one checkpoint, whose adapter is random, written by the real code."""
    config = Config(model=str(base))
    changes: dict[str, Any] = {
        "policy.num_layers": layers,
        "policy.fine_tune_type": "full" if full else "lora",
        "policy.lora_parameters.rank": 4,
        "policy.lora_parameters.scale": 2.0,
        "policy.lora_parameters.keys": keys,
        "data.size": 40,
        "data.heldout": 12,
    }
    for key, value in changes.items():
        set_key(config, key, value)
    model, _ = load_files(base, str(base))
    model.freeze()
    settings = new_adapter(model, config)
    if full:
        model.unfreeze()
    rng = np.random.default_rng(1)
    weights = {}
    for name, value in named_arrays(model.trainable_parameters()).items():
        start = np.array(value.astype(mx.float32))
        fresh = full or name.endswith("lora_b")
        noise = rng.normal(size=start.shape).astype(np.float32)
        weights[name] = start + size * noise if fresh else start
    state = dict.fromkeys(checkpoint.STATE_KEYS)
    state.update(step=7, semantic=semantic(config))
    files = {
        "adapters.safetensors": safetensors.numpy.save(weights, metadata={"format": "mlx"}),
        "adapter_config.json": json.dumps(settings).encode(),
        "optimizer.safetensors": b"",
        "state.json": json.dumps(state).encode(),
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(config))
    checkpoint.save(folder, 7, files)
    return folder


TOKENS = [[7, 31, 200, 5, 90, 12, 12, 150, 33], [250, 3, 77, 18]]


def logits(folder: Path, adapter: Path | None = None) -> list[np.ndarray]:
    """What the model answers ``TOKENS`` with, in float32, as a run loads it."""
    from mlx_lm.tuner.utils import load_adapters

    model, _ = load_files(folder, str(folder))
    if adapter is not None:
        load_adapters(model, str(adapter))
    model.set_dtype(mx.float32)
    model.eval()
    return [np.array(model(mx.array([ids]))[0]) for ids in TOKENS]


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def run_logits(run: Path, base: Path) -> list[np.ndarray]:
    """The same of a run: mlx-lm's model with the checkpoint's adapter."""
    return logits(base, checkpoint.step_folder(run, 7))


def difference(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))
