"""Tasks of reasoning-gym, as problems and as verifiers."""

from __future__ import annotations

import json
import sys
import time
from functools import cache

import pytest

from simko_mlx.config import DataConfig, VerifierConfig
from simko_mlx.data import gym as gym_data
from simko_mlx.data import load
from simko_mlx.types import Completion, Problem, RolloutGroup, UserError
from simko_mlx.verifiers import gym
from simko_mlx.verifiers.gym_tasks import EVALUATED, EXCLUDED, TUPLES
from simko_mlx.verifiers.pool import VerifierPool
from tests.verifiers.hostile import HOSTILE

pytest.importorskip("reasoning_gym", reason="reasoning-gym isn't installed")


SLOW = pytest.mark.slow  # loads a large file for each of its data sets


@cache
def problems(task: str, size: int = 3) -> list[Problem]:
    """Made here, without the process that ``load`` starts."""
    gym.check(task)
    return [gym_data.problem(entry) for entry in gym_data.make(task, 3, size)]


@pytest.mark.parametrize(
    "task",
    ["chain_sum", "graph_color", "countdown", "rearc", pytest.param("arc_agi", marks=SLOW)],
)
def test_a_task_accepts_its_own_answers_after_json(task):
    verify = gym.make(task)
    for problem in problems(task):
        columns = json.loads(json.dumps(dict(problem.columns)))
        right = verify(f"Let me see.\n<answer>{problem.answer}</answer>", problem.answer, columns)
        assert right.correct and right.reward == 1.0 and right.taken == problem.answer.strip()
        assert verify(problem.answer, problem.answer, columns).correct
        wrong = verify("<answer>1 2 3</answer>", problem.answer, columns)
        assert not wrong.correct and (wrong.reward or 0) < 1 and wrong.detail


@pytest.mark.slow
def test_problems_are_the_same_in_every_process_and_split(monkeypatch):
    """This task goes through sets of texts, whose order the environment would change."""
    config = DataConfig(source="gym:ransom_note", size=20, heldout=5, seed=1)
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    first = load(config)
    monkeypatch.setenv("PYTHONHASHSEED", "2")
    assert load(config) == first
    assert len(first.heldout) == 5 and 15 <= len(first.train) <= 20
    prompts = {p.messages[0]["content"] for p in first.train}
    assert not prompts & {p.messages[0]["content"] for p in first.heldout}


def test_a_task_that_cannot_make_so_many(monkeypatch):
    monkeypatch.setattr(gym_data, "_PROGRAM", "raise ValueError('no more words')")
    with pytest.raises(UserError, match=r"can't make 25 problems from seed 1 .*no more words"):
        load(DataConfig(source="gym:chain_sum", size=20, heldout=5, seed=1))


def test_the_last_answer_counts():
    (problem, *_) = problems("chain_sum")
    verify = gym.make("chain_sum")
    text = f"<answer>x</answer> <answer>{problem.answer}</answer> bye"
    assert verify(text, "", problem.columns).correct
    assert not verify(
        f"<answer>{problem.answer}</answer><answer>x</answer>", "", problem.columns
    ).correct
    assert verify("<answer></answer>", "", problem.columns).detail == "no answer"


def test_through_the_pool():
    (problem, *_) = problems("chain_sum")
    texts = (f"<answer>{problem.answer}</answer>", "<answer>no</answer>")
    completions = tuple(Completion((1,), (0.0,), text, "stop") for text in texts)
    with VerifierPool(VerifierConfig(name="gym:chain_sum")) as pool:
        ((right, wrong),) = pool.verify_groups([RolloutGroup(problem, (0,), completions)])
    assert right.correct and not wrong.correct


@pytest.mark.parametrize("task", sorted(EXCLUDED))
def test_excluded_tasks_are_refused_with_the_reason(task):
    with pytest.raises(UserError, match="can't be used: it"):
        gym.make(task)
    with pytest.raises(UserError, match="can't be used: it"):
        problems(task)


def test_the_lists_name_tasks_that_exist():
    from reasoning_gym.factory import DATASETS

    assert set(EXCLUDED) | EVALUATED | TUPLES <= set(DATASETS)


def test_unknown_tasks_and_foreign_rows():
    with pytest.raises(UserError, match="the nearest is gym:chain_sum"):
        gym.make("chain_sums")
    with pytest.raises(UserError, match=r"set data\.source=gym:chain_sum"):
        gym.make("chain_sum")("4", "4", {"question": "2 + 2"})


def test_without_reasoning_gym_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(UserError, match=r"pip install 'simko-mlx\[gym\]'"):
        gym.check("chain_sum")


ATTACKS = [
    "exit()",
    "__import__('os').getpid()",
    "().__class__",
    "x.func",
    "print(1)",
    "open('f', 'w')",
    "[print(1)]",
    "[x for x in (1).__class__]",
    "eval(chr(49))",
    "f'{print(1)}'",
]


@pytest.mark.parametrize("task", sorted(EVALUATED - set(EXCLUDED)))
def test_what_a_task_evaluates_can_call_nothing(task):
    (problem, *_) = problems(task)
    verify = gym.make(task)
    assert verify(problem.answer, "", problem.columns).correct
    for text in ATTACKS:
        assert verify(text, "", problem.columns).detail == "not what this task may evaluate"


def test_expressions_and_lists_are_harmless():
    for text in (
        "(3 + 4)*2 - x**2/2 + C",
        "sin(x)*exp(-x)",
        "[['a', 'b'], [\"c\", -1.5]]",
        "_ Q _",
    ):
        assert gym.harmless(text)


@pytest.mark.parametrize("task", ["chain_sum", "simple_integration"])
def test_hostile_text(task):
    verify = gym.make(task)
    (problem, *_) = problems(task)
    began = time.process_time()
    for text in HOSTILE.values():
        for completion in (text, f"<answer>{text[:3000]}</answer>"):
            verdict = verify(completion, problem.answer, problem.columns)
            assert not verdict.correct and 0 <= (verdict.reward or 0) < 1
    assert time.process_time() - began < 20
