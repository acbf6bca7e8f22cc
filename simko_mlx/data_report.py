"""What a config's problems are: prompts as the model sees them, lengths, and whether the verifier
accepts each problem's own answer. Of the model only the tokenizer is needed."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simko_mlx import data
from simko_mlx.config import Config
from simko_mlx.data.dataset import repeats
from simko_mlx.data.rows import BadRow, lookup, text_of
from simko_mlx.model_files import context_length, find_model, load_only_tokenizer
from simko_mlx.prompts import PromptEncoder, prompt_limit
from simko_mlx.types import STOP, Completion, Problem, RolloutGroup, UserError, Verdict, require
from simko_mlx.verifiers.pool import VerifierPool

SPLITS = ("train", "heldout")
SOLUTION = "solution"  # a column with a whole completion that is right
PERCENTILES = (0, 10, 50, 90, 99, 100)
BINS = 10
ABSENT = "(absent)"

Progress = Callable[[str, int, int], None]  # what is done, how many so far, of how many


def _silent(what: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Material:
    """The problems of a config, and what makes prompts of them; ``limit`` is the most tokens that
    one may have, None where nothing limits them."""

    config: Config
    dataset: data.Dataset
    encoder: PromptEncoder
    limit: int | None

    def problems(self, split: str) -> list[Problem]:
        return self.dataset.train if split == "train" else self.dataset.heldout

    @property
    def all(self) -> list[Problem]:
        return self.dataset.train + self.dataset.heldout


def load_material(config: Config) -> Material:
    """
    Raises:
        UserError: the problems or the tokenizer can't be had.
    """
    dataset = data.load(config.data)
    require(bool(dataset.train), f"The source {config.data.source} has no problems to train on.")
    path = find_model(config.model, config.model_revision, weights=False)
    tokenizer = load_only_tokenizer(path, config.model)
    encoder = PromptEncoder(tokenizer, config.prompt, config.data)
    return Material(config, dataset, encoder, prompt_limit(config, context_length(path)))


@dataclass(frozen=True)
class Shown:
    """One prompt as the model sees it, special tokens written out."""

    id: str
    tokens: int
    prompt: str
    answer: str


@dataclass(frozen=True)
class Prompts:
    """Some of the ``problems`` of a split."""

    split: str
    problems: int
    shown: tuple[Shown, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def show(material: Material, *, split: str, n: int, progress: Progress = _silent) -> Prompts:
    """The first ``n`` prompts of a split.

    Raises:
        UserError: it has none.
    """
    problems = material.problems(split)
    require(bool(problems), f"There are no problems in the split {split}: raise data.heldout.")
    found = []
    for problem in problems[:n]:
        ids = list(material.encoder.encode(problem))
        text = material.encoder.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        found.append(Shown(problem.id, len(ids), text, problem.answer))
        progress("encode", len(found), n)
    return Prompts(split, len(problems), tuple(found))


@dataclass(frozen=True)
class Failure:
    """A problem whose own answer isn't accepted: what was taken of it, and why not."""

    id: str
    split: str
    answer: str
    taken: str | None
    detail: str


