"""Which checkpoint is exported, and the scale of its effect."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_adapters, load_model

from simko_mlx import checkpoint
from simko_mlx.evaluate import evaluate_run
from simko_mlx.export.mlx_adapter import mlx_files
from simko_mlx.export.source import effective_weights, read_source
from simko_mlx.model_files import EMBEDDED
from simko_mlx.types import UserError
from tests.runs import Recorder, run, small_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Four steps on the embedded model, with small evaluations."""
    folder = tmp_path_factory.mktemp("run") / "run"
    run(small_config(eval__every=2, eval__every_n=4, eval__every_problems=4), folder)
    return folder


def logits(adapter: dict[str, bytes] | None, folder: Path) -> np.ndarray:
    """As mlx-lm loads it."""
    model, _ = load_model(EMBEDDED)
    if adapter is not None:
        folder.mkdir()
        for name, content in adapter.items():
            (folder / name).write_bytes(content)
        model = load_adapters(model, str(folder))
    model.eval()
    return np.array(model(mx.array([[1, 5, 9, 20, 7, 3]])))


def test_steps(trained):
    assert read_source(trained).step == read_source(trained, "last").step == 4
    assert read_source(trained, 2).step == 2
    best = checkpoint.load(trained)[1]["best"]["step"]
    assert read_source(trained, "best").step == best
    with pytest.raises(UserError, match=r"no checkpoint of step 3; it has: .*4"):
        read_source(trained, 3)


def test_the_weights_are_the_checkpoints(trained):
    source = read_source(trained, 2)
    loaded = mx.load(str(checkpoint.step_folder(trained, 2) / "adapters.safetensors"))
    assert loaded.keys() == source.weights.keys()
    for name, value in loaded.items():
        np.testing.assert_array_equal(np.array(value), source.weights[name])


@pytest.mark.parametrize("scale", [-0.5, float("nan"), float("inf")])
def test_no_sensible_scale(trained, scale):
    with pytest.raises(UserError, match="scale is"):
        read_source(trained, scale=scale)


def test_a_run_without_small_evaluations_has_no_best(tmp_path):
    run(small_config(steps=1, eval__before=False, eval__after=False), tmp_path / "run")
    with pytest.raises(UserError, match="doesn't know its best step"):
        read_source(tmp_path / "run", "best")


def test_a_damaged_checkpoint_is_refused(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    file = checkpoint.step_folder(tmp_path / "run", 4) / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged"):
        read_source(tmp_path / "run")


def test_the_scale_goes_from_the_base_to_the_trained_model_and_beyond(trained, tmp_path):
    base = logits(None, tmp_path / "none")
    as_trained = logits(mlx_files(read_source(trained)), tmp_path / "one")
    zero = logits(mlx_files(read_source(trained, scale=0.0)), tmp_path / "zero")
    np.testing.assert_array_equal(zero, base)
    effect = np.abs(as_trained - base).max()
    assert effect > 1e-3
    half = logits(mlx_files(read_source(trained, scale=0.5)), tmp_path / "half")
    twice = logits(mlx_files(read_source(trained, scale=2.0)), tmp_path / "twice")
    assert 0.2 * effect < np.abs(half - base).max() < 0.8 * effect
    assert np.abs(twice - base).max() > 1.3 * effect


def test_of_trained_weights_the_scale_interpolates(tmp_path):
    config = small_config(
        steps=2, policy__fine_tune_type="full", eval__before=False, eval__after=False
    )
    run(config, tmp_path / "run")
    model, _ = load_model(EMBEDDED)
    base = {n: np.array(v) for n, v in tree_flatten(model.parameters())}
    one = read_source(tmp_path / "run")
    assert not one.is_lora
    half = effective_weights(read_source(tmp_path / "run", scale=0.5))
    moved = 0.0
    for name, value in half.items():
        expected = (base[name] + one.weights[name]) / 2
        np.testing.assert_allclose(value, expected, atol=1e-6)
        moved = max(moved, float(np.abs(one.weights[name] - base[name]).max()))
    assert moved > 1e-4
    at_zero = effective_weights(read_source(tmp_path / "run", scale=0.0))
    np.testing.assert_array_equal(at_zero["lm_head.weight"], base["lm_head.weight"])


def test_an_evaluation_at_scale_zero_is_that_of_the_base(trained):
    base, zero = evaluate_run(trained, logger=Recorder(), base=True, scale=0.0)
    assert zero.label == "step 4, scale 0" and zero.scale == 0 and base.scale == 1
    assert base.counts == zero.counts and base.entropy == zero.entropy
    (trained_one,) = evaluate_run(trained, logger=Recorder())
    assert trained_one.label == "step 4" and trained_one.scale == 1
    assert trained_one.entropy != base.entropy
    kept = json.loads((trained / "evaluations" / "step-4.json").read_text())
    assert list(trained_one.counts) == kept["counts"]
