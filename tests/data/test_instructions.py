"""Text under instructions: the problems, their language, and the script that makes the model."""

import hashlib
import random
from itertools import islice

import pytest

from simko_mlx.config import DataConfig
from simko_mlx.data import instructions, load
from simko_mlx.data.little_language import (
    ANIMALS,
    LOOKS,
    MOODS,
    NOUNS,
    WORDS,
    Task,
    is_grammatical,
    write,
)
from simko_mlx.types import UserError
from simko_mlx.verifiers.constraints import verify


@pytest.fixture(scope="module")
def dataset():
    return load(DataConfig(source="instructions", size=1500, heldout=300))


def verdict(text, problem):
    return verify(text, problem.answer, problem.columns, all_or_nothing=True)


def test_problems_are_repeatable_and_of_the_asked_number(dataset):
    assert len(dataset.train) == 1500 and len(dataset.heldout) == 300
    assert dataset == load(DataConfig(source="instructions", size=1500, heldout=300))
    other = load(DataConfig(source="instructions", size=1500, heldout=300, seed=8))
    assert dataset.train != other.train


def test_no_prompt_and_no_combination_of_constraints_is_on_both_sides(dataset):
    for part in (
        lambda p: p.messages[0]["content"],
        lambda p: p.id,
        # two constraints without their animal; of one constraint, with it
        lambda p: p.id.partition("-")[2] if p.columns["constraints"] == 2 else p.id,
    ):
        sides = [{part(p) for p in side} for side in (dataset.train, dataset.heldout)]
        assert not sides[0] & sides[1]
    prompts = [p.messages[0]["content"] for p in dataset.train + dataset.heldout]
    assert len(set(prompts)) == len(prompts)


def test_gold_accepts_gold(dataset):
    for problem in dataset.train + dataset.heldout:
        assert verdict(problem.answer, problem).correct, problem
        assert is_grammatical(problem.answer), problem.answer


def test_every_task_has_texts_that_meet_it_whatever_the_seed():
    for task in islice(instructions.tasks("train", 3), 2000):
        problem = instructions.to_problem(task, 0)
        for seed in range(3):
            assert verdict(write(task, random.Random(seed)), problem).correct, (task, seed)


def test_every_kind_with_every_value_can_be_met():
    for kind, values in instructions.KINDS.items():
        for value in values:
            task = Task("fox", **{kind: value})
            assert instructions.is_possible(task)
            problem = instructions.to_problem(task, 1)
            assert verdict(problem.answer, problem).correct
            # ... and isn't met by all texts.
            other = Task(
                "fox", keyword="" if kind == "keyword" else "river", bullets=kind != "words"
            )
            texts = [write(other, random.Random(seed)) for seed in range(40)]
            assert not all(verdict(text, problem).correct for text in texts), (kind, value)


def test_the_animal_has_to_occur():
    problem = instructions.to_problem(Task("fox", no_commas=True), 0)
    assert verdict("A fox sleeps.", problem).correct
    assert not verdict("A dog sleeps.", problem).correct


def test_a_problem_looks_as_documented():
    problem = instructions.to_problem(Task("fox", words=6, no_commas=True), 0)
    text = "Write about a fox. Use exactly six words. Use no commas."
    assert problem.messages == ({"role": "user", "content": text},)
    assert problem.id == "fox-words=6-no_commas=True"
    assert problem.columns == {
        "instruction_id_list": [
            "keywords:existence",
            "length_constraints:number_words",
            "length_constraints:number_words",
            "punctuation:no_comma",
        ],
        "kwargs": [
            {"keywords": ["fox"]},
            {"num_words": 6, "relation": "at least"},
            {"num_words": 7, "relation": "less than"},
            {},
        ],
        "constraints": 2,
    }


def test_what_cannot_be_met_is_not_asked():
    for task in (
        Task("fox", words=5, bullets=2),
        Task("fox", words=4, ending="in the morning"),
        Task("fox", without="the", ending="in the morning"),
        Task("fox", sentences=2, mentions=3),
    ):
        assert not instructions.is_possible(task)


def test_too_many_problems_are_refused_in_one_sentence():
    with pytest.raises(UserError, match=r"ask for a smaller size.*data\.heldout"):
        load(DataConfig(source="instructions", size=10, heldout=50_000))
    with pytest.raises(ValueError, match="no split 'test'"):
        instructions.generate(split="test", size=1, seed=0)


def test_the_split_is_frozen():
    """A change here silently moves problems between training and evaluation."""
    tasks = [
        Task(animal, **{a: x}, **{b: y})
        for animal in ANIMALS[:3]
        for a, xs in instructions.KINDS.items()
        for b, ys in instructions.KINDS.items()
        if a < b
        for x in xs
        for y in ys
    ]
    held = [i for i, task in enumerate(tasks) if instructions.split_of(task) == "heldout"]
    assert 0.09 < len(held) / len(tasks) < 0.11
    assert hashlib.sha256(str(held).encode()).hexdigest()[:16] == FROZEN


FROZEN = "796de492680e9def"


def test_keywords_are_part_of_no_other_word():
    for noun in (*ANIMALS, *NOUNS):
        assert [word for word in WORDS if noun in word] == [noun]
    vowels = [word for word in (*ANIMALS, *NOUNS, *LOOKS, *MOODS) if word[0] in "aeiou"]
    assert not vowels  # "a" would have to be "an"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A fox sleeps.", True),
        ('"At night, the sad fox finds a ball near the river, and it runs all day."', True),
        ("* THE FOX RUNS.\n* A DOG WAITS.", True),
        ("the fox sleeps. it waits.", True),
        ("", False),
        ("fox", False),
        ("A fox fox sleeps.", False),
        ("A fox sleeps", False),
        ("A sad ball sleeps.", False),
        ("The fox sleeps at night at night.", False),
        ("* * *", False),
    ],
)
def test_the_language_knows_its_sentences(text, expected):
    assert is_grammatical(text) is expected