@dataclass(frozen=True)
class Check:
    """``duplicates`` are problems whose prompt another one has as well, ``too_long`` pairs of id
    and tokens, ``by_solution`` counts the problems that were accepted by their column "solution"
    after their answer alone was not."""

    train: int
    heldout: int
    notes: tuple[str, ...]
    duplicates: int
    shortest: int
    longest: int
    limit: int | None
    too_long: tuple[tuple[str, int], ...]
    too_long_is: str  # the config's prompt.too_long
    by_solution: int
    failures: tuple[Failure, ...]

    @property
    def problems(self) -> int:
        return self.train + self.heldout

    @property
    def passes(self) -> bool:
        """Whether a run takes all of it, and every answer is accepted."""
        return not self.failures and not (self.too_long and self.too_long_is == "refuse")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def check(material: Material, *, progress: Progress = _silent) -> Check:
    """Looks at every problem, and hands its answer to the verifier as a completion.

    Not every answer is a completion: a verifier may want a whole solution, as Countdown's does.
    Where an answer isn't accepted and the problem has a column "solution", that is tried.

    Raises:
        UserError: the verifier can't be started.
    """
    problems = material.all
    lengths = []
    for problem in problems:
        lengths.append(len(material.encoder.encode(problem)))
        progress("encode", len(lengths), len(problems))
    pairs = zip(problems, lengths, strict=True)
    limit = material.limit
    too_long = [] if limit is None else [(p.id, n) for p, n in pairs if n > limit]
    with VerifierPool(material.config.verifier) as pool:
        first = _judge(pool, problems, [p.answer for p in problems], progress)
        refused = {i: verdict for i, verdict in enumerate(first) if not verdict.correct}
        solved = [i for i in refused if isinstance(problems[i].columns.get(SOLUTION), str)]
        texts = [problems[i].columns[SOLUTION] for i in solved]
        second = _judge(pool, [problems[i] for i in solved], texts, progress)
    for i, verdict in zip(solved, second, strict=True):
        if verdict.correct:
            del refused[i]
    train = len(material.dataset.train)
    return Check(
        train=train,
        heldout=len(material.dataset.heldout),
        notes=tuple(material.dataset.notes),
        duplicates=repeats(problems),
        shortest=min(lengths),
        longest=max(lengths),
        limit=limit,
        too_long=tuple(too_long),
        too_long_is=material.config.prompt.too_long,
        by_solution=sum(verdict.correct for verdict in second),
        failures=tuple(
            Failure(problems[i].id, SPLITS[i >= train], problems[i].answer, v.taken, v.detail)
            for i, v in refused.items()
        ),
    )


def _judge(
    pool: VerifierPool, problems: Sequence[Problem], texts: Sequence[str], progress: Progress
) -> list[Verdict]:
    groups = [
        RolloutGroup(problem, (), (Completion((), (), text, STOP),))
        for problem, text in zip(problems, texts, strict=True)
    ]
    done = pool.verify_groups(groups, lambda count: progress("verify", count, len(groups)))
    return [verdict for (verdict,) in done]


@dataclass(frozen=True)
class Lengths:
    """Token lengths: percentile -> tokens, and (from, to, how many) of each bin, both inclusive."""

    count: int
    mean: float
    percentiles: dict[int, int]
    bins: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Stats:
    """Lengths of the prompts and of the answers by split; ``columns`` counts the values of one."""

    prompts: dict[str, Lengths]
    answers: dict[str, Lengths]
    by: str | None
    columns: dict[str, dict[str, int]]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def stats(material: Material, *, by: str | None = None, progress: Progress = _silent) -> Stats:
    """Token lengths of all problems; ``by`` is the dotted path of a column to count values of.

    Raises:
        UserError: no problem has such a column.
    """
    prompts, answers, columns = {}, {}, {}
    tokenizer = material.encoder.tokenizer
    for split in SPLITS:
        problems = material.problems(split)
        if not problems:
            continue
        tokens = []
        for problem in problems:
            tokens.append(len(material.encoder.encode(problem)))
            progress(f"encode {split}", len(tokens), len(problems))
        prompts[split] = _lengths(tokens)
        texts = [p.answer for p in problems]
        answers[split] = _lengths(
            [len(tokenizer.encode(text, add_special_tokens=False, verbose=False)) for text in texts]
        )
        if by is not None:
            columns[split] = dict(Counter(_value(p, by) for p in problems).most_common())
    if by is not None and all(set(counts) == {ABSENT} for counts in columns.values()):
        names = ", ".join(list(material.all[0].columns)[:20]) or "none"
        raise UserError(f"No problem has a column {by!r}: the first has {names}.")
    return Stats(prompts, answers, by, columns)


def _value(problem: Problem, path: str) -> str:
    try:
        value = lookup(problem.columns, path, "--by")
    except BadRow:
        return ABSENT
    return text_of(value) or json.dumps(value, ensure_ascii=False)


def _lengths(tokens: Sequence[int]) -> Lengths:
    low, high = min(tokens), max(tokens)
    width = -(-(high - low + 1) // BINS)
    counts = Counter((n - low) // width for n in tokens)
    bins = [(low + i * width, low + (i + 1) * width - 1, counts[i]) for i in range(max(counts) + 1)]
    found = np.percentile(tokens, PERCENTILES, method="nearest")
    percentiles = {p: int(n) for p, n in zip(PERCENTILES, found, strict=True)}
    return Lengths(len(tokens), float(np.mean(tokens)), percentiles, tuple(bins))
