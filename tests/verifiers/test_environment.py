"""Classic environments of ``verifiers``, by a small package with the same surface."""

from __future__ import annotations

import sys

import pytest

from simko_mlx.config import DataConfig, VerifierConfig
from simko_mlx.data import load as load_problems
from simko_mlx.types import Completion, RolloutGroup, UserError
from simko_mlx.verifiers import environment
from simko_mlx.verifiers.pool import VerifierPool
from tests.verifiers.hostile import HOSTILE

# What an environment of verifiers 0.1 is made of, as far as the adapter looks.
SURFACE = """
class Parser:
    def parse_answer(self, completion):
        return completion[-1]["content"].rpartition("=")[2].strip()


class Rubric:
    def __init__(self, funcs=None, weights=None, parser=None):
        self.funcs = funcs or []
        self.weights = weights or [1.0] * len(self.funcs)
        self.parser = parser or Parser()
        self.class_objects = {"parser": self.parser}


class RubricGroup(Rubric):
    def __init__(self, rubrics):
        super().__init__()
        self.rubrics = rubrics


class MultiTurnEnv:
    def __init__(self, dataset=None, eval_dataset=None, rubric=None, message_type="chat"):
        self.dataset, self.eval_dataset = dataset, eval_dataset
        self.rubric, self.message_type = rubric or Rubric(), message_type

    def get_dataset(self, n=-1, seed=None):
        if self.dataset is None:
            raise ValueError("dataset is not set")
        return self.dataset

    def get_eval_dataset(self, n=-1, seed=None):
        return self.eval_dataset


class SingleTurnEnv(MultiTurnEnv):
    pass
"""

SUMS = """
import asyncio, json
import fake_verifiers as vf


def row(a, b):
    prompt = [{"role": "system", "content": "Add."}, {"role": "user", "content": f"{a} + {b}"}]
    info = json.dumps({"largest": max(a, b)})
    return {"prompt": prompt, "answer": str(a + b), "info": info, "example_id": 10 * a + b}


def right(completion, answer, parser):
    return 1.0 if parser.parse_answer(completion) == answer else 0.0


async def mentions_largest(completion, info, state, **kwargs):
    await asyncio.sleep(0)
    assert state["completion"] is completion and kwargs["example_id"] >= 0
    return str(info["largest"]) in completion[-1].content


def load_environment(rubric=None, kind=vf.SingleTurnEnv, **settings):
    rubric = rubric or vf.RubricGroup(
        [vf.Rubric([right], [1.0]), vf.Rubric([mentions_largest], [0.5])]
    )
    train = [row(a, b) for a in range(6) for b in range(6)]
    return kind(dataset=train, rubric=rubric, **settings)


def with_evaluation():
    return load_environment(eval_dataset=[row(7, 7), row(8, 8), row(1, 1)])


def as_text():
    def ends(completion, **kwargs):
        return float(completion.endswith("."))
    env = load_environment(vf.Rubric([ends]), message_type="completion")
    env.dataset = [{"prompt": "Say it:", "info": {"a": 1}}, {"prompt": "Again:", "answer": ""}]
    return env


def several_turns():
    return load_environment(kind=vf.MultiTurnEnv)


def no_functions():
    return load_environment(vf.Rubric())


def of_a_group():
    def best(completions, answers):
        return [1.0] * len(completions)
    return load_environment(vf.Rubric([best]))


def wrong_function():
    def raises(completion):
        return 1 / 0
    return load_environment(vf.Rubric([raises]))


def nothing_to_train_on():
    env = load_environment()
    env.dataset = None
    return env


def needs_a_key():
    raise KeyError("API_KEY")


def another_kind():
    return {"rubric": None}
"""


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    (tmp_path / "fake_verifiers.py").write_text(SURFACE)
    (tmp_path / "simple_sums.py").write_text(SUMS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("fake_verifiers", "simple_sums"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_reward_functions_judge_our_completions():
    verify = environment.make("simple-sums")
    problem = load_problems(DataConfig(source="environment:simple-sums", heldout=4)).train[0]
    largest = problem.columns["info"].rstrip("}").split(": ")[1]
    right = verify(f"with {largest} = {problem.answer}", problem.answer, problem.columns)
    assert (right.reward, right.correct) == (1.5, True)
    assert right.detail == "right 1, mentions_largest 1"
    shaped = verify(f"{largest} = no", problem.answer, problem.columns)
    assert (shaped.reward, shaped.correct) == (0.5, False)
    lenient = environment.make("simple-sums", correct_at=0.5)
    assert lenient(f"{largest} = no", problem.answer, problem.columns).correct


def test_through_the_pool_with_the_same_problems():
    dataset = load_problems(DataConfig(source="environment:someone/simple-sums", heldout=4))
    assert (len(dataset.train), len(dataset.heldout)) == (32, 4)
    problem = dataset.heldout[0]
    assert [m["role"] for m in problem.messages] == ["system", "user"]
    texts = (f"= {problem.answer}", "= no")
    completions = tuple(Completion((1,), (0.0,), text, "stop") for text in texts)
    config = VerifierConfig(name="environment:simple-sums", options={"correct_at": 1.0})
    with VerifierPool(config) as pool:
        ((right, wrong),) = pool.verify_groups([RolloutGroup(problem, (0,), completions)])
    assert right.correct and not wrong.correct


def test_an_evaluation_data_set_of_its_own_is_held_out():
    source = "environment:simple_sums:with_evaluation"
    dataset = load_problems(DataConfig(source=source, heldout=3))
    assert [p.answer for p in dataset.heldout] == ["14", "16", "2"]
    assert len(dataset.train) == 35 and "1 row" in dataset.notes[0]


def test_plain_text_and_rows_without_an_answer():
    source = "environment:simple_sums:as_text"
    (first, _) = load_problems(DataConfig(source=source, heldout=0)).train
    assert (first.answer, first.columns) == ("see info", {"prompt": "Say it:", "info": {"a": 1}})
    verify = environment.make("simple_sums:as_text")
    assert verify("It.", first.answer, first.columns).correct
    assert not verify("It", first.answer, first.columns).correct


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no-such-sums", "no module 'no_such_sums'"),
        ("simple_sums:load_env", "nearest is load_environment"),
        ("simple_sums:several_turns", "only single-turn environments"),
        ("simple_sums:no_functions", "no reward functions"),
        ("simple_sums:of_a_group", "reward function best, which compares"),
        ("simple_sums:needs_a_key", "loading it raised KeyError: 'API_KEY' at .*simple_sums.py"),
        ("simple_sums:another_kind", "is a dict, not a classic environment"),
    ],
)
def test_what_cannot_be_used_says_why(name, says):
    with pytest.raises(UserError, match=says):
        environment.make(name)


def test_what_a_reward_function_raises_is_heard():
    verify = environment.make("simple_sums:wrong_function")
    with pytest.raises(UserError, match=r"raises of environment:.*ZeroDivisionError.*simple_sums"):
        verify("x", "2", {"prompt": "q"})
    with pytest.raises(UserError, match="'info' isn't JSON"):
        verify("x", "2", {"prompt": "q", "info": "{"})


def test_a_source_without_problems_to_train_on():
    with pytest.raises(UserError, match="dataset is not set"):
        load_problems(DataConfig(source="environment:simple_sums:nothing_to_train_on"))


def test_hostile_text():
    verify = environment.make("simple_sums")
    row = {"prompt": "q", "answer": "2", "info": {"largest": 1}, "example_id": 1}
    for text in HOSTILE.values():
        assert not verify(text, "2", row).correct
