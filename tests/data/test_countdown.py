"""The world is checked against an enumeration written here, which shares no code with it."""

import hashlib
import itertools
import os
import subprocess
import sys

import pytest

from simko_mlx.data import countdown

ORDERS = {"L": "abc", "R": "cba", "O": "acb"}


def brute_force_chains(numbers):
    """(strategy, end) of every chain of a problem, by evaluating written-out expressions."""
    named = dict(zip("abc", numbers, strict=True))
    found = []
    for strategy, order in ORDERS.items():
        x, y, z = (named[letter] for letter in order)
        for op1, op2 in itertools.product("+-*", repeat=2):
            middle = eval(f"{x}{op1}{y}")
            end = eval(f"({middle}){op2}{z}")
            if middle in range(100) and end in range(100):
                found.append((strategy, end))
    return found


@pytest.fixture(scope="module")
def everything():
    return [
        (split, problem)
        for split in ("train", "heldout")
        for problem in countdown.generate(split=split, size=countdown.capacity(split), seed=0)
    ]


def test_problems_agree_with_brute_force(everything):
    for _, problem in everything:
        columns = problem.columns
        target, found = columns["target"], brute_force_chains(columns["numbers"])
        assert {strategy for strategy, end in found if end == target} == {columns["strategy"]}
        correct = sum(end == target for _, end in found)
        assert columns["chance"] == correct / len(found)
        assert 0 < columns["chance"] <= 0.5 and len(found) <= 27
        assert problem.answer == str(target) and 1 <= target <= 99


def test_puzzles_are_all_that_exist():
    expected = set()
    for numbers in itertools.product(range(1, 10), repeat=3):
        by_end = {}
        for strategy, end in brute_force_chains(numbers):
            by_end.setdefault(end, set()).add(strategy)
        expected |= {(numbers, t) for t, s in by_end.items() if t >= 1 and len(s) == 1}
    found = [(p.numbers, p.target) for s in countdown.SPLITS for p in countdown.puzzles(s)]
    assert len(found) == len(set(found)) == 5265
    assert set(found) == expected


def test_solutions_are_the_correct_chains():
    for puzzle in countdown.puzzles("heldout"):
        ends = [end for _, end in brute_force_chains(puzzle.numbers)]
        assert len(puzzle.solutions) == ends.count(puzzle.target)
        assert puzzle.n_valid == len(ends)
        for text in puzzle.solutions:
            assert text.split(" ")[0] == puzzle.strategy
            assert text.endswith(f" = {puzzle.target}")


def test_problem_looks_as_documented():
    (problem,) = [
        p
        for p in countdown.generate(split="train", size=countdown.capacity("train"), seed=0)
        if p.id == "countdown-3.5.2-16"
    ]
    assert problem.messages == ({"role": "user", "content": "3 5 2 > 16 :"},)
    assert problem.answer == "16"
    assert problem.columns["numbers"] == [3, 5, 2]
    assert problem.columns["strategy"] == "L"


def test_no_ordering_of_the_same_digits_crosses_the_split(everything):
    side = {}
    for split, problem in everything:
        key = (tuple(sorted(problem.columns["numbers"])), problem.columns["target"])
        assert side.setdefault(key, split) == split
    for numbers, target in itertools.islice(side, 0, None, 7):
        orderings = itertools.permutations(numbers)
        assert len({countdown.split_of(ordering, target) for ordering in orderings}) == 1


def test_one_in_ten_is_held_out():
    pairs = [
        (numbers, target)
        for numbers in itertools.combinations_with_replacement(range(1, 10), 3)
        for target in range(1, 100)
    ]
    share = sum(countdown.split_of(*pair) == "heldout" for pair in pairs) / len(pairs)
    assert share == pytest.approx(0.1, abs=0.01)


# Frozen: a change here silently moves problems between training and evaluation.
FROZEN_SPLIT = {
    ((1, 1, 3), 1): "train",
    ((3, 6, 8), 18): "train",
    ((5, 7, 8), 47): "train",
    ((7, 8, 5), 96): "train",
    ((1, 1, 7), 14): "heldout",
    ((3, 3, 7), 2): "heldout",
    ((4, 8, 6), 56): "heldout",
    ((6, 4, 7), 5): "heldout",
    ((8, 3, 7), 13): "heldout",
}
# sha256 of "(numbers)-target" of all held-out problems, one a line, in order.
FROZEN_HELDOUT = "ddabbd170350d20b179192b1ab16a2bd426e0802150efa3e472252121f420fe0"


@pytest.mark.parametrize(("problem", "split"), FROZEN_SPLIT.items())
def test_split_is_frozen(problem, split):
    numbers, target = problem
    assert countdown.split_of(numbers, target) == split


def test_the_whole_heldout_split_is_frozen():
    lines = "\n".join(f"{p.numbers}-{p.target}" for p in countdown.puzzles("heldout"))
    assert hashlib.sha256(lines.encode()).hexdigest() == FROZEN_HELDOUT


def test_split_does_not_depend_on_pythons_hash_seed():
    code = (
        "from simko_mlx.data.countdown import generate;"
        "print([p.id for p in generate(split='heldout', size=20, seed=3)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(outputs) == 1 and "countdown-" in outputs.pop()


def test_generation_is_seeded_unique_and_balanced():
    first = countdown.generate(split="train", size=300, seed=11)
    again = countdown.generate(split="train", size=300, seed=11)
    other = countdown.generate(split="train", size=300, seed=12)
    assert first == again and first != other
    assert len({p.id for p in first}) == 300
    strategies = [p.columns["strategy"] for p in first]
    assert [strategies.count(s) for s in "LRO"] == [100, 100, 100]
    assert 30 < strategies[:150].count("L") < 70  # shuffled, not in blocks


def test_mixture_sets_the_shares():
    problems = countdown.generate(
        split="heldout", size=100, seed=0, mixture={"L": 0.5, "R": 0.3, "O": 0.2}
    )
    strategies = [p.columns["strategy"] for p in problems]
    assert [strategies.count(s) for s in "LRO"] == [50, 30, 20]


def test_capacity_is_the_limit():
    size = countdown.capacity("heldout")
    assert len(countdown.generate(split="heldout", size=size, seed=0)) == size
    with pytest.raises(ValueError, match="ask for a smaller size"):
        countdown.generate(split="heldout", size=size + 1, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test", "size": 1}, "no split 'test'"),
        ({"split": "train", "size": -1}, "at least 0"),
        ({"split": "train", "size": 1, "mixture": {"X": 1.0}}, "mixture"),
        ({"split": "train", "size": 1, "mixture": {"L": 0.0}}, "mixture"),
        ({"split": "train", "size": 1, "mixture": {"L": 2.0, "R": -1.0}}, "mixture"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        countdown.generate(seed=0, **arguments)


def test_size_zero_is_empty():
    assert countdown.generate(split="train", size=0, seed=0) == []
