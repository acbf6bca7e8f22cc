"""An export as a folder: what is refused, and that nothing else is left behind."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import safetensors.numpy
from mlx_lm.utils import load_model

from simko_mlx import checkpoint
from simko_mlx.config import Config
from simko_mlx.export import source as sources
from simko_mlx.export.base import describe_base
from simko_mlx.export.folder import Request, export, new_folder
from simko_mlx.export.source import read_source
from simko_mlx.model_files import load_files
from simko_mlx.policy import load_base
from simko_mlx.rope_settings import rope_notes
from simko_mlx.types import UserError
from tests.export.made_runs import write_base, write_run

KEYS = ["self_attn.q_proj"]
LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a base, a run on it, and one on its quantised form."""
    folder = tmp_path_factory.mktemp("made")
    write_run(folder / "run", write_base(folder / "base", "llama"), keys=KEYS)
    write_run(folder / "run4", write_base(folder / "base4", "llama", bits=4), keys=KEYS)
    return folder


def settings(folder: Path) -> dict:
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize("out", ["", ".", "x" * 300, "file", "file/x", "full"])
def test_a_folder_that_cant_be_is_one_sentence(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("full/inside").mkdir(parents=True)
    before = sorted(os.listdir())
    with pytest.raises(UserError, match=r"--out"), new_folder(Path(out)):
        pass
    assert sorted(os.listdir()) == before


def test_a_link_to_an_empty_folder_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with new_folder(tmp_path / "link") as folder:
        (folder / "a").touch()
    assert (tmp_path / "link").is_symlink() and os.listdir(tmp_path / "real") == ["a"]


def test_a_runs_own_folders_stay_its_own(made):
    for name in ("checkpoints/step-000099", "adapters/x", "evaluations"):
        with pytest.raises(UserError, match="its own files"):
            export(made / "run", made / "run" / name, Request("mlx"))
    assert checkpoint.steps(made / "run") == [7]


def test_an_exporter_of_the_users(made, tmp_path, monkeypatch):
    (tmp_path / "own_exporter.py").write_text(
        "def fails(source, base, folder, dtype):\n"
        "    (folder / 'half').touch()\n"
        "    return {}['missing']\n"
        "def says_nothing(source, base, folder, dtype):\n"
        "    (folder / 'a').write_text(f'{source.step} {dtype}')\n"
        "def says_much(*_):\n"
        "    return 'no list'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, told in (
        ("fails", r"KeyError: 'missing' at .*own_exporter.py:3"),
        ("says_much", "str"),
    ):
        with pytest.raises(UserError, match=told):
            export(made / "run", tmp_path / "out", Request(f"own_exporter:{name}"))
        assert os.listdir(tmp_path) != [] and not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".tmp-*"))
    done = export(made / "run", tmp_path / "out", Request("own_exporter:says_nothing"))
    assert done.notes == [] and (tmp_path / "out" / "a").read_text() == "7 None"


def test_the_name_that_the_user_gives_the_base(made, tmp_path):
    asked = Request("peft", made_from="owner/name")
    for run in ("run", "run4"):
        done = export(made / run, tmp_path / run, asked)
        assert settings(tmp_path / run)["base_model_name_or_path"] == "owner/name"
    assert "base_model: owner/name" in (tmp_path / "run" / "README.md").read_text()
    assert "puts it on owner/name in full precision" in done.notes[0]
    for run, name in (("run", str(made / "base")), ("run4", ""), ("run4", "../nowhere/x")):
        with pytest.raises(UserError, match=r"--base is"):
            export(made / run, tmp_path / "refused", Request("peft", made_from=name))
    assert not (tmp_path / "refused").exists()


def test_a_scale_of_zero_needs_no_alpha_of_zero(made, tmp_path):
    """Which llama.cpp would take for one that isn't given."""
    export(made / "run", tmp_path / "out", Request("peft", scale=0.0))
    assert settings(tmp_path / "out")["lora_alpha"] == settings(tmp_path / "out")["r"]
    tensors = safetensors.numpy.load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert tensors and not any(np.any(value) for value in tensors.values())


