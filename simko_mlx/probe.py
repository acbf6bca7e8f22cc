"""Minutes before a night is spent: how hard the problems are for this model, what the verifier
takes for answers, and how long a step takes. Nothing is kept of what the one step taught."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from simko_mlx import checkpoint, data, memory
from simko_mlx.collect import collect
from simko_mlx.config import Config
from simko_mlx.evaluate import Prompts
from simko_mlx.learner import Learner, random_words
from simko_mlx.loggers import Logger
from simko_mlx.planner import Shape
from simko_mlx.policy import Policy, load_policy
from simko_mlx.probe_advice import Figures, advice
from simko_mlx.types import LENGTH, ScoredGroup, UserError, Verdict, require
from simko_mlx.verifiers.pool import VerifierPool


@dataclass(frozen=True)
class Rate:
    """How many of a problem's ``samples`` completions were correct."""

    id: str
    correct: int
    samples: int

    @property
    def pass_rate(self) -> float:
        return self.correct / self.samples


@dataclass(frozen=True)
class Sample:
    """One completion with what the verifier says of it."""

    problem: str
    answer: str
    text: str
    truncated: bool
    verdict: Verdict


@dataclass(frozen=True)
class Probe:
    """What was found. ``seconds`` has "rollout", "verify" and "update" of a step, and
    "evaluation", of one before or after the training; ``samples`` are completions of different
    problems, right and wrong ones in turn."""

    rates: tuple[Rate, ...]
    figures: Figures
    samples: tuple[Sample, ...]
    seconds: dict[str, float]
    peak_gb: float
    notes: tuple[str, ...]

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds[name] for name in ("rollout", "verify", "update"))

    def histogram(self, bins: int = 10) -> list[int]:
        """Problems by their pass rate: in bins of equal width, the last one with 1."""
        counts = [0] * bins
        for rate in self.rates:
            counts[min(bins - 1, int(rate.pass_rate * bins))] += 1
        return counts

    def steps_until(self, at: float, now: float | None = None) -> int:
        """Steps that end by then (seconds since the epoch), with an evaluation before and after."""
        left = at - (time.time() if now is None else now) - 2 * self.seconds["evaluation"]
        return max(0, int(left // max(1e-9, self.step_seconds)))


def probe(config: Config, logger: Logger, *, problems: int = 32) -> Probe:
    """Samples some of the problems to train on as a run's first steps would, and makes an update.

    Raises:
        UserError: what a run would raise before or in its first step.
    """
    dataset = data.load(config.data)
    for note in dataset.notes:
        logger.message(note)
    with VerifierPool(config.verifier) as pool:
        policy = load_policy(config)
        prompts, dropped = policy.prompts.encode_all(dataset.train, policy.max_prompt_length)
        require(bool(prompts), f"All {dropped} prompts are too long for this model.")
        some = _some(prompts, problems, config.seed)
        learner = Learner(policy, config)
        plan = memory.prepare(policy, config, learner.step, max(len(i) for _, i in some), None)
        learner.budget = min(learner.budget, Shape.of(config, max(len(i) for _, i in some)).tokens)
        mx.reset_peak_memory()
        scored, seconds = _sample(policy, pool, some, logger)
    seconds["update"] = _update(learner, scored, config, logger)
    per_problem = (seconds["rollout"] + seconds["verify"]) / config.rollout.problems_per_step
    seconds["evaluation"] = _evaluation_seconds(config, len(dataset.heldout), per_problem)
    figures = Figures.of(scored, seconds, config)
    return Probe(
        rates=tuple(_rate(group) for group in scored),
        figures=figures,
        samples=_samples(scored),
        seconds=seconds,
        peak_gb=mx.get_peak_memory() / 1e9,
        notes=(*policy.notes, *learner.notes, *plan.notes, *advice(figures)),
    )


def _some(prompts: Prompts, count: int, seed: int) -> Prompts:
    chosen = random.Random(random_words(seed, "probe"))
    return chosen.sample(list(prompts), min(count, len(prompts)))


def _sample(
    policy: Policy, pool: VerifierPool, prompts: Prompts, logger: Logger
) -> tuple[list[ScoredGroup], dict[str, float]]:
    """Groups of completions, as many at a time as in a step, and the seconds of a step."""
    size = policy.config.rollout.problems_per_step
    scored: list[ScoredGroup] = []
    rollout = verify = 0.0
    for start in range(0, len(prompts), size):
        began = time.monotonic()
        found, rolled = collect(policy, pool, prompts[start : start + size], "probe", logger)
        verify += time.monotonic() - rolled
        rollout += rolled - began
        scored += found
        logger.phase("probe", len(scored), len(prompts))
    steps = len(prompts) / size
    return scored, {"rollout": rollout / steps, "verify": verify / steps}


def _update(
    learner: Learner, scored: Sequence[ScoredGroup], config: Config, logger: Logger
) -> float:
    """Seconds of a step's update: of the groups that teach most, scaled to the usual number."""
    size = config.rollout.problems_per_step
    mixed = [group for group in scored if any(group.advantages)]
    if not mixed and learner.may_skip:
        return 0.0
    chosen = [*mixed, *(group for group in scored if not any(group.advantages))][:size]
    began = time.monotonic()
    learner.learn(chosen, 1, progress=lambda done, total: logger.phase("update", done, total))
    took = time.monotonic() - began
    if not learner.may_skip:
        return took * size / len(chosen)
    return took * len(mixed) / len(scored) * size / min(len(mixed), size)


def _evaluation_seconds(config: Config, heldout: int, per_problem: float) -> float:
    evaluation = config.eval
    if not (evaluation.before or evaluation.after) or not heldout:
        return 0.0
    count = min(evaluation.problems, heldout)
    seconds = count * per_problem * evaluation.n / config.rollout.group_size
    return min(seconds, 60 * evaluation.budget_minutes / 2)


def _rate(scored: ScoredGroup) -> Rate:
    correct = sum(verdict.correct for verdict in scored.verdicts)
    return Rate(scored.group.problem.id, correct, len(scored.verdicts))


def _samples(scored: Sequence[ScoredGroup]) -> tuple[Sample, ...]:
    right: list[Sample] = []
    wrong: list[Sample] = []
    for one in scored:
        problem = one.group.problem
        pairs = zip(one.group.completions, one.verdicts, strict=True)
        found = [
            Sample(problem.id, problem.answer, c.text, c.stop_reason == LENGTH, verdict)
            for c, verdict in pairs
        ]
        for kept, wanted in (right, True), (wrong, False):
            kept += [sample for sample in found if sample.verdict.correct is wanted][:1]
    turns = [pair for both in zip(right, wrong, strict=False) for pair in both]
    shorter = min(len(right), len(wrong))
    return (*turns, *right[shorter:], *wrong[shorter:])


def write(found: Probe, path: Path, low: float, high: float) -> int:
    """Writes the problems with a pass rate from ``low`` to ``high`` as lines that
    ``data.pass_rates`` reads; returns how many."""
    kept = [rate for rate in found.rates if low <= rate.pass_rate <= high]
    rows: list[dict[str, Any]] = [
        {"id": r.id, "pass_rate": r.pass_rate, "correct": r.correct, "samples": r.samples}
        for r in kept
    ]
    lines = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
    try:
        checkpoint.write_atomically(path, lines.encode())
    except OSError as error:
        raise _unwritable(path, error) from error
    return len(kept)


def check_destination(path: Path) -> None:
    """Raises UserError, before any problem is sampled, unless ``write`` can make a file there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"{path} can't be written ({reason}): name another file in --write.")
