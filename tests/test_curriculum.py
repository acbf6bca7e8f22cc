"""The order of problems: a function of seed and step, for `focus` of a checkpoint too."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import chain

import pytest

from simko_mlx.config import Config
from simko_mlx.curriculum import Curriculum
from simko_mlx.learner import random_words
from simko_mlx.types import Completion, Problem, RolloutGroup, ScoredGroup, Verdict
from tests.runs import metrics, run, small_config

IDS = [f"p{i}" for i in range(10)]


def make(order: str, size: int = 3, ids=IDS, seed: int = 0, **rates: float) -> Curriculum:
    config = Config(seed=seed)
    config.data.order = order
    config.rollout.problems_per_step = size
    return Curriculum(config, ids, rates)


def group(name: str, right: int, of: int = 4) -> ScoredGroup:
    problem = Problem(name, ({"role": "user", "content": name},), "1")
    completions = (Completion((1,), (0.0,), "", "stop"),) * of
    verdicts = tuple(Verdict(float(i < right), i < right) for i in range(of))
    return ScoredGroup(RolloutGroup(problem, (1,), completions), verdicts, (0.0,) * of)


def steps(curriculum: Curriculum, count: int) -> list[list[int]]:
    return [curriculum.choose(step) for step in range(1, count + 1)]


@pytest.mark.parametrize("order", ["shuffled", "sequential", "easy-first", "focus"])
def test_a_step_has_different_problems_and_asking_twice_changes_nothing(order):
    curriculum = make(order, p3=0.5)
    for step in range(1, 30):
        chosen = curriculum.choose(step)
        assert len(set(chosen)) == len(chosen) == 3
        assert curriculum.choose(step) == chosen == make(order, p3=0.5).choose(step) or step > 1
        curriculum.record(step, [group(IDS[i], i % 5) for i in chosen])


def test_shuffled_is_pinned_and_depends_on_the_seed():
    """Runs that were made before must go on as they began."""
    order = list(range(10))
    random.Random(random_words(0, "epoch", 1)).shuffle(order)
    assert steps(make("shuffled"), 6)[3:] == [order[:3], order[3:6], order[6:9]]
    assert steps(make("shuffled"), 5) == [[1, 5, 3], [6, 9, 8], [4, 0, 7], [6, 1, 5], [8, 9, 7]]
    assert steps(make("shuffled", seed=1), 4) != steps(make("shuffled"), 4)
    for epoch in (steps(make("shuffled"), 3), steps(make("shuffled"), 6)[3:]):
        assert max(Counter(chain(*epoch)).values()) == 1


def test_sequential_goes_through_the_source_and_leaves_nothing_out():
    found = steps(make("sequential"), 5)
    assert found == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [7, 8, 9], [0, 1, 2]]
    assert steps(make("sequential", size=5), 3) == [[*range(5)], [*range(5, 10)], [*range(5)]]
    assert steps(make("sequential", size=10), 2) == [[*range(10)]] * 2


def test_easy_first_goes_from_high_to_low_in_every_epoch():
    rates = {f"p{i}": i / 10 for i in range(8)}  # p8 and p9 were not measured
    found = steps(make("easy-first", size=2, **rates), 10)
    assert found[:4] == [[7, 6], [5, 4], [3, 2], [1, 0]] == found[5:9]
    assert sorted(found[4]) == [8, 9] == sorted(found[9])
    tie = dict.fromkeys(IDS, 0.5)
    equal = [[*chain(*steps(make("easy-first", 5, seed=seed, **tie), 2))] for seed in range(3)]
    assert all(sorted(some) == list(range(10)) for some in equal)
    assert len({tuple(some) for some in equal}) == 3, "equal ones are shuffled by the seed"


def test_focus_comes_back_to_what_was_mixed_and_walks_through_the_rest():
    curriculum = make("focus", size=4)
    hard = {0, 1, 2}
    seen: Counter[int] = Counter()
    for step in range(1, 31):
        chosen = curriculum.choose(step)
        seen.update(chosen)
        if step > 3:  # by then the walk has met all
            assert len(hard & set(chosen)) >= 2
        curriculum.record(step, [group(IDS[i], 2 if i in hard else 4 * (i % 2)) for i in chosen])
    assert set(seen) == set(range(10)), "nothing is left out for good"
    assert min(seen[i] for i in hard) > 1.5 * max(seen[i] for i in range(10) if i not in hard)
    curriculum.record(31, [group("p0", 4), group("p1", 0)])
    assert set(curriculum.mixed) == {"p2"}


def test_focus_with_nothing_mixed_is_a_walk_through_shuffled_epochs():
    curriculum = make("focus", size=5)
    epoch = []
    for step in (1, 2):
        epoch += curriculum.choose(step)
        curriculum.record(step, [])
    assert sorted(epoch) == list(range(10))
    assert steps(make("shuffled", size=5), 2) == [epoch[:5], epoch[5:]]


def test_focus_goes_on_from_what_a_checkpoint_holds():
    whole = make("focus", size=4)
    for step in range(1, 20):
        if step == 8:
            part = make("focus", size=4)
            part.restore(json.loads(json.dumps(whole.state())))
            part_steps = []
        chosen = whole.choose(step)
        groups = [group(IDS[i], (i * step) % 5) for i in chosen]
        if step >= 8:
            part_steps.append(part.choose(step))
            assert part_steps[-1] == chosen
            part.record(step, groups)
        whole.record(step, groups)
    assert part.state() == whole.state()


def problems_of(recorder) -> list[list[str]]:
    return [[g.group.problem.id for g in groups] for groups in recorder.groups if groups]


@pytest.mark.parametrize(
    "order",
    [
        "focus",
        pytest.param("easy-first", marks=pytest.mark.slow),
        pytest.param("sequential", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_takes_the_same_problems(order, tmp_path):
    keys = {"steps": 6, "data__order": order, "eval__before": False, "eval__after": False,
            "data__size": 12}  # fmt: skip
    if order == "easy-first":
        from simko_mlx.data import load

        path = tmp_path / "rates.jsonl"
        rates = [{"id": p.id, "pass_rate": i % 3 / 2}
                 for i, p in enumerate(load(small_config(**keys).data).train)]  # fmt: skip
        path.write_text("".join(json.dumps(row) + "\n" for row in rates))
        keys["data__pass_rates"] = str(path)
    _, whole = run(small_config(**keys), tmp_path / "whole")
    _, first = run(small_config(**{**keys, "steps": 3}), tmp_path / "part")
    _, rest = run(small_config(**keys), tmp_path / "part", resume=True)
    assert problems_of(first) + problems_of(rest) == problems_of(whole)
    assert metrics(tmp_path / "part") == metrics(tmp_path / "whole")
    name = "adapters/adapters.safetensors"
    assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    if order == "focus":
        state = json.loads((tmp_path / "part/checkpoints/step-000004/state.json").read_text())
        assert state["curriculum"]["mixed"], "no group was mixed: the test shows nothing"
        plain = {**keys, "data__order": "shuffled"}
        assert problems_of(run(small_config(**plain), tmp_path / "other")[1]) != problems_of(whole)
