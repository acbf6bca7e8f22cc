"""Loading, LoRA and full tuning, adapters that mlx-lm reads, and the reference policy."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from simko_mlx.config import Config
from simko_mlx.model_files import find_model
from simko_mlx.policy import load_base, load_policy, named_arrays
from simko_mlx.types import UserError
from tests.models import make_model

ROW = mx.array([[5, 9, 30, 77, 140]])


def config_for(model, **policy) -> Config:
    config = Config(model=str(model))
    for key, value in policy.items():
        setattr(config.policy, key, value)
    return config


def perturb(policy) -> None:
    """Random values for everything that trains, so that B is not zero."""
    mx.random.seed(3)
    policy.model.update(
        tree_map(
            lambda a: a + mx.random.normal(a.shape) * 0.05, policy.model.trainable_parameters()
        )
    )


def write_adapter(policy, folder):
    folder.mkdir()
    for name, content in policy.adapter_files().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_adapters_load_in_plain_mlx_lm(family, kind, tmp_path):
    model = make_model(tmp_path / "model", family)
    policy = load_policy(config_for(model, fine_tune_type=kind))
    perturb(policy)
    adapter = write_adapter(policy, tmp_path / "adapter")
    loaded, tokenizer = mlx_lm.load(str(model), adapter_path=str(adapter))[:2]
    assert mx.abs(loaded(ROW) - policy.model(ROW)).max().item() < 1e-5
    assert mx.abs(loaded(ROW) - load_base(policy.config).model(ROW)).max().item() > 1e-3
    assert isinstance(mlx_lm.generate(loaded, tokenizer, "2 + 2", max_tokens=3), str)


def test_a_new_lora_policy_is_the_base_and_only_lora_trains(qwen2):
    policy = load_policy(config_for(qwen2))
    assert mx.array_equal(policy.model(ROW), load_base(policy.config).model(ROW))
    names = [name for name, _ in tree_flatten(policy.model.trainable_parameters())]
    assert names and all(name.endswith((".lora_a", ".lora_b")) for name in names)
    assert 0 < policy.trainable < policy.parameters


def test_lora_initialisation_depends_on_the_seed_alone(qwen2):
    first = load_policy(config_for(qwen2)).trainable_arrays()
    mx.random.normal((5,))
    again = load_policy(config_for(qwen2)).trainable_arrays()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    other = config_for(qwen2)
    other.seed = 1
    arrays = load_policy(other).trainable_arrays()
    assert any(not np.array_equal(first[name], arrays[name]) for name in first)


@pytest.mark.parametrize(("dtype", "bits"), [(mx.bfloat16, None), (mx.float32, 4), (mx.float16, 8)])
def test_adapters_are_float32_on_half_and_quantised_bases(dtype, bits, tmp_path):
    model = make_model(tmp_path / "model", dtype=dtype, bits=bits)
    policy = load_policy(config_for(model))
    assert {v.dtype for _, v in tree_flatten(policy.model.trainable_parameters())} == {mx.float32}
    perturb(policy)
    adapter = write_adapter(policy, tmp_path / "adapter")
    loaded = mlx_lm.load(str(model), adapter_path=str(adapter))[0]
    difference = mx.abs(loaded(ROW) - policy.model(ROW)).max().item()
    assert difference <= (0.02 if dtype != mx.float32 else 1e-5)
    # An adapter that was stored in half precision is trained in float32 all the same.
    weights = mx.load(str(adapter / "adapters.safetensors"))
    half = {name: value.astype(mx.bfloat16) for name, value in weights.items()}
    mx.save_safetensors(str(adapter / "adapters.safetensors"), half)
    again = load_policy(config_for(model, adapter_path=str(adapter)))
    assert {v.dtype for _, v in tree_flatten(again.model.trainable_parameters())} == {mx.float32}


def test_full_tuning_is_float32_and_refuses_quantised_models(tmp_path):
    half = make_model(tmp_path / "half", dtype=mx.bfloat16)
    policy = load_policy(config_for(half, fine_tune_type="full"))
    assert policy.trainable == policy.parameters
    assert {v.dtype for _, v in tree_flatten(policy.model.trainable_parameters())} == {mx.float32}
    last = load_policy(config_for(half, fine_tune_type="full", num_layers=1))
    assert 0 < last.trainable < policy.trainable
    quantised = make_model(tmp_path / "quantised", bits=4)
    with pytest.raises(UserError, match="quantised"):
        load_policy(config_for(quantised, fine_tune_type="full"))


def test_starting_from_an_adapter(qwen2, tmp_path):
    config = config_for(qwen2)
    config.policy.lora_parameters.rank = 3
    policy = load_policy(config)
    perturb(policy)
    adapter = write_adapter(policy, tmp_path / "adapter")
    again = load_policy(config_for(qwen2, adapter_path=str(adapter)))  # rank 8 in this config
    before, after = policy.trainable_arrays(), again.trainable_arrays()
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert again.adapter_config["lora_parameters"]["rank"] == 3
    with pytest.raises(UserError, match="is a lora adapter"):
        load_policy(config_for(qwen2, adapter_path=str(adapter), fine_tune_type="full"))
    (adapter / "adapters.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    with pytest.raises(UserError, match="damaged"):
        load_policy(config_for(qwen2, adapter_path=str(adapter)))


def test_an_adapter_of_another_model_is_refused(qwen2, tmp_path):
    other = make_model(tmp_path / "other", hidden_size=64)
    adapter = write_adapter(load_policy(config_for(other)), tmp_path / "adapter")
    with pytest.raises(UserError, match="does not fit"):
        load_policy(config_for(qwen2, adapter_path=str(adapter)))


def test_the_reference_is_the_base_exactly(qwen2):
    policy = load_policy(config_for(qwen2))
    perturb(policy)
    trained = policy.model(ROW)
    base = load_base(policy.config).model(ROW)
    with policy.reference():
        assert mx.array_equal(policy.model(ROW), base)
    assert mx.array_equal(policy.model(ROW), trained)
    assert not mx.array_equal(trained, base)


def test_lora_keys_that_match_nothing_are_refused(qwen2):
    config = config_for(qwen2)
    config.policy.lora_parameters.keys = ["self_attn.no_such_proj"]
    with pytest.raises(UserError, match=r"lora_parameters\.keys"):
        load_policy(config)
    config.policy.lora_parameters.keys = ["self_attn.q_proj"]
    policy = load_policy(config)
    assert all("q_proj" in name for name in policy.trainable_arrays())


def test_paths_that_are_no_model_get_one_sentence(tmp_path, qwen2):
    empty = tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "file"
    file.write_text("x")
    no_weights = tmp_path / "no-weights"
    no_weights.mkdir()
    (no_weights / "config.json").write_text("{}")
    for name, words in (
        (str(tmp_path / "missing"), "no such folder"),
        ("missing", "no such folder"),
        (str(empty), "no config.json"),
        (str(file), "must be a folder"),
        (str(no_weights), r"no model\*\.safetensors"),
    ):
        with pytest.raises(UserError, match=words):
            find_model(name)


def test_damaged_and_unknown_models_get_one_sentence(tmp_path):
    damaged = make_model(tmp_path / "damaged")
    data = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="damaged"):
        load_base(Config(model=str(damaged)))
    for change in ({"model_type": "no_such_type"}, {"hidden_size": 48}, {"vocab_size": "many"}):
        model = make_model(tmp_path / "unknown")
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match="mlx-lm can't load"):
            load_base(Config(model=str(model)))


def test_the_context_limits_the_prompt(qwen2):
    config = config_for(qwen2)
    config.rollout.max_completion_length = 500
    assert load_base(config).max_prompt_length == 12  # the model's 512
    config.prompt.max_length = 7
    assert load_base(config).max_prompt_length == 7
    config.rollout.max_completion_length = 600
    assert load_base(config).max_prompt_length == 0


def test_a_full_adapter_on_a_quantised_base_is_refused(tmp_path):
    plain = make_model(tmp_path / "plain")
    adapter = write_adapter(
        load_policy(config_for(plain, fine_tune_type="full")), tmp_path / "adapter"
    )
    quantised = make_model(tmp_path / "quantised", bits=4)
    with pytest.raises(UserError, match="the model is quantised"):
        load_policy(config_for(quantised, fine_tune_type="full", adapter_path=str(adapter)))


def test_another_lora_in_the_config_than_in_the_adapter_is_said(qwen2, tmp_path):
    adapter = write_adapter(load_policy(config_for(qwen2)), tmp_path / "adapter")
    config = config_for(qwen2, adapter_path=str(adapter))
    assert load_policy(config).notes == []
    config.policy.lora_parameters.rank = 32
    assert load_policy(config).notes == ["The adapter's own LoRA settings are used: rank 8."]


@pytest.mark.parametrize("text", ["{", "[]", '{"fine_tune_type": "dora"}'])
def test_adapters_that_cannot_be_trained_get_one_sentence(qwen2, tmp_path, text):
    adapter = write_adapter(load_policy(config_for(qwen2)), tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=r"not a JSON object|dora adapter"):
        load_policy(config_for(qwen2, adapter_path=str(adapter)))


@pytest.mark.parametrize("layers", [-1, 1])
def test_full_tuning_of_a_bf16_model_reloads_as_it_was(tmp_path, layers):
    model = make_model(tmp_path / "model", dtype=mx.bfloat16)
    policy = load_policy(config_for(model, fine_tune_type="full", num_layers=layers))
    perturb(policy)
    adapter = write_adapter(policy, tmp_path / "adapter")
    loaded = mlx_lm.load(str(model), adapter_path=str(adapter))[0]
    assert mx.abs(loaded(ROW) - policy.model(ROW)).max().item() == 0


def test_a_used_policy_is_let_go(qwen2):
    import gc
    import weakref

    from simko_mlx.selftest import can_decode_ragged

    policy = load_policy(config_for(qwen2))
    assert can_decode_ragged(policy.model) is None
    gone = weakref.ref(policy.model)
    del policy
    gc.collect()
    assert gone() is None


def test_weights_lie_as_blas_wants_them(qwen2):
    """On a CPU column after column; their values are those of the file."""
    policy = load_policy(Config(model=str(qwen2)))
    weights = [
        (name, x)
        for name, x in named_arrays(policy.model.parameters()).items()
        if name.endswith("proj.linear.weight") or name == "model.embed_tokens.weight"
    ]
    files = mx.load(str(qwen2 / "model.safetensors"))
    assert len(weights) > 7
    for name, weight in weights:
        strides = memoryview(weight).strides  # type: ignore[arg-type]
        assert strides == (4, 4 * weight.shape[0])
        assert mx.array_equal(weight, files[name.replace(".linear", "")])  # type: ignore[index]
