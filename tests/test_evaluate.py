"""Evaluation: counts, pass@k, chance, concentration and the budget."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest

from simko_mlx import data
from simko_mlx.evaluate import Evaluation, Plan, chance_pass_at_k, evaluate, evaluate_run
from simko_mlx.loggers import Silent
from simko_mlx.metrics import pass_at_k
from simko_mlx.policy import load_policy
from simko_mlx.rollout import Sampling, rollout
from simko_mlx.types import Problem, UserError
from simko_mlx.verifiers.pool import VerifierPool
from tests.oracle import log_softmax
from tests.runs import run, small_config


@pytest.fixture(scope="module")
def world():
    config = small_config(eval__group_by="strategy", data__heldout=9)
    policy = load_policy(config)
    prompts, _ = policy.prompts.encode_all(data.load(config.data).heldout, None)
    with VerifierPool(config.verifier) as pool:
        result = evaluate(policy, pool, prompts, Plan("base", 8, (1, 2, 4)))
    return config, policy, prompts, result


def own_verdict(text: str, problem: Problem) -> bool:
    """Countdown's rules once more, by Python's own arithmetic on a pattern."""
    import re

    match = re.fullmatch(
        r"([LRO]) (\d) ([-+*]) (\d) = (\d{1,2}) ([-+*]) (\d) = (\d{1,2})", text, re.ASCII
    )
    if not match:
        return False
    strategy, a, op1, b, r1, op2, c, r2 = match.groups()
    order = {"L": (0, 1, 2), "R": (2, 1, 0), "O": (0, 2, 1)}[strategy]
    digits = [problem.columns["numbers"][i] for i in order]
    first = eval(f"{a}{op1}{b}")
    return (
        [int(a), int(b), int(c)] == digits
        and 0 <= first < 100
        and str(first) == r1
        and str(eval(f"{first}{op2}{c}")) == r2 == problem.answer
    )


def test_counts_are_those_of_the_completions(world):
    config, policy, prompts, result = world
    groups = rollout(policy, prompts, Sampling(8, 12, 1.0, config.seed, "eval", 64, 512))
    counts = [sum(own_verdict(c.text, g.problem) for c in g.completions) for g in groups]
    assert result.counts == tuple(counts) and sum(counts) > 0
    for k in (1, 2, 4):
        expected = np.mean([pass_at_k(8, c, k) for c in counts])
        interval = result.pass_at_k[k]
        assert interval.estimate == pytest.approx(expected)
        assert interval.low <= expected <= interval.high
    lengths = [len(c.token_ids) for g in groups for c in g.completions]
    assert result.mean_length == pytest.approx(np.mean(lengths))


def test_concentration_is_measured_at_temperature_1(world):
    config, policy, prompts, result = world
    groups = rollout(policy, prompts, Sampling(8, 12, 1.0, config.seed, "eval", 64, 512))
    entropies, tops, forks = [], [], []
    for group in groups:
        for completion in group.completions:
            row = mx.array([[*group.prompt_ids, *completion.token_ids]])
            logits = np.array(policy.model(row))[0, len(group.prompt_ids) - 1 : -1]
            logp = [log_softmax(z.astype(np.float64)) for z in logits]
            mine = [-(np.exp(r) * r).sum() for r in logp]
            entropies += mine
            limit = np.quantile(mine, 0.8)
            for r, h in zip(logp, mine, strict=True):
                best = np.sort(np.exp(r))[::-1][:3]
                tops.append(best)
                if h > limit + 1e-12:
                    forks.append(best)
    assert result.entropy == pytest.approx(np.mean(entropies), rel=1e-4)
    assert result.rank_probs == pytest.approx(np.mean(tops, axis=0), rel=1e-4)
    assert result.fork_rank_probs == pytest.approx(np.mean(forks, axis=0), rel=1e-3)
    assert result.fork_rank_probs[0] < result.rank_probs[0]


def test_groups_split_the_problems(world):
    *_, result = world
    assert set(result.groups) <= {"strategy L", "strategy R", "strategy O"}
    assert len(result.groups) >= 2


def test_chance_needs_to_be_known_for_every_problem():
    def problem(chance):
        return Problem("p", (), "1", {} if chance is None else {"chance": chance})

    known = [problem(0.5), problem(0.1)]
    assert chance_pass_at_k(known, (1, 2)) == pytest.approx({1: 0.3, 2: (0.75 + 0.19) / 2})
    assert chance_pass_at_k([*known, problem(None)], (1,)) is None
    assert chance_pass_at_k([problem(None)], (1,)) is None


def test_json_goes_both_ways(world):
    *_, result = world
    raw = json.loads(json.dumps(result.to_json()))
    assert raw["pass_at_k"]["pass@2"]["estimate"] == result.pass_at_k[2].estimate
    assert Evaluation.from_json(raw) == result


def test_a_budget_means_fewer_problems_and_says_so(world):
    config, policy, prompts, _ = world
    config = small_config(rollout__batch_size=8)
    policy.config = config
    with VerifierPool(config.verifier) as pool:
        short = evaluate(policy, pool, prompts, Plan("base", 8, (1,), budget_seconds=0.0))
    assert short.problems == 1 and "1 of 9 problems" in short.note


def test_evaluate_run(tmp_path):
    folder = tmp_path / "run"
    summary, _ = run(small_config(), folder)
    results = evaluate_run(folder, logger=Silent(), base=True, n=4, ks=[1, 2], problems=6)
    assert [r.label for r in results] == ["base", "step 4"]
    assert summary.base and summary.trained
    # The same keys, problems and weights as the run's own evaluations.
    assert results[0].counts == summary.base.counts
    assert results[1].counts == summary.trained.counts
    assert results[1].rank_probs == pytest.approx(summary.trained.rank_probs)
    (early,) = evaluate_run(folder, logger=Silent(), step=2)
    assert early.label == "step 2"
    with pytest.raises(UserError, match=r"pass@4 needs n >= 8 .* n is 4"):
        evaluate_run(folder, logger=Silent(), ks=[4], n=4)
    with pytest.raises(UserError, match="not a run directory"):
        evaluate_run(tmp_path / "nothing", logger=Silent())
    (wide,) = evaluate_run(folder, logger=Silent(), ks=[8])
    assert wide.n == 16  # raised to 2 k


def test_what_cannot_be_scored_counts_as_wrong_and_the_bound_is_told():
    config = small_config(verifier__name="tests.rewards:sometimes", data__heldout=9)
    policy = load_policy(config)
    prompts, _ = policy.prompts.encode_all(data.load(config.data).heldout, None)
    with VerifierPool(config.verifier) as pool:
        result = evaluate(policy, pool, prompts, Plan("base", 8, (1, 2)))
    groups = rollout(policy, prompts, Sampling(8, 12, 1.0, config.seed, "eval", 64, 512))
    right = [
        sum("-" not in c.text and c.text.endswith(f" {g.problem.answer}") for c in g.completions)
        for g in groups
    ]
    none = [sum("-" in c.text for c in g.completions) for g in groups]
    assert result.counts == tuple(right) and sum(none) > 0
    assert result.unscorable == pytest.approx(sum(none) / 72)
    most = [r + n for r, n in zip(right, none, strict=True)]
    for k in (1, 2):
        assert result.bound[k] == pytest.approx(np.mean([pass_at_k(8, c, k) for c in most]))
    assert result.bound[1] > result.pass_at_k[1].estimate
    assert Evaluation.from_json(json.loads(json.dumps(result.to_json()))) == result
