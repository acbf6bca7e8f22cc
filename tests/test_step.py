"""The compiled step: what the plain one gives, with few traces, of the weights as they are."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from simko_mlx.config import LoraParameters
from simko_mlx.forward import lay_out
from simko_mlx.learner import Learner
from simko_mlx.losses import find_loss
from simko_mlx.microbatches import Part, assemble
from simko_mlx.step import Step
from tests.runs import small_config
from tests.shared_prompts import Gradient, make_batch, relative_error, shaken
from tests.test_batching import scored

BATCH = make_batch([9, 4], [[6, 3, 8], [1, 8, 5]])


def step_of(**changes: Any) -> Step:
    config = small_config(**{"optim__compile": True, **changes})
    step = Step(shaken(config), config, find_loss(config.loss.name))
    assert step.compiles == config.optim.compile, step.problem
    step.policy.model.train()
    return step


def results(step: Step, batch: Any, *, plain: bool = False, seed: int = 0) -> Any:
    """(loss, metrics, log-probs), gradient; ``plain`` without compiling, on the same layout, since
    dropout depends on the arrays' sizes."""
    mx.random.seed(seed)
    if plain:
        layout = lay_out(batch, step.policy.way, bucketed=True)
        value, tree = step.gradient(step.policy.model.trainable_parameters(), layout, batch)
    else:
        value, tree = step(batch)
    gradient: Gradient = dict(tree_flatten(tree))
    mx.eval(value, gradient)
    return value, gradient


