"""What SimKO costs over GRPO: one training step of a small random Qwen2 with LoRA, on the same
batch, under three objectives.

  bare           GRPO from the tokens' log-probs alone: the least that a head in chunks can do (no
                 top K, no entropy, nothing logged), with the same two products with the head
  diagnostics    GRPO as this project runs it: top 3 and entropy computed and logged
  diagnostics'   the same once more; what it differs from the first by is noise
  simko          SimKO as this project runs it

A step is forward, loss, backward, clipping and AdamW's update. All objectives take turns in one
process, in an order drawn anew each round from a fixed seed; ratios are of medians, with the 95 %
interval of their bootstrap distribution over rounds. SimKO is compared with both diagnostics
together, which leaves less to chance than one of them. Peak is MLX's count of bytes during a step,
less what is held before it (weights, optimizer); "process" is by how much the process grew during a
step, where the system tells (on the CPU MLX allocates ahead of use).

What it doesn't measure: sampling, verifying, and how well anything learns; nor, with Metal's
kernels, what diagnostics cost, since "bare" is plain MLX. The time of a step does not depend on
what the tokens are; they are sampled from the model so that every branch has some.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import common
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from common import MIB
from mlx.utils import tree_flatten
from mlx_lm.models import qwen2
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tuner.utils import linear_to_lora_layers

from simko_mlx.advantages import group_advantages
from simko_mlx.config import LossConfig, OptimConfig, PolicyConfig, to_dict
from simko_mlx.forward import lay_out, outputs
from simko_mlx.head_tap import HeadTap, find_head
from simko_mlx.kernels import Head, chunk_tokens, head_statistics
from simko_mlx.kernels.statistics import row_sum
from simko_mlx.learner import make_optimizer
from simko_mlx.losses import LossFn, grpo, simko
from simko_mlx.losses.common import clipped_surrogate
from simko_mlx.types import TokenBatch

SHARPNESS = 12.0  # of the last norm: gives logits a standard deviation of about 7
ARMS = ("bare", "diagnostics", "diagnostics'", "simko")
TWICE = ("diagnostics", "diagnostics'")
RATIOS = (
    ("simko", "diagnostics"),
    ("simko", "bare"),
    ("diagnostics", "bare"),
    ("diagnostics'", "diagnostics"),
)
FIGURES = {"wall": "wall", "cpu": "CPU", "peak": "peak", "process": "process"}
LOSS = LossConfig(simko_k=3)
OPTIM = OptimConfig()

Result = tuple[mx.array, dict[str, mx.array], mx.array]
"""Loss, metrics, log-probs of the tokens (B, T)."""


def make_model(args: argparse.Namespace) -> nn.Module:
    """Qwen2 of the given size with random weights; LoRA trains, with the project's defaults."""
    mx.random.seed(0)
    heads = max(1, args.hidden // 64)
    sizes = {
        "model_type": "qwen2",
        "vocab_size": args.vocab,
        "hidden_size": args.hidden,
        "num_hidden_layers": args.layers,
        "intermediate_size": 4 * args.hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2 if heads % 2 == 0 else heads,
        "rms_norm_eps": 1e-6,
        # Tied to a random embedding the head would repeat the last token for ever.
        "tie_word_embeddings": False,
    }
    model = qwen2.Model(qwen2.ModelArgs.from_dict(sizes))
    model.model.norm.weight = model.model.norm.weight * SHARPNESS
    model.freeze()
    linear_to_lora_layers(model, args.layers, to_dict(PolicyConfig().lora_parameters))
    mx.eval(model.parameters())
    return model


def make_batch(model: Any, args: argparse.Namespace) -> TokenBatch:
    """A group's completions, sampled from the model; every third is correct."""
    rows, length = args.group_size, args.completion
    prompt = mx.random.randint(0, args.vocab, (1, args.prompt))
    cache = make_prompt_cache(model)
    last, drawn = mx.broadcast_to(prompt, (rows, args.prompt)), []
    for _ in range(length):
        last = mx.random.categorical(model(last, cache=cache)[:, -1])[:, None]
        mx.eval(last)
        drawn.append(last)
    tokens = mx.concatenate(drawn, axis=1).astype(mx.int32)
    correct = np.arange(rows) % 3 == 0
    batch = TokenBatch(
        prompts=(tuple(map(int, np.array(prompt[0]))),),
        tokens=tokens,
        loss_mask=mx.ones((rows, length)),
        advantages=mx.array(group_advantages([float(c) for c in correct])),
        correct=mx.array(correct),
        normalizer=float(rows * length),
    )
    mx.eval(*batch[1:5])
    return batch


def bare_logprobs(hidden: mx.array, tokens: mx.array, head: Head) -> mx.array:
    """(N, D), (N,) -> log-probs (N,) of the tokens, in chunks, differentiable in ``hidden``.

    With r the share of all other tokens and m the mean of their head rows, weighted by their
    probabilities, d logprob / d hidden = r (W_token - m): the forward pass forms m.
    """
    chunk = chunk_tokens(head.vocabulary)

    def one(part: mx.array, chosen: mx.array) -> list[mx.array]:
        z = head.logits(part)
        own = mx.take_along_axis(z, chosen, axis=-1)
        others = mx.put_along_axis(z, chosen, mx.array(-mx.inf), axis=-1)
        top = others.max(axis=-1, keepdims=True)
        e = mx.exp(others - top)
        mass = row_sum(e)[:, None]
        behind = top + mx.log(mass) - own
        return [-mx.logaddexp(behind, 0.0), mx.sigmoid(behind), head.back(e) / mass]

    @mx.custom_function
    def run(hidden: mx.array, tokens: mx.array) -> tuple[mx.array, ...]:
        parts: list[list[mx.array]] = []
        for start in range(0, len(tokens), chunk):
            part = hidden[start : start + chunk]
            if parts:
                part = mx.depends([part], parts[-1])[0]
            parts.append(one(part, tokens[start : start + chunk, None]))
        logprobs, share, mean = (mx.concatenate(list(x)) for x in zip(*parts, strict=True))
        return logprobs[:, 0], share, mean

    @run.vjp
    def run_vjp(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array]:
        _, share, mean = outputs
        grad = cotangents[0][:, None] * share * (head.rows(primals[1]) - mean)
        return grad.astype(primals[0].dtype), mx.zeros_like(primals[1])

    logprobs, *_ = run(hidden, tokens)  # type: ignore[misc]
    return logprobs


@dataclass
class Bench:
    """Model, batch and optimizer that all objectives share."""

    model: nn.Module
    tap: HeadTap
    batch: TokenBatch
    optimizer: optim.Optimizer

    def hidden(self) -> mx.array:
        """(N, D): what the head is given at the completions' tokens."""
        return outputs(self.model, self.tap.hidden, lay_out(self.batch, "full"))

    def bare(self) -> Result:
        batch = self.batch
        logprobs = bare_logprobs(self.hidden(), batch.tokens.reshape(-1), self.tap.head())
        logprobs = logprobs.reshape(*batch.tokens.shape)
        ratio = mx.exp(logprobs - mx.stop_gradient(logprobs))
        per_token, _ = clipped_surrogate(ratio, batch.advantages[:, None], LOSS)
        loss = mx.where(batch.loss_mask > 0, per_token, 0.0).sum() / batch.normalizer
        return loss, {}, mx.stop_gradient(logprobs)

    def with_statistics(self, loss_fn: LossFn) -> Result:
        tokens = self.batch.tokens
        stats = head_statistics(
            self.hidden(), tokens.reshape(-1), self.tap.head(), simko_k=LOSS.simko_k, mode="tail"
        ).reshape(*tokens.shape)
        output = loss_fn(stats, self.batch, LOSS)
        return output.loss, output.metrics, mx.stop_gradient(stats.logprobs)

    def gradient(self, arm: str) -> tuple[Result, Any]:
        """As ``Learner`` computes it, lazily."""
        loss_fn = simko if arm == "simko" else grpo

        def loss() -> Result:
            return self.bare() if arm == "bare" else self.with_statistics(loss_fn)

        return nn.value_and_grad(self.model, loss)()

    def step(self, arm: str) -> dict[str, float]:
        """The whole update, as ``Learner`` makes it; the metrics, summed over tokens."""
        result, gradient = self.gradient(arm)
        mx.eval(*result, gradient)
        metrics = {name: float(value) for name, value in result[1].items()}
        gradient, norm = optim.clip_grad_norm(gradient, OPTIM.max_grad_norm or 1.0)
        mx.eval(norm)
        self.optimizer.update(self.model, gradient)
        mx.eval(self.model.trainable_parameters(), self.optimizer.state)
        return metrics


def make_bench(args: argparse.Namespace) -> Bench:
    model = make_model(args)
    batch = make_batch(model, args)
    tap = find_head(model)
    if isinstance(tap, str):
        raise SystemExit(f"The model's head can't be taken apart: {tap}.")
    optimizer = make_optimizer(OPTIM)
    optimizer.init(model.trainable_parameters())
    model.train()
    return Bench(model, tap, batch, optimizer)


@contextmanager
def counted_blocks() -> Iterator[list[int]]:
    """Counts the calls of transformer blocks, those for gradients (checkpointing) included."""
    calls = [0]
    original = qwen2.TransformerBlock.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> mx.array:
        calls[0] += 1
        return original(self, *args, **kwargs)

    with mock.patch.object(qwen2.TransformerBlock, "__call__", call):
        yield calls


def warm_up(bench: Bench, layers: int) -> dict[str, Any]:
    """One step of each objective, untimed: forward passes of each, and SimKO's metrics."""
    passes, metrics = {}, {}
    for arm in ARMS:
        with counted_blocks() as calls:
            metrics = bench.step(arm)
        passes[arm] = calls[0] / layers
    return {"forward_passes": passes, "simko_metrics": metrics}


def disagreement(bench: Bench) -> float:
    """How far the gradient of "bare" is from that of "diagnostics", relative: both are GRPO's."""
    found = []
    for arm in ("bare", "diagnostics"):
        _, gradient = bench.gradient(arm)
        arrays: Any = tree_flatten(gradient)
        found.append(np.concatenate([np.array(a).reshape(-1) for _, a in arrays]))
    return float(np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[1]))


