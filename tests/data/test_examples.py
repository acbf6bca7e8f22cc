"""Solved examples: which ones, and that they give nothing away."""

import json

import pytest

from simko_mlx.config import DataConfig, PromptConfig
from simko_mlx.data import load
from simko_mlx.data.examples import before, solved
from simko_mlx.types import UserError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(count):
    return [{"prompt": f"{i}?", "answer": str(i), "steps": f"it is {i}"} for i in range(count)]


@pytest.fixture
def data(tmp_path):
    return DataConfig(source="jsonl", path=write(tmp_path / "p.jsonl", rows(12)), heldout=4)


def prompts(examples):
    return [e.messages[-1]["content"] for e in examples]


def test_examples_are_of_the_training_split_and_never_the_question_itself(data):
    dataset = load(data)
    examples = solved(PromptConfig(few_shot=3), data)
    assert len(examples) == 4 and examples == solved(PromptConfig(few_shot=3), data)
    train = {p.messages[-1]["content"] for p in dataset.train}
    assert set(prompts(examples)) <= train
    for problem in dataset.train + dataset.heldout:
        mine = before(examples, problem, 3)
        assert len(mine) == 3 and problem.messages[-1]["content"] not in prompts(mine)


def test_examples_do_not_depend_on_the_order_of_the_rows(data, tmp_path):
    other = DataConfig(source="jsonl", path=write(tmp_path / "q.jsonl", rows(12)[::-1]), heldout=4)
    config = PromptConfig(few_shot=3)
    assert solved(config, data) == solved(config, other)


def test_examples_of_a_file_leave_out_what_is_held_out(data, tmp_path):
    heldout = load(data).heldout[0].messages[-1]["content"]
    mine = [{"prompt": "x?", "answer": "1"}, {"prompt": heldout, "answer": "2"}]
    more = [{"prompt": "y?", "answer": "3"}, {"prompt": "z?", "answer": "4"}]
    path = write(tmp_path / "shots.jsonl", mine + more)
    examples = solved(PromptConfig(few_shot=2, few_shot_path=path), data)
    assert prompts(examples) == ["x?", "y?", "z?"]
    assert [e.solution for e in examples] == ["1", "3", "4"]


def test_what_is_shown_as_the_answer_may_be_another_column(data):
    examples = solved(PromptConfig(few_shot=2, few_shot_answer="steps"), data)
    assert [e.solution for e in examples] == [f"it is {p[:-1]}" for p in prompts(examples)]
    with pytest.raises(UserError, match=r"the nearest is 'steps'.*prompt\.few_shot_answer"):
        solved(PromptConfig(few_shot=2, few_shot_answer="stepz"), data)


def test_too_few_examples(data):
    with pytest.raises(UserError, match="only 8 examples in the problems to train on"):
        solved(PromptConfig(few_shot=8), data)
    assert len(solved(PromptConfig(few_shot=7), data)) == 8
