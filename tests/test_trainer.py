"""The loop as a whole, on the embedded model."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from simko_mlx import checkpoint
from simko_mlx.config_sources import from_run
from simko_mlx.model_files import EMBEDDED
from simko_mlx.trainer import train
from simko_mlx.types import UserError
from tests.runs import Recorder, metrics, run, small_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = small_config(eval__every=2, eval__every_problems=4, eval__every_n=2)
    summary, recorder = run(config, folder)
    return folder, config, summary, recorder


def test_the_run_directory_is_complete(finished):
    folder, _, summary, recorder = finished
    assert summary.step == 4 and checkpoint.steps(folder)[-1] == 4
    assert from_run(folder / "config.yaml").loss.alpha == 0.1
    assert from_run(folder / "config.yaml").prompt.date  # pinned
    assert "mlx" in json.loads((folder / "env.json").read_text())
    rows = metrics(folder)
    assert [r["step"] for r in rows if "reward/mean" in r] == [1, 2, 3, 4]
    tiers = [(r["step"], r["eval/tier"]) for r in rows if "eval/tier" in r]
    assert tiers == [(0, "full"), (2, "small"), (4, "small"), (4, "full")]
    rollouts = [json.loads(x) for x in (folder / "rollouts.jsonl").read_text().splitlines()]
    assert len(rollouts) == 4 * 4 * 4
    assert {"text", "token_ids", "reward", "advantage", "problem", "sample"} <= set(rollouts[0])
    assert recorder.info["stop_tokens"] and recorder.info["trainable"] > 0
    assert not list(folder.rglob(".tmp-*"))


def test_the_adapter_loads_in_mlx_lm_and_differs_from_the_base(finished):
    folder, *_ = finished
    row = mx.array([[1, 4, 6, 3]])
    base = mlx_lm.load(str(EMBEDDED))[0](row)
    for adapter in (folder / "adapters", checkpoint.step_folder(folder, 4)):
        tuned, tokenizer = mlx_lm.load(str(EMBEDDED), adapter_path=str(adapter))[:2]
        assert mx.abs(tuned(row) - base).max().item() > 1e-4
        assert mlx_lm.generate(tuned, tokenizer, "3 5 2 > 16 :", max_tokens=3)


def test_base_and_trained_are_evaluated_on_the_same_problems(finished):
    _, _, summary, _ = finished
    assert summary.base.problem_ids == summary.trained.problem_ids
    assert summary.base.problems == 6 and summary.base.n == 4
    assert set(summary.base.pass_at_k) == {1, 2}
    assert summary.base.chance is not None and 0 < summary.base.chance[1] < 0.2
    assert summary.base.label == "base" and summary.trained.label == "step 4"


def test_the_best_checkpoint_is_kept(finished):
    folder, _, summary, _ = finished
    rows = [r for r in metrics(folder) if r.get("eval/tier") == "small"]
    best = max(rows, key=lambda r: r["eval/pass@1"])
    assert summary.best_step == best["step"]
    assert best["step"] in checkpoint.steps(folder)


def test_the_same_seed_gives_the_same_run(finished, tmp_path):
    folder, config, *_ = finished
    run(config, tmp_path / "again")
    assert metrics(folder) == metrics(tmp_path / "again")
    for name in ("adapters/adapters.safetensors", "rollouts.jsonl"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    config = small_config(seed=1)
    run(config, tmp_path / "other")
    one = (folder / "adapters" / "adapters.safetensors").read_bytes()
    assert one != (tmp_path / "other" / "adapters" / "adapters.safetensors").read_bytes()


@pytest.mark.parametrize("loss", ["grpo", "simko"])
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("updates", [(1, 1), (2, 2)])
def test_every_loss_tunes_lora_and_full_with_one_and_several_updates(tmp_path, loss, kind, updates):
    config = small_config(
        loss__name=loss,
        policy__fine_tune_type=kind,
        optim__minibatches=updates[0],
        optim__num_iterations=updates[1],
        optim__learning_rate=1e-3 if kind == "lora" else 1e-4,
        steps=2,
        eval__before=False,
        eval__after=False,
    )
    summary, _ = run(config, tmp_path / "run")
    assert summary.base is None and summary.trained is None
    rows = metrics(tmp_path / "run")
    assert all(np.isfinite(v) for r in rows for v in r.values())
    assert sum(r["optim/updates"] for r in rows) >= updates[0] * updates[1]
    assert all(r["loss/decode_gap"] < 1e-3 for r in rows)


def test_resume_equals_an_uninterrupted_run(finished, tmp_path):
    folder, *_ = finished
    keys = {"eval__every": 2, "eval__every_problems": 4, "eval__every_n": 2}
    part = tmp_path / "part"
    run(small_config(steps=2, **keys), part)
    (part / "metrics.jsonl").open("a").write('{"step": 3, "torn')  # as a killed process leaves it
    run(small_config(steps=4, **keys), part, resume=True)
    for name in ("adapters/adapters.safetensors", "rollouts.jsonl"):
        assert (folder / name).read_bytes() == (part / name).read_bytes()
    steps = [r for r in metrics(part) if "reward/mean" in r]
    assert steps == [r for r in metrics(folder) if "reward/mean" in r]
    optimizer = "optimizer.safetensors"
    a, b = (checkpoint.step_folder(f, 4) / optimizer for f in (folder, part))
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.slow
def test_resume_with_dropout_several_updates_and_a_schedule(tmp_path):
    keys = {
        "policy__lora_parameters__dropout": 0.2,
        "optim__minibatches": 2,
        "optim__num_iterations": 2,
        "optim__lr_schedule": {"name": "cosine_decay", "arguments": [1e-3, 10], "warmup": 2},
        "loss__kl_coef": 0.05,
        "eval__before": False,
        "eval__after": False,
    }
    run(small_config(**keys), tmp_path / "whole")
    run(small_config(**{**keys, "steps": 2}), tmp_path / "part")
    run(small_config(**keys), tmp_path / "part", resume=True)
    name = "adapters/adapters.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "part" / name).read_bytes()
    rates = [r["optim/learning_rate"] for r in metrics(tmp_path / "part")]
    assert len(set(rates)) == 4
    assert all("loss/kl" in r for r in metrics(tmp_path / "part"))


def test_semantic_keys_cannot_change_on_resume_but_execution_keys_can(finished, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    with pytest.raises(UserError, match=r"loss\.alpha: 0\.1 -> 0\.2"):
        run(small_config(loss__alpha=0.2), folder, resume=True)
    with pytest.raises(UserError, match=r"model: 'embedded' -> 'other'"):
        run(small_config(model="other"), folder, resume=True)
    summary, _ = run(small_config(steps=5, rollout__batch_size=8, eval__n=6), folder, resume=True)
    assert summary.step == 5
    assert from_run(folder / "config.yaml").steps == 5
    assert (
        summary.base is not None and summary.base.n == 6
    )  # the base was measured again, with LoRA off


def test_a_run_is_not_overwritten_and_not_shared(finished, tmp_path):
    folder, config, *_ = finished
    with pytest.raises(UserError, match="already holds a run"):
        run(config, folder)
    with pytest.raises(UserError, match="not a run directory"):
        run(config, tmp_path / "nothing", resume=True)
    with checkpoint.locked(folder), pytest.raises(UserError, match="in use by process"):
        run(small_config(), folder, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        run(config, tmp_path / "file")
    with pytest.raises(UserError, match="can't be made"):
        run(config, tmp_path / "file" / "below")


def test_too_few_problems_get_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"rollout\.problems_per_step = 4"):
        run(small_config(data__size=3), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def constant(prompts, completions, value=0.0, **kwargs):
    return [value] * len(completions)


def zeros(completions, **kwargs):
    return [0.0] * len(completions)


def ones(completions, **kwargs):
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("verifier", "length", "words"),
    [
        ("tests.test_trainer:zeros", 3, ["cut at 3 tokens", "max_completion_length", "'.'"]),
        ("tests.test_trainer:zeros", 12, ["every completion is wrong", "group_size"]),
        pytest.param(
            "tests.test_trainer:ones",
            12,
            ["every completion is correct", "harder"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_no_learning_signal_is_said_in_words(tmp_path, verifier, length, words):
    config = small_config(
        verifier__name=verifier,
        rollout__max_completion_length=length,
        eval__before=False,
        eval__after=False,
    )
    _, recorder = run(config, tmp_path / "run")
    (message,) = recorder.messages
    assert message.startswith("No learning signal for 3 steps")
    for word in words:
        assert word in message
    rows = metrics(tmp_path / "run")
    assert all(r["optim/skipped_groups"] == 4 and r["optim/updates"] == 0 for r in rows)


def interrupted_in(phase_step: int, config, folder, *, small: bool):
    """Runs until the evaluation (or the rollout) of that step, which Ctrl-C interrupts."""
    import os
    import signal

    class Interrupting(Recorder):
        def phase(self, name, done, total, detail=""):
            rows = sum(1 for m in self.steps if "reward/correct" in m.values)
            wanted = "evaluate" if small else "rollout"
            if name == wanted and rows == phase_step - (0 if small else 1):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config, folder, Interrupting())


def evaluations_of(folder):
    return [(r["step"], r["eval/tier"]) for r in metrics(folder) if "eval/tier" in r]


@pytest.mark.parametrize("step", [2, 4])
def test_a_small_evaluation_that_was_interrupted_is_made_up_for(finished, tmp_path, step):
    folder, config, summary, _ = finished
    part = tmp_path / "part"
    interrupted_in(step, config, part, small=True)
    again, _ = run(config, part, resume=True)
    assert evaluations_of(part) == evaluations_of(folder)
    assert again.best_step == summary.best_step


def test_the_base_evaluation_stays_in_the_log_after_an_early_interruption(finished, tmp_path):
    folder, config, *_ = finished
    part = tmp_path / "part"
    interrupted_in(1, config, part, small=False)
    run(config, part, resume=True)
    assert evaluations_of(part) == evaluations_of(folder)


def test_a_best_value_of_another_metric_gives_way(tmp_path):
    keys = {"eval__every": 1, "eval__every_problems": 4, "eval__every_n": 4}
    run(small_config(steps=2, eval__metric="pass@2", **keys), tmp_path / "run")
    run(small_config(steps=4, eval__metric="pass@1", **keys), tmp_path / "run", resume=True)
    loaded = checkpoint.load(tmp_path / "run")
    assert loaded is not None
    best = loaded[1]["best"]
    assert best["metric"] == "pass@1" and best["step"] > 2


@pytest.mark.parametrize("before", [True, False])
def test_the_budget_holds_without_a_base_too(tmp_path, before):
    config = small_config(
        steps=1, eval__budget_minutes=0.0, eval__before=before, rollout__batch_size=4
    )
    summary, _ = run(config, tmp_path / "run")
    assert summary.trained is not None and summary.trained.problems == 1


FAIL_AT = {"calls": 0}


def failing_late(completions, **kwargs):
    FAIL_AT["calls"] += 1
    return [float("nan")] if FAIL_AT["calls"] > 9 else [float(len(c) % 2) for c in completions]


def test_a_reward_function_that_fails_late_loses_no_finished_step(tmp_path):
    config = small_config(
        verifier__name="tests.test_trainer:failing_late",
        checkpoint__every=100,
        eval__before=False,
        eval__after=False,
    )
    with pytest.raises(UserError, match="failing_late"):
        run(config, tmp_path / "run")
    rows = metrics(tmp_path / "run")
    assert len(rows) >= 1 and checkpoint.steps(tmp_path / "run")[-1] == len(rows)


def test_a_policy_that_diverged_is_said_and_not_saved(tmp_path):
    config = small_config(
        optim__learning_rate=1e30, checkpoint__every=100, eval__before=False, eval__after=False
    )
    with pytest.raises(UserError, match=r"not finite any more: .* lower optim\.learning_rate"):
        run(config, tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run") == [0]


def test_a_damaged_base_evaluation_is_made_anew(finished, tmp_path):
    import shutil

    for number, text in enumerate(("{", "{}", "")):
        folder = tmp_path / str(number)
        shutil.copytree(finished[0], folder)
        (folder / "evaluations" / "base.json").write_text(text)
        summary, recorder = run(finished[1], folder, resume=True)
        assert summary.base is not None and summary.base.counts == finished[2].base.counts
        assert any("nothing to train" in m for m in recorder.messages)


def test_the_data_may_move_but_not_change(tmp_path):
    rows = [json.dumps({"prompt": f"{i} 2 3 > 6 :", "answer": "L"}) for i in range(1, 9)]
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("\n".join(rows))
    keys = {"data__source": "jsonl", "data__heldout": 2, "verifier__name": "exact"}
    run(small_config(steps=1, data__path=str(first), **keys), tmp_path / "run")
    first.rename(second)
    config = small_config(steps=2, data__path=str(second), **keys)
    summary, _ = run(config, tmp_path / "run", resume=True)
    assert summary.step == 2
    assert summary.trained is not None and summary.trained.groups == {}


def test_a_logger_that_stops_the_run_at_an_evaluation_leaves_its_row_once(finished, tmp_path):
    folder, config, *_ = finished

    class Stopping(Recorder):
        def step(self, metrics, groups):
            if metrics.values.get("eval/tier") == "small":
                raise KeyboardInterrupt

    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        train(config, part, Stopping())
    run(config, part, resume=True)
    assert evaluations_of(part) == evaluations_of(folder)