def same(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    (loss, metrics, logprobs), gradient = found
    (other, others, measured), expected = wanted
    assert loss.item() == pytest.approx(other.item(), rel=tolerance, abs=1e-7)
    assert metrics.keys() == others.keys()
    for name, value in metrics.items():
        assert value.item() == pytest.approx(others[name].item(), rel=1e-4, abs=1e-6), name
    assert mx.abs(logprobs - measured).max().item() < 1e-5
    assert relative_error(gradient, expected) < tolerance


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("loss", ["grpo", "simko"])
def test_compiling_changes_nothing(loss, dropout, checkpoint):
    step = step_of(
        loss__name=loss,
        grad_checkpoint=checkpoint,
        policy__lora_parameters=LoraParameters(scale=4.0, dropout=dropout),
    )
    old = -mx.abs(mx.random.normal(BATCH.tokens.shape, key=mx.random.key(1)))
    for batch in (BATCH, BATCH._replace(old_logprobs=old)):
        wanted = results(step, batch, plain=True)
        for _ in range(2):  # traced, and run again
            same(results(step, batch), wanted)
    if not dropout:
        uncompiled = step_of(loss__name=loss, grad_checkpoint=checkpoint, optim__compile=False)
        same(results(step, BATCH), results(uncompiled, BATCH))
    else:
        other = results(step, BATCH, seed=1)
        assert relative_error(other[1], results(step, BATCH)[1]) > 0.05  # dropout is on


def test_dropout_follows_the_models_mode():
    step = step_of(policy__lora_parameters=LoraParameters(scale=4.0, dropout=0.5))
    for training in (False, True, False):
        step.policy.model.train(training)
        one, other = (results(step, BATCH, seed=seed) for seed in (0, 1))
        assert (relative_error(one[1], other[1]) > 0.05) == training


@pytest.mark.slow
def test_few_traces_serve_many_batches():
    step = step_of()
    traces = []
    original = step.gradient

    def counting(*args: Any) -> Any:
        traces.append(1)
        return original(*args)

    step.gradient = counting  # the traced function calls it

    def microbatches() -> list[Any]:
        rng = np.random.default_rng(0)
        groups = [
            scored(rng.integers(1, 13, size=4), prompt=int(rng.integers(9, 15))) for _ in range(60)
        ]
        return [assemble([Part(g)], step.config, normalizer=1.0, bucketed=True) for g in groups]

    for batch in microbatches():
        mx.eval(step(batch))
    assert 0 < len(traces) <= 16
    entries, count = len(step._compiled), len(traces)
    for batch in microbatches():
        mx.eval(step(batch._replace(normalizer=7.0)))
    assert (len(step._compiled), len(traces)) == (entries, count)


def test_a_kl_penalty_is_not_compiled():
    config = small_config(loss__kl_coef=0.1)
    step = Step(shaken(config), config, find_loss("simko"))
    assert not step.compiles and step.problem is None
    (loss, _, _), _ = results(step, BATCH._replace(ref_logprobs=mx.zeros(BATCH.tokens.shape)))
    assert np.isfinite(loss.item()) and not step._compiled


def looking(stats: Any, batch: Any, settings: Any) -> Any:
    """A user's loss that looks at values, which a traced one can't."""
    out = find_loss("grpo")(stats, batch, settings)
    return out._replace(loss=out.loss * (1.0 if np.array(stats.logprobs).max() <= 0 else 0.0))


def test_a_loss_that_looks_at_values_is_not_compiled_and_that_is_said(monkeypatch):
    monkeypatch.setattr("simko_mlx.learner.find_loss", lambda name: looking)
    config = small_config(optim__compile=True)
    student = Learner(shaken(config), config)
    assert not student.step.compiles
    (note,) = student.notes
    assert note.startswith("The training step is not compiled (") and note.endswith(").")
    assert "\n" not in note
    monkeypatch.undo()
    plain = small_config(loss__name="grpo", optim__compile=False)
    wanted = results(Step(student.policy, plain, find_loss("grpo")), BATCH)
    same(results(student.step, BATCH), wanted)
    assert all(np.isfinite(v).all() for v in student.policy.trainable_arrays().values())


def test_a_loss_that_traces_wrongly_is_not_compiled(monkeypatch):
    """One whose values depend on how often it was called."""
    calls = []

    def moody(stats: Any, batch: Any, settings: Any) -> Any:
        calls.append(1)
        out = find_loss("grpo")(stats, batch, settings)
        return out._replace(loss=out.loss * len(calls))

    config = small_config(optim__compile=True)
    step = Step(shaken(config), config, moody)
    assert not step.compiles and "off" in (step.problem or "")


def test_what_raises_for_other_reasons_than_compiling_is_not_hidden():
    def wrong(stats: Any, batch: Any, settings: Any) -> Any:
        raise ZeroDivisionError

    config = small_config(optim__compile=True)
    with pytest.raises(ZeroDivisionError):
        Step(shaken(config), config, wrong)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_models_parameters_are_the_real_arrays_afterwards(checkpoint):
    step = step_of(grad_checkpoint=checkpoint)
    parameters = dict(tree_flatten(step.policy.model.parameters()))
    before = {name: np.array(value) for name, value in parameters.items()}
    for _ in range(2):
        results(step, BATCH)
        after = dict(tree_flatten(step.policy.model.parameters()))
        assert after.keys() == before.keys()
        assert all((np.array(after[name]) == value).all() for name, value in before.items())


def test_they_are_even_when_tracing_fails():
    step = step_of()
    before = step.policy.trainable_arrays()

    def failing(stats: Any, batch: Any, settings: Any) -> Any:
        raise ValueError("no")

    step.loss_fn = failing
    with pytest.raises(ValueError, match="no"):
        step(make_batch([30], [[9, 9]]))
    after = step.policy.trainable_arrays()
    assert all((after[name] == value).all() for name, value in before.items())


def test_the_compiled_step_sees_new_weights():
    step = step_of(loss__name="grpo")
    first = results(step, BATCH)
    new = tree_map(lambda a: a * 1.5, step.policy.model.trainable_parameters())
    step.policy.model.update(new)
    second = results(step, BATCH)
    assert relative_error(second[1], first[1]) > 0.05
    same(second, results(step, BATCH, plain=True))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_learner_that_compiles_learns_the_same(kind):
    """Three updates on end, optimizer included."""
    groups = [scored([5, 3, 8, 2], prompt=4 + i, name=f"p{i}") for i in range(3)]
    found = []
    for compiles in (True, False):
        config = small_config(
            optim__compile=compiles, optim__num_iterations=3, policy__fine_tune_type=kind
        )
        student = Learner(shaken(config), config)
        assert student.step.compiles == compiles
        report = student.learn(groups, 1)
        assert report.updates == 3
        found.append((report.loss, student.policy.trainable_arrays()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3, abs=1e-6)
    moved = 3 * config.optim.learning_rate
    for name, value in found[0][1].items():
        assert np.abs(value - found[1][1][name]).mean() < 0.02 * moved, name
