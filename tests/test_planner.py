"""What is told of a run's memory, against what MLX counts while the run's own code works."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from simko_mlx import collect, learner, run_evaluations
from simko_mlx.config import Config, set_key
from simko_mlx.learner import Learner
from simko_mlx.loggers import Silent
from simko_mlx.memory import dry_step, longest_prompt
from simko_mlx.planner import Shape, forecast, step_peak
from simko_mlx.planner_decoding import Rows
from simko_mlx.policy import Policy, load_outline, load_policy
from simko_mlx.trainer import train
from tests.families import write_model
from tests.models import make_model
from tests.runs import run, small_config

MODEL: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3}
RUN: dict[str, Any] = {
    "steps": 2,
    "rollout.max_completion_length": 48,
    "rollout.group_size": 8,
    "rollout.problems_per_step": 2,
    "eval.after": False,
    "data.size": 8,
    "data.heldout": 2,
}
# Family, the model's kind, changes to the run.
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "whole groups": ("qwen2", {}, {}),
    "parts of groups, checkpointed": (
        "llama", {}, {"grad_checkpoint": True, "optim.microbatch_size": 2},
    ),
    "4 bits, refilled": ("qwen2", {"bits": 4}, {"rollout.batch_size": 6}),
    "all weights": (
        "qwen2", {"num_hidden_layers": 5},
        {"policy.fine_tune_type": "full", "rollout.max_completion_length": 16},
    ),
}  # fmt: skip


def config_for(model: Path, changes: dict[str, Any]) -> Config:
    config = small_config()
    for key, value in {"model": str(model), **RUN, **changes}.items():
        set_key(config, key, value)
    return config


def measured(config: Config, folder: Path, monkeypatch) -> dict[str, int]:
    """The peak of each phase of a run."""
    peaks: dict[str, int] = {}

    def watch(owner: Any, name: str, phase: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            mx.reset_peak_memory()
            result = original(*args, **kwargs)
            peaks[phase] = max(peaks.get(phase, 0), mx.get_peak_memory())
            return result

        monkeypatch.setattr(owner, name, call)

    watch(collect, "rollout", "rollout")
    watch(run_evaluations, "evaluate", "evaluation")
    watch(Learner, "learn", "step")
    # Rewards that differ, so that no group is skipped; completions go on to their full length.
    monkeypatch.setattr(collect, "group_advantages", _alternating)
    monkeypatch.setattr(Policy, "stop_tokens", {}, raising=False)
    monkeypatch.setattr(Policy, "__setattr__", _without_stops)
    train(config, folder, Silent())
    return peaks


def _alternating(rewards: list[float], *, scale: bool) -> list[float]:
    return [(-1.0) ** i for i in range(len(rewards))]


def _without_stops(self: Any, name: str, value: Any) -> None:
    if name != "stop_tokens":
        object.__setattr__(self, name, value)


QUICK = ("whole groups",)


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in RUNS],
)
def test_the_forecast_is_what_is_measured(name, tmp_path, monkeypatch):
    gc.collect()
    before = mx.get_active_memory()
    family, kind, changes = RUNS[name]
    config = config_for(make_model(tmp_path / "model", family, **{**MODEL, **kind}), changes)
    outline = load_outline(config)
    prompt, _ = longest_prompt(outline, config)
    told = forecast(outline, config, prompt)
    del outline
    found = measured(config, tmp_path / "run", monkeypatch)
    ratios = {phase: getattr(told, phase) / (peak - before) for phase, peak in found.items()}
    # Decoding so small a model, the queue is never full, which a forecast takes it to be.
    assert all(0.9 < ratio < 1.25 for ratio in ratios.values()), (told, found, ratios)
    assert ratios["step"] == pytest.approx(1, abs=0.08)


def test_an_outline_is_told_the_same_as_the_loaded_model(qwen2):
    config = config_for(qwen2, {"rollout.max_completion_length": 16})
    outline, loaded = (load(config) for load in (load_outline, load_policy))
    assert loaded.way == outline.way == "packed"
    assert forecast(outline, config, 20) == forecast(loaded, config, 20)


def test_a_forecast_leaves_the_policy_as_it_was(qwen2):
    config = config_for(qwen2, {"rollout.max_completion_length": 16})
    policy = load_policy(config)
    weight = policy.model.layers[0].self_attn.q_proj.lora_a
    other = config_for(qwen2, {"rollout.max_completion_length": 8})
    forecast(policy, other, 20)
    assert policy.config is config and not policy.model.training
    assert policy.model.layers[0].self_attn.q_proj.lora_a is weight
    mx.eval(policy.model(mx.array([[1, 2, 3]])))


def test_the_largest_shapes_of_a_config():
    config = config_for(
        Path("embedded"),
        {
            "rollout.problems_per_step": 6, "rollout.group_size": 8, "rollout.batch_size": 20,
            "optim.microbatch_size": 3, "optim.minibatches": 2, "eval.n": 16, "eval.problems": 50,
            "eval.every": 1, "eval.every_n": 4, "eval.every_problems": 3, "eval.after": True,
            "data.heldout": 50,
        },
    )  # fmt: skip
    shape = Shape.of(config, 30)
    assert (shape.microbatch, shape.groups, shape.microbatches) == (3, 1, 3 * 3)
    assert shape.rollout == Rows(20, 8, 3, refilled=True)
    assert shape.evaluations == (Rows(16, 16, 1, refilled=False), Rows(12, 4, 3, refilled=False))
    assert (shape.tested, shape.measured) == (16, 8)
    config.data.heldout = 2  # fewer than the small evaluations ask for
    assert Shape.of(config, 30).evaluations[1] == Rows(8, 4, 2, refilled=False)
    config.eval.before = config.eval.after = False
    config.eval.every = 0
    assert (Shape.of(config, 30).tested, Shape.of(config, 30).measured) == (0, 0)


@pytest.mark.parametrize(
    ("key", "less", "more"),
    [
        ("grad_checkpoint", True, False),
        ("optim.microbatch_size", 2, 4),
        ("rollout.max_completion_length", 16, 32),
    ],
)
def test_what_takes_less_is_told_less(qwen2, key, less, more):
    small, large = (
        config_for(qwen2, {"rollout.max_completion_length": 32, key: value})
        for value in (less, more)
    )
    policy = load_outline(small)
    assert step_peak(policy, small, 24) < step_peak(policy, large, 24)


@pytest.mark.parametrize("name", ["lfm2", "qwen3_next", "falcon_h1", "llama4"])
def test_models_with_other_layers_than_attention_are_told_too(tmp_path, name):
    """States, several caches in a layer, buffers made contiguous, and full rows."""
    config = config_for(
        write_model(tmp_path / "model", name), {"rollout.max_completion_length": 16}
    )
    outline = forecast(load_outline(config), config, 24)
    policy = load_policy(config)
    step = Learner(policy, config).step
    loaded = forecast(policy, config, 24, step=step)
    assert outline.step == pytest.approx(loaded.step, rel=0.08)  # constants not yet computed
    assert 0 < outline.rollout < 2 * outline.step
    peak = dry_step(step, loaded.shape)
    assert loaded.step == pytest.approx(peak, rel=0.15)


def test_short_completions_are_not_packed_beyond_what_was_planned(tmp_path, monkeypatch):
    """Of 100 tokens a full group takes 72, so that no second one is planned for; two short ones
    would take 80."""
    config = small_config(optim__microbatch_tokens=100, steps=1)
    assert Shape.of(config, 7).groups == 1 and Shape.of(config, 7).tokens == 72
    budgets = []
    original = learner.packed

    def watching(parts, budget, *, alike):
        budgets.append(budget)
        return original(parts, budget, alike=alike)

    monkeypatch.setattr(learner, "packed", watching)
    run(config, tmp_path / "run")
    assert set(budgets) == {72}
    run(small_config(optim__microbatch_size=2, steps=1), tmp_path / "again")
    assert set(budgets) == {72, 0}
