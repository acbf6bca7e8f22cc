"""What a probe finds is what a run would meet."""

from __future__ import annotations

import json
import random

import pytest

from simko_mlx import data
from simko_mlx.learner import random_words
from simko_mlx.loggers import Silent
from simko_mlx.policy import load_policy
from simko_mlx.probe import Probe, Rate, check_destination, probe, write
from simko_mlx.probe_advice import Figures, advice
from simko_mlx.rollout import Sampling, rollout
from simko_mlx.types import UserError
from tests.runs import small_config
from tests.test_evaluate import own_verdict


@pytest.fixture(scope="module")
def found():
    config = small_config(rollout__group_size=8)
    return config, probe(config, Silent(), problems=10)


def test_rates_are_those_of_the_completions(found):
    config, told = found
    policy = load_policy(config)
    prompts, _ = policy.prompts.encode_all(data.load(config.data).train, None)
    some = random.Random(random_words(config.seed, "probe")).sample(prompts, 10)
    rollouts = config.rollout
    sampling = Sampling(8, rollouts.max_completion_length, 1.0, config.seed, "probe", 64, 512)
    groups = rollout(policy, some, sampling)
    counts = [sum(own_verdict(c.text, g.problem) for c in g.completions) for g in groups]
    assert [(r.id, r.correct, r.samples) for r in told.rates] == [
        (g.problem.id, count, 8) for g, count in zip(groups, counts, strict=True)
    ]
    assert sum(counts) > 0 and told.figures.correct == pytest.approx(sum(counts) / 80)
    assert told.figures.all_wrong == sum(count == 0 for count in counts) / 10
    assert told.figures.mixed == sum(0 < count < 8 for count in counts) / 10
    assert sum(told.histogram()) == 10


def test_samples_show_both_kinds(found):
    _, told = found
    kinds = [sample.verdict.correct for sample in told.samples]
    assert kinds[:2] == [True, False]
    assert all(sample.verdict.taken == sample.text for sample in told.samples)


def test_seconds_and_steps(found):
    _, told = found
    assert all(told.seconds[name] > 0 for name in ("rollout", "verify", "update"))
    made = Probe((), told.figures, (), dict.fromkeys(told.seconds, 2.0), 0.0, ())
    assert made.step_seconds == 6.0
    assert made.steps_until(1000.0, now=900.0) == 16  # 100 s less two evaluations
    assert made.steps_until(1000.0, now=999.0) == 0


def test_the_histogram_has_its_edges_where_it_says():
    rates = [Rate(str(i), i, 20) for i in (0, 1, 2, 3, 10, 18, 19, 20)]
    told = Probe(tuple(rates), None, (), {}, 0.0, ())  # type: ignore[arg-type]
    assert told.histogram() == [2, 2, 0, 0, 0, 1, 0, 0, 0, 3]


def test_what_is_written_can_be_read(found, tmp_path):
    config, told = found
    path = tmp_path / "rates.jsonl"
    count = write(told, path, 0.1, 0.9)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    wanted = [r for r in told.rates if 0.1 <= r.pass_rate <= 0.9]
    assert count == len(rows) == len(wanted) > 0
    assert [(r["id"], r["pass_rate"]) for r in rows] == [(r.id, r.pass_rate) for r in wanted]
    config = small_config(data__pass_rates=str(path), data__unmeasured="drop")
    assert [p.id for p in data.load(config.data).train] == [
        p.id for p in data.load(small_config().data).train if p.id in {r.id for r in wanted}
    ]


def test_a_run_that_cannot_start_is_told(found):
    with pytest.raises(UserError, match="did you mean countdown"):
        probe(small_config(verifier__name="countdwn"), Silent())


def figures(**changes):
    usual = {
        "problems": 32,
        "group_size": 8,
        "max_completion_length": 64,
        "all_right": 0.1,
        "all_wrong": 0.1,
        "mixed": 0.8,
        "correct": 0.5,
        "truncated": 0.0,
        "unscorable": 0.0,
        "mean_length": 20.0,
        "verify_share": 0.0,
        "workers": 1,
    }
    return Figures(**{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unscorable": 0.3}, "30% of the completions can't be scored"),
        ({"truncated": 0.4}, "cut off at 64 tokens: raise rollout.max_completion_length"),
        ({"all_wrong": 0.9, "mixed": 0.0}, "never solved in 8 tries"),
        ({"all_right": 0.9, "mixed": 0.0}, "always solved"),
        ({"all_right": 0.4, "all_wrong": 0.4, "mixed": 0.2}, "Only 20% of the groups"),
        ({"verify_share": 0.6}, "raise verifier.workers"),
    ],
)
def test_advice(changes, words):
    assert advice(figures()) == []
    (sentence,) = advice(figures(**changes))
    assert words in sentence


def test_where_nothing_can_be_written_is_told_first(tmp_path):
    (tmp_path / "file").write_text("")
    bad = tmp_path / "file" / "rates.jsonl"
    with pytest.raises(UserError, match=r"rates\.jsonl can't be written .*--write"):
        check_destination(bad)
    there = tmp_path / "rates.jsonl"
    there.write_text("old")
    check_destination(there)
    assert there.read_text() == "old"
