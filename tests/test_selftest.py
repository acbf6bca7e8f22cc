"""The fastest exact way is found on the actual model, and the reasons against faster ones told."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.tuner.trainer import grad_checkpoint

from simko_mlx import selftest
from simko_mlx.decoding import Together
from simko_mlx.forward import WAYS
from simko_mlx.policy import Policy, load_policy
from simko_mlx.prefix import PrefixCache
from simko_mlx.selftest import (
    Choice,
    can_decode_alike,
    can_decode_ragged,
    can_decode_shared,
    choose_way,
    difference,
    tiny_batch,
)
from simko_mlx.types import UserError
from tests.models import make_model
from tests.runs import small_config

FASTER = WAYS[:-1]


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Policy:
    folder = make_model(tmp_path_factory.mktemp("selftest") / "model", "qwen2")
    return load_policy(small_config(model=str(folder)))


def broken(monkeypatch, policy: Policy, how: dict[str, Any]) -> None:
    """Lets ways fail: an exception is raised, a number is a factor of the log-probs."""
    original = policy.statistics_at

    def statistics_at(layout, **settings):
        stats = original(layout, **settings)
        fault = how.get(layout.way)
        if isinstance(fault, Exception):
            raise fault
        return stats if fault is None else stats._replace(logprobs=fault * stats.logprobs)

    monkeypatch.setattr(policy, "statistics_at", statistics_at)


@pytest.mark.parametrize("count", range(4))
def test_one_way_after_the_other_is_given_up(policy, monkeypatch, count):
    faults = [ValueError("shapes (2, 3)\n don't   broadcast"), 1.5, NotImplementedError()]
    how = dict(zip(FASTER, faults[:count], strict=False))
    broken(monkeypatch, policy, how)
    before = policy.way
    choice = choose_way(policy)
    assert choice.way == WAYS[count] and list(choice.reasons) == list(WAYS[:count])
    assert policy.way == before
    reasons = ["shapes (2, 3) don't broadcast", "the gradient is 50.0% off", "NotImplementedError"]
    assert list(choice.reasons.values()) == reasons[:count]


@pytest.mark.parametrize("way", FASTER)
def test_a_single_bad_way_costs_no_other(policy, monkeypatch, way):
    broken(monkeypatch, policy, {way: 1.01})
    choice = choose_way(policy)
    assert choice.way == ("single" if way == "packed" else "packed")


@pytest.mark.parametrize("fault", [float("nan"), 1.01, 0.0, -1.0])
def test_wrong_gradients_are_noticed(policy, monkeypatch, fault):
    broken(monkeypatch, policy, dict.fromkeys(FASTER, fault))
    choice = choose_way(policy)
    assert choice.way == "full" and len(choice.reasons) == 3
    assert all("the gradient is" in reason for reason in choice.reasons.values())


def test_what_is_no_failure_of_a_model_is_not_swallowed(policy, monkeypatch):
    broken(monkeypatch, policy, {"packed": KeyboardInterrupt()})
    monkeypatch.setattr(
        policy, "statistics_at", lambda *a, **k: (_ for _ in ()).throw(ZeroDivisionError)
    )
    before = policy.way
    with pytest.raises(ZeroDivisionError):
        choose_way(policy)
    assert policy.way == before


def test_notes_are_sentences_for_the_user():
    assert Choice("packed", {}).note() is None
    reasons = {"packed": "reason one", "single": "reason two", "exact": "reason three"}
    single = Choice("single", reasons).note() or ""
    assert "(reason one)" in single and "each problem is trained on by itself" in single
    assert "each prompt length" in (Choice("exact", reasons).note() or "")
    full = Choice("full", reasons).note() or ""
    assert "(reason three)" in full and "slower" in full and "more memory" in full
    for note in (single, full):
        assert note.endswith(".") and "\n" not in note


def test_the_users_hears_of_it_when_the_model_is_loaded(tmp_path):
    policy = load_policy(small_config(model=str(make_model(tmp_path / "model", "gemma2"))))
    assert policy.way == "single"
    assert any("Completions can't share prompts freely" in note for note in policy.notes)


def test_caches_that_cannot_be_shared_train_on_full_rows(policy, monkeypatch):
    monkeypatch.setattr("simko_mlx.forward.prefix_caches", lambda model: "X can't be shared")
    choice = choose_way(policy)
    assert choice.way == "full" and set(choice.reasons.values()) == {"X can't be shared"}


def test_a_prompt_without_a_gradient_is_noticed(policy, monkeypatch):
    original = PrefixCache.fan_out

    def detached(self: PrefixCache, rows: int, lengths: Any) -> None:
        original(self, rows, lengths)
        self.keys, self.values = mx.stop_gradient(self.keys), mx.stop_gradient(self.values)

    monkeypatch.setattr(PrefixCache, "fan_out", detached)
    choice = choose_way(policy)
    assert choice.way == "full"
    assert all("the gradient is" in reason for reason in choice.reasons.values())


def test_mlx_lms_own_checkpointing_is_noticed(policy, monkeypatch):
    """It loses what flows through a shared prefix."""
    cls = type(policy.model.layers[0])
    monkeypatch.setattr(cls, "__call__", cls.__call__)  # to be put back
    grad_checkpoint(policy.model.layers[0])
    choice = choose_way(policy)
    assert choice.way == "full"
    assert all("the gradient is" in reason for reason in choice.reasons.values())


def test_ours_is_not(policy, monkeypatch):
    monkeypatch.setattr(policy.config, "grad_checkpoint", True)
    assert choose_way(policy) == Choice("packed", {})


def test_it_takes_a_few_dozen_tokens(policy, monkeypatch):
    seen = []
    original = selftest.lay_out

    def watching(batch, way, **settings):
        layout = original(batch, way, **settings)
        arrays = [layout.arrays[name] for name in ("inputs", "prefix") if name in layout.arrays]
        seen.append(sum(array.size for array in arrays))
        return layout

    monkeypatch.setattr(selftest, "lay_out", watching)
    broken(monkeypatch, policy, dict.fromkeys(FASTER, 2.0))
    choose_way(policy)
    assert len(seen) == 6 and max(seen) <= 64
    for packed in (False, True):
        batch, weights = tiny_batch(policy, packed)
        assert len(batch.prompts) == 1 + packed
        assert len({len(prompt) for prompt in batch.prompts}) == 1 + packed
        assert all(0 <= t < policy.vocabulary for prompt in batch.prompts for t in prompt)
        assert mx.array_equal(weights != 0, batch.loss_mask > 0).item()


def test_differences_are_relative_and_as_strict_as_the_type_allows(policy):
    wanted = {"a": mx.array([300.0, 400.0]), "b": mx.array([0.0])}

    def moved(by: float) -> dict[str, mx.array]:
        return {"a": mx.array([300.0, 400.0 + 500 * by]), "b": mx.array([0.0])}

    assert difference(policy, moved(0.0), wanted) is None
    assert difference(policy, moved(0.0009), wanted) is None
    assert difference(policy, moved(0.002), wanted) == "the gradient is 0.2% off"
    assert difference(policy, moved(float("nan")), wanted) is not None


def test_checkpointing_that_not_even_full_rows_bear_is_refused(policy, monkeypatch):
    """The reference is never checkpointed: what is wrong in both would go unnoticed."""
    original = selftest._gradient

    def wrong(policy, way, packed, *, plain=False):
        found = original(policy, way, packed, plain=plain)
        return found if plain else {name: 1.5 * value for name, value in found.items()}

    monkeypatch.setattr(selftest, "_gradient", wrong)
    assert choose_way(policy).way == "full"
    monkeypatch.setattr(policy.config, "grad_checkpoint", True)
    with pytest.raises(UserError, match=r"grad_checkpoint doesn't work .*50\.0% off.*leave it out"):
        choose_way(policy)


def test_the_reference_is_not_checkpointed(policy, monkeypatch):
    monkeypatch.setattr(policy.config, "grad_checkpoint", True)
    seen = []
    original = selftest.checkpointed_layers

    def watching(model, on=True):
        seen.append(on)
        return original(model, on)

    monkeypatch.setattr(selftest, "checkpointed_layers", watching)
    choose_way(policy)
    assert seen == [False, True]


class Crossed:
    """A model that mixes up the rows of a batch."""

    def __init__(self, model: Any):
        self.model = model
        self.layers = model.layers

    def modules(self) -> list[Any]:
        return self.model.modules()

    def __call__(self, ids: mx.array, cache: Any) -> mx.array:
        out = self.model(ids, cache=cache)
        return out[::-1] if len(ids) > 1 else out


@pytest.mark.parametrize("check", [can_decode_ragged, can_decode_alike, can_decode_shared])
def test_rows_that_change_in_company_decode_alone(policy, check):
    assert check(policy.model) is None
    assert "off" in (check(Crossed(policy.model)) or "")


def test_where_nothing_shares_a_batch_rows_decode_one_by_one(policy, monkeypatch):
    monkeypatch.setattr(selftest, "can_decode_ragged", lambda model: "a")
    monkeypatch.setattr(selftest, "can_decode_alike", lambda model: "its logits are 9% off")
    monkeypatch.setattr(selftest, "can_decode_shared", lambda model: "its attention is unusual")
    monkeypatch.setattr(policy, "notes", [])
    monkeypatch.setattr(policy, "together", policy.together)
    policy.try_decoding()
    (note,) = policy.notes
    assert "(its logits are 9% off): one completion at a time" in note
    assert policy.together == Together(ragged=False, alike=False)
