from __future__ import annotations

import json
import os
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
import safetensors.numpy

from simko_mlx.export import fused, tensor_files
from simko_mlx.export.base import describe_base
from simko_mlx.export.fused import write_fused
from simko_mlx.export.source import read_source
from simko_mlx.types import UserError
from tests.export.made_runs import difference, logits, run_logits, write_base, write_run

QV = ["self_attn.q_proj", "self_attn.v_proj"]


@pytest.fixture
def make(tmp_path):
    """Makes a base and a run on it; returns base folder, run folder, source and description."""

    def made(family="qwen2", *, keys=None, layers=-1, full=False, size=0.1, **options):
        base = write_base(tmp_path / "base", family, **options)
        run = write_run(tmp_path / "run", base, keys=keys, layers=layers, full=full, size=size)
        source = read_source(run)
        return base, run, source, describe_base(source.config)

    return made


def names(path):
    return {p.name for p in path.iterdir()}


@pytest.mark.parametrize(
    "options",
    [
        {"family": "qwen2", "tied": True},
        {"family": "llama", "tied": False, "keys": [*QV, "lm_head"]},
        {"family": "qwen3", "keys": QV, "layers": 1},
        {"family": "gemma2", "keys": ["model.embed_tokens", *QV]},  # tied: the head changes too
        {"family": "llama", "tied": False, "keys": ["model.embed_tokens"]},
        {"family": "qwen3_moe", "tied": False, "keys": QV},
        {"family": "qwen2", "full": True},
    ],
    ids=lambda o: " ".join(f"{v}" for v in o.values()),
)
def test_fused_answers_as_base_and_adapter_do(make, tmp_path, options):
    base, run, source, described = make(**options)
    assert write_fused(source, described, tmp_path / "fused") == []
    wanted = run_logits(run, base)
    assert difference(wanted, logits(base)) > 0.1
    assert difference(wanted, logits(tmp_path / "fused")) < 1e-4
    header = safetensors.numpy.load_file(tmp_path / "fused" / "model.safetensors").keys()
    assert header == safetensors.numpy.load_file(base / "model.safetensors").keys()
    for name in names(base) - {"model.safetensors"}:
        assert (tmp_path / "fused" / name).read_bytes() == (base / name).read_bytes()


@pytest.mark.parametrize("full", [False, True])
def test_a_scale_of_zero_is_the_base_and_a_half_is_between(make, tmp_path, full):
    base, _, source, described = make(full=full)
    write_fused(replace(source, scale=0.0), described, tmp_path / "zero")
    before = (base / "model.safetensors").read_bytes()
    assert safetensors.numpy.load((tmp_path / "zero/model.safetensors").read_bytes()).keys()
    a, b = (
        safetensors.numpy.load(x)
        for x in (before, (tmp_path / "zero/model.safetensors").read_bytes())
    )
    assert all(np.array_equal(a[name], b[name]) for name in a)
    write_fused(replace(source, scale=0.5), described, tmp_path / "half")
    write_fused(source, described, tmp_path / "one")
    one, half = (
        safetensors.numpy.load_file(tmp_path / which / "model.safetensors")
        for which in ("one", "half")
    )
    for name in a:
        np.testing.assert_allclose(half[name], (a[name] + one[name]) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "mode", "keys", "layout"),
    [
        ("qwen2", "affine", None, "its own"),
        ("qwen2", "mixed", None, "its own"),
        ("gemma2", "affine", ["model.embed_tokens", *QV], "its own"),
        ("llama", "mxfp4", QV, "its own"),
        ("qwen3_moe", "affine", QV, "mlx-lm's"),  # whose quantised experts are stacked
        ("qwen3_moe", "mixed", None, "mlx-lm's"),
    ],
)
def test_a_quantized_base_is_dequantised_and_says_so(make, tmp_path, family, mode, keys, layout):
    base, run, source, described = make(family, bits=4, mode=mode, keys=keys)
    notes = write_fused(source, described, tmp_path / "fused", dtype="f32")
    assert "quantised to 4 bits" in notes[-1] and "mlx_lm.convert" in notes[-1]
    assert len(notes) == (1 if layout == "its own" else 2)
    config = json.loads((tmp_path / "fused" / "config.json").read_text())
    assert not {"quantization", "quantization_config"} & config.keys()
    weights = mx.load(str(tmp_path / "fused" / "model.safetensors"))
    assert not any(name.endswith((".scales", ".biases")) for name in weights)
    assert {w.dtype for w in weights.values()} == {mx.float32}
    # The base is dequantised without an error: what is left is the adapter's own arithmetic.
    wanted = run_logits(run, base)
    assert difference(wanted, logits(base)) > 0.1
    assert difference(wanted, logits(tmp_path / "fused")) < 1e-4


