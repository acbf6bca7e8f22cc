"""``simko-mlx export``: what it writes, what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from cli.main import run
from tests.export.made_runs import write_base, write_run


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return write_run(folder / "run", write_base(folder / "base", "qwen2"))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("mlx", "adapters.safetensors"),
        ("peft", "adapter_model.safetensors"),
        ("fused", "model.safetensors"),
    ],
)
def test_each_form_is_written_listed_and_compared(made, tmp_path, capsys, kind, weights):
    out = tmp_path / kind
    assert run(["export", str(made), "--to", kind, "--out", str(out), "--check"]) == 0
    printed = capsys.readouterr().out
    assert {weights, "README.md", "training/config.yaml"} <= files(out)
    for name in files(out):
        assert name in printed
    row = next(line for line in printed.splitlines() if line.startswith("mlx-lm "))
    assert float(row.split()[1]) < 1e-4 and row.split()[-1] == "ok"
    assert not list(tmp_path.glob(".tmp-*"))


def test_an_export_that_is_not_what_was_trained_is_told(made, tmp_path, capsys, monkeypatch):
    from simko_mlx.export import folder

    def wrong(source, dtype="f32"):
        content = mlx_files(source, dtype)
        weights = safetensors.numpy.load(content["adapters.safetensors"])
        bent = {name: value * np.float32(1.5) for name, value in weights.items()}
        return {**content, "adapters.safetensors": safetensors.numpy.save(bent)}

    mlx_files = folder.mlx_files
    monkeypatch.setattr(folder, "mlx_files", wrong)
    args = ["export", str(made), "--to", "mlx", "--out", str(tmp_path / "out"), "--check"]
    assert run(args) == 1
    assert "WRONG" in capsys.readouterr().out


def test_scale_and_step(made, tmp_path, capsys):
    args = ["export", str(made), "--to", "mlx", "--out", str(tmp_path / "half")]
    assert run([*args, "--scale", "0.5", "--step", "7"]) == 0
    settings = json.loads((tmp_path / "half" / "adapter_config.json").read_text())
    assert settings["lora_parameters"]["scale"] == 1.0  # trained with 2
    assert "Step 7 at scale 0.5" in capsys.readouterr().out


def test_what_is_there_stays_as_it_is(made, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert run(["export", str(made), "--to", "mlx", "--out", str(tmp_path / "out")]) == 2
    assert "--out" in capsys.readouterr().err
    assert files(tmp_path) == {"out/mine"}


def test_without_a_converter_the_commands_are_printed(made, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", os.defpath)
    assert run(["export", str(made), "--to", "gguf", "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert "nothing was written" in " ".join(printed.err.split())
    assert "convert_hf_to_gguf.py" in printed.out and str(made) in printed.out
    assert not (tmp_path / "out").exists()


def test_the_embedded_model_has_no_form_for_llama_cpp(tmp_path, capsys):
    from tests.runs import run as train
    from tests.runs import small_config

    config = small_config(steps=1, eval__before=False, eval__after=False)
    train(config, tmp_path / "run")
    for kind, words in (("gguf", "nanochat"), ("peft", "nanochat"), ("safetensors", "--to")):
        args = ["export", str(tmp_path / "run"), "--to", kind, "--out", str(tmp_path / "out")]
        assert run(args) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
