"""Multiple choice: how a choice may be stated, and that naming several wins nothing."""

from __future__ import annotations

import time

import pytest

from simko_mlx.types import UserError
from simko_mlx.verifiers.choice import verify
from tests.verifiers.hostile import HOSTILE

CITIES = {"choices": ["Paris", "London", "Rome", "Oslo"]}

RIGHT = [
    *("B", "(B)", "b", "(b)", "B.", "**B**", "[B]", "Option B", "London", "london.", "B. London"),
    *("Answer: B", "The answer is (B).", "Final answer: **B) London**", "answer is option B"),
    *("\\boxed{B}", "$\\boxed{\\text{B}}$.", "\\boxed{London}", "The correct choice is: London."),
    *("It is in England.\nB", "First A.\nAnswer:\nB", "x\n\nB) London\n"),
    *("(b) London", "<think>A? no</think><answer>B</answer>", "<answer>\nLondon\n</answer>"),
    "Answer: A? No.\nAnswer: B",
    "\\boxed{A} ... wait, \\boxed{B}",
    "Answer: B because A is in France",
    "A thought. Answer: B",
    "The answer is not A. The answer is B",
]
WRONG = [
    *("", "A", "no idea", "C.", "Paris", "Answer: A", "\\boxed{}", "E", "BB", "AB", "B's"),
    *("A or B", "B or A", "A, B", "(A) (B)", "A B C D", "A\\nB", "Answer: A, B", "\\boxed{A, B}"),
    *("Answer: B, not A", "Answer: B and Paris", "B) Paris", "Answer: London or Paris"),
    *("(b) Paris", "<answer>A or B</answer>", "<think>B</think><answer>A</answer>"),
    *("<answer>B</answer><answer>A</answer>", "<answer>B</answer>\nA"),
    *("Answer: B\nAnswer: A", "Answer: B\nA", "\\boxed{B} \\boxed{A or B}", "Paris London"),
    *("The answer is not B", "The answer isn't B", "Being a Londoner", "B thought so."),
    "Answer: B\nOr rather, the answer is either A or B",
]


@pytest.mark.parametrize("text", RIGHT)
def test_right(text):
    verdict = verify(text, "B", CITIES)
    assert verdict.correct and verdict.reward == 1.0, verdict


@pytest.mark.parametrize("text", WRONG)
def test_wrong(text):
    verdict = verify(text, "B", CITIES)
    assert not verdict.correct and verdict.reward == 0.0, verdict


def test_what_was_taken_and_why_not():
    verdict = verify("I think.\nAnswer: A or B", "B", CITIES)
    assert (verdict.taken, verdict.detail) == ("A or B", "names several choices")
    assert verify("hm", "B", CITIES).detail == "states no choice"


@pytest.mark.parametrize(
    ("columns", "answer", "options"),
    [
        (CITIES, "b", {}),
        (CITIES, "(B)", {}),
        (CITIES, "London", {}),
        (CITIES, "1", {"index": True}),
        ({"o": {"label": ["A", "B"], "text": ["Paris", "London"]}}, "B", {"column": "o"}),
        ({"o": {"A": "Paris", "B": "London", "C": None}}, "B", {"column": "o"}),
        ({}, "B", {"letters": "ABCD"}),
        ({"choices": ["A", "C"]}, "B", {}),
    ],
)
def test_ways_to_write_choices_and_answers(columns, answer, options):
    assert verify("Answer: B", answer, columns, **options).correct
    assert not verify("Answer: A", answer, columns, **options).correct


def test_numbers_as_letters_and_as_texts():
    columns = {"choices": {"label": ["1", "2"], "text": ["2", "3"]}}
    assert verify("Answer: 1", "1", columns).correct
    assert verify("1. 2", "1", columns).correct
    assert verify("42", "B", {"choices": ["4", "42"]}).correct


@pytest.mark.parametrize(
    ("columns", "answer", "options", "says"),
    [
        ({}, "B", {}, "no choices in the column 'choices'"),
        ({"choices": "Paris"}, "B", {}, "no choices"),
        (CITIES, "E", {}, "none of the choices A, B, C, D"),
        (CITIES, "4", {"index": True}, "no place among 4 choices"),
        ({"choices": ["x", "x"]}, "x", {}, "none of the choices"),
    ],
)
def test_bad_rows(columns, answer, options, says):
    with pytest.raises(UserError, match=says):
        verify("B", answer, columns, **options)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text(name):
    began = time.process_time()
    assert not verify(HOSTILE[name], "B", CITIES).correct
    assert not verify(HOSTILE[name] + "\nAnswer: " + HOSTILE[name], "B", CITIES).correct
    assert verify(HOSTILE[name] + "\nAnswer: B", "B", CITIES).correct
    assert time.process_time() - began < 5
