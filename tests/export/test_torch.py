"""Exports against transformers and peft: the proof that they hold what was trained.

One process with torch answers all of it. Everything is float32; a case counts only where its
adapter moves logits by a thousand times what may differ.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import safetensors.numpy

from simko_mlx import checkpoint
from simko_mlx.export.base import describe_base
from simko_mlx.export.check import Difference, check_export
from simko_mlx.export.fused import write_fused
from simko_mlx.export.peft import peft_files
from simko_mlx.export.source import read_source
from simko_mlx.export.torch_process import Failure, Job, ask_torch
from simko_mlx.types import UserError
from tests.export.made_runs import (
    TOKENS,
    difference,
    logits,
    run_logits,
    write_base,
    write_files,
    write_run,
)
from tests.export.torch_env import torch_python
from tests.runs import run, small_config

pytestmark = pytest.mark.slow

ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
LAST_QV = {"keys": ["self_attn.q_proj", "self_attn.v_proj"], "layers": 1}
ALL = ("peft", "merged", "fused")
EFFECT, CLOSE = 0.1, 1e-4


@dataclass(frozen=True)
class Case:
    """A base and a run on it, and the exports that are compared."""

    family: str
    base: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    exports: tuple[str, ...] = ALL


CASES: dict[str, Case] = {}
for family in ("qwen2", "qwen3", "llama", "mistral", "gemma2"):
    for head in ("tied", "untied") if family != "gemma2" else ("tied",):
        base = {"tied": head == "tied"}
        CASES[f"{family}, {head}, all linears"] = Case(family, base)
        CASES[f"{family}, {head}, last layer's q and v"] = Case(family, base, LAST_QV)
UNTIED = {"tied": False}
SCALED = {"rope_theta": 300.0, "rope_type": "linear", "factor": 3.0}
CASES |= {
    "half the scale": Case("qwen2", scale=0.5),
    "head": Case("llama", UNTIED, {"keys": ["lm_head", "self_attn.q_proj"]}),
    "embeddings, untied": Case("qwen3", UNTIED, {"keys": ["model.embed_tokens"]}),
    "embeddings, tied": Case("qwen2", {}, {"keys": ["model.embed_tokens"]}, exports=("fused",)),
    "embeddings, tied and scaled": Case(
        "gemma2", {}, {"keys": ["model.embed_tokens", "mlp.up_proj"]}, exports=("fused",)
    ),
    "experts, attention": Case("qwen3_moe", UNTIED, {"keys": ATTENTION}),
    "all weights": Case("qwen2", {}, {"full": True}, exports=("fused",)),
    "4 bits": Case("llama", {"bits": 4}, exports=("fused",)),
    "4 bits and bfloat16": Case("qwen3", {"bits": 4, "dtype": mx.bfloat16}, exports=("fused",)),
    "rotary settings of transformers 5": Case(
        "qwen2", {"rope": {"rope_theta": 97.0, "rope_type": "default"}}
    ),
    "scaled rotary settings of transformers 5": Case("llama", {"rope": SCALED}),
    "bfloat16 in float32": Case("qwen2", {"dtype": mx.bfloat16}, exports=("peft",)),
}


TRAINED = Case("qwen2")


def train(base: Path, folder: Path) -> None:
    """A short real run, whose learning rate makes up for its few steps."""
    keys: dict[str, Any] = {"verifier__name": "tests.rewards:lower_case", "steps": 3}
    config = small_config(model=str(base), optim__learning_rate=3e-2, **keys)
    run(config, folder)


@pytest.fixture(scope="module")
def python() -> str:
    return torch_python()


@pytest.fixture(scope="module")
def made(tmp_path_factory, python):
    """Folder of each case, and what torch answered to each of its exports."""
    folders, jobs, keys = {}, [], []
    for number, (name, case) in enumerate({**CASES, "trained": TRAINED}.items()):
        folder = folders[name] = tmp_path_factory.mktemp(f"case{number}")
        base = write_base(folder / "base", case.family, **case.base)
        if case is TRAINED:
            train(base, folder / "run")
        else:
            write_run(folder / "run", base, **case.run)
        source = read_source(folder / "run", scale=case.scale)
        described = describe_base(source.config)
        if {"peft", "merged"} & set(case.exports):
            write_files(folder / "peft", peft_files(source, described))
        if "fused" in case.exports:
            write_fused(source, described, folder / "fused")
        for export in case.exports:
            adapter = None if export == "fused" else folder / "peft"
            model = folder / "fused" if export == "fused" else base
            jobs.append(Job(model, adapter, merged=export == "merged"))
            keys.append((name, export))
    answers = ask_torch(jobs, TOKENS, last=64, python=python, timeout=900)
    assert not answers.missing
    return folders, dict(zip(keys, answers.results, strict=True))


def wanted(case: Case, folder: Path) -> list[np.ndarray]:
    """What mlx-lm answers with base and adapter; the adapter's scale changed where the case says
    so, in mlx-lm's own settings."""
    adapter = checkpoint.step_folder(folder / "run", 7)
    if case.scale != 1:
        settings = json.loads((adapter / "adapter_config.json").read_text())
        settings["lora_parameters"]["scale"] *= case.scale
        files = {"adapters.safetensors": (adapter / "adapters.safetensors").read_bytes()}
        files["adapter_config.json"] = json.dumps(settings).encode()
        adapter = write_files(folder / "scaled", files)
    return logits(folder / "base", adapter)