def test_a_base_that_went_away(made, tmp_path):
    run = write_run(tmp_path / "run", write_base(tmp_path / "base", "llama"), keys=KEYS)
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"base'.*config\.yaml"):
        export(run, tmp_path / "out", Request("mlx"))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("scaling", [{"rope_type": "default"}, LINEAR])
def test_rotary_settings_where_mlx_lm_overlooks_them(tmp_path, family, scaling):
    """As transformers 5 writes them: the same model as with settings where mlx-lm looks."""
    nested = {"rope_theta": 123.0, **scaling}
    base = write_base(tmp_path / "base", family, rope=nested)
    run = write_run(tmp_path / "run", base, keys=KEYS)
    usual = tmp_path / "usual"
    shutil.copytree(base, usual)
    config = json.loads((base / "config.json").read_text())
    scaled = {} if scaling["rope_type"] == "default" else {"rope_scaling": nested}
    flat = {**config, "rope_parameters": None, "rope_theta": 123.0, **scaled}
    (usual / "config.json").write_text(json.dumps(flat))

    def answers(model) -> np.ndarray:
        return np.array(model(mx.array([[5, 9, 20, 7, 3, 31, 12]])))

    expected = answers(load_model(usual)[0])
    overlooked = answers(load_model(base)[0])
    assert np.abs(expected - overlooked).max() > 1e-2
    np.testing.assert_array_equal(answers(load_files(base, "base")[0]), expected)
    told = export(run, tmp_path / "mlx", Request("mlx")).notes
    assert len(told) == 1 and '"rope_theta": 123.0' in told[0]
    assert ("rope_scaling" in told[0]) is bool(scaled)
    # The fused model is right in mlx-lm's own commands, too.
    export(run, tmp_path / "zero", Request("fused", scale=0.0))
    np.testing.assert_allclose(answers(load_model(tmp_path / "zero")[0]), expected, atol=1e-5)
    policy = load_base(Config(model=str(base)))
    assert policy.notes[0] == told[0]


def test_rotary_settings_that_mlx_lm_reads_are_left_alone(tmp_path):
    base = write_base(tmp_path / "base", "qwen3", rope={"rope_theta": 123.0})
    assert rope_notes(base) == []
    both = write_base(tmp_path / "both", "llama")
    config = json.loads((both / "config.json").read_text())
    nested = {"rope_theta": config["rope_theta"], "rope_type": "default"}
    (both / "config.json").write_text(json.dumps({**config, "rope_parameters": nested}))
    assert rope_notes(both) == []
    usual = write_base(
        tmp_path / "default", "llama", rope={"rope_theta": 10000, "rope_type": "default"}
    )
    assert rope_notes(usual) == []  # what mlx-lm takes anyway


def test_a_checkpoint_that_goes_away_while_it_is_read(made, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", made / "base", keys=KEYS)
    load = checkpoint.load

    def removed_after(*arguments):
        """The run saved step 8 and removed step 7."""
        found = load(*arguments)
        checkpoint.step_folder(run, 7).rename(checkpoint.step_folder(run, 8))
        monkeypatch.setattr(sources.checkpoint, "load", load)
        return found

    monkeypatch.setattr(sources.checkpoint, "load", removed_after)
    assert read_source(run).weights.keys() == read_source(made / "run").weights.keys()


def test_a_base_with_odd_files(tmp_path):
    run = write_run(tmp_path / "run", write_base(tmp_path / "base", "llama"), keys=KEYS)
    for text in ("---\nbase_model: [1, {a: b\n---\n", "---\n- a list\n---\n"):
        (tmp_path / "base" / "README.md").write_text(text)
        assert describe_base(read_source(run).config).made_from is None
    (tmp_path / "base" / "config.json").write_text("[1]")
    with pytest.raises(UserError, match=r"config\.json"):
        export(run, tmp_path / "out", Request("peft"))
