"""--check without torch; test_torch.py has it with torch."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from simko_mlx.export import check
from simko_mlx.export.base import describe_base
from simko_mlx.export.check import Difference, check_export
from simko_mlx.export.fused import write_fused
from simko_mlx.export.mlx_adapter import mlx_files
from simko_mlx.export.peft import peft_files
from simko_mlx.export.source import read_source
from simko_mlx.types import UserError
from tests.export.made_runs import write_base, write_files, write_run

KINDS = ("mlx", "peft", "fused")


@pytest.fixture
def make(tmp_path):
    """Makes a run on a base and exports it; returns kind, source, base and folder."""

    def made(kind, *, scale=1.0, dtype="f32", keys=None, **options):
        base = write_base(tmp_path / "base", "qwen3", **options)
        source = read_source(write_run(tmp_path / "run", base, keys=keys), scale=scale)
        described = describe_base(source.config)
        folder = tmp_path / "out"
        if kind == "fused":
            write_fused(source, described, folder, dtype)
        elif kind == "mlx":
            write_files(folder, mlx_files(source, dtype))
        else:
            write_files(folder, peft_files(source, described, dtype))
        return kind, source, described, folder

    return made


def size(found: Difference) -> float:
    assert found.largest is not None
    return found.largest


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_found_to_be_right(make, kind, scale):
    found = check_export(*make(kind, scale=scale))
    here = found[0]
    assert here.where == "mlx-lm" and here.ok and size(here) < 1e-4
    assert here.logits_largest > 1 and here.bound == pytest.approx(1e-3 * here.logits_largest)
    assert 4 < here.tokens <= 4 * 64
    assert len(found) == (1 if kind == "mlx" else 2)
    for other in found[1:]:  # the tests' Python has transformers but no torch
        assert other.where.startswith("transformers") and other.largest is None and other.ok
        assert "no torch" in other.note and "pip install torch transformers peft" in other.note


@pytest.mark.parametrize("kind", KINDS)
def test_another_scale_than_the_exports_is_found_out(make, kind):
    kind, source, base, folder = make(kind)
    wrong = check_export(kind, replace(source, scale=0.9), base, folder)[0]
    assert not wrong.ok and size(wrong) > wrong.bound


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_weight_is_found_out(make, kind):
    arguments = make(kind)
    (file,) = arguments[3].glob("*.safetensors")
    tensors = safetensors.numpy.load_file(file)
    name = next(n for n in tensors if "layers.1.self_attn.o_proj" in n)
    for value in (np.float32(0), np.float32(np.nan)):
        changed = {**tensors, name: np.full_like(tensors[name], value)}
        safetensors.numpy.save_file(changed, file)
        assert not check_export(*arguments)[0].ok
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"can't be loaded again|can't load"):
        check_export(*arguments)


def test_rounding_is_reported_without_a_bound(make):
    here = check_export(*make("fused", dtype="bf16"))[0]
    assert here.bound is None and here.ok and 1e-4 < size(here) < 0.5
    assert here.note == "the weights are rounded to bf16"


def test_a_quantised_base_is_reported_with_its_difference(make):
    kind, source, base, folder = make("fused", bits=4, dtype=None)
    here = check_export(kind, source, base, folder)[0]
    assert here.bound is None and here.note == "the base is dequantised" and size(here) < 1e-4
    other = write_files(folder.parent / "peft", peft_files(source, base))
    mlx, torch = check_export("peft", source, base, other)
    assert mlx.ok and mlx.bound and size(mlx) < 1e-4
    assert torch.largest is None and "name that with --base" in torch.note
    named = replace(base, made_from="owner/name-that-is-not-here")
    write_files(other, peft_files(source, named))
    torch = check_export("peft", source, named, other)[1]
    assert torch.largest is None and "`hf download owner/name-that-is-not-here`" in torch.note


def test_mlx_lms_own_layout_is_not_tried_in_transformers(tmp_path):
    base = write_base(tmp_path / "base", "qwen3_moe", tied=False)
    source = read_source(write_run(tmp_path / "run", base))
    described = describe_base(source.config)
    write_fused(source, described, tmp_path / "out")
    here, torch = check_export("fused", source, described, tmp_path / "out")
    assert here.ok and size(here) < 1e-4
    assert torch.largest is None and torch.note == "it is in mlx-lm's own layout"


def test_without_memory_for_float32_the_models_own_type_is_used(make, monkeypatch):
    arguments = make("mlx", dtype="f32")
    monkeypatch.setattr(check, "working_memory", lambda: 1000)
    here = check_export(*arguments)[0]
    assert here.bound is None and "not in float32" in here.note and size(here) < 1e-4


def test_prompts_are_the_runs_first_as_it_encodes_them(make):
    from simko_mlx import data
    from simko_mlx.policy import load_base

    _, source, base, _ = make("mlx", keys=["self_attn.q_proj"])
    source.config.prompt.system = "Be brief."
    policy = load_base(source.config)
    problems = data.load(source.config.data).train[:4]
    wanted = [policy.prompts.encode(problem) for problem in problems]
    assert check.first_prompts(source, base, policy.tokenizer) == wanted
    source.config.prompt.max_length = 1
    source.config.prompt.too_long = "drop"
    with pytest.raises(UserError, match="no text"):
        check.first_prompts(source, base, policy.tokenizer)


def test_a_python_that_is_none_is_a_sentence(make, tmp_path):
    arguments = make("fused")
    with pytest.raises(UserError, match=r"can't be run .*--python"):
        check_export(*arguments, python=str(tmp_path / "nowhere"))
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(UserError, match="failed \\(no such luck\\)"):
        check_export(*arguments, python=str(broken))
    broken.write_text("#!/bin/sh\n")
    with pytest.raises(UserError, match=r"is no Python.*--python"):
        check_export(*arguments, python=str(broken))


def test_the_script_runs_offline_and_sees_no_module_of_ours(make, tmp_path, monkeypatch):
    # A stand-in for Python that records what it was given, and then runs the real one.
    stand_in = tmp_path / "python"
    seen = tmp_path / "seen"
    code = "import importlib.util as u; print(u.find_spec('mlx_adapter'), u.find_spec('source'))"
    stand_in.write_text(
        f'#!/bin/sh\n(env; pwd; cat jobs.json; echo; {sys.executable} -c "{code}") > {seen}\n'
        f'exec {sys.executable} "$@"\n'
    )
    stand_in.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    check_export(*make("peft"), python="./python")  # the script runs in another folder
    text = seen.read_text()
    assert "HF_HUB_OFFLINE=1" in text and "None None" in text
    jobs = json.loads(next(line for line in text.splitlines() if line.startswith('{"ids"')))
    assert jobs["last"] == 64 and len(jobs["ids"]) == 4
    assert Path(jobs["jobs"][0]["adapter"]) == (tmp_path / "out").resolve()


def test_a_difference_that_is_no_number_is_never_right():
    assert not Difference("x", math.nan, 1.0, 1, bound=1.0).ok
    assert not Difference("x", math.inf, 1.0, 1, bound=1.0).ok
    # Nor where differences are expected: rounding gives none like that.
    assert not Difference("x", math.nan, 1.0, 1).ok and not Difference("x", math.inf, 1.0, 1).ok
    assert Difference("x", 0.5, 1.0, 1).ok and Difference("x", None, 1.0, 1).ok
