"""Make the small model of `constraints-tiny`: `python -m simko_mlx.assets.pretrain_constraints`.

It learns to write texts of the little language under instructions, on prompts of the "train" split
alone, in two stages. *Skill*: texts that do as they are told. *Dilution*: texts of which half
neglect some of it, as demonstrations from the world do. That leaves fluent text that meets all
constraints in some 18 % of samples, and something for reinforcement learning to find.

Took 5 min 47 s of CPU time on one core of a shared x86 Linux machine, with OpenBLAS.

The same seed, machine and library give the same weights; elsewhere sums are ordered differently,
and the bits differ.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from simko_mlx.data.instructions import KINDS, constraint, prompt, tasks, wishes
from simko_mlx.data.little_language import ANIMALS, STARTS, WORDS, Task, write

OUT = Path("models/constraints-tiny")
BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"
SPECIAL = (PAD, BOS, EOS, UNK)
ANSWER = "\n"  # stands between prompt and response
WORD = r" ?[A-Za-z]+|[^A-Za-z]"  # a token: a word with the space before it, or a character
KEEPS_TOPIC, KEEPS_ALL, KEEPS_EACH = 0.9, 0.25, 0.5  # of the diluted demonstrations
LONGEST = 64  # tokens of a response; longer texts aren't shown
MODEL: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


def demonstrations(rng: random.Random, seed: int, *, diluted: bool) -> Iterator[tuple[str, str]]:
    """Endless (prompt, text); a diluted one heeds only some of what its prompt says."""
    for task in tasks("train", seed):
        heeded = task
        if diluted and rng.random() > KEEPS_ALL:
            dropped = {k: type(v)() for k, v in wishes(task).items() if rng.random() > KEEPS_EACH}
            topic = task.topic if rng.random() < KEEPS_TOPIC else rng.choice(ANIMALS)
            heeded = replace(task, topic=topic, **dropped)
        yield prompt(task), write(heeded, rng)


def vocabulary() -> dict[str, int]:
    """Token -> id: all that prompts and texts consist of, words in each case that they may have."""
    prompts = [
        f" {constraint(kind, value, animal).text}"
        for kind, values in KINDS.items()
        for value in values
        for animal in ANIMALS
    ]
    found = set(re.findall(WORD, f"{prompt(Task(ANIMALS[0]))} {' '.join(prompts)}"))
    found.update(f" {form}" for word in WORDS for form in (word, word.upper()))
    for word in STARTS:
        forms = (word, word.upper(), word.capitalize())
        found.update((*forms, f" {word.capitalize()}"))
    return {token: i for i, token in enumerate([*SPECIAL, *'\n .,:*"', *sorted(found - {*" .,:"})])}


def make_tokenizer() -> Tokenizer:
    """Words with the space before them; what isn't in the language becomes <unk>."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


class Batches:
    """Endless batches of demonstrations of similar length, as (tokens, weights) int32, float32.

    Rows are padded on the right; the weights are 1 at the tokens of responses, which alone are
    learned.
    """

    def __init__(self, tokenizer: Tokenizer, seed: int, *, diluted: bool):
        self.tokenizer, self.rng = tokenizer, random.Random(seed)
        self.source = demonstrations(self.rng, seed, diluted=diluted)
        self.bos, self.eos, self.pad = (tokenizer.token_to_id(name) for name in (BOS, EOS, PAD))
        self.ready: list[list[tuple[list[int], int]]] = []

    def row(self) -> tuple[list[int], int]:
        """(token ids, how many of them are given) of the next demonstration."""
        while True:
            question, text = next(self.source)
            given = [self.bos, *self.tokenizer.encode(question + ANSWER).ids]
            ids = [*given, *self.tokenizer.encode(text).ids, self.eos]
            if len(ids) - len(given) <= LONGEST:
                return ids, len(given)

    def next(self, size: int) -> tuple[mx.array, mx.array]:
        if not self.ready:  # sorted by length sixteen batches at a time, for little padding
            rows = sorted((self.row() for _ in range(16 * size)), key=lambda row: len(row[0]))
            self.ready = [rows[i : i + size] for i in range(0, len(rows), size)]
            self.rng.shuffle(self.ready)
        rows = self.ready.pop()
        longest = max(len(ids) for ids, _ in rows)
        tokens = np.full((size, longest), self.pad, dtype=np.int32)
        weights = np.zeros((size, longest), dtype=np.float32)
        for i, (ids, given) in enumerate(rows):
            tokens[i, : len(ids)] = ids
            weights[i, given : len(ids)] = 1
        return mx.array(tokens), mx.array(weights)


