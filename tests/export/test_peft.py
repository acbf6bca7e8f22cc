"""The adapter as PEFT has it: names, layouts, settings, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import safetensors.numpy
from mlx.utils import tree_flatten
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

from simko_mlx.config import Config
from simko_mlx.export.base import Base, describe_base
from simko_mlx.export.mlx_adapter import mlx_files
from simko_mlx.export.peft import notes, peft_files
from simko_mlx.export.source import Source
from simko_mlx.peft_format import from_peft, to_peft
from simko_mlx.types import UserError
from tests.families import write_model
from tests.models import make_model

RANK, SCALE = 4, 2.5


def random_source(model: Path, keys: list[str] | None = None, layers: int = -1) -> Source:
    """A run's adapter with random weights on a model of this machine."""
    loaded, _ = load_model(model)
    parameters = {"rank": RANK, "scale": SCALE, "dropout": 0.0, "keys": keys}
    loaded.freeze()
    linear_to_lora_layers(loaded, layers, parameters)
    rng = np.random.default_rng(0)
    flat = dict(tree_flatten(loaded.trainable_parameters()))
    weights = {n: rng.normal(size=v.shape).astype(np.float32) * 0.05 for n, v in flat.items()}
    settings = {"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": parameters}
    return Source(Path("run"), Config(model=str(model)), 7, settings, weights)


def base_of(source: Source) -> Base:
    return describe_base(source.config)


def exported(source: Source, base: Base | None = None, dtype: str = "f32"):
    files = peft_files(source, base or base_of(source), dtype)
    assert set(files) == {"adapter_model.safetensors", "adapter_config.json"}
    tensors = safetensors.numpy.load(files["adapter_model.safetensors"])
    return tensors, json.loads(files["adapter_config.json"])


def test_names_layouts_and_settings(qwen2):
    source = random_source(qwen2)
    tensors, config = exported(source)
    name = "base_model.model.model.layers.1.mlp.down_proj"
    assert tensors[f"{name}.lora_A.weight"].shape == (RANK, 64)
    assert tensors[f"{name}.lora_B.weight"].shape == (32, RANK)
    assert len(tensors) == len(source.weights) == 2 * 2 * 7
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
    assert config["r"] == RANK and config["lora_alpha"] == SCALE * RANK
    assert len(config["target_modules"]) == 14
    assert "model.layers.1.mlp.down_proj" in config["target_modules"]
    assert config["base_model_name_or_path"] == qwen2.name  # no path of this machine


def test_the_formula_of_peft_gives_what_mlx_lm_computes():
    mx.random.seed(1)
    layer = LoRALinear.from_base(nn.Linear(6, 5), r=RANK, scale=SCALE)
    layer.lora_b = mx.random.normal((RANK, 5))
    arrays = {f"x.q_proj.{leaf}": np.array(layer[leaf]) for leaf in ("lora_a", "lora_b")}
    peft = to_peft(arrays)
    x = mx.random.normal((3, 6))
    weight, bias = np.array(layer.linear.weight), np.array(layer.linear.bias)
    a = peft["base_model.model.x.q_proj.lora_A.weight"]
    b = peft["base_model.model.x.q_proj.lora_B.weight"]
    alpha = SCALE * RANK
    expected = np.array(x) @ (weight + alpha / RANK * b @ a).T + bias
    np.testing.assert_allclose(np.array(layer(x)), expected, atol=1e-5)


def test_the_formula_of_pefts_embeddings_gives_what_mlx_lm_computes():
    mx.random.seed(2)
    layer = LoRAEmbedding.from_base(nn.Embedding(9, 5), r=RANK, scale=SCALE)
    layer.lora_b = mx.random.normal((RANK, 5))
    arrays = {f"embed_tokens.{leaf}": np.array(layer[leaf]) for leaf in ("lora_a", "lora_b")}
    peft = to_peft(arrays)
    tokens = np.array([3, 8, 0])
    a = peft["base_model.model.embed_tokens.lora_embedding_A"]
    b = peft["base_model.model.embed_tokens.lora_embedding_B"]
    # torch.nn.functional.embedding(tokens, A.T) @ B.T
    expected = np.array(layer.embedding.weight)[tokens] + SCALE * a.T[tokens] @ b.T
    np.testing.assert_allclose(np.array(layer(mx.array(tokens))), expected, atol=1e-5)


def test_names_come_back(qwen2):
    weights = random_source(qwen2).weights
    weights["model.embed_tokens.lora_a"] = np.ones((9, RANK), np.float32)
    weights["model.embed_tokens.lora_b"] = np.ones((RANK, 5), np.float32)
    back = from_peft(to_peft(weights))
    assert back.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(back[name], value)
    with pytest.raises(KeyError, match="lora_magnitude_vector"):
        from_peft({"base_model.model.x.lora_magnitude_vector": np.ones(3)})


