"""One step's update: gradients, microbatches, minibatches, masks, clipping, the optimizer."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from simko_mlx import checkpoint, learner
from simko_mlx.advantages import group_advantages
from simko_mlx.batching import completion_tokens, select
from simko_mlx.config import LossConfig
from simko_mlx.learner import Learner, make_optimizer
from simko_mlx.losses import find_loss
from simko_mlx.microbatches import Part, parts_of
from simko_mlx.policy import load_policy
from simko_mlx.rollout import Sampling, rollout
from simko_mlx.trainer import train
from simko_mlx.types import Problem, ScoredGroup, UserError, Verdict
from tests.runs import Recorder, metrics, small_config


def scored_groups(policy, *, seed=0, count=4, group_size=4, rewards=None):
    texts = ["3 5 2 > 16 :", "9 1 4 > 32 :", "2 2 7 > 28 :", "8 3 6 > 17 :"]
    items = [
        Problem(f"p{i}", ({"role": "user", "content": text},), "x")
        for i, text in enumerate(texts[:count])
    ]
    prompts, _ = policy.prompts.encode_all(items, None)
    groups = rollout(policy, prompts, Sampling(group_size, 12, 1.0, seed, 1, 64, 512))
    rng = np.random.default_rng(seed)
    out = []
    for i, group in enumerate(groups):
        mine = rng.integers(0, 2, group_size) if rewards is None else rewards[i]
        verdicts = tuple(Verdict(float(r), r > 0) for r in mine)
        advantages = tuple(group_advantages([v.reward for v in verdicts]))
        out.append(ScoredGroup(group, verdicts, advantages))
    return out


def gradient_of(config, groups):
    """The accumulated gradient of the learner over microbatches."""
    policy = load_policy(config)
    student = Learner(policy, config)
    parts = [p for g in groups for p in parts_of(g, config, may_skip=student.may_skip)]
    batches = student._packed(parts)
    report = learner.Report()
    gradient = student._gradient(batches, float(completion_tokens(groups)), report)
    return policy, dict(mlx_flatten(gradient)), report


def mlx_flatten(tree):
    from mlx.utils import tree_flatten

    return tree_flatten(tree)


def test_accumulation_equals_one_mean_over_all_completion_tokens():
    """Against a single forward of all rows, its loss written out for GRPO."""
    config = small_config(loss__name="grpo")
    groups = scored_groups(load_policy(config))
    groups[1] = ScoredGroup(groups[1].group, groups[1].verdicts, (0.0,) * 4)  # skipped
    policy, gradient, report = gradient_of(config, groups)
    rows, total = [], sum(len(c.token_ids) for g in groups for c in g.group.completions)
    for scored in groups:
        for c, a in zip(scored.group.completions, scored.advantages, strict=True):
            rows.append((list(scored.group.prompt_ids), list(c.token_ids), a))

    def loss(model):
        value = mx.array(0.0)
        for prompt, tokens, advantage in rows:
            logits = model(mx.array([prompt + tokens]))[0, len(prompt) - 1 : -1]
            logp = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            chosen = mx.take_along_axis(logp, mx.array(tokens)[:, None], axis=-1)
            value = value - advantage * mx.exp(chosen - mx.stop_gradient(chosen)).sum()
        return value / total

    import mlx.nn as nn

    expected_loss, tree = nn.value_and_grad(policy.model, loss)(policy.model)
    assert report.loss == pytest.approx(expected_loss.item(), abs=1e-6)
    for name, value in mlx_flatten(tree):
        scale = mx.abs(value).max().item()
        assert mx.abs(gradient[name] - value).max().item() <= 1e-4 * scale + 1e-8, name


def test_groups_without_signal_are_skipped_and_stay_in_the_normalizer():
    config = small_config()
    policy = load_policy(config)
    mixed = [1, 0, 0, 1]
    groups = scored_groups(policy, count=2, rewards=[mixed, [1, 1, 1, 1]])
    report = Learner(load_policy(config), config).learn(groups, 1)
    assert report.skipped_groups == 1 and report.updates == 1
    _, together, _ = gradient_of(config, groups)
    _, alone, _ = gradient_of(config, groups[:1])
    share = completion_tokens(groups[:1]) / completion_tokens(groups)
    for name, value in together.items():
        assert mx.abs(value - share * alone[name]).max().item() < 1e-6


def updates_of(config, groups):
    """The gradients that a whole step hands to the optimizer, by parameter name."""
    student = Learner(load_policy(config), config)
    seen = []
    student.optimizer.update = lambda model, g: seen.append(dict(mlx_flatten(g)))  # type: ignore[method-assign]
    student.learn(groups, 1)
    return seen


def expected_gradient(config, groups, temperature, normalizer):
    """GRPO's gradient at ratio 1, written out row by row."""
    import mlx.nn as nn

    policy = load_policy(config)

    def loss(model):
        value = mx.array(0.0)
        for scored in groups:
            prompt = list(scored.group.prompt_ids)
            rows = zip(scored.group.completions, scored.advantages, strict=True)
            for completion, advantage in rows:
                ids = list(completion.token_ids)
                logits = model(mx.array([prompt + ids]))[0, len(prompt) - 1 : -1] / temperature
                logp = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
                chosen = mx.take_along_axis(logp, mx.array(ids)[:, None], axis=-1)
                value = value - advantage * chosen.sum()
        return value / normalizer

    return dict(mlx_flatten(nn.value_and_grad(policy.model, loss)(policy.model)[1]))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_whole_step_follows_the_written_out_gradient(temperature):
    """With a group that is skipped, whose tokens still count, and at the sampling temperature."""
    config = small_config(
        loss__name="grpo", rollout__temperature=temperature, optim__max_grad_norm=None
    )
    mixed, equal = [1, 0, 0, 1], [1, 1, 1, 1]
    groups = scored_groups(load_policy(config), count=3, rewards=[mixed, equal, mixed])
    (gradient,) = updates_of(config, groups)
    expected = expected_gradient(config, groups, temperature, completion_tokens(groups))
    for name, value in expected.items():
        scale = mx.abs(value).max().item()
        assert mx.abs(gradient[name] - value).max().item() <= 1e-4 * scale + 1e-8, name


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("updates", [1, 2])
def test_smaller_microbatches_change_nothing_but_rounding(size, updates):
    changes = {"optim__num_iterations": updates, "loss__kl_coef": 0.01}
    whole, parts = small_config(**changes), small_config(optim__microbatch_size=size, **changes)
    groups = scored_groups(load_policy(whole))
    for one, other in zip(updates_of(whole, groups), updates_of(parts, groups), strict=True):
        for name, value in one.items():
            scale = mx.abs(value).max().item()
            assert mx.abs(other[name] - value).max().item() <= 1e-4 * scale + 1e-8, name


