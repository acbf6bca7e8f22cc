"""What ``memory.py`` measures: small random models of several architectures, and short runs.

Import it after ``common``, which loads OpenBLAS before MLX.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes
from step_setup import make_tokenizer

from simko_mlx.config import Config, set_key
from simko_mlx.config_checks import validate

STEPS = 3
LETTERS = "~^@&%|"  # the tokenizer joins none of them: a token for each
EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
# Rewards that differ within a group, so that each has something to teach.
REWARD = (
    "def reward(completion_ids):\n    return [float(i % 2) for i in range(len(completion_ids))]\n"
)
RUN: dict[str, Any] = {
    "steps": STEPS,
    "data.source": "jsonl",
    "data.path": "data.jsonl",
    "data.heldout": 4,
    "prompt.chat": "never",
    "verifier.name": "memory_reward:reward",
    "eval.problems": 4,
    "eval.n": 4,
    "eval.k": [1, 2],
    "eval.after": False,
    "memory.dry_step": False,
    "checkpoint.every": STEPS,
}


@dataclass(frozen=True)
class Cell:
    """A model, and a run of it. ``shortest`` is the length of the shortest prompt; ``ending`` the
    share of the vocabulary that ends a completion, so that rows finish at different times."""

    family: str
    vocabulary: int
    prompt: int
    completion: int
    problems: int
    group: int
    kind: str = "float32"
    bits: int | None = None
    hidden: int = 256
    layers: int = 4
    shortest: int | None = None
    ending: float = 0.0
    keys: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        kind = f"{self.bits} bits" if self.bits else self.kind
        size = f"{self.vocabulary / 1000:.0f}k"
        return f"{self.family} {size} {kind} {self.layers}x{self.hidden}"

    @property
    def run(self) -> str:
        prompt = f"{self.shortest}-{self.prompt}" if self.shortest else str(self.prompt)
        rows = f"{self.problems}x{self.group}"
        return " ".join([f"{prompt}+{self.completion}", rows, *map(_short, self.keys.items())])

    def config(self, folder: Path) -> Config:
        config = Config()
        values = {
            **RUN,
            "model": str(folder / "model"),
            "rollout.problems_per_step": self.problems,
            "rollout.group_size": self.group,
            "rollout.max_completion_length": self.completion,
            **self.keys,
        }
        for key, value in values.items():
            set_key(config, key, value)
        validate(config)
        return config


def _short(item: tuple[str, Any]) -> str:
    key, value = item
    name = key.rpartition(".")[2]
    return value if isinstance(value, str) else name if value is True else f"{name}={value}"


FULL = {"policy.fine_tune_type": "full"}
SAVING = {"grad_checkpoint": True}
CELLS = (
    Cell("qwen2", 2_000, 64, 64, 4, 8, shortest=48),
    Cell("qwen2", 2_000, 512, 32, 2, 4, "bfloat16", keys={"eval.n": 8}),
    Cell("qwen2", 20_000, 128, 128, 2, 8, keys={"optim.microbatch_size": 2}),
    Cell("qwen2", 20_000, 256, 64, 2, 8, layers=6, keys=SAVING),
    Cell("qwen2", 152_000, 32, 32, 4, 4, hidden=64, layers=3, shortest=20),
    Cell("qwen2", 152_000, 128, 64, 2, 4, bits=4, hidden=128),
    Cell("llama", 20_000, 64, 64, 2, 4, shortest=48, keys=FULL),
    Cell("llama", 20_000, 64, 128, 2, 8, bits=8, keys=SAVING),
    Cell(
        "llama", 2_000, 16, 256, 2, 16, ending=0.01, layers=3,
        keys={"rollout.batch_size": 8, "optim.microbatch_size": 4},
    ),
    Cell("gemma2", 2_000, 64, 64, 4, 8, shortest=40),
    Cell("gemma2", 20_000, 256, 16, 8, 2, "bfloat16", hidden=128, shortest=100),
    Cell("qwen3_moe", 2_000, 64, 64, 2, 8),
    Cell(
        "qwen3_moe", 20_000, 64, 64, 4, 4, bits=4, shortest=16, ending=0.01,
        keys={"rollout.batch_size": 8},
    ),
    Cell("qwen2", 20_000, 256, 32, 8, 4, shortest=16, keys={"optim.microbatch_tokens": 2048}),
    Cell("qwen2", 2_000, 128, 64, 4, 8, keys={**FULL, **SAVING, "optim.microbatch_size": 4}),
    Cell(
        "qwen2", 20_000, 64, 64, 4, 4, shortest=32,
        keys={"optim.minibatches": 2, "loss.kl_coef": 0.05},
    ),
    Cell(
        "qwen2", 20_000, 256, 64, 2, 4, keys={"eval.n": 32, "rollout.batch_size": 64},
    ),
)  # fmt: skip


def make(cell: Cell, folder: Path) -> None:
    """Writes the model, the data and the reward function."""
    model = folder / "model"
    model.mkdir(parents=True)
    make_tokenizer(model, cell.vocabulary)
    _make_model(model, cell)
    rng = np.random.default_rng(0)
    shortest = cell.shortest or cell.prompt
    lengths = np.resize([cell.prompt, shortest, cell.prompt, (shortest + cell.prompt) // 2], 40)
    lines = [{"prompt": "".join(rng.choice(list(LETTERS), int(n))), "answer": "0"} for n in lengths]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "data.jsonl").write_text(text, encoding="utf-8")
    (folder / "memory_reward.py").write_text(REWARD, encoding="utf-8")


def _make_model(folder: Path, cell: Cell) -> None:
    heads = max(1, cell.hidden // 64)
    ends = max(1, int(cell.ending * cell.vocabulary))
    config: dict[str, Any] = {
        "model_type": cell.family,
        "vocab_size": cell.vocabulary,
        "hidden_size": cell.hidden,
        "num_hidden_layers": cell.layers,
        "intermediate_size": 4 * cell.hidden,
        "moe_intermediate_size": cell.hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": cell.family != "llama",
        "eos_token_id": [2, *range(3, 2 + ends)],
        **(EXPERTS if "moe" in cell.family else {}),
    }
    mx.random.seed(0)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    model.set_dtype(getattr(mx, cell.kind))
    if cell.bits:
        nn.quantize(model, group_size=64, bits=cell.bits)
        config["quantization"] = {"group_size": 64, "bits": cell.bits, "mode": "affine"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights: Any = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
