"""Strategy-Countdown, the embedded world: three digits, a target, three orders to choose from.

A prompt gives digits a, b, c and a target. The response names a strategy, which fixes the order of
the digits (L = a, b, c; R = c, b, a; O = a, c, b), and then computes one running chain:

    prompt    3 5 2 > 16 :
    response  L 3 + 5 = 8 * 2 = 16

Operators are + - *, every value on the way lies within 0..99, and the last one is the target. Only
problems that exactly one strategy solves are kept, so naming the strategy is a real decision.

The world is finite (a few thousand problems) and is enumerated, not sampled: problems are unique,
the number available is known, and the chance level of each is exact. Pure Python; no mlx.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import product

from simko_mlx.types import Problem

STRATEGIES: dict[str, tuple[int, int, int]] = {"L": (0, 1, 2), "R": (2, 1, 0), "O": (0, 2, 1)}
OPERATORS = ("+", "-", "*")
LIMIT = 99  # every value of a chain lies within 0..LIMIT: one vocabulary entry per number
SPLITS = ("train", "heldout")
HELDOUT_ONE_IN = 10
EQUAL_MIXTURE: Mapping[str, float] = dict.fromkeys(STRATEGIES, 1.0)


@dataclass(frozen=True, slots=True)
class Chain:
    """One response with right arithmetic: what it says, and where it ends."""

    strategy: str
    text: str
    result: int


@dataclass(frozen=True, slots=True)
class Puzzle:
    """One problem of the world, before it is dressed as a `Problem`.

    `solutions` are the texts of all its correct responses, `n_valid` counts its chains with right
    arithmetic, correct or not (at most 27).
    """

    numbers: tuple[int, ...]
    target: int
    strategy: str
    solutions: tuple[str, ...]
    n_valid: int

    @property
    def prompt(self) -> str:
        a, b, c = self.numbers
        return f"{a} {b} {c} > {self.target} :"

    @property
    def chance(self) -> float:
        """pass@1 of a policy that has no preference among the valid chains of this problem."""
        return len(self.solutions) / self.n_valid


def apply_operator(operator: str, left: int, right: int) -> int:
    """`left operator right`; a KeyError for anything but + - *."""
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def chains(numbers: Sequence[int]) -> list[Chain]:
    """Every chain over three `numbers` whose values stay within 0..99, in all strategies."""
    found = []
    for strategy, order in STRATEGIES.items():
        first, second, third = (numbers[i] for i in order)
        for op1, op2 in product(OPERATORS, repeat=2):
            middle = apply_operator(op1, first, second)
            result = apply_operator(op2, middle, third)
            if 0 <= middle <= LIMIT and 0 <= result <= LIMIT:
                text = f"{strategy} {first} {op1} {second} = {middle} {op2} {third} = {result}"
                found.append(Chain(strategy, text, result))
    return found


def split_of(numbers: Sequence[int], target: int) -> str:
    """The split a problem belongs to: "heldout" for one in ten, else "train".

    A function of the sorted digits and the target alone: L on (a, b, c) is the same chain as R on
    (c, b, a), so every ordering of the same digits must fall on the same side. The hash is explicit
    (Python's own may differ between versions), and part of every published figure: do not change.
    """
    key = ".".join(str(n) for n in sorted(numbers)) + f"-{target}"
    digest = blake2b(key.encode("ascii"), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") % HELDOUT_ONE_IN == 0 else "train"


@cache
def puzzles(split: str) -> tuple[Puzzle, ...]:
    """All problems of a split, in a fixed order. Targets are 1..99, digits 1..9.

    Raises ValueError for a split that does not exist.
    """
    if split not in SPLITS:
        raise ValueError(f"Countdown has no split {split!r}; use one of {', '.join(SPLITS)}.")
    found = []
    for numbers in product(range(1, 10), repeat=3):
        valid = chains(numbers)
        by_target: dict[int, list[Chain]] = {}
        for chain in valid:
            by_target.setdefault(chain.result, []).append(chain)
        for target, solving in sorted(by_target.items()):
            solvers = {chain.strategy for chain in solving}
            if target < 1 or len(solvers) != 1 or split_of(numbers, target) != split:
                continue
            texts = tuple(chain.text for chain in solving)
            found.append(Puzzle(numbers, target, solvers.pop(), texts, len(valid)))
    return tuple(found)


def generate(
    *, split: str, size: int, seed: int, mixture: Mapping[str, float] = EQUAL_MIXTURE
) -> list[Problem]:
    """`size` different problems of a split, drawn without replacement and shuffled.

    `mixture` gives the relative weight of each strategy. It is equal by default: with a skewed one
    a policy gains by always naming the most frequent strategy, and collapse would be rewarded.
    Raises ValueError for an unknown split or mixture, or when the split holds too few problems.
    """
    rng = random.Random(seed)
    chosen: list[Puzzle] = []
    for strategy, count in _counts(size, mixture).items():
        pool = [puzzle for puzzle in puzzles(split) if puzzle.strategy == strategy]
        if count > len(pool):
            raise ValueError(
                f"Countdown's {split} split holds {len(pool)} problems of strategy {strategy}, but "
                f"size={size} needs {count}; ask for a smaller size (see capacity())."
            )
        chosen += rng.sample(pool, count)
    rng.shuffle(chosen)
    return [_to_problem(puzzle) for puzzle in chosen]


def capacity(split: str) -> int:
    """The largest size that `generate` can deliver from a split with the equal mixture."""
    pools = Counter(puzzle.strategy for puzzle in puzzles(split))
    size = len(STRATEGIES) * min(pools.values())
    while all(count <= pools[s] for s, count in _counts(size + 1, EQUAL_MIXTURE).items()):
        size += 1
    return size


def _counts(size: int, mixture: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers of problems per strategy that sum to `size` (largest remainders)."""
    if size < 0:
        raise ValueError(f"size must be at least 0, got {size}.")
    total = sum(mixture.values())
    if set(mixture) - set(STRATEGIES) or not total > 0 or min(mixture.values()) < 0:
        raise ValueError(
            f"mixture must give non-negative weights to {', '.join(STRATEGIES)}, got {mixture!r}."
        )
    shares = {strategy: size * mixture.get(strategy, 0.0) / total for strategy in STRATEGIES}
    counts = {strategy: int(share) for strategy, share in shares.items()}
    by_remainder = sorted(STRATEGIES, key=lambda s: counts[s] - shares[s])
    for strategy in by_remainder[: size - sum(counts.values())]:
        counts[strategy] += 1
    return counts


def _to_problem(puzzle: Puzzle) -> Problem:
    a, b, c = puzzle.numbers
    return Problem(
        id=f"countdown-{a}.{b}.{c}-{puzzle.target}",
        messages=({"role": "user", "content": puzzle.prompt},),
        answer=str(puzzle.target),
        columns={
            "numbers": [a, b, c],
            "target": puzzle.target,
            "strategy": puzzle.strategy,
            "chance": puzzle.chance,
            "solution": puzzle.solutions[0],
        },
    )