@pytest.mark.slow
def test_each_minibatch_is_a_mean_over_its_own_tokens():
    config = small_config(loss__name="grpo", optim__minibatches=2, optim__max_grad_norm=None)
    groups = scored_groups(load_policy(config), rewards=[[1, 0, 0, 1], [0, 1, 1, 1]] * 2)
    gradients = updates_of(config, groups)  # the weights stay, so the ratio stays 1
    assert len(gradients) == 2
    halves = [(groups[i], groups[j]) for i in range(4) for j in range(i)]
    for gradient in gradients:
        errors = []
        for half in halves:
            expected = expected_gradient(config, half, 1.0, completion_tokens(half))
            errors.append(
                max(mx.abs(gradient[n] - v).max().item() for n, v in expected.items())
                / max(mx.abs(v).max().item() for v in expected.values())
            )
        assert min(errors) < 1e-3


def test_kl_keeps_groups_with_equal_rewards():
    config = small_config(loss__kl_coef=0.1)
    groups = scored_groups(load_policy(config), rewards=[[1] * 4] * 4)
    report = Learner(load_policy(config), config).learn(groups, 1)
    assert report.skipped_groups == 0 and report.updates == 1


def test_truncated_and_unscorable_completions_are_masked_but_counted():
    from simko_mlx.batching import token_batch
    from simko_mlx.types import LENGTH

    config = small_config()
    policy = load_policy(config)
    (scored,) = scored_groups(policy, count=1, rewards=[[1, 0, 1, 0]])
    completions = list(scored.group.completions)
    completions[0] = completions[0].__class__(
        completions[0].token_ids, completions[0].logprobs, completions[0].text, LENGTH
    )
    group = scored.group.__class__(
        scored.group.problem, scored.group.prompt_ids, tuple(completions)
    )
    verdicts = (*scored.verdicts[:3], Verdict(None, False))
    changed = ScoredGroup(group, verdicts, scored.advantages)
    batch = token_batch([changed], normalizer=7.0, mask_truncated=True)
    lengths = [len(c.token_ids) for c in completions]
    assert batch.loss_mask.sum(axis=1).tolist() == [0, lengths[1], lengths[2], 0]
    assert batch.normalizer == 7.0 and completion_tokens([changed]) == sum(lengths)
    kept = token_batch([changed], normalizer=7.0)
    assert kept.loss_mask.sum(axis=1).tolist() == [*lengths[:3], 0]