def run_rounds(bench: Bench, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Arm -> one row of figures per round."""
    order, shuffler = list(ARMS), random.Random(0)
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for _ in range(rounds):
        shuffler.shuffle(order)
        for arm in order:
            took, _ = common.measure(lambda arm=arm: bench.step(arm))
            memory = {"peak": took.peak - took.before, "whole": took.peak, "process": took.process}
            figures = {"wall": took.wall, "cpu": took.cpu}
            rows[arm].append(figures | {name: float(value) for name, value in memory.items()})
    return rows


def summarise(rows: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """The ratios of medians, with intervals."""
    out: list[dict[str, Any]] = []
    for above, below in RATIOS:
        arms = TWICE if (above, below) == ("simko", "diagnostics") else (below,)
        for name in FIGURES:
            mine = [[row[name]] for row in rows[above]]
            theirs = list(zip(*([row[name] for row in rows[arm]] for arm in arms), strict=True))
            if not all(map(all, theirs)):
                continue  # the system doesn't tell
            median, low, high = common.ratio_interval(mine, theirs)
            row = {"of": above, "to": below, "figure": name}
            out.append(row | {"median": median, "low": low, "high": high})
    return out


def show(rows: dict[str, list[dict[str, float]]], ratios: Sequence[dict[str, Any]]) -> str:
    def middle(arm: str, name: str) -> float:
        return float(np.median([row[name] for row in rows[arm]]))

    lines = []
    for arm in ARMS:
        times = [f"{middle(arm, name):.3f}" for name in ("wall", "cpu")]
        peaks = [f"{middle(arm, name) / MIB:.1f}" for name in ("peak", "whole", "process")]
        lines.append([arm, *times, *peaks])
    header = ["median of a step", "wall s", "CPU s", "peak MiB", "with weights", "process MiB"]
    first = common.table(header, lines)
    lines = []
    for above, below in RATIOS:
        mine = {row["figure"]: row for row in ratios if (row["of"], row["to"]) == (above, below)}
        cells = [
            f"{mine[n]['median']:.3f} [{mine[n]['low']:.3f}, {mine[n]['high']:.3f}]"
            if n in mine
            else "-"
            for n in FIGURES
        ]
        lines.append([f"{above} / {below}", *cells])
    second = common.table(["ratio [95 %]", *FIGURES.values()], lines)
    return f"{first}\n\n{second}\nThe last line is the noise floor: the same objective twice."


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., Any] = parser.add_argument
    add("--vocab", type=int, default=151_936, help="default 151,936")
    add("--rounds", type=int, default=15, help="timed steps of each objective (default 15)")
    add("--group-size", type=int, default=8, help="completions (default 8)")
    add("--prompt", type=int, default=64, help="tokens of the prompt (default 64)")
    add("--completion", type=int, default=64, help="tokens of a completion (default 64)")
    add("--layers", type=int, default=4, help="default 4")
    add("--hidden", type=int, default=256, help="size of the hidden states (default 256)")
    add("--json", metavar="FILE", help="also write everything to FILE")
    args = parser.parse_args(arguments)
    sizes = (args.vocab, args.rounds, args.prompt, args.completion, args.layers)
    if min(sizes) < 1 or args.group_size < 2 or args.hidden % 64:
        parser.error("sizes are at least 1, the group at least 2, hidden a multiple of 64")
    return args


def main() -> None:
    args = parse()
    facts = common.machine()
    common.print_machine(facts)
    bench = make_bench(args)
    warm = warm_up(bench, args.layers)
    tokens = args.group_size * args.completion
    shares = {n: warm["simko_metrics"][n] / tokens for n in ("forking", "smoothed", "sharpened")}
    gap = disagreement(bench)
    print(
        f"batch     {args.group_size} completions of {args.completion} tokens after {args.prompt}"
    )
    print("tokens    " + ", ".join(f"{share:.1%} {name}" for name, share in shares.items()))
    print(f"gradient  of bare and of diagnostics: {gap:.0e} apart, relative")
    passes = ", ".join(f"{n:g} ({arm})" for arm, n in warm["forward_passes"].items())
    print(f"forward passes of the model per step: {passes}\n", flush=True)
    rows = run_rounds(bench, args.rounds)
    ratios = summarise(rows)
    print(show(rows, ratios))
    common.write_json(
        args.json,
        {"machine": facts, **warm, "gradient_gap": gap, "ratios": ratios, "rounds": rows},
    )


if __name__ == "__main__":
    main()
