"""The verifier is checked against a second, regex-and-table judge and against hostile strings."""

import itertools
import random
import re

import pytest

from simko_mlx.types import UserError
from simko_mlx.verifiers.countdown import verify

COLUMNS = {"numbers": [3, 5, 2], "target": 16, "strategy": "L", "chance": 0.05}
GOLD = "L 3 + 5 = 8 * 2 = 16"
ORDERS = {"L": (0, 1, 2), "R": (2, 1, 0), "O": (0, 2, 1)}
PATTERN = re.compile(r"([LRO]) (\d) ([-+*]) (\d) = (\d\d?) ([-+*]) (\d) = (\d\d?)", re.ASCII)


def judge(completion, answer, numbers):
    """An independent statement of the rules, for completions within the alphabet."""
    match = PATTERN.fullmatch(completion)
    if not match:
        return False
    strategy, x, op1, y, middle, op2, z, end = match.groups()
    if [int(d) for d in (x, y, z)] != [numbers[i] for i in ORDERS[strategy]]:
        return False
    return eval(x + op1 + y) == int(middle) and eval(middle + op2 + z) == int(end) == int(answer)


def test_gold_answer_is_right():
    verdict = verify(GOLD, "16", COLUMNS)
    assert (verdict.reward, verdict.correct, verdict.detail) == (1.0, True, "")


@pytest.mark.parametrize("strategy", "LRO")
def test_every_chain_agrees_with_the_second_judge(strategy):
    numbers = [3, 5, 2]
    x, y, z = (numbers[i] for i in ORDERS[strategy])
    right = 0
    for op1, op2, middle, end in itertools.product("+-*/", "+-*/", range(-3, 25), range(-3, 70)):
        text = f"{strategy} {x} {op1} {y} = {middle} {op2} {z} = {end}"
        expected = (
            op1 in "+-*"
            and op2 in "+-*"
            and eval(f"{x}{op1}{y}") == middle >= 0
            and eval(f"{middle}{op2}{z}") == end == 16
        )
        assert verify(text, "16", {"numbers": numbers}).correct == expected, text
        right += expected
    assert right == {"L": 1, "R": 0, "O": 0}[strategy]


def test_single_token_edits_are_wrong():
    tokens = GOLD.split(" ")
    alphabet = [*map(str, range(100)), *"+-*=>:.LRO", "<s>", "<unk>", ""]
    for place, token in itertools.product(range(len(tokens)), alphabet):
        edited = " ".join([*tokens[:place], token, *tokens[place + 1 :]])
        assert verify(edited, "16", COLUMNS).correct == (edited == GOLD), edited


def test_random_token_strings_agree_with_the_second_judge():
    rng = random.Random(0)
    alphabet = ["1", "2", "3", "+", "-", "*", "=", "L", "R", "O", "0", "4", "6"]
    for _ in range(20_000):
        text = " ".join(rng.choice(alphabet) for _ in range(10))
        if PATTERN.fullmatch(text):
            assert verify(text, "6", {"numbers": [1, 2, 3]}).correct == judge(text, "6", [1, 2, 3])
        else:
            assert not verify(text, "6", {"numbers": [1, 2, 3]}).correct


@pytest.mark.parametrize(
    ("completion", "detail"),
    [
        ("", "1 tokens"),
        ("X 3 + 5 = 8 * 2 = 16", "no strategy"),
        ("R 3 + 5 = 8 * 2 = 16", "R starts with 2"),
        ("L 3 + 2 = 5 * 2 = 16", "expected the digit 5"),
        ("L 3 + 5 : 8 * 2 = 16", "expected '='"),
        ("L 3 / 5 = 8 * 2 = 16", "no operator"),
        ("L 3 + 5 = 9 * 2 = 18", "3 + 5 is not '9'"),
        ("L 3 * 5 = 15 + 2 = 17", "not the target 16"),
        ("L 3 - 5 = -2 * 2 = -4", "3 - 5 is not '-2'"),
        ("L 3 + 5 = 8 * 2 = 16 .", "11 tokens"),
        ("L 3 + 5 = 8 * 2 = " + "1" * 50, "too long"),
    ],
)
def test_details_name_the_fault(completion, detail):
    verdict = verify(completion, "16", COLUMNS)
    assert verdict.reward == 0.0 and not verdict.correct
    assert detail in verdict.detail and len(verdict.detail) < 120


def test_values_above_99_are_wrong():
    columns = {"numbers": [9, 9, 9]}
    assert not verify("L 9 * 9 = 81 * 9 = 729", "729", columns).correct
    assert not verify("L 9 * 9 = 81 + 9 = 90", "99", columns).correct
    assert verify("L 9 * 9 = 81 + 9 = 90", "90", columns).correct


def test_rows_of_another_data_set_are_told_in_a_sentence():
    with pytest.raises(UserError, match=r"data\.source=countdown alone: set verifier\.name"):
        verify("5", "5", {"prompt": "2 + 3?", "answer": "5"})


HOSTILE = [
    "L ３ + 5 = 8 * 2 = 16",
    "L 3 + 5 = 8 * ² = 16",
    "L 3 + 5 = 8 * 2 = 1６",
    "L ٣ + 5 = 8 * 2 = 16",
    "L 03 + 5 = 8 * 2 = 16",
    "L +3 + 5 = 8 * 2 = 16",
    "L 3 + 5 = 8 * 2 = 1_6",
    "L 3 + 5 = 8 * 2 = 016",
    "L 3 + 5 = 8 * 2 = 16.0",
    "L 3 + 5 = 8 * 2 = 16\n",
    "\nL 3 + 5 = 8 * 2 = 16",
    "L 3 + 5 = 8 * 2 =\n16",
    "L\t3 + 5 = 8 * 2 = 16",
    "L  3 + 5 = 8 * 2 = 16",
    " L 3 + 5 = 8 * 2 = 16",
    "L 3 + 5 = 8 * 2 = 16 ",
    "L 3 + 5 = 8 * 2 = 16\u200b",
    "L\u00a03 + 5 = 8 * 2 = 16",
    "L 3 ＋ 5 = 8 * 2 = 16",
    "L 3 + 5 = 8 × 2 = 16",
    "l 3 + 5 = 8 * 2 = 16",
    "L3+5=8*2=16",
    "L 3 + 5 = 8 * 2 = 0x10",
    "L 3 + 5 = 8 * 2 = __import__('os')",
    "L 3 ** 5 = 8 * 2 = 16",
    "\x00",
    "\ud800",
    "9" * 1_000_000,
    "L " * 500_000,
    "L 3 + 5 = 8 * 2 = " + "9" * 5_000,
]


@pytest.mark.parametrize("completion", HOSTILE, ids=lambda text: ascii(text[:30]))
def test_hostile_strings_are_wrong_and_never_raise(completion):
    verdict = verify(completion, "16", COLUMNS)
    assert verdict.reward == 0.0 and verdict.correct is False and verdict.detail
