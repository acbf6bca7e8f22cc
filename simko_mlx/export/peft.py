"""The adapter for PEFT: ``PeftModel.from_pretrained``, vLLM, llama.cpp's LoRA converter."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from simko_mlx.export.base import Base
from simko_mlx.export.source import Source
from simko_mlx.export.tensors import to_safetensors
from simko_mlx.peft_format import adapted_modules, is_embedding, to_peft
from simko_mlx.types import require

ROUTERS = frozenset({"gate", "router"})  # of experts; in transformers no linear layers
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
# Families whose layers were compared: the same names and shapes in mlx-lm and in transformers
# (of those with experts: attention, shared experts).
SAME_NAMES = frozenset({
    "cohere", "cohere2", "deepseek_v3", "falcon_h1", "gemma", "gemma2", "gemma3_text", "glm4",
    "glm4_moe", "gpt_oss", "granite", "granitemoehybrid", "lfm2", "llama", "mamba", "mamba2",
    "ministral3", "mistral", "mixtral", "olmo2", "olmo3", "phi", "phi3", "qwen2", "qwen3",
    "qwen3_moe", "qwen3_next", "smollm3", "starcoder2",
})  # fmt: skip
# Their files may have mlx-lm's names, which transformers doesn't know.
OTHER_NAMES = frozenset({"nanochat", "nemotron_h", "qwen3_5"})


def peft_files(source: Source, base: Base, dtype: str = "f32") -> dict[str, bytes]:
    """``adapter_model.safetensors`` and ``adapter_config.json``, file name -> content.

    Raises:
        UserError: PEFT can't say what this adapter does; the sentence has the alternative.
    """
    check_faithful(source, base)
    modules = adapted_modules(source.weights)
    rank = int(source.settings["lora_parameters"]["rank"])
    alpha, tensors = source.lora_scale * rank, to_peft(source.weights)
    if alpha == 0:
        # llama.cpp takes an alpha of 0 for "not given", and would add the whole product.
        alpha, tensors = rank, {name: np.zeros_like(value) for name, value in tensors.items()}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": peft_base(base),
        "revision": base.revision if base.quantization is None else None,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": source.settings["lora_parameters"].get("dropout", 0.0),
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }
    weights = to_safetensors(tensors, dtype, {"format": "pt"})
    text = json.dumps(config, indent=2)
    return {"adapter_model.safetensors": weights, "adapter_config.json": text.encode() + b"\n"}


def peft_base(base: Base) -> str:
    """The model that a PEFT adapter names as its base: PEFT can't load MLX's quantised files, so
    there it is what those were made from, where their card says so."""
    if base.quantization is not None:
        return base.made_from or base.hub_id or base.path.name
    return base.hub_id or base.path.name


def check_faithful(source: Source, base: Base) -> None:
    """Makes sure that PEFT has the same layers, by the base model's own weight index.

    Raises:
        UserError: it hasn't.
    """
    require(
        source.is_lora,
        "All weights were trained (policy.fine_tune_type is full), which is no LoRA adapter: "
        "export the run with --to fused or --to mlx.",
    )
    modules = adapted_modules(source.weights)
    require(bool(modules), "The adapter has no LoRA layers: there is nothing to export to PEFT.")
    instead = "export it with --to fused or --to mlx"
    require(
        base.type not in OTHER_NAMES,
        f"The layers of {base.type} models have other names in transformers than in mlx-lm, so "
        f"that PEFT would not find them: {instead}.",
    )
    for module in modules:
        a, b = source.weights[f"{module}.lora_a"], source.weights[f"{module}.lora_b"]
        require(
            a.ndim == 2 and b.ndim == 2,
            f"{module} holds many experts in one layer (MoE), which PEFT's LoRA has no layer for: "
            f"{instead}, or train with policy.lora_parameters.keys of attention alone.",
        )
        require(
            ROUTERS.isdisjoint(module.split(".")) or not any(key in base.config for key in EXPERTS),
            f"{module} chooses experts (MoE), which PEFT can't adapt: {instead}, or train with "
            "policy.lora_parameters.keys of attention alone.",
        )
        embedding = is_embedding(module)
        require(
            not embedding or not base.tied,
            f"{module} is also this model's head (tied embeddings): in PEFT the head would stay "
            f"as it was, so {instead}.",
        )
        shape = (a.shape[0], b.shape[1]) if embedding else (b.shape[1], a.shape[0])
        found = base.shape(module)
        require(
            found is not None,
            f"The base model's files have no {module}.weight, so that PEFT would not find "
            f"{module}: {instead}.",
        )
        require(
            found == shape,
            f"{module}.weight is {found} in the base model's files where mlx-lm has {shape}, so "
            f"that the adapter would not fit in PEFT: {instead}.",
        )


def notes(base: Base) -> list[str]:
    """What a user of the PEFT adapter must know."""
    said = []
    if base.type not in SAME_NAMES:
        said.append(
            f"The layers of {base.type} models were never compared with transformers': --check "
            "does, where torch, transformers and peft are installed."
        )
    if base.quantization is None:
        return said
    original = base.made_from or "the original"
    said.append(
        f"This adapter was trained on a base of {base.quantization.get('bits')} bits, and PEFT "
        f"puts it on {original} in full precision, which answers a little differently: "
        "--to fused keeps what was trained on, and --check measures the difference."
    )
    if base.made_from is None:
        said.append(
            "The quantised base's files don't say what it was made from: name the original with "
            "--base, or else PEFT will not find it."
        )
    return said
