"""Small configs of mlx-lm's model families, each with the features that set it apart.

Windows are shorter than the prompts that the tests use, queries share keys, and logits are capped
or scaled where the family does that.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import _get_classes

from tests.models import COMMON, make_tokenizer

WINDOW = 8
SLIDING = {"head_dim": 8, "sliding_window": WINDOW, "sliding_window_pattern": 2}
LAYERS = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GRANITE = {
    "logits_scaling": 8.0,
    "attention_multiplier": 0.35,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_bias": False,
    "mlp_bias": False,
    **TIED,
}
COHERE = {"layer_norm_eps": 1e-5, "layer_norm_bias": False}
EXPERTS = {
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "mlp_only_layers": [],
    **UNTIED,
}
MAMBA2 = {
    "num_heads": 4,
    "head_dim": 16,
    "intermediate_size": 64,
    "state_size": 8,
    "layer_norm_epsilon": 1e-5,
    "conv_kernel": 4,
    "n_groups": 2,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_limit": [0.001, 100.0],
    "time_step_rank": 4,
    **TIED,
}


@dataclass(frozen=True)
class Family:
    """What a config has beyond ``COMMON``, and in words what of it matters."""

    config: dict[str, Any]
    features: str
    type: str | None = None  # model_type, where it isn't the row's name


ATTENTION: dict[str, Family] = {
    "llama": Family(UNTIED, "grouped queries, untied head"),
    "llama with llama3 rope": Family({**TIED, "rope_scaling": LLAMA3}, "llama3 rope", "llama"),
    "llama with yarn": Family({**UNTIED, "rope_scaling": YARN}, "yarn rope", "llama"),
    "mistral": Family({**UNTIED, **LAYERS, "head_dim": 16}, f"window {WINDOW} in one layer"),
    "ministral3": Family(
        {
            **UNTIED,
            **LAYERS,
            "head_dim": 8,
            "rope_parameters": {
                "rope_theta": 10000.0,
                "llama_4_scaling_beta": 0.1,
                **YARN,
                "type": "yarn",
            },
        },
        f"window {WINDOW}, yarn, attention scaled by position",
    ),
    "mixtral": Family(
        {**UNTIED, "num_local_experts": 4, "num_experts_per_tok": 2}, "2 of 4 experts"
    ),
    "qwen2": Family(TIED, "biases, tied head"),
    "qwen3": Family({**TIED, "head_dim": 16}, "norms of queries and keys, tied head"),
    "qwen3_moe": Family(EXPERTS, "2 of 4 experts, untied head"),
    "gemma": Family({"head_dim": 8}, "tied head, scaled embeddings"),
    "gemma2": Family(
        {
            "head_dim": 8,
            "attn_logit_softcapping": 5.0,  # low, so that they matter
            "final_logit_softcapping": 5.0,
            "query_pre_attn_scalar": 8,
        },
        "caps of attention and of logits",
    ),
    "gemma3_text": Family(SLIDING, f"window {WINDOW} in one layer"),
    "phi": Family({"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5}, "biases, partial rope"),
    "phi3": Family({}, "queries, keys and values in one layer"),
    "phi3 with longrope": Family(
        {
            "rope_scaling": {
                "type": "longrope",
                "long_factor": [1.0, 1.5, 2.0, 4.0],
                "short_factor": [1.0] * 4,
            },
            "original_max_position_embeddings": 64,
        },
        "longrope",
        "phi3",
    ),
    "smollm3": Family({**TIED, "no_rope_layers": [1, 0]}, "one layer without rope"),
    "granite": Family(GRANITE, "scales of logits, residuals and embeddings"),
    "olmo2": Family({}, "norms after the layers"),
    "olmo3": Family({**UNTIED, **LAYERS}, f"window {WINDOW} in one layer"),
    "cohere": Family({"logit_scale": 0.0625, **COHERE}, "scaled logits, tied head"),
    "cohere2": Family({"logit_scale": 0.3, **SLIDING, **COHERE}, f"window {WINDOW}, scaled logits"),
    "glm4": Family(
        {"head_dim": 8, "attention_bias": False, "partial_rotary_factor": 0.5},
        "partial traditional rope, four norms",
    ),
    "starcoder2": Family({"norm_epsilon": 1e-5, **TIED}, "biases, tied head"),
    "minicpm": Family(
        {"dim_model_base": 16, "scale_depth": 1.4, "scale_emb": 12, **UNTIED},
        "scales of embeddings, depth and hidden states",
    ),
    "gpt_oss": Family(
        {
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_scaling": {**YARN, "beta_fast": 32.0, "beta_slow": 1.0},
            **LAYERS,
        },
        f"attention sinks, window {WINDOW}, 2 of 4 experts, yarn",
    ),
    "deepseek_v3": Family(
        {
            "num_key_value_heads": 4,
            "moe_intermediate_size": 32,
            "n_shared_experts": 1,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "routed_scaling_factor": 1.0,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
        },
        "latent attention, 2 of 4 experts and a shared one",
    ),
    "glm4_moe": Family(
        {
            **UNTIED,
            "head_dim": 8,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "routed_scaling_factor": 1.0,
            "first_k_dense_replace": 1,
            "use_qk_norm": True,
            "attention_bias": True,
            "partial_rotary_factor": 0.5,
            "rope_scaling": None,
        },
        "partial rope, 2 of 4 experts and a shared one",
    ),
}
DELTA = {
    "head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
    **UNTIED,
}
RECURRENT: dict[str, Family] = {
    "lfm2": Family(
        {
            "norm_eps": 1e-5,
            "conv_bias": False,
            "conv_L_cache": 3,
            "block_dim": 32,
            "block_multiple_of": 8,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["conv", "full_attention"],
        },
        "convolution and attention",
    ),
    "qwen3_next": Family(
        {
            **EXPERTS,
            **DELTA,
            "shared_expert_intermediate_size": 32,
            "partial_rotary_factor": 0.5,
        },
        "gated delta rule and attention, 2 of 4 experts",
    ),
    "qwen3_5": Family(
        {
            "text_config": {
                **DELTA,
                "model_type": "qwen3_5_text",
                "rope_parameters": {
                    "type": "default",
                    "mrope_section": [1, 1, 0],
                    "rope_theta": 100000.0,
                    "partial_rotary_factor": 0.5,
                },
            }
        },
        "gated delta rule and attention, text part of a larger model",
    ),
    "granitemoehybrid": Family(
        {
            **GRANITE,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_d_conv": 4,
            "mamba_n_groups": 2,
            "mamba_proj_bias": False,
            "mamba_conv_bias": True,
            "position_embedding_type": "nope",
        },
        "Mamba-2 and attention, 2 of 4 experts, scaled logits",
    ),
    "falcon_h1": Family(
        {
            "head_dim": 8,
            "mamba_d_head": 16,
            "mamba_d_ssm": 64,
            "mamba_d_state": 8,
            "mamba_n_groups": 2,
            "mamba_n_heads": 4,
            **TIED,
        },
        "Mamba-2 beside attention in each layer",
    ),
    "nemotron_h": Family(
        {
            "num_hidden_layers": 3,
            "head_dim": 8,
            "attention_bias": False,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "mamba_proj_bias": False,
            "ssm_state_size": 8,
            "conv_kernel": 4,
            "n_groups": 2,
            "mlp_bias": False,
            "layer_norm_epsilon": 1e-5,
            "use_bias": False,
            "use_conv_bias": True,
            "hybrid_override_pattern": ["M", "*", "-"],
            "time_step_limit": [0.001, 100.0],
        },
        "Mamba-2, attention and MLP layers",
    ),
    "mamba": Family(
        {
            "state_size": 8,
            "conv_kernel": 4,
            "use_bias": False,
            "use_conv_bias": True,
            "time_step_rank": 4,
            **TIED,
        },
        "no attention at all",
    ),
    "mamba2": Family(MAMBA2, "no attention at all"),
}
FAMILIES = {**ATTENTION, **RECURRENT}
FALLBACK: dict[str, Family] = {
    "llama4": Family(
        {
            "text_config": {
                "attention_bias": False,
                "attention_chunk_size": 16,
                "head_dim": 8,
                "interleave_moe_layer_step": 2,
                "intermediate_size_mlp": 64,
                "model_type": "llama4_text",
                "num_experts_per_tok": 1,
                "num_local_experts": 2,
                "num_hidden_layers": 4,
                "rope_scaling": None,
                "use_qk_norm": True,
            }
        },
        "attention in chunks of 16, 1 of 2 experts",
    ),
}
REFUSED: dict[str, Family] = {
    "recurrent_gemma": Family(
        {
            "attention_bias": False,
            "conv1d_width": 4,
            "logits_soft_cap": 5.0,
            "attention_window_size": WINDOW,
            "block_types": ["recurrent", "attention"],
        },
        "RG-LRU and attention",
    ),
    "gemma3n": Family(
        {
            "text_config": {
                "model_type": "gemma3n_text",
                "head_dim": 8,
                "num_hidden_layers": 4,
                "num_kv_shared_layers": 2,
                "vocab_size_per_layer_input": 400,
                "sliding_window": WINDOW,
                "rope_local_base_freq": 10000.0,
                "final_logit_softcapping": 5.0,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "activation_sparsity_pattern": [0.0] * 4,
                "hidden_size_per_layer_input": 8,
                "altup_num_inputs": 2,
                "altup_coef_clip": 120.0,
                "altup_correct_scale": True,
                "altup_active_idx": 0,
                "laurel_rank": 8,
            }
        },
        "alternating updates, layers that share keys and values",
    ),
}


def config_of(name: str, vocabulary: int) -> dict[str, Any]:
    """config.json of a family."""
    family = {**FAMILIES, **FALLBACK, **REFUSED}[name]
    common = {**COMMON, "vocab_size": vocabulary}
    own = dict(family.config)
    if "text_config" in own:
        own["text_config"] = {**common, **own["text_config"]}
    return {"model_type": family.type or name, **common, **own}


def build(config: dict[str, Any], seed: int = 0) -> Any:
    """The model with random weights of a size that training starts with: each layer keeps the size
    of what goes through it."""
    mx.random.seed(seed)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    changed = []
    for name, weight in tree_flatten(model.parameters()):
        noise = mx.random.normal(weight.shape)
        if weight.ndim > 1 and not name.endswith("A_log"):
            fan_in = math.prod(weight.shape[1:]) if "conv" in name else weight.shape[-1]
            weight = noise * (0.3 if "embed" in name else 1 / math.sqrt(fan_in))
        elif name.endswith("norm.weight"):
            start = 0.0 if config["model_type"].startswith("gemma") else 1.0  # they add 1
            weight = start + 0.1 * noise
        changed.append((name, weight.astype(mx.float32)))
    model.update(tree_unflatten(changed))
    model.eval()
    return model


def write_model(folder: Path, name: str) -> Path:
    """A folder that ``mlx_lm.load`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**config_of(name, make_tokenizer(folder)), "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(build(config).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder
