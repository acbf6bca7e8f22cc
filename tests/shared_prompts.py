"""Batches of completions that share prompts, and what a model makes of them row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from simko_mlx.config import Config
from simko_mlx.policy import Policy, load_policy
from simko_mlx.recompute import checkpointed_layers
from simko_mlx.types import TokenBatch
from tests.models import make_model
from tests.runs import small_config

Gradient = dict[str, mx.array]


def make_batch(
    prompts: Sequence[int],
    lengths: Sequence[Sequence[int]],
    *,
    width: int | None = None,
    vocabulary: int = 100,
    seed: int = 0,
) -> TokenBatch:
    """Random tokens: prompts of these lengths, each with completions of these; 0 is an empty row
    that only fills up."""
    rng = np.random.default_rng(seed)
    flat = [length for some in lengths for length in some]
    width = width or max(flat)
    mask = np.array([[1.0] * n + [0.0] * (width - n) for n in flat], dtype=np.float32)
    tokens = rng.integers(1, vocabulary, size=mask.shape) * (mask > 0)
    return TokenBatch(
        prompts=tuple(tuple(rng.integers(1, vocabulary, size=n).tolist()) for n in prompts),
        tokens=mx.array(tokens.astype(np.int32)),
        loss_mask=mx.array(mask),
        advantages=mx.array(rng.normal(size=len(flat)).astype(np.float32)),
        correct=mx.array(rng.random(len(flat)) < 0.5),
        normalizer=float(sum(flat)),
    )


def shaken(config: Config, scale: float = 0.05) -> Policy:
    """A policy whose adapter is not zero, so that every parameter has a gradient."""
    policy = load_policy(config)
    mx.random.seed(11)
    noise = tree_map(
        lambda a: a + mx.random.normal(a.shape) * scale, policy.model.trainable_parameters()
    )
    policy.model.update(noise)
    mx.eval(policy.model.parameters())
    return policy


def policy_of(folder: Any, family: str, **changes: Any) -> Policy:
    """A policy of a small model of this family."""
    return shaken(small_config(model=str(make_model(folder / "model", family)), **changes))


def weights_of(batch: TokenBatch) -> mx.array:
    rng = np.random.default_rng(1)
    return mx.array(rng.normal(size=batch.tokens.shape).astype(np.float32)) * batch.loss_mask


def gradient_of(policy: Policy, loss: Any) -> tuple[mx.array, Gradient]:
    """What ``loss()`` gives besides its value, and its gradient by parameter name."""
    (_, logprobs), gradient = nn.value_and_grad(policy.model, lambda _: loss())(policy.model)
    flat: Gradient = dict(tree_flatten(gradient))
    mx.eval(logprobs, flat)
    return logprobs, flat


def by_rows(policy: Policy, batch: TokenBatch, temperature: float = 1.0) -> tuple[Any, Gradient]:
    """Log-probs (R, T) and the gradient of their weighted sum, each row alone and in full."""
    weights = weights_of(batch)
    lengths = np.array(batch.loss_mask).sum(axis=1).astype(int).tolist()
    per_prompt = len(lengths) // len(batch.prompts)
    tokens: Any = batch.tokens.tolist()

    def loss() -> tuple[mx.array, mx.array]:
        rows = []
        for row, length in enumerate(lengths):
            found = mx.zeros((batch.tokens.shape[1],))
            if length:
                prompt = list(batch.prompts[row // per_prompt])
                mine = tokens[row][:length]
                logits = policy.model(mx.array([prompt + mine]))[0, len(prompt) - 1 : -1]
                logits = logits.astype(mx.float32) / temperature
                logp = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
                chosen = mx.take_along_axis(logp, mx.array(mine)[:, None], axis=-1)[:, 0]
                found = mx.concatenate([chosen, found[length:]])
            rows.append(found)
        logprobs = mx.stack(rows)
        return (weights * logprobs).sum(), logprobs

    return gradient_of(policy, loss)


def by_layout(policy: Policy, layout: Any, batch: TokenBatch, *, checkpoint: bool = False) -> Any:
    """The same of the policy's own statistics."""
    weights = weights_of(batch)

    def loss() -> tuple[mx.array, mx.array]:
        with checkpointed_layers(policy.model, checkpoint):
            stats = policy.statistics_at(layout, simko_k=2, temperature=1.0)
        return (weights * stats.logprobs).sum(), stats.logprobs

    return gradient_of(policy, loss)


def relative_error(found: Gradient, wanted: Gradient) -> float:
    assert found.keys() == wanted.keys()

    def norm(parts: Any) -> float:
        return float(mx.sqrt(mx.stack([mx.square(part).sum() for part in parts]).sum()))

    return norm([found[n] - wanted[n] for n in wanted]) / norm(list(wanted.values()))
