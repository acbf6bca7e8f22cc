"""What fits, what to change where it doesn't, and what a run does about its memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import simko_mlx.policy
from simko_mlx import checkpoint, memory
from simko_mlx.config import Config, set_key
from simko_mlx.memory import GB, changes, largest_microbatch, look_ahead, usable
from simko_mlx.planner import forecast, step_peak
from simko_mlx.policy import Policy, load_outline
from simko_mlx.trainer import train
from simko_mlx.types import UserError
from tests.models import make_model
from tests.runs import Recorder, run, small_config

ROOT = Path(__file__).parents[1]
PROMPT = 24


@pytest.fixture(autouse=True)
def limits():
    """What a run sets is put back."""
    before = mx.set_memory_limit(1 << 40), mx.set_cache_limit(1 << 40)
    mx.set_memory_limit(before[0])
    mx.set_cache_limit(before[1])
    yield before
    mx.set_memory_limit(before[0])
    mx.set_cache_limit(before[1])


def planned(**changes: Any) -> Config:
    """A small run that plans."""
    return small_config(**{"memory__plan": True, "memory__dry_step": True, **changes})


@pytest.fixture
def config(qwen2) -> Config:
    return planned(
        model=str(qwen2), rollout__max_completion_length=32, rollout__group_size=8,
        rollout__batch_size=32, optim__microbatch_tokens=0,
    )  # fmt: skip


def apply(config: Config, keys: dict[str, Any]) -> None:
    for key, value in keys.items():
        set_key(config, key, value)


# --- looking ahead --------------------------------------------------------------------------------


def test_macos_keeps_a_share_of_memory():
    assert usable(16 * GB) == int(16 * GB * 2 / 3)
    assert usable(64 * GB) == 48 * GB
    assert usable() > 0


@pytest.mark.slow
def test_looking_ahead_loads_no_weights(tmp_path):
    """The model's 200 MB are neither in MLX's memory nor in the process."""
    model = make_model(tmp_path / "model", hidden_size=64, vocab_size=780_000)
    size = (model / "model.safetensors").stat().st_size
    assert size > 190e6
    code = (
        "import resource, sys, mlx.core as mx, mlx_lm\n"
        "from simko_mlx.config import Config\n"
        "from simko_mlx.memory import look_ahead\n"
        "config = Config()\n"
        "config.model, config.rollout.max_completion_length = sys.argv[1], 8\n"
        "look_ahead(Config(rollout=config.rollout))\n"  # of the embedded one: whatever loads once
        "mx.reset_peak_memory()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = look_ahead(config)\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "unit = 1 if sys.platform == 'darwin' else 1024\n"
        "print(mx.get_peak_memory(), grown * unit, found.forecast.weights)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    peak, grown, weights = map(int, done.stdout.split())
    assert weights > 190e6
    assert peak < 2e6 and grown < 60e6


def test_what_fits_needs_no_change(config):
    found = look_ahead(config)
    assert found.fits and not found.changes and not found.notes
    assert found.microbatch == found.checkpointed == 8
    json.dumps(found.to_json())


@pytest.mark.slow
def test_changes_make_a_step_fit_by_the_forecast_itself(config):
    policy = load_outline(config)
    whole = forecast(policy, config, PROMPT)
    apply(config, {"grad_checkpoint": True, "optim.microbatch_size": 4})
    limit = step_peak(policy, config, PROMPT)
    apply(config, {"grad_checkpoint": False, "optim.microbatch_size": None})
    limit = max(limit, whole.rollout, whole.evaluation)
    assert limit < whole.step
    (change,) = changes(policy, config, whole, limit)
    assert config.optim.microbatch_size is None, "the config is left as it was"
    apply(config, change.keys)
    assert forecast(policy, config, PROMPT).peak == change.peak <= limit
    assert "--set grad_checkpoint=true" in str(change)


def test_changes_make_a_rollout_fit(config):
    config.rollout.max_completion_length = 64
    apply(config, {"optim.microbatch_size": 1, "grad_checkpoint": True, "rollout.batch_size": 512})
    apply(config, {"rollout.problems_per_step": 40})
    policy = load_outline(config)
    whole = forecast(policy, config, PROMPT)
    assert whole.rollout > 1.5 * whole.step
    (change,) = changes(policy, config, whole, max(whole.step, whole.rollout // 2))
    assert set(change.keys) == {"rollout.batch_size"}


def test_where_prompts_are_not_shared_that_is_what_helps_first(config, monkeypatch):
    """As on a GPU, which shares them only when asked."""
    monkeypatch.setattr(
        Policy, "shares_prompts", property(lambda self: bool(self.config.rollout.share_prompts))
    )
    apply(config, {"optim.microbatch_size": 1, "grad_checkpoint": True, "eval.every": 0})
    apply(config, {"eval.before": False, "eval.after": False, "rollout.batch_size": 512})
    apply(config, {"rollout.problems_per_step": 40})
    policy, prompt = load_outline(config), 150
    whole = forecast(policy, config, prompt)
    config.rollout.share_prompts = True
    shared = forecast(policy, config, prompt)
    config.rollout.share_prompts = None
    assert shared.rollout < 0.7 * whole.rollout and whole.step < 0.7 * whole.rollout
    (change,) = changes(policy, config, whole, max(shared.rollout, whole.step))
    assert change.keys == {"rollout.share_prompts": True}


def test_where_nothing_helps_nothing_is_said_to_help(config):
    policy = load_outline(config)
    whole = forecast(policy, config, PROMPT)
    assert changes(policy, config, whole, whole.weights // 2) == []
    assert largest_microbatch(policy, config, PROMPT, whole.weights // 2) == 0


def test_the_largest_microbatch_fits_and_twice_as_many_do_not(config):
    policy = load_outline(config)
    peaks = {}
    for rows in (8, 4, 2, 1):
        config.optim.microbatch_size = rows
        peaks[rows] = step_peak(policy, config, PROMPT)
    assert peaks[8] > peaks[4] > peaks[2] > peaks[1]
    for rows, peak in peaks.items():
        assert largest_microbatch(policy, config, PROMPT, peak) == rows
    assert largest_microbatch(policy, config, PROMPT, peaks[1] - 1) == 0


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_that_cannot_fit_is_refused_and_leaves_nothing(tmp_path, limits):
    folder = tmp_path / "runs" / "one"
    with pytest.raises(UserError, match=r"predicted to take .* GB and there are 0\.0 GB: .*plan"):
        run(planned(memory__limit=0.001), folder)
    assert not folder.parent.exists()
    assert mx.set_memory_limit(limits[0]) == limits[0], "no limit was set"


def test_the_refusal_is_one_sentence_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "cli", "train", "--set", "memory.limit=0.001"]
    done = subprocess.run(
        [*command, "--output-dir", str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: This run is predicted to take")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_run_beyond_the_recommendation_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "limit_of", lambda config: 10**6)
    monkeypatch.setattr(memory, "_ceiling", lambda config, limit: 10**12)
    monkeypatch.setattr(memory, "_set_limits", lambda *args: None)
    config = planned(steps=1, eval__before=False, eval__after=False)
    _, recorder = run(config, tmp_path / "run")
    notes = [note for note in recorder.info["notes"] if note.startswith("Warning: This run")]
    assert len(notes) == 1 and "more than the 0.0 GB" in notes[0]
    assert any("a step of the largest shape took" in note for note in recorder.info["notes"])


def test_limits_are_set_and_the_wired_one_is_left_alone(tmp_path, monkeypatch, limits):
    wired: list[int] = []
    monkeypatch.setattr(mx, "set_wired_limit", wired.append)
    config = planned(steps=1, eval__before=False, eval__after=False)
    set_key(config, "memory.limit", 3.0)
    run(config, tmp_path / "run")
    assert mx.set_memory_limit(limits[0]) == 3 * GB
    cache = mx.set_cache_limit(limits[1])
    assert memory.LEAST_CACHE <= cache < 3 * GB
    assert not wired
    set_key(config, "memory.cache_limit", 0.5)
    run(config, tmp_path / "again")
    assert mx.set_cache_limit(limits[1]) == GB // 2


def test_the_dry_step_corrects_what_is_left_for_the_cache(tmp_path, monkeypatch, limits):
    monkeypatch.setattr(memory, "dry_step", lambda step, shape: 2 * GB)
    config = planned(steps=1, eval__before=False, eval__after=False)
    set_key(config, "memory.limit", 3.0)
    run(config, tmp_path / "run")
    assert mx.set_cache_limit(limits[1]) == GB


@pytest.mark.slow
def test_other_batches_are_planned_anew_on_resume(tmp_path, monkeypatch):
    config = planned(steps=1, eval__before=False, eval__after=False)
    run(config, tmp_path / "run")
    before = state(tmp_path / "run")["plan"]["forecast"]["rollout"]
    config.steps, config.rollout.batch_size = 2, 4
    run(config, tmp_path / "run", resume=True)
    assert state(tmp_path / "run")["plan"]["forecast"]["rollout"] < before


def state(folder: Path) -> dict[str, Any]:
    saved = checkpoint.load(folder)
    assert saved is not None
    return saved[1]


def adapter(folder: Path) -> bytes:
    return (folder / "adapters" / "adapters.safetensors").read_bytes()


@pytest.mark.slow
def test_planning_changes_no_digit(tmp_path):
    kinds = {"with": (True, True), "no dry step": (True, False), "without": (False, False)}
    for name, (plan, dry) in kinds.items():
        run(planned(steps=2, memory__plan=plan, memory__dry_step=dry), tmp_path / name)
    assert adapter(tmp_path / "with") == adapter(tmp_path / "without")
    assert adapter(tmp_path / "no dry step") == adapter(tmp_path / "without")
    plan = state(tmp_path / "with")["plan"]
    assert plan["forecast"]["peak"] > 0 and plan["measured_step"] > 0
    assert state(tmp_path / "without")["plan"]["forecast"] is None


@pytest.mark.slow
def test_dropout_draws_the_same_after_a_dry_step(tmp_path):
    for dry in (True, False):
        config = planned(steps=1, memory__dry_step=dry)
        config.policy.lora_parameters.dropout = 0.3
        run(config, tmp_path / str(dry))
    assert adapter(tmp_path / "True") == adapter(tmp_path / "False")


class Stop(Recorder):
    """Stops the run after its second step."""

    def step(self, metrics, groups):
        super().step(metrics, groups)
        if metrics.step == 2 and groups:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_resumed_run_takes_its_plan_as_it_is(tmp_path, monkeypatch):
    config = planned()
    run(config, tmp_path / "whole")
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config, folder, Stop())
    before = state(folder)["plan"]

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the plan was made again")

    with monkeypatch.context() as patch:
        patch.setattr(memory, "forecast", fail)
        patch.setattr(memory, "dry_step", fail)
        # As on a machine with less memory, where other chunks would round differently.
        patch.setattr(simko_mlx.policy, "chunk_tokens", lambda *args, **kwargs: 8)
        run(config, folder, resume=True)
    assert state(folder)["plan"] == before
    assert adapter(folder) == adapter(tmp_path / "whole")


@pytest.mark.slow
def test_another_execution_makes_another_plan(tmp_path):
    config = planned(steps=1)
    run(config, tmp_path / "run")
    before = state(tmp_path / "run")["plan"]
    config.steps, config.optim.microbatch_size = 2, 2
    run(config, tmp_path / "run", resume=True)
    after = state(tmp_path / "run")["plan"]
    assert after["execution"]["given"]["optim.microbatch_size"] == 2
    assert after["forecast"]["step"] < before["forecast"]["step"]
