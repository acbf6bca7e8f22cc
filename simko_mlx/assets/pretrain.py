"""Make the embedded model from scratch: `python -m simko_mlx.assets.pretrain --out DIR`."""

import argparse
import json
import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import nanochat
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from simko_mlx.data.countdown import STRATEGIES, chains, puzzles

BOS, EOS, PAD, UNK = "<s>", ".", "<pad>", "<unk>"
# Numbers come first, so that the id of a number is the number.
VOCABULARY = [*map(str, range(100)), *"+-*=>:", EOS, *STRATEGIES, BOS, PAD, UNK]
TOKEN_ID = {token: i for i, token in enumerate(VOCABULARY)}
PROMPT_LENGTH = 7
MODEL = {
    "model_type": "nanochat",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
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

    A share `noise` of the responses are valid chains drawn without regard to the target; the rest
    are correct. Strategies are equally frequent. Rows all have the same length.
    """

    def __init__(self, noise: float, seed: int):
        self.noise = noise
        self.rng = random.Random(seed)
        self.pools: dict[str, list[tuple[list[list[int]], list[list[int]]]]] = {
            strategy: [] for strategy in STRATEGIES
        }
        for puzzle in puzzles("train"):
            rows = [
                [encode(f"{BOS} {puzzle.prompt} {text} {EOS}") for text in texts]
                for texts in (puzzle.solutions, [chain.text for chain in chains(puzzle.numbers)])
            ]
            self.pools[puzzle.strategy].append((rows[0], rows[1]))

    def batch(self, size: int) -> np.ndarray:
        """`size` rows of int32 token ids."""
        rng, rows = self.rng, []
        for _ in range(size):
            solutions, valid = rng.choice(self.pools[rng.choice("LRO")])
            rows.append(rng.choice(valid if rng.random() < self.noise else solutions))
        return np.array(rows, dtype=np.int32)


def encode(text: str) -> list[int]:
    """Token ids of text whose words are all in the vocabulary."""
    return [TOKEN_ID[word] for word in text.split()]


def response_loss(model: nn.Module, rows: mx.array) -> mx.array:
    """Mean cross-entropy (nats) of the response tokens; prompts are given, not learned."""
    logits = model(rows[:, :-1])[:, PROMPT_LENGTH - 1 :]
    return nn.losses.cross_entropy(logits, rows[:, PROMPT_LENGTH:], reduction="mean")


def pretrain(args: argparse.Namespace) -> nn.Module:
    """Train a fresh model on the CPU or GPU that mlx uses by default; progress on stderr."""
    mx.random.seed(args.seed)
    model = nanochat.Model(nanochat.ModelArgs.from_dict(MODEL))
    mx.eval(model.parameters())
    warmup = min(50, args.steps // 2)
    schedule = optim.join_schedules(
        [
            optim.linear_schedule(0.0, args.learning_rate, max(warmup, 1)),
            optim.cosine_decay(args.learning_rate, args.steps - warmup, 0.02 * args.learning_rate),
        ],
        [warmup],
    )
    optimizer = optim.AdamW(
        learning_rate=schedule, weight_decay=args.weight_decay, bias_correction=True
    )
    loss_and_grad = nn.value_and_grad(model, response_loss)
    traces = TraceSampler(args.noise, args.seed)
    started, losses = time.monotonic(), []
    for step in range(1, args.steps + 1):
        loss, grads = loss_and_grad(model, mx.array(traces.batch(args.batch_size)))
        grads, _ = optim.clip_grad_norm(grads, 1.0)
        optimizer.update(model, grads)
        mx.eval(model.state, optimizer.state, loss)
        losses.append(loss.item())
        if step % 100 == 0 or step == args.steps:
            mean, seconds = np.mean(losses[-100:]), time.monotonic() - started
            sys.stderr.write(f"step {step}/{args.steps}  loss {mean:.4f}  {seconds:.0f} s\n")
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
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--noise", type=float, default=0.5, help="share of aimless traces")
    args = parser.parse_args(argv)
    save(pretrain(args), args.out)


if __name__ == "__main__":
    main()
