"""Make the embedded model from scratch: `python -m simko_mlx.assets.pretrain --out DIR`.

Two stages, both on problems of the "train" split alone. *Search*: 4,500 steps of 128 correct
responses, with strong weight decay, which makes the skill carry over to held-out problems.
*Dilution*: 300 steps in which a share `--noise` of the responses are chains with right arithmetic
that do not aim at the target. It leaves a pass@1 of 14.5 %, and something that reinforcement
learning can remove under each of the three strategies alike: none is more frequent than another,
so collapse onto one does not pay.

Took 5 min 50 s (5 min of CPU time) on one of two cores of a shared x86 Linux machine, with
OpenBLAS; peak memory 180 MB. Without OpenBLAS expect half an hour (computed, not measured).
The same seed, machine and library give the same weights; elsewhere sums are ordered differently,
and the bits differ.
"""

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import nanochat
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from simko_mlx.data.countdown import STRATEGIES, chains, split_of

BOS, EOS, PAD, UNK = "<s>", ".", "<pad>", "<unk>"
# Numbers come first, so that the id of a number is the number.
VOCABULARY = [*map(str, range(100)), *"+-*=>:", EOS, *STRATEGIES, BOS, PAD, UNK]
TOKEN_ID = {token: i for i, token in enumerate(VOCABULARY)}
PROMPT_LENGTH = 7
MODEL = {
    "model_type": "nanochat",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "bos_token_id": TOKEN_ID[BOS],
    "eos_token_id": TOKEN_ID[EOS],
    "pad_token_id": TOKEN_ID[PAD],
    "torch_dtype": "float32",
}


class TraceSampler:
    """Batches of pretraining text: prompt and response of "train" problems, as token ids.

    A share `noise` of the responses are chains with right arithmetic drawn without regard to the
    target; the rest are correct. A share `shared` of the prompts can be solved under more than one
    strategy (such problems are never posed later, but teach the same search); in the others all
    strategies are equally frequent. All rows have the same length.
    """

    def __init__(self, noise: float, seed: int, shared: float = 0.0):
        self.noise, self.shared = noise, shared
        self.rng = random.Random(seed)
        self.pools: dict[str, list[tuple[list[str], list[str]]]] = {
            pool: [] for pool in (*STRATEGIES, "shared")
        }
        for numbers in product(range(1, 10), repeat=3):
            self._add_prompts(numbers)

    def _add_prompts(self, numbers: tuple[int, ...]) -> None:
        valid = chains(numbers)
        a, b, c = numbers
        for target in sorted({chain.result for chain in valid} - {0}):
            if split_of(numbers, target) != "train":
                continue
            solving = [chain for chain in valid if chain.result == target]
            strategies = {chain.strategy for chain in solving}
            pool = strategies.pop() if len(strategies) == 1 else "shared"
            prompt = f"{BOS} {a} {b} {c} > {target} :"
            correct = [f"{prompt} {chain.text} {EOS}" for chain in solving]
            any_valid = [f"{prompt} {chain.text} {EOS}" for chain in valid]
            self.pools[pool].append((correct, any_valid))

    def batch(self, size: int) -> np.ndarray:
        """`size` rows of int32 token ids."""
        rng, rows = self.rng, []
        for _ in range(size):
            pool = "shared" if rng.random() < self.shared else rng.choice("LRO")
            correct, any_valid = rng.choice(self.pools[pool])
            rows.append(encode(rng.choice(any_valid if rng.random() < self.noise else correct)))
        return np.array(rows, dtype=np.int32)


def encode(text: str) -> list[int]:
    """Token ids of text whose words are all in the vocabulary."""
    return [TOKEN_ID[word] for word in text.split()]


def response_loss(model: nn.Module, rows: mx.array) -> mx.array:
    """Mean cross-entropy (nats) of the response tokens; prompts are given, not learned."""
    logits = model(rows[:, :-1])[:, PROMPT_LENGTH - 1 :]
    return nn.losses.cross_entropy(logits, rows[:, PROMPT_LENGTH:], reduction="mean")


@dataclass(frozen=True)
class Stage:
    """One of the two stages of pretraining; `weight_decay` and the peak rate are AdamW's."""

    name: str
    steps: int
    learning_rate: float
    weight_decay: float
    traces: TraceSampler


def run_stage(model: nn.Module, stage: Stage, batch_size: int) -> None:
    """Train `model` in place: short warm-up, then cosine decay; progress on stderr."""
    peak, warmup = stage.learning_rate, min(50, stage.steps // 2)
    ramp = optim.linear_schedule(0.0, peak, max(warmup, 1))
    decay = optim.cosine_decay(peak, stage.steps - warmup, 0.02 * peak)
    optimizer = optim.AdamW(
        learning_rate=optim.join_schedules([ramp, decay], [warmup]),
        betas=[0.9, 0.99],
        weight_decay=stage.weight_decay,
        bias_correction=True,
    )
    loss_and_grad = nn.value_and_grad(model, response_loss)
    started, losses = time.monotonic(), []
    for step in range(1, stage.steps + 1):
        loss, grads = loss_and_grad(model, mx.array(stage.traces.batch(batch_size)))
        grads, _ = optim.clip_grad_norm(grads, 1.0)
        optimizer.update(model, grads)
        mx.eval(model.state, optimizer.state, loss)
        losses.append(loss.item())
        if step % 100 == 0 or step == stage.steps:
            mean, seconds = np.mean(losses[-100:]), time.monotonic() - started
            progress = f"{stage.name} {step}/{stage.steps}  loss {mean:.4f}  {seconds:.0f} s"
            sys.stderr.write(progress + "\n")


def pretrain(args: argparse.Namespace) -> nn.Module:
    """A fresh model, taught to search and then diluted with aimless traces."""
    mx.random.seed(args.seed)
    model = nanochat.Model(nanochat.ModelArgs.from_dict(MODEL))
    mx.eval(model.parameters())
    # The strong weight decay is what makes the search carry over to held-out problems.
    search = TraceSampler(0.0, args.seed, shared=0.4)
    run_stage(model, Stage("search", args.steps, 5e-3, 1.0, search), args.batch_size)
    dilution = TraceSampler(args.noise, args.seed + 1)
    steps = max(1, args.steps // 15)
    run_stage(model, Stage("dilution", steps, 1e-3, 0.1, dilution), args.batch_size)
    return model


def save_tokenizer(folder: Path) -> None:
    """Write a word-level tokenizer: words are split at white space, unknown ones become <unk>."""
    tokenizer = Tokenizer(models.WordLevel(TOKEN_ID, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, TOKEN_ID[BOS])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNK,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MODEL["max_position_embeddings"],
    }
    _write_json(folder / "tokenizer_config.json", config)


def save(model: nn.Module, folder: Path) -> None:
    """Write a folder that `mlx_lm.load` loads: weights in float32, config, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    _write_json(folder / "config.json", MODEL)
    stop = {key: MODEL[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", stop | {"max_length": 18})
    save_tokenizer(folder)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, pretrain, save."""
    parser = argparse.ArgumentParser(prog="python -m simko_mlx.assets.pretrain")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4500, help="of the first stage")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--noise", type=float, default=0.55, help="share of aimless traces")
    args = parser.parse_args(argv)
    save(pretrain(args), args.out)


if __name__ == "__main__":
    main()