@pytest.mark.parametrize("name", CASES)
def test_transformers_and_peft_answer_as_mlx_does(made, name, record_property):
    folders, answers = made
    case, folder = CASES[name], folders[name]
    here = wanted(case, folder)
    effect = difference(here, logits(folder / "base"))
    record_property("effect", effect)
    assert effect > EFFECT
    for export in case.exports:
        found = answers[name, export]
        assert not isinstance(found, Failure), found
        off = difference(here, found)
        record_property(export, off)
        print(f"{name}, {export}: {off:.1e} of an effect of {effect:.2f}")
        if name == "4 bits and bfloat16":
            # Dequantised weights are rounded to bfloat16 there: the real difference is reported,
            # and the same weights agree.
            assert CLOSE < off < effect
            here = logits(folder / "fused")
            off = difference(here, found)
        assert off < CLOSE


def test_what_peft_cant_say_is_refused(made):
    folders, _ = made
    for name in ("embeddings, tied", "embeddings, tied and scaled"):
        source = read_source(folders[name] / "run")
        with pytest.raises(UserError, match="--to fused"):
            peft_files(source, describe_base(source.config))
    folder = folders["experts, attention"]
    source = read_source(write_run(folder / "switch", folder / "base"))
    assert any("switch_mlp" in name for name in source.weights)
    with pytest.raises(UserError, match=r"MoE.*keys of attention alone"):
        peft_files(source, describe_base(source.config))


def test_check_compares_with_torch(made, python, tmp_path):
    folders, _ = made
    source = read_source(folders["qwen3, untied, all linears"] / "run")
    base = describe_base(source.config)
    for kind in ("peft", "fused"):
        folder = folders["qwen3, untied, all linears"] / kind
        found = check_export(kind, source, base, folder, python)
        assert [f.where.split()[0] for f in found] == ["mlx-lm", "transformers"]
        for one in found:
            assert one.ok and one.bound and size(one) < CLOSE
    assert "transformers 5" in found[1].where
    # A weight that only torch sees damaged: the same folder, changed between the two.
    files = peft_files(source, base)
    config = json.loads(files["adapter_config.json"])
    config["target_modules"] = config["target_modules"][1:]
    files["adapter_config.json"] = json.dumps(config).encode()
    here, there = check_export("peft", source, base, write_files(tmp_path, files), python)
    assert here.ok and not there.ok


def test_check_reports_a_quantised_adapter_on_the_original_base(made, python, tmp_path):
    base = write_base(tmp_path / "original", "llama")
    quantised = write_base(tmp_path / "quantised", "llama", bits=4)
    source = read_source(write_run(tmp_path / "run", quantised))
    described = replace(describe_base(source.config), made_from=str(base))  # as --base does
    folder = write_files(tmp_path / "peft", peft_files(source, described))
    here, there = check_export("peft", source, described, folder, python)
    assert here.ok and size(here) < CLOSE
    assert (
        there.bound is None and size(there) > 1e-2 and "instead of the quantised one" in there.note
    )


def test_check_says_what_transformers_cant_load(made, python, tmp_path):
    folder = made[0]["llama, tied, all linears"]
    source = read_source(folder / "run")
    base = describe_base(source.config)
    write_fused(source, base, tmp_path / "fused")
    config = json.loads((tmp_path / "fused" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_x.Model"}
    config["architectures"] = ["Model"]
    (tmp_path / "fused" / "modeling_x.py").write_text("raise SystemExit('code was run')")
    (tmp_path / "fused" / "config.json").write_text(json.dumps({**config, "model_type": "unheard"}))
    # transformers would go on with random weights where it finds none.
    weights = safetensors.numpy.load_file(folder / "fused" / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    lacking = write_files(tmp_path / "lacking", {})
    for path in (folder / "fused").glob("*.json"):
        (lacking / path.name).write_bytes(path.read_bytes())
    safetensors.numpy.save_file(weights, lacking / "model.safetensors", {"format": "pt"})
    # Nor are pickles read: an adapter of that form is none.
    peft = write_files(tmp_path / "peft", peft_files(source, base))
    (peft / "adapter_model.safetensors").rename(peft / "adapter_model.bin")
    jobs = [Job(tmp_path / "fused"), Job(lacking), Job(folder / "base", peft)]
    unknown, partial, pickled = ask_torch(jobs, TOKENS, last=4, python=python).results
    assert isinstance(unknown, Failure) and unknown.stage == "model"
    assert "code was run" not in unknown.text
    assert isinstance(partial, Failure) and partial.text.startswith("missing keys: ")
    assert isinstance(pickled, Failure) and pickled.stage == "adapter"
    assert "pickles are not loaded" in pickled.text


def test_a_run_that_was_trained(made):
    folders, answers = made
    here = logits(folders["trained"] / "base", folders["trained"] / "run" / "adapters")
    assert difference(here, logits(folders["trained"] / "base")) > EFFECT
    for export in ALL:
        found = answers["trained", export]
        assert not isinstance(found, Failure), found
        assert difference(here, found) < CLOSE


def test_a_difference_shows(made):
    """The comparison itself: another case's weights are not taken for this one's."""
    folders, answers = made
    here = run_logits(
        folders["llama, tied, all linears"] / "run", folders["llama, tied, all linears"] / "base"
    )
    other = answers["llama, tied, last layer's q and v", "peft"]
    assert difference(here, other) > EFFECT


def size(found: Difference) -> float:
    assert found.largest is not None
    return found.largest