def test_several_updates_use_the_log_probs_from_before_the_first():
    config = small_config(
        optim__num_iterations=3,
        optim__learning_rate=0.02,
        optim__compile=False,
        optim__microbatch_tokens=0,
    )
    policy = load_policy(config)
    groups = scored_groups(policy)
    ratios = []
    original = find_loss("simko")

    def spying(stats, batch, settings: LossConfig):
        out = original(stats, batch, settings)
        ratios.append((batch.old_logprobs, mx.stop_gradient(stats.logprobs), batch.loss_mask))
        return out

    student = Learner(load_policy(config), config)
    student.step.loss_fn = spying
    report = student.learn(groups, 1)
    assert report.updates == 3
    signal = len(ratios) // 3
    first, later = ratios[:signal], ratios[signal:]
    for old, new, mask in first:
        assert mx.abs((old - new) * mask).max().item() < 1e-5
    assert max(mx.abs((old - new) * mask).max().item() for old, new, mask in later) > 1e-3
    olds = [[np.array(o).tobytes() for o, *_ in ratios[i : i + signal]] for i in (0, signal)]
    assert sorted(olds[0]) == sorted(olds[1])  # the same old log-probs, in another order


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_non_finite_update_is_skipped_and_said(broken, monkeypatch, tmp_path):
    original = find_loss("simko")
    calls = []

    def poisoned(stats, batch, config):
        out = original(stats, batch, config)
        calls.append(1)
        if len(calls) > 1:
            return out
        if broken == "loss":
            return out._replace(loss=out.loss * mx.array(float("nan")))
        # sqrt has an infinite slope at 0, its value is fine
        zero = (stats.logprobs - mx.stop_gradient(stats.logprobs)).sum()
        return out._replace(loss=out.loss + mx.sqrt(mx.abs(zero)))

    monkeypatch.setattr("simko_mlx.learner.find_loss", lambda name: poisoned)
    config = small_config(
        steps=2,
        seed=3,
        eval__before=False,
        eval__after=False,
        optim__compile=False,
        optim__microbatch_tokens=0,
    )
    recorder = Recorder()
    train(config, tmp_path / "run", recorder)
    first, second = metrics(tmp_path / "run")
    assert (first["optim/skipped_updates"], second["optim/skipped_updates"]) == (1, 0)
    assert any("that update was skipped" in m for m in recorder.messages)
    start = checkpoint.load(tmp_path / "run")
    assert start is not None
    weights = mx.load(str(start[0] / "adapters.safetensors"))
    assert all(mx.isfinite(v).all().item() for v in weights.values())


def test_gradients_are_clipped_to_the_norm():
    config = small_config(optim__max_grad_norm=0.05)
    policy = load_policy(config)
    student = Learner(policy, config)
    seen = []
    student.optimizer.update = lambda model, g: seen.append(g)  # type: ignore[method-assign]
    student.learn(scored_groups(policy), 1)
    norm = np.sqrt(sum(float((v**2).sum()) for _, v in mlx_flatten(seen[0])))
    assert norm == pytest.approx(0.05, rel=1e-3)


def test_the_first_step_of_adamw_is_one_learning_rate_long():
    config = small_config(optim__learning_rate=0.01).optim
    optimizer = make_optimizer(config)
    parameters = {"w": mx.array([1.0, -2.0])}
    optimizer.init(parameters)
    updated = optimizer.apply_gradients({"w": mx.array([0.3, -5.0])}, parameters)
    assert np.array(updated["w"]) == pytest.approx([0.99, -1.99], abs=1e-6)


