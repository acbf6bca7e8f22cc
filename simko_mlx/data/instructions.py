"""Text under instructions: "Write about a fox. Use exactly six words. Use no commas."

Each problem asks for a short text about an animal, under one further constraint or two. It has
IFEval's columns, so that the verifier `constraints` judges it: the animal has to occur, too. Its
answer is one text that meets everything, of many.

Held out are combinations: two constraints with their values ("End with: at night." and "Use no
commas.") stand on one side of the split for all animals alike; a single constraint does so
together with its animal. Pure Python; no mlx.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations
from typing import Any

from simko_mlx.config import DataConfig
from simko_mlx.data.dataset import Dataset
from simko_mlx.data.little_language import ANIMALS, NOUNS, TIMES, Task, write
from simko_mlx.types import Problem, UserError

SPLITS = ("train", "heldout")
HELDOUT_ONE_IN = 10
MISSES = 100  # tasks in a row that were drawn before: the split is as good as empty
SINGLE = 0.25  # share of problems with one constraint beside the animal
KINDS: Mapping[str, tuple[Any, ...]] = {
    "words": (4, 5, 6, 7, 8, 9, 10),
    "keyword": NOUNS,
    "without": ("the", "a"),
    "no_commas": (True,),
    "case": ("lower", "upper"),
    "ending": TIMES,
    "bullets": (2, 3, 4),
    "sentences": (2, 3),
    "quotes": (True,),
    "mentions": (2, 3),
}
# Pairs that can't be met together, or that ask for much the same.
CLASHES = {
    frozenset(pair)
    for pair in (
        ("words", "bullets"),
        ("words", "sentences"),
        ("words", "mentions"),
        ("bullets", "sentences"),
        ("bullets", "quotes"),
    )
}
SHORTEST = 6  # words of a sentence that ends as it should, or has a keyword
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@dataclass(frozen=True)
class Constraint:
    """What a prompt says and IFEval's checks of it, as (instruction id, its kwargs)."""

    text: str
    checks: tuple[tuple[str, dict[str, Any]], ...]


def constraint(kind: str, value: Any, topic: str) -> Constraint:
    """One entry of `KINDS` with one of its values, in words and as checks."""
    number = _NUMBERS[value] if isinstance(value, int) else ""
    if kind == "words":
        return Constraint(f"Use exactly {number} words.", _exactly("words", value))
    if kind == "sentences":
        return Constraint(f"Write exactly {number} sentences.", _exactly("sentences", value))
    if kind == "bullets":
        checks = ("detectable_format:number_bullet_lists", {"num_bullets": value})
        return Constraint(f"Make it {number} bullet points.", (checks,))
    if kind == "mentions":
        wanted = {"keyword": topic, "frequency": value, "relation": "at least"}
        text = f"Use the word {topic} at least {number} times."
        return Constraint(text, (("keywords:frequency", wanted),))
    if kind == "keyword":
        checks = ("keywords:existence", {"keywords": [value]})
        return Constraint(f"Include the word {value}.", (checks,))
    if kind == "without":
        checks = ("keywords:forbidden_words", {"forbidden_words": [value]})
        return Constraint(f"Do not use the word {value}.", (checks,))
    if kind == "ending":
        checks = ("startend:end_checker", {"end_phrase": f"{value}."})
        return Constraint(f"End with: {value}.", (checks,))
    text, name = {
        ("no_commas", True): ("Use no commas.", "punctuation:no_comma"),
        ("quotes", True): ("Put it in quotation marks.", "startend:quotation"),
        ("case", "lower"): ("Use only small letters.", "change_case:english_lowercase"),
        ("case", "upper"): ("Use only capital letters.", "change_case:english_capital"),
    }[kind, value]
    return Constraint(text, ((name, {}),))


