"""Adapters of strangers: their settings are checked, and PEFT's form becomes mlx-lm's."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import safetensors.numpy

from simko_mlx.config import Config
from simko_mlx.policy import load_base, load_policy
from simko_mlx.types import UserError
from tests.models import make_model

ROW = mx.array([[5, 17, 42, 8, 99, 3, 61, 12]])
Q, DOWN = "self_attn.q_proj", "mlp.down_proj"


def config_for(model: Path, adapter: Path) -> Config:
    config = Config(model=str(model))
    config.policy.adapter_path = str(adapter)
    return config


def refusal(model: Path, adapter: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_policy(config_for(model, adapter))
    told = str(caught.value)
    assert "\n" not in told and told.endswith(".")
    return told


# --- mlx-lm's own ---------------------------------------------------------------------------------


@pytest.fixture
def adapter(qwen2, tmp_path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name, content in load_policy(Config(model=str(qwen2))).adapter_files().items():
        (folder / name).write_bytes(content)
    return folder


SETTINGS = {
    "rank": ["8", 0, -8, 8.0, True, None, [8], 10**9, 10**30, 4],
    "scale": ["NaN", math.nan, math.inf, None, True, [20.0], 10**400],
    "dropout": ["0", 1.0, -0.1, math.nan, None],
    "keys": ["self_attn.q_proj", [1], {"a": 1}],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in SETTINGS.items() for value in values]
)
def test_wrong_settings_get_one_sentence(key, value, qwen2, adapter):
    path = adapter / "adapter_config.json"
    settings = json.loads(path.read_text())
    settings["lora_parameters"][key] = value
    path.write_text(json.dumps(settings))
    told = refusal(qwen2, adapter)
    constant = isinstance(value, float) and not math.isfinite(value)
    assert str(path) in told and ("JSON" if constant else f"lora_parameters.{key}") in told


def test_settings_that_are_missing_or_of_no_layer_get_one_sentence(qwen2, adapter):
    path = adapter / "adapter_config.json"
    settings = json.loads(path.read_text())

    def told(**changes: Any) -> str:
        path.write_text(json.dumps({**settings, **changes}))
        return refusal(qwen2, adapter)

    assert "lora_parameters is no JSON object" in told(lora_parameters=None)
    assert "num_layers is null" in told(num_layers=None)
    assert "num_layers is 1.5" in told(num_layers=1.5)
    assert "does not fit" in told(
        lora_parameters={**settings["lora_parameters"], "keys": ["no.such.layer"]}
    )
    path.write_text('{"lora_parameters": {}, "lora_parameters": {}}')
    assert "there twice" in refusal(qwen2, adapter)
    path.unlink()
    assert "no adapter_config.json" in refusal(qwen2, adapter)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.clear(), "no LoRA matrices"),
        (lambda w: w.popitem(), "are missing, such as model.layers"),
        (lambda w: next(iter(w.values())).fill(np.nan), "NaN or infinity"),
        (lambda w: w.update(extra=np.ones(3, np.float32)), "not an adapter parameter"),
    ],
)
def test_weights_that_mlx_lm_would_take_silently(change, words, qwen2, adapter):
    path = adapter / "adapters.safetensors"
    weights = safetensors.numpy.load_file(path)
    change(weights)
    safetensors.numpy.save_file(weights, path)
    assert words in refusal(qwen2, adapter)


# --- PEFT's ---------------------------------------------------------------------------------------


def write_peft(
    folder: Path, model: Path, ranks: dict[str, int], dtype: Any = np.float32, **settings: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A random PEFT adapter on the layers whose names end so; module -> (A, B)."""
    rng = np.random.default_rng(1)
    folder.mkdir(exist_ok=True)
    base = safetensors.numpy.load_file(model / "model.safetensors")
    matrices, tensors = {}, {}
    for name, weight in sorted(base.items()):
        module = name.removesuffix(".weight")
        rank = next((r for end, r in ranks.items() if module.endswith(end)), None)
        if rank is None:
            continue
        a = rng.normal(size=(rank, weight.shape[1])).astype(np.float32)
        b = 0.02 * rng.normal(size=(weight.shape[0], rank)).astype(np.float32)
        matrices[module] = (a, b)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.astype(dtype)
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.astype(dtype)
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": list(ranks)}
    config = {**plain, "bias": "none", "lora_dropout": 0.0, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return matrices


def merged(model: Path, folder: Path, matrices: dict, scale: Any) -> mx.array:
    """Logits of the base with ``scale(module, rank) * B A`` added to its weights."""
    shutil.copytree(model, folder)
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    for module, (a, b) in matrices.items():
        weights[f"{module}.weight"] += np.float32(scale(module, a.shape[0])) * (b @ a)
    safetensors.numpy.save_file(weights, folder / "model.safetensors", {"format": "mlx"})
    return load_base(Config(model=str(folder))).model(ROW)


def alpha_of_pattern(module: str, rank: int) -> float:
    return {"layers.0.self_attn.q_proj": 32, "down_proj": 2}.get(
        "layers.0.self_attn.q_proj" if module == f"model.layers.0.{Q}"
        else "down_proj" if module.endswith("down_proj") else "", 8
    ) / rank  # fmt: skip


@pytest.mark.parametrize(
    ("ranks", "settings", "scale"),
    [
        ({Q: 4}, {}, lambda module, rank: 8 / 4),
        ({Q: 4, DOWN: 4}, {"lora_alpha": 6.5}, lambda module, rank: 6.5 / 4),
        ({Q: 4, DOWN: 4}, {"use_rslora": True}, lambda module, rank: 8 / 2),
        ({Q: 4, DOWN: 2}, {"rank_pattern": {DOWN: 2}}, lambda module, rank: 8 / rank),
        (
            {Q: 9, DOWN: 4},
            {"rank_pattern": {Q: 9}, "use_rslora": True},
            lambda module, rank: 8 / math.sqrt(rank),
        ),
        (
            {Q: 4, DOWN: 4},
            {"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 32, "down_proj": 2}},
            alpha_of_pattern,
        ),
    ],
)
def test_a_peft_adapter_does_what_peft_says(ranks, settings, scale, qwen2, tmp_path):
    matrices = write_peft(tmp_path / "peft", qwen2, ranks, **settings)
    policy = load_policy(config_for(qwen2, tmp_path / "peft"))
    ours = policy.model(ROW)
    expected = merged(qwen2, tmp_path / "merged", matrices, scale)
    base = load_base(Config(model=str(qwen2))).model(ROW)
    assert mx.abs(expected - base).max().item() > 0.1  # it does something
    assert mx.abs(ours - expected).max().item() < 1e-4
    assert len(policy.trainable_arrays()) == 2 * len(matrices)
    assert all("keys of" in note or "keys" in note for note in policy.notes)
    # What is saved is mlx-lm's own form, and gives the same.
    saved = tmp_path / "saved"
    saved.mkdir()
    for name, content in policy.adapter_files().items():
        (saved / name).write_bytes(content)
    again = load_policy(config_for(qwen2, saved))
    assert mx.array_equal(again.model(ROW), ours)


def test_a_peft_adapter_of_bfloat16(tmp_path):
    """numpy has no such type."""
    model = make_model(tmp_path / "model", "llama")
    matrices = write_peft(tmp_path / "peft", model, {Q: 4})
    path = tmp_path / "peft" / "adapter_model.safetensors"
    tensors = {n: v.astype(mx.bfloat16) for n, v in mx.load(str(path)).items()}
    mx.save_safetensors(str(path), tensors)
    ours = load_policy(config_for(model, tmp_path / "peft")).trainable_arrays()
    for module, (a, b) in matrices.items():
        half = np.array(mx.array(a).astype(mx.bfloat16).astype(mx.float32))
        assert np.array_equal(ours[f"{module}.lora_a"], half.T)
        assert np.allclose(ours[f"{module}.lora_b"], b.T, rtol=1e-2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"use_dora": True}, "use_dora is true"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is true"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters is set"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is set"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights is 'pissa_niter_16'"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"lora_alpha": -1}, "lora_alpha is -1"),
        ({"lora_alpha": math.nan}, "NaN is no number"),
        ({"lora_dropout": 2}, "lora_dropout is 2"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern of q_proj is 'x'"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "only names of layers"),
        ({"alpha_pattern": {"q\\": 1}}, "which is no pattern"),
        ({"alpha_pattern": [1]}, "alpha_pattern is [1]"),
    ],
)
def test_peft_adapters_that_are_more_than_lora_get_one_sentence(settings, words, qwen2, tmp_path):
    write_peft(tmp_path / "peft", qwen2, {Q: 4}, **settings)
    told = refusal(qwen2, tmp_path / "peft")
    assert words in told and str(tmp_path / "peft" / "adapter_config.json") in told


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (f"base_model.model.model.layers.0.{Q}.lora_magnitude_vector", (4,), "no matrix of plain"),
        (f"model.layers.0.{Q}.lora_A.weight", (4, 32), "no matrix of plain"),
        (f"base_model.model.model.layers.0.{Q}.lora_A.weight", (5, 32), "don't fit together"),
        (f"base_model.model.model.layers.0.{Q}.lora_A.weight", (32,), "don't fit together"),
        ("base_model.model.model.layers.0.alone.lora_A.weight", (4, 32), "don't fit together"),
        ("base_model.model.model.layers.9.x.lora_B.weight", (32, 4), "does not fit"),
    ],
)
def test_peft_weights_that_are_no_lora_get_one_sentence(name, value, words, qwen2, tmp_path):
    write_peft(tmp_path / "peft", qwen2, {Q: 4})
    path = tmp_path / "peft" / "adapter_model.safetensors"
    weights = {**safetensors.numpy.load_file(path), name: np.ones(value, np.float32)}
    safetensors.numpy.save_file(weights, path)
    assert words in refusal(qwen2, tmp_path / "peft")


def test_a_peft_adapter_of_another_model_and_a_pickle_get_one_sentence(qwen2, tmp_path):
    other = make_model(tmp_path / "other", hidden_size=64)
    folder = tmp_path / "peft"
    write_peft(folder, other, {Q: 4})
    told = refusal(qwen2, folder)
    assert "does not fit" in told and str(folder) in told
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "pickle" in refusal(qwen2, folder)