def test_schedules_are_mlx_lms():
    config = small_config(
        optim__lr_schedule={"name": "linear_schedule", "arguments": [0.1, 0.0, 10]}
    ).optim
    optimizer = make_optimizer(config)
    parameters = {"w": mx.array([0.0])}
    optimizer.init(parameters)
    rates = []
    for _ in range(3):
        parameters = optimizer.apply_gradients({"w": mx.array([1.0])}, parameters)
        rates.append(float(optimizer.learning_rate))
    assert rates == pytest.approx([0.1, 0.09, 0.08])
    for bad in ({"name": "no_such"}, {"name": "cosine_decay", "arguments": 3}, {}):
        config.lr_schedule = bad
        with pytest.raises(UserError, match=r"optim\.lr_schedule"):
            make_optimizer(config)


def poison(policy, completion):
    """Makes the hidden states of one completion NaN, as an overflow in half precision does."""
    last = list(completion.token_ids[:-1])
    original = policy.tap.hidden

    def hidden(ids, cache=None):
        out = original(ids, cache)
        rows = ids.tolist()
        bad = [any(row[i : i + len(last)] == last for i in range(len(row))) for row in rows]
        # A factor, so that 0 x NaN is in that row's gradient, as it would be in a real model's.
        return out * mx.where(mx.array(bad), mx.nan, 1.0)[:, None, None]

    policy.tap.hidden = hidden


@pytest.mark.parametrize("updates", [1, 2])
def test_a_completion_whose_logits_are_lost_is_left_out_and_said(updates):
    """The update is that of all others, whose NaN-free gradient must not notice."""
    config = small_config(
        optim__num_iterations=updates, optim__max_grad_norm=None, optim__compile=False
    )
    mixed = [[1, 0, 0, 1], [0, 1, 0, 0]]
    groups = scored_groups(load_policy(config), count=2, rewards=mixed)
    lost = groups[0].group.completions[2]
    assert all(c.token_ids != lost.token_ids for c in groups[0].group.completions[:2])

    sick = Learner(load_policy(config), config)
    poison(sick.policy, lost)
    seen = []
    sick.optimizer.update = lambda model, g: seen.append(dict(mlx_flatten(g)))  # type: ignore[method-assign]
    report = sick.learn(groups, 1)
    assert report.lost_completions == updates and report.skipped_updates == 0
    assert report.metrics()["optim/lost_completions"] == updates
    assert "problem p0 has no finite log-probability at token 1" in report.problems[0]
    assert repr(lost.text[:40]) in report.problems[0]
    assert np.isfinite(report.decode_gap) and report.decode_gap < 1e-4

    well = Learner(load_policy(config), config)
    kept = [i for i, c in enumerate(groups[0].group.completions) if c.token_ids != lost.token_ids]
    parts = [Part(select(groups[0], kept)), Part(groups[1])]
    wanted = well._gradient([parts], float(completion_tokens(groups)), learner.Report())
    for name, value in mlx_flatten(wanted):
        scale = mx.abs(value).max().item()
        assert mx.abs(seen[0][name] - value).max().item() <= 1e-5 * scale + 1e-9, name


def test_when_every_completion_is_lost_there_is_no_update():
    config = small_config(optim__compile=False)
    policy = load_policy(config)
    groups = scored_groups(policy, count=1, rewards=[[1, 0, 0, 1]])
    student = Learner(policy, config)
    for completion in groups[0].group.completions:
        poison(policy, completion)
    report = student.learn(groups, 1)
    assert report.updates == 0 and report.lost_completions == 4


@pytest.mark.parametrize("masked", [False, True])
def test_where_the_policy_is_the_base_the_kl_penalty_is_exactly_nothing(masked):
    """Not merely small: AdamW would turn a gradient of rounding errors into full steps."""
    config = small_config(loss__kl_coef=0.1, loss__mask_truncated_completions=masked)
    groups = scored_groups(load_policy(config), count=3, rewards=[[1, 1, 1, 1]] * 3)
    report = Learner(load_policy(config), config).learn(groups, 1)
    assert report.updates == 1 and report.grad_norm == 0.0
