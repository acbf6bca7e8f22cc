"""GGUF through a stand-in for llama.cpp's converter, which records what it is asked."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace

import pytest

from simko_mlx.export.base import describe_base
from simko_mlx.export.gguf import commands, find_converter, write_gguf
from simko_mlx.export.source import read_source
from simko_mlx.types import UserError
from tests.export.made_runs import difference, logits, run_logits, write_base, write_run

# The arguments are those of convert_hf_to_gguf.py, which replaces {ftype} too.
STAND_IN = """
import argparse, json, os, pathlib, shutil
parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--outfile", type=pathlib.Path)
parser.add_argument("--outtype", choices=["f32", "f16", "bf16", "q8_0", "auto"])
args = parser.parse_args()
kind = "f16" if args.outtype == "auto" else args.outtype
out = pathlib.Path(str(args.outfile).format(ftype=kind))
out.write_bytes(b"GGUF")
seen = {"outtype": args.outtype, "offline": os.environ.get("HF_HUB_OFFLINE"), "model": args.model}
here = pathlib.Path(__file__).parent
(here / "seen.json").write_text(json.dumps(seen))
shutil.copytree(args.model, here / "model", dirs_exist_ok=True)
"""


@pytest.fixture
def made(tmp_path):
    base = write_base(tmp_path / "a model", "qwen2")
    source = read_source(write_run(tmp_path / "run", base))
    return base, source, describe_base(source.config)


@pytest.fixture
def llama_cpp(tmp_path, monkeypatch):
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    (folder / "convert_hf_to_gguf.py").write_text(STAND_IN)
    return folder


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_the_converter_gets_the_fused_model(made, llama_cpp, tmp_path, dtype):
    base, source, described = made
    out = tmp_path / "out"
    converter = find_converter(llama_cpp)
    assert write_gguf(source, described, out, converter, dtype=dtype) == []
    assert [p.name for p in out.iterdir()] == [f"a model-step-7-{dtype or 'f16'}.gguf"]
    assert (out / f"a model-step-7-{dtype or 'f16'}.gguf").read_bytes() == b"GGUF"
    seen = json.loads((llama_cpp / "seen.json").read_text())
    assert seen["outtype"] == (dtype or "auto") and seen["offline"] == "1"
    assert seen["model"].endswith("a model-step-7") and not os.path.exists(seen["model"])
    bound = 1e-4 if dtype is None else 0.5
    assert difference(run_logits(source.run_dir, base), logits(llama_cpp / "model")) < bound


def test_where_the_converter_is_looked_for(llama_cpp, tmp_path, monkeypatch):
    script = llama_cpp / "convert_hf_to_gguf.py"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_converter() is None
    monkeypatch.setenv("PATH", str(llama_cpp))
    assert find_converter() is None  # not executable
    script.chmod(0o755)
    assert find_converter() == script
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(UserError, match=r"LLAMA_CPP is .* which has no convert_hf_to_gguf.py"):
        find_converter()
    monkeypatch.setenv("LLAMA_CPP", str(llama_cpp))
    assert find_converter() == script
    with pytest.raises(UserError, match="--llama-cpp is"):
        find_converter(tmp_path)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise NotImplementedError('no such model')", "failed \\(NotImplementedError: no such"),
        ("import nowhere_at_all", "lacks a package .*requirements-convert_hf_to_gguf.txt"),
        ("", "wrote no file"),
    ],
)
def test_a_converter_that_fails_is_quoted_and_leaves_nothing(
    made, llama_cpp, tmp_path, code, words
):
    (llama_cpp / "convert_hf_to_gguf.py").write_text(code)
    with pytest.raises(UserError, match=words):
        write_gguf(made[1], made[2], tmp_path / "out", find_converter(llama_cpp))
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(UserError, match="nowhere can't be run"):
        converter = find_converter(llama_cpp)
        write_gguf(made[1], made[2], tmp_path / "out", converter, python="nowhere")


def test_the_commands_name_the_run_and_can_be_read_by_a_shell(made):
    text = commands(replace(made[1], scale=0.5), made[2], "bf16")
    assert "--to gguf --dtype bf16 --llama-cpp" in text
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    lines = [line for line in lines if line]
    exports = [line for line in lines if line[:2] == ["simko-mlx", "export"]]
    assert [line[line.index("--to") + 1] for line in exports] == ["gguf", "fused", "peft"]
    for line in exports:
        assert line[2] == str(made[1].run_dir) and line[line.index("--scale") + 1] == "0.5"
    convert = next(line for line in lines if line[1:2] == ["llama.cpp/convert_hf_to_gguf.py"])
    assert convert[2] == "a model-fused" and convert[-2:] == ["--outtype", "bf16"]
    lora = next(line for line in lines if line[1:2] == ["llama.cpp/convert_lora_to_gguf.py"])
    assert lora[2] == "a model-peft" and lora[lora.index("--base") + 1] == str(made[0])


def test_no_command_exports_what_peft_cant_say(tmp_path):
    base = write_base(tmp_path / "base", "qwen2")
    source = read_source(write_run(tmp_path / "run", base, keys=["model.embed_tokens"]))
    assert "peft" not in commands(source, describe_base(source.config))