def test_the_scale_of_the_effect_multiplies_alpha_and_mlxs_scale(qwen2):
    source = dataclasses.replace(random_source(qwen2), scale=0.5)
    tensors, config = exported(source)
    assert config["lora_alpha"] == 0.5 * SCALE * RANK
    settings = json.loads(mlx_files(source)["adapter_config.json"])
    assert settings["lora_parameters"]["scale"] == 0.5 * SCALE
    assert settings["lora_parameters"]["rank"] == RANK
    same, _ = exported(dataclasses.replace(source, scale=1.0))
    for name, value in tensors.items():
        np.testing.assert_array_equal(value, same[name])


@pytest.mark.parametrize(("dtype", "theirs", "size"), [("bf16", "BF16", 2), ("f16", "F16", 2)])
def test_types(qwen2, tmp_path, dtype, theirs, size):
    source = random_source(qwen2)
    content = peft_files(source, base_of(source), dtype)["adapter_model.safetensors"]
    (tmp_path / "a.safetensors").write_bytes(content)
    arrays = mx.load(str(tmp_path / "a.safetensors"))
    for name, value in to_peft(source.weights).items():
        assert arrays[name].itemsize == size
        expected = mx.array(value).astype(arrays[name].dtype)
        assert mx.array_equal(arrays[name], expected), name
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="np") as file:
        assert {file.get_slice(n).get_dtype() for n in file.keys()} == {theirs}  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}


def test_values_too_large_for_a_type_are_told(qwen2):
    source = random_source(qwen2)
    name = next(iter(source.weights))
    source.weights[name][0, 0] = 1e6
    with pytest.raises(UserError, match=r"too large for f16.*bf16"):
        exported(source, dtype="f16")


def test_an_adapted_head_and_embeddings_that_are_not_tied(tmp_path):
    model = make_model(tmp_path / "untied", "llama", tie_word_embeddings=False)
    source = random_source(model, ["lm_head", "model.embed_tokens", "self_attn.q_proj"])
    tensors, _ = exported(source)
    size = base_of(source).tensors["lm_head.weight"].shape[0]
    assert tensors["base_model.model.lm_head.lora_B.weight"].shape == (size, RANK)
    assert tensors["base_model.model.model.embed_tokens.lora_embedding_A"].shape == (RANK, size)


def refused(source: Source, base: Base | None = None) -> str:
    with pytest.raises(UserError) as caught:
        exported(source, base)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text
    return text


def test_embeddings_with_a_tied_head_are_refused(qwen2):
    text = refused(random_source(qwen2, ["model.embed_tokens", "self_attn.q_proj"]))
    assert "model.embed_tokens is also this model's head" in text and "--to fused" in text


def test_layers_of_experts_are_refused_and_attention_is_not(tmp_path):
    model = write_model(tmp_path / "moe", "qwen3_moe")
    text = refused(random_source(model))
    assert "MoE" in text and "--to fused" in text
    text = refused(random_source(model, ["mlp.gate"]))
    assert "chooses experts" in text
    _, config = exported(random_source(model, ["self_attn.q_proj"]))
    assert [m.rpartition(".")[2] for m in config["target_modules"]] == ["q_proj"] * 2


def test_a_model_that_transformers_names_otherwise_is_refused():
    from simko_mlx.model_files import EMBEDDED

    source = random_source(EMBEDDED)
    assert "nanochat models have other names" in refused(
        dataclasses.replace(source, config=Config())
    )


def test_layers_that_the_bases_own_files_lack_are_refused(qwen2):
    source = random_source(qwen2)
    base = base_of(source)
    name = "model.layers.0.self_attn.q_proj.weight"
    less = {n: t for n, t in base.tensors.items() if n != name}
    assert f"have no {name}" in refused(source, dataclasses.replace(base, tensors=less))
    turned = dataclasses.replace(base.tensors[name], shape=(64, 64))
    other = {**base.tensors, name: turned}
    assert f"{name} is (64, 64)" in refused(source, dataclasses.replace(base, tensors=other))


def test_trained_weights_themselves_are_refused(qwen2):
    source = random_source(qwen2)
    settings = {"fine_tune_type": "full", "num_layers": -1}
    assert "--to fused" in refused(dataclasses.replace(source, settings=settings))


def test_a_quantised_base_is_told(tmp_path):
    model = make_model(tmp_path / "small-4bit", "qwen2", bits=4)
    source = random_source(model)
    base = base_of(source)
    _, config = exported(source, base)
    assert config["base_model_name_or_path"] == "small-4bit"
    first, second = notes(base)
    assert "4 bits" in first and "--to fused" in first and "--base" in second
    (model / "README.md").write_text("---\nbase_model: Qwen/Qwen2.5-0.5B\n---\n# small\n")
    base = base_of(source)
    assert base.made_from == "Qwen/Qwen2.5-0.5B" and len(notes(base)) == 1
    assert exported(source, base)[1]["base_model_name_or_path"] == "Qwen/Qwen2.5-0.5B"


def test_a_family_that_was_never_compared_is_told(qwen2):
    base = base_of(random_source(qwen2))
    assert notes(base) == []
    other = dataclasses.replace(base, config={**base.config, "model_type": "exaone"})
    assert "exaone" in notes(other)[0] and "--check" in notes(other)[0]