def test_a_quantized_base_in_bfloat16_keeps_the_type_of_its_scales(make, tmp_path):
    base, run, source, described = make(bits=4, dtype=mx.bfloat16)
    write_fused(source, described, tmp_path / "own")
    write_fused(source, described, tmp_path / "full", dtype="f32")
    own = mx.load(str(tmp_path / "own" / "model.safetensors"))
    assert {w.dtype for w in own.values()} == {mx.bfloat16}
    wanted = run_logits(run, base)
    rounded, full = (difference(wanted, logits(tmp_path / n)) for n in ("own", "full"))
    assert full < 1e-4 < rounded < 0.5
    assert json.loads((tmp_path / "full/config.json").read_text())["torch_dtype"] == "float32"


def test_stacked_experts_are_fused_in_mlx_lms_layout(make, tmp_path):
    base, run, source, described = make("qwen3_moe", tied=False)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "vision_config": {}}))
    assert any(name.endswith("switch_mlp.up_proj.lora_a") for name in source.weights)
    notes = write_fused(source, described, tmp_path / "fused")
    assert len(notes) == 1 and "not in transformers" in notes[0] and "mlp" in notes[0]
    wanted = run_logits(run, base)
    assert difference(wanted, logits(base)) > 0.1
    assert difference(wanted, logits(tmp_path / "fused")) < 1e-4
    assert names(base) <= names(tmp_path / "fused")
    assert json.loads((tmp_path / "fused" / "config.json").read_text()) == config


@pytest.mark.parametrize("full", [False, True])
def test_weights_that_mlx_lm_turns_are_not_mistaken(make, tmp_path, full):
    # GPT-2's files have other names and transposed matrices, one of them square.
    base, run, source, described = make("gpt2", full=full)
    notes = write_fused(replace(source, scale=1.0), described, tmp_path / "fused")
    assert "not in transformers" in notes[0]
    wanted = run_logits(run, base)
    assert difference(wanted, logits(base)) > 0.1
    assert difference(wanted, logits(tmp_path / "fused")) < 1e-4


def test_a_square_weight_that_is_transposed_in_the_files_is_noticed(make, tmp_path, monkeypatch):
    from mlx_lm.models import qwen2

    base, run, source, described = make(keys=["self_attn.o_proj"])
    name = "model.layers.1.self_attn.o_proj.weight"

    def sanitize(self, weights):
        return {k: v.T if k == name and not self.done else v for k, v in weights.items()}

    turned = safetensors.numpy.load_file(base / "model.safetensors")
    assert turned[name].shape == (32, 32)
    monkeypatch.setattr(qwen2.Model, "sanitize", sanitize)
    monkeypatch.setattr(qwen2.Model, "done", False, raising=False)
    wanted = run_logits(run, base)
    notes = write_fused(source, described, tmp_path / "fused")
    assert f"{name} is laid out differently" in notes[0]
    monkeypatch.setattr(qwen2.Model, "done", True)
    assert difference(wanted, logits(tmp_path / "fused")) < 1e-4


