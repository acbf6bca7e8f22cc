"""Small random models with real architectures, real tokenizer files and a real chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# ChatML as Qwen2.5 writes it, with a default system message and today's date for the tests.
CHATML = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
TEXT = [
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May.",
    "How many clips did she sell altogether? The answer is \\boxed{72}. #### 72",
    "Weng earns $12 an hour for babysitting. Yesterday, she did 50 minutes. 12 / 60 = 0.2",
    "system user assistant You are a helpful assistant. 0 1 2 3 4 5 6 7 8 9 10 + - * / = .",
]

COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"tie_word_embeddings": True},
    "llama": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": True, "head_dim": 8},
    "gemma2": {
        "head_dim": 8,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 8,
    },
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "sliding_window_pattern": 2},
}


def make_tokenizer(folder: Path, *, chat: bool = True, bos: str | None = None) -> int:
    """Writes a byte-level BPE tokenizer with ChatML's special tokens; returns its size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special + ([bos] if bos else []),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>" if chat else "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    if bos:
        config["bos_token"] = bos
    if chat:
        config["chat_template"] = CHATML
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()


def make_model(
    folder: Path,
    family: str = "qwen2",
    *,
    seed: int = 0,
    dtype: mx.Dtype = mx.float32,
    bits: int | None = None,
    chat: bool = True,
    bos: str | None = None,
    **overrides: Any,
) -> Path:
    """A folder that ``mlx_lm.load`` reads: random weights, sharpened so that answers differ."""
    folder.mkdir(parents=True, exist_ok=True)
    size = make_tokenizer(folder, chat=chat, bos=bos)
    config = {"model_type": family, "vocab_size": size, **COMMON, **FAMILIES[family], **overrides}
    config["eos_token_id"] = 2 if chat else 0
    mx.random.seed(seed)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    model.apply(lambda a: (mx.random.normal(a.shape) * 0.1).astype(dtype) if a.ndim > 1 else a)
    model.model.embed_tokens.weight = (model.model.embed_tokens.weight * 2).astype(dtype)
    model.apply(lambda a: a.astype(dtype))
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
        config["quantization"] = {"group_size": 32, "bits": bits, "mode": "affine"}
    (folder / "config.json").write_text(json.dumps(config))
    generation = {"eos_token_id": [2, 0]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder
