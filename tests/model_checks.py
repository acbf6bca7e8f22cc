"""What must hold of every family of models that can be trained; each check gives a number."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

from simko_mlx import trainer
from simko_mlx.batching import group_batch
from simko_mlx.config import Config
from simko_mlx.forward import Way
from simko_mlx.losses import find_loss
from simko_mlx.policy import Policy, load_policy
from simko_mlx.rollout import Sampling, rollout
from simko_mlx.selftest import can_decode_ragged
from simko_mlx.step import Step
from simko_mlx.types import Problem, RolloutGroup, TokenBatch
from tests.families import write_model
from tests.runs import metrics, run, small_config

LORA = {"rank": 4, "scale": 2.0, "dropout": 0.0}
PROMPTS = (27, 21)  # both longer than the families' windows, neither prefix a multiple of 8
ROWS, WIDTH = 3, 10
TEXTS = (
    "How many clips did she sell altogether?",
    "Weng earns $12 an hour.",
    "Natalia sold clips to 48 of her friends in April.",
)
Gradient = dict[str, np.ndarray]


@dataclass
class Case:
    """One family's model in a folder, with an adapter whose weights are all other than zero."""

    name: str
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    def config(self, **changes: Any) -> Config:
        fixed = {"model": str(self.model), "policy__adapter_path": str(self.adapter)}
        lora = {f"policy__lora_parameters__{key}": value for key, value in LORA.items()}
        return small_config(**{**fixed, **lora, "loss__name": "grpo", **changes})

    @cached_property
    def policy(self) -> Policy:
        return load_policy(self.config())

    @cached_property
    def ragged(self) -> str | None:
        """Why rows of different lengths can't share a decode batch."""
        return can_decode_ragged(self.policy.model)

    @cached_property
    def batch(self) -> TokenBatch:
        """Prompts of different lengths where the policy's way allows that."""
        policy, rng = self.policy, np.random.default_rng(1)
        lengths = PROMPTS if policy.way in ("packed", "full") else PROMPTS[:1] * 2
        rows = ROWS * len(lengths)
        mask = np.ones((rows, WIDTH), dtype=np.float32)
        mask[0, 4:] = mask[4, 7:] = 0.0

        def draw(*shape: int) -> np.ndarray:
            return rng.integers(3, policy.vocabulary, size=shape)

        return TokenBatch(
            prompts=tuple(tuple(map(int, draw(length))) for length in lengths),
            tokens=mx.array(draw(rows, WIDTH).astype(np.int32)),
            loss_mask=mx.array(mask),
            advantages=mx.array(rng.normal(size=rows).astype(np.float32)),
            correct=mx.arange(rows) % 2 == 0,
            normalizer=float(mask.sum()),
        )

    @cached_property
    def by_hand(self) -> Gradient:
        return gradient_by_hand(self.policy.model, self.batch)


def make_case(folder: Path, name: str) -> Case:
    """Writes the family's model and its adapter."""
    case = Case(name, folder)
    write_model(case.model, name)
    model, _ = load_model(case.model)
    model.freeze()
    linear_to_lora_layers(model, -1, LORA)
    mx.random.seed(3)
    weights = {}
    for key, weight in tree_flatten(model.trainable_parameters()):
        size = (0.3 if key.endswith("lora_b") else 1.0) / math.sqrt(weight.shape[-2])
        weights[key] = mx.random.normal(weight.shape) * size
    case.adapter.mkdir()
    mx.save_safetensors(str(case.adapter / "adapters.safetensors"), weights)
    settings = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": LORA}
    (case.adapter / "adapter_config.json").write_text(json.dumps(settings))
    return case


# --- gradients --------------------------------------------------------------------------------


def gradient_by_hand(model: Any, batch: TokenBatch) -> Gradient:
    """GRPO's at ratio 1, row by row: no cache, no padding, no shared prompt."""
    tokens, mask = np.array(batch.tokens), np.array(batch.loss_mask)
    per_prompt = len(tokens) // len(batch.prompts)

    def loss(model: Any) -> mx.array:
        value = mx.array(0.0)
        for row, advantage in enumerate(np.array(batch.advantages).tolist()):
            prompt = list(batch.prompts[row // per_prompt])
            ids = tokens[row][mask[row] > 0].tolist()
            logits = model(mx.array([prompt + ids]))[0, len(prompt) - 1 : -1]
            logp = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            chosen = mx.take_along_axis(logp, mx.array(ids)[:, None], axis=-1)
            value = value - advantage * chosen.sum()
        return value / batch.normalizer

    return _flat(nn.value_and_grad(model, loss)(model)[1])


def gradient(case: Case, way: Way | None = None, **changes: Any) -> Gradient:
    """The training step's, by the policy's own way unless another is given."""
    policy, batch = case.policy, case.batch
    with _way(policy, way):
        step = Step(policy, case.config(**{"optim__compile": False, **changes}), find_loss("grpo"))
        assert step.problem is None, step.problem
        _, found = step(batch)
        return _flat(found)


@contextmanager
def _way(policy: Policy, way: Way | None) -> Iterator[None]:
    before = policy.way
    policy.way = way or before
    try:
        yield
    finally:
        policy.way = before


def _flat(tree: Any) -> Gradient:
    return {name: np.array(value) for name, value in tree_flatten(tree)}


def off_by(found: Gradient, wanted: Gradient) -> float:
    """The largest difference, of the whole gradient's largest entry."""
    assert found.keys() == wanted.keys()
    size = max(np.abs(value).max() for value in wanted.values())
    return float(max(np.abs(found[name] - wanted[name]).max() for name in wanted) / size)


# --- decoding ---------------------------------------------------------------------------------


def sample(
    case: Case, batch_size: int, count: int = 2, *, shared: bool = True
) -> list[RolloutGroup]:
    """Four completions each of problems with prompts of different lengths, which they use one copy
    of where the model can (``shared``)."""
    policy, rng = case.policy, np.random.default_rng(2)
    prompts = [
        (
            Problem(f"p{i}", ({"role": "user", "content": "?"},), ""),
            tuple(map(int, rng.integers(3, policy.vocabulary, size=(21, 30, 24)[i]))),
        )
        for i in range(count)
    ]
    # Every tenth token ends a completion, so that rows end, and others take their places.
    stop = dict.fromkeys(range(0, policy.vocabulary, 10), "")
    assert policy.together is not None
    together = replace(policy.together, shared=shared and policy.together.shared)
    with patch.object(policy, "stop_tokens", stop), patch.object(policy, "together", together):
        return rollout(policy, prompts, Sampling(4, 12, 1.0, 0, 1, batch_size, 16))


def decode_gap(case: Case, groups: list[RolloutGroup]) -> float:
    """The largest difference between a token's log-prob as sampled and as trained on."""
    worst = 0.0
    for group in groups:
        stats = case.policy.statistics(
            group_batch(group), simko_k=1, temperature=1.0, gradient=False
        )
        for row, completion in zip(np.array(stats.logprobs), group.completions, strict=True):
            found = row[: len(completion.logprobs)]
            worst = max(worst, float(np.abs(found - completion.logprobs).max()))
    return worst


# --- the trainer ------------------------------------------------------------------------------


@dataclass
class Trained:
    """What two steps of the trainer left."""

    changed: float  # the adapter's largest change
    gaps: list[float]  # loss/decode_gap of each step
    reloaded: float  # largest difference of plain mlx-lm's logits from the policy's
    text: str  # what mlx_lm.generate makes of the adapter


def two_steps(case: Case, **changes: Any) -> Trained:
    """The real trainer from the case's adapter on, then plain mlx-lm on what it wrote."""
    data = case.folder / "data.jsonl"
    rows = [{"prompt": text, "answer": str(i)} for i, text in enumerate(TEXTS)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = case.config(
        **{"steps": 2, "data__source": "jsonl", "data__path": str(data), "data__heldout": 0},
        **{"verifier__name": "tests.rewards:lower_case", "rollout__problems_per_step": 2},
        **{"eval__before": False, "eval__after": False, **changes},
    )
    policies: list[Policy] = []

    def keep(*args: Any, **kwargs: Any) -> Policy:
        policies.append(load_policy(*args, **kwargs))
        return policies[0]

    folder = case.folder / "run"
    with patch.object(trainer, "load_policy", keep):
        run(config, folder)
    lines = [row for row in metrics(folder) if "loss/decode_gap" in row]
    before = mx.load(str(case.adapter / "adapters.safetensors"))
    after = mx.load(str(folder / "adapters" / "adapters.safetensors"))
    model, tokenizer = mlx_lm.load(str(case.model), adapter_path=str(folder / "adapters"))[:2]
    ids = mx.array([list(case.batch.prompts[0])])
    difference = mx.abs(model(ids) - policies[0].model(ids)).max()
    return Trained(
        changed=max(float(mx.abs(after[name] - before[name]).max()) for name in before),
        gaps=[row["loss/decode_gap"] for row in lines],
        reloaded=float(difference),
        text=mlx_lm.generate(model, tokenizer, "How many clips?", max_tokens=4),
    )