def _exactly(what: str, count: int) -> tuple[tuple[str, dict[str, Any]], ...]:
    """IFEval knows only "at least" and "less than"; both together are exact."""
    name = f"length_constraints:number_{what}"
    return (
        (name, {f"num_{what}": count, "relation": "at least"}),
        (name, {f"num_{what}": count + 1, "relation": "less than"}),
    )


def wishes(task: Task) -> dict[str, Any]:
    """The constraints of a task beside its animal: kind -> value, in the order of `KINDS`."""
    return {kind: getattr(task, kind) for kind in KINDS if getattr(task, kind)}


def split_of(task: Task) -> str:
    """The split of a task. The hash is explicit, and part of every published figure."""
    asked = wishes(task)
    names = [f"{kind}={value}" for kind, value in asked.items()]
    key = "|".join(names if len(names) > 1 else [*names, task.topic])
    digest = blake2b(key.encode("ascii"), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") % HELDOUT_ONE_IN == 0 else "train"


def is_possible(task: Task) -> bool:
    """Whether `write` has texts that meet all that a task asks for."""
    if any(frozenset(pair) in CLASHES for pair in combinations(wishes(task), 2)):
        return False
    if task.words and (task.keyword or task.ending) and task.words < SHORTEST:
        return False
    count = task.bullets or task.sentences
    if count and task.mentions > count:
        return False
    return not (task.without and task.without in task.ending.split())


def tasks(split: str, seed: int) -> Iterator[Task]:
    """Endless random tasks of a split, repetitions included; all kinds are drawn alike."""
    rng = random.Random(f"{split}-{seed}")
    while True:
        kinds = rng.sample(list(KINDS), 1 if rng.random() < SINGLE else 2)
        values = {kind: rng.choice(KINDS[kind]) for kind in kinds}
        task = Task(rng.choice(ANIMALS), **values)
        if is_possible(task) and split_of(task) == split:
            yield task


def generate(*, split: str, size: int, seed: int) -> list[Problem]:
    """`size` problems of a split with different prompts, the same ones for the same seed.

    Raises ValueError for an unknown split, or when it has hardly so many.
    """
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; use one of {', '.join(SPLITS)}.")
    found: dict[Task, None] = {}
    source, misses = tasks(split, seed), 0
    while len(found) < size and misses < MISSES:
        task = next(source)
        misses = misses + 1 if task in found else 0
        found[task] = None
    if len(found) < size:
        raise ValueError(
            f"The {split} split of the instructions has hardly more than {len(found)} problems, "
            f"but size={size} needs more; ask for a smaller size."
        )
    return [to_problem(task, place) for place, task in enumerate(found)]


def to_problem(task: Task, seed: int) -> Problem:
    """`seed` decides which of its good texts becomes the problem's answer."""
    asked = wishes(task)
    parts = [constraint(kind, value, task.topic) for kind, value in asked.items()]
    checks = [("keywords:existence", {"keywords": [task.topic]})]
    checks += [check for part in parts for check in part.checks]
    names = [f"{kind}={value}".replace(" ", "_") for kind, value in asked.items()]
    return Problem(
        id="-".join([task.topic, *names]),
        messages=({"role": "user", "content": prompt(task)},),
        answer=write(task, random.Random(seed)),
        columns={
            "instruction_id_list": [name for name, _ in checks],
            "kwargs": [kwargs for _, kwargs in checks],
            "constraints": len(asked),
        },
    )


def prompt(task: Task) -> str:
    parts = [constraint(kind, value, task.topic).text for kind, value in wishes(task).items()]
    return " ".join([f"Write about a {task.topic}.", *parts])


def load(config: DataConfig) -> Dataset:
    """``data.size`` problems to train on and ``data.heldout`` others.

    Raises:
        UserError: there are hardly so many.
    """
    try:
        train = generate(split="train", size=config.size, seed=config.seed)
        heldout = generate(split="heldout", size=config.heldout, seed=config.seed)
    except ValueError as error:
        raise UserError(f"{error} The keys are data.size and data.heldout.") from error
    return Dataset(train, heldout)