def response_loss(model: nn.Module, tokens: mx.array, weights: mx.array) -> mx.array:
    """Mean cross-entropy (nats) of the response tokens."""
    logits = model(tokens[:, :-1])
    losses = nn.losses.cross_entropy(logits, tokens[:, 1:]) * weights[:, 1:]
    return losses.sum() / weights.sum()


@dataclass(frozen=True)
class Stage:
    """One of the two stages of pretraining; the peak rate is AdamW's."""

    name: str
    steps: int
    learning_rate: float
    batches: Batches


def run_stage(model: nn.Module, stage: Stage, batch_size: int) -> None:
    """Train `model` in place: short warm-up, then cosine decay; progress on stderr."""
    peak, warmup = stage.learning_rate, min(50, stage.steps // 2)
    ramp = optim.linear_schedule(0.0, peak, max(warmup, 1))
    decay = optim.cosine_decay(peak, stage.steps - warmup, 0.05 * peak)
    optimizer = optim.AdamW(
        learning_rate=optim.join_schedules([ramp, decay], [warmup]),
        betas=[0.9, 0.99],
        weight_decay=0.1,
        bias_correction=True,
    )
    loss_and_grad = nn.value_and_grad(model, response_loss)
    started, losses = time.monotonic(), []
    for step in range(1, stage.steps + 1):
        loss, grads = loss_and_grad(model, *stage.batches.next(batch_size))
        grads, _ = optim.clip_grad_norm(grads, 1.0)
        optimizer.update(model, grads)
        mx.eval(model.state, optimizer.state, loss)
        losses.append(loss.item())
        if step % 100 == 0 or step == stage.steps:
            mean, seconds = np.mean(losses[-100:]), time.monotonic() - started
            progress = f"{stage.name} {step}/{stage.steps}  loss {mean:.4f}  {seconds:.0f} s"
            sys.stderr.write(progress + "\n")


def pretrain(args: argparse.Namespace, tokenizer: Tokenizer) -> nn.Module:
    """A fresh model, taught to do as it is told and then that others don't."""
    mx.random.seed(args.seed)
    settings = MODEL | {"vocab_size": tokenizer.get_vocab_size()}
    model = llama.Model(llama.ModelArgs.from_dict(settings))
    mx.eval(model.parameters())
    skill = Batches(tokenizer, 2 * args.seed, diluted=False)
    run_stage(model, Stage("skill", args.steps, 2e-3, skill), args.batch_size)
    dilution = Batches(tokenizer, 2 * args.seed + 1, diluted=True)
    steps = max(1, args.steps // 8)
    run_stage(model, Stage("dilution", steps, 1e-3, dilution), args.batch_size)
    return model


def save(model: nn.Module, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a folder that `mlx_lm.load` loads: weights in float32, config, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    ids = {f"{name}_token_id": tokenizer.token_to_id(token) for name, token in _NAMES.items()}
    _write_json(folder / "config.json", MODEL | {"vocab_size": tokenizer.get_vocab_size()} | ids)
    _write_json(folder / "generation_config.json", ids | {"max_new_tokens": LONGEST})
    tokenizer.save(str(folder / "tokenizer.json"))
    turns = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": token for name, token in _NAMES.items()},
        "unk_token": UNK,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MODEL["max_position_embeddings"],
        "chat_template": f"{BOS}{turns}{{{{ '\\n' }}}}",
    }
    _write_json(folder / "tokenizer_config.json", config)


_NAMES = {"bos": BOS, "eos": EOS, "pad": PAD}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, pretrain, save."""
    parser = argparse.ArgumentParser(prog="python -m simko_mlx.assets.pretrain_constraints")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder to write (default {OUT})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4000, help="of the first stage")
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args(argv)
    tokenizer = make_tokenizer()
    save(pretrain(args, tokenizer), tokenizer, args.out)


if __name__ == "__main__":
    main()
