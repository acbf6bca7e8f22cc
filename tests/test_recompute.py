"""Gradient checkpointing: the same gradient, less memory, and nothing left behind."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from simko_mlx.config import LoraParameters
from simko_mlx.forward import WAYS, Way, lay_out
from simko_mlx.recompute import checkpointed_layers
from tests.shared_prompts import by_layout, by_rows, make_batch, policy_of, relative_error

RAGGED = make_batch([9, 4], [[6, 3], [1, 8]])
ONE = make_batch([9], [[6, 3]])


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2", "gemma3_text"])
def test_the_gradient_is_the_same(tmp_path, family):
    policy = policy_of(tmp_path, family)
    batch = RAGGED if policy.way == "packed" else ONE
    wanted = by_rows(policy, batch)
    ways: tuple[Way, ...] = ("packed", "full") if batch is RAGGED else WAYS[1:]
    for way in ways:
        for bucketed in (False, True):
            layout = lay_out(batch, way, bucketed=bucketed)
            logprobs, gradient = by_layout(policy, layout, batch, checkpoint=True)
            assert mx.abs(logprobs - wanted[0]).max().item() < 2e-5
            assert relative_error(gradient, wanted[1]) < 1e-4


def test_all_weights_may_train(tmp_path):
    policy = policy_of(tmp_path, "qwen2", policy__fine_tune_type="full")
    wanted = by_rows(policy, RAGGED)
    _, gradient = by_layout(policy, lay_out(RAGGED, "packed"), RAGGED, checkpoint=True)
    assert relative_error(gradient, wanted[1]) < 1e-4


def test_it_takes_much_less_memory(tmp_path):
    policy = policy_of(tmp_path, "qwen2")
    layers = policy.model.model.layers
    layers.extend([layers[i % 2] for i in range(22)])
    batch = make_batch([40], [[100] * 8])
    layout = lay_out(batch, "packed")

    def peak(checkpoint: bool) -> int:
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        by_layout(policy, layout, batch, checkpoint=checkpoint)
        return mx.get_peak_memory() - before

    peak(True)  # whatever is made once
    assert peak(True) < 0.65 * peak(False)


@pytest.mark.parametrize("way", ["packed", "full"])
def test_dropout_is_the_same_when_a_layer_is_run_again(tmp_path, way):
    """Otherwise the gradient is that of other masks than the loss; and the generator must be left
    as it would be without, for whatever draws next."""
    policy = policy_of(
        tmp_path, "qwen2", policy__lora_parameters=LoraParameters(scale=4.0, dropout=0.4)
    )
    policy.model.train()
    layout = lay_out(RAGGED, way)
    bernoulli, state = mx.random.bernoulli, cast(Any, mx.random.state)
    found = []
    for checkpoint in (False, True):
        mx.random.seed(3)
        logprobs, gradient = by_layout(policy, layout, RAGGED, checkpoint=checkpoint)
        found.append((logprobs, gradient, np.array(state[0]).tolist()))
    assert mx.array_equal(found[0][0], found[1][0]).item()
    assert relative_error(found[1][1], found[0][1]) < 1e-5
    assert found[0][2] == found[1][2]
    assert mx.random.bernoulli is bernoulli
    mx.random.seed(4)
    other = by_layout(policy, layout, RAGGED, checkpoint=True)
    assert relative_error(other[1], found[0][1]) > 0.05  # dropout is on


def test_classes_are_as_they_were_afterwards_whatever_happens(tmp_path):
    policy = policy_of(tmp_path, "qwen2")
    cls: Any = type(policy.model.layers[0])
    original = cls.__call__
    with checkpointed_layers(policy.model):
        assert cls.__call__ is not original
    assert cls.__call__ is original
    with checkpointed_layers(policy.model, False):
        assert cls.__call__ is original
    with pytest.raises(KeyError), checkpointed_layers(policy.model):
        raise KeyError
    assert cls.__call__ is original


def test_another_model_of_the_same_class_is_not_touched(tmp_path, monkeypatch):
    one, other = policy_of(tmp_path / "a", "qwen2"), policy_of(tmp_path / "b", "qwen2")
    ids = mx.array([[1, 2, 3]])
    wanted = other.model(ids)
    calls = []
    original: Any = mx.checkpoint
    monkeypatch.setattr(mx, "checkpoint", lambda f: calls.append(f) or original(f))
    with checkpointed_layers(one.model):
        assert mx.array_equal(other.model(ids), wanted).item()
        assert not calls
        one.model(ids)
        assert len(calls) == len(one.model.layers)


def test_the_models_parameters_are_real_afterwards(tmp_path):
    policy = policy_of(tmp_path, "qwen2")
    before = policy.trainable_arrays()
    by_layout(policy, lay_out(RAGGED, "packed"), RAGGED, checkpoint=True)
    after = policy.trainable_arrays()
    assert all((before[name] == after[name]).all() for name in before)
    # And a gradient of other weights afterwards is of those.
    policy.model.update(tree_map(lambda a: 2 * a, policy.model.trainable_parameters()))
    wanted = by_rows(policy, RAGGED)
    _, gradient = by_layout(policy, lay_out(RAGGED, "packed"), RAGGED, checkpoint=True)
    assert relative_error(gradient, wanted[1]) < 1e-4


def test_a_layer_holds_its_own_parameters_after_its_call(tmp_path):
    """Not copies that a gradient would not reach."""
    policy = policy_of(tmp_path, "qwen2")

    def held() -> list[Any]:
        return [value for _, value in tree_flatten(policy.model.trainable_parameters())]

    before = held()
    with checkpointed_layers(policy.model):
        policy.model(mx.array([[1, 2, 3]]))
        assert all(a is b for a, b in zip(before, held(), strict=True))