def test_shards_and_index_follow_the_sizes(make, tmp_path, monkeypatch):
    base, run, source, described = make(bits=4)
    monkeypatch.setattr(tensor_files, "SHARD_BYTES", 20_000)
    write_fused(source, described, tmp_path / "fused")
    files = sorted(p.name for p in (tmp_path / "fused").glob("model*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "fused/model.safetensors.index.json").read_text())
    found = {n: f for f in files for n in safetensors.numpy.load_file(tmp_path / "fused" / f)}
    assert index["weight_map"] == found
    loaded = [mx.load(str(tmp_path / "fused" / f)) for f in files]
    assert index["metadata"]["total_size"] == sum(w.nbytes for f in loaded for w in f.values())
    sizes = [sum(w.nbytes for w in f.values()) for f in loaded]
    assert all(size <= 20_000 or len(f) == 1 for size, f in zip(sizes, loaded, strict=True))
    assert difference(run_logits(run, base), logits(tmp_path / "fused")) < 1e-4


def test_the_bases_own_shards_are_kept(make, tmp_path):
    base, run, source, _ = make()
    weights = mx.load(str(base / "model.safetensors"))
    (base / "model.safetensors").unlink()
    half = len(weights) // 2
    where = {}
    for i in (1, 2):
        part = dict(list(weights.items())[:half] if i == 1 else list(weights.items())[half:])
        name = f"model-{i:05}-of-00002.safetensors"
        mx.save_safetensors(str(base / name), part, metadata={"format": "pt"})
        where |= dict.fromkeys(part, name)
    total = sum(w.nbytes for w in weights.values())
    index = {"metadata": {"total_size": total, "other": 1}, "weight_map": where}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    write_fused(source, describe_base(source.config), tmp_path / "fused")
    written = json.loads((tmp_path / "fused/model.safetensors.index.json").read_text())
    assert written == {**index, "weight_map": dict(sorted(where.items()))}
    assert difference(run_logits(run, base), logits(tmp_path / "fused")) < 1e-4


def test_a_copy_of_tied_embeddings_in_the_files_is_left_out(make, tmp_path):
    base, run, source, _ = make(keys=["model.embed_tokens"])
    weights = dict(mx.load(str(base / "model.safetensors")))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    mx.save_safetensors(str(base / "model.safetensors"), weights, metadata={"format": "pt"})
    write_fused(source, describe_base(source.config), tmp_path / "fused")
    assert "lm_head.weight" not in mx.load(str(tmp_path / "fused/model.safetensors"))
    assert difference(run_logits(run, base), logits(tmp_path / "fused")) < 1e-4


def test_dtype_is_written_and_float16_says_what_overflows(make, tmp_path):
    base, _, source, described = make(keys=["self_attn.q_proj"])
    assert write_fused(source, described, tmp_path / "bf16", dtype="bf16") == []
    weights = mx.load(str(tmp_path / "bf16/model.safetensors"))
    assert {w.dtype for w in weights.values()} == {mx.bfloat16}
    exact = mx.load(str(base / "model.safetensors"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert mx.array_equal(weights[name], exact[name].astype(mx.bfloat16))
    assert json.loads((tmp_path / "bf16/config.json").read_text())["torch_dtype"] == "bfloat16"
    notes = write_fused(replace(source, scale=1e7), described, tmp_path / "f16", dtype="f16")
    assert len(notes) == 2 and all("q_proj" in n and "--dtype bf16" in n for n in notes)


def test_only_a_models_own_files_are_copied(make, tmp_path):
    base, _, source, described = make(keys=["self_attn.q_proj"])
    for name in ("modeling_x.py", "pytorch_model.bin", ".env", "adapter_config.json", "run.sh"):
        (base / name).write_text("no")
    (base / "pytorch_model.bin.index.json").write_text("{}")
    (tmp_path / "secret.json").write_text("no")
    os.symlink(tmp_path / "secret.json", base / "linked.json")
    os.symlink(base / "config.json", base / "inside.json")
    (base / "folder.json").mkdir()
    (base / "LICENSE").write_text("MIT")
    (base / "chat_template.jinja").write_text("{{ messages }}")
    before = {"LICENSE", "chat_template.jinja", "inside.json"}
    write_fused(source, described, tmp_path / "fused")
    assert names(tmp_path / "fused") == before | {
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
        "model.safetensors",
    }
    assert not (tmp_path / "fused" / "inside.json").is_symlink()


def test_the_hubs_cache_is_followed_to_its_blobs(make, tmp_path):
    base, run, source, _ = make(keys=["self_attn.q_proj"])
    cache = tmp_path / "models--a--b"
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for i, path in enumerate(sorted(base.iterdir())):
        path.rename(cache / "blobs" / str(i))
        os.symlink(f"../../blobs/{i}", snapshot / path.name)
    source = replace(source, config=replace(source.config, model=str(snapshot)))
    write_fused(source, describe_base(source.config), tmp_path / "fused")
    assert names(tmp_path / "fused") == names(snapshot)
    assert difference(run_logits(run, snapshot), logits(tmp_path / "fused")) < 1e-4


def test_useless_weights_and_a_full_disk_are_refused(make, tmp_path, monkeypatch):
    _, _, source, described = make(keys=["self_attn.q_proj"])
    name = next(iter(source.weights))
    broken = {**source.weights, name: source.weights[name] * np.nan}
    with pytest.raises(UserError, match="not finite at step 7: export an earlier"):
        write_fused(replace(source, weights=broken), described, tmp_path / "fused")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="free some, or give another --out"):
        write_fused(source, described, tmp_path / "fused")
    assert not (tmp_path / "fused" / "config.json").exists()
    monkeypatch.undo()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fused, "write_files", full)
    with pytest.raises(UserError, match="There is no space"):
        write_fused(source, described, tmp_path / "fused")


def test_a_folder_of_links_is_the_model(make, tmp_path):
    base, _, source, _ = make(keys=["self_attn.q_proj"])
    links = tmp_path / "links"
    links.mkdir()
    for path in base.iterdir():
        os.symlink(path, links / path.name)
    source = replace(source, config=replace(source.config, model=str(links)))
    write_fused(source, describe_base(source.config), tmp_path / "fused")
    assert names(tmp_path / "fused") == names(links)
    # Of a tokenizer from elsewhere there is a word: a model without one would be of no use.
    (base / "tokenizer.json").rename(tmp_path / "other.json")
    (links / "tokenizer.json").unlink()
    os.symlink(tmp_path / "other.json", links / "tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer\.json is a link"):
        write_fused(source, describe_base(source.config), tmp_path / "refused")
