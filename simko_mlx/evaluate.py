"""pass@k and over-concentration on held-out problems."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np

from simko_mlx import checkpoint, data
from simko_mlx.batching import MEASURED_PER_PROBLEM, group_batch
from simko_mlx.config import Config
from simko_mlx.config_checks import validate_k
from simko_mlx.config_sources import from_run
from simko_mlx.export.mlx_adapter import mlx_files
from simko_mlx.export.source import read_source
from simko_mlx.loggers import Logger
from simko_mlx.losses.common import fork_statistics
from simko_mlx.metrics import Interval, clustered_interval, pass_at_k
from simko_mlx.policy import Policy, load_base, load_policy
from simko_mlx.rollout import Sampling, rollout
from simko_mlx.types import LENGTH, Problem, RolloutGroup, Verdict, require
from simko_mlx.verifiers.pool import VerifierPool

Prompts = Sequence[tuple[Problem, tuple[int, ...]]]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation with all the settings that are part of its result.

    ``pass_at_k`` maps k to the estimate with its interval; ``chance`` maps k to the pass@k of a
    policy without preference among valid answers, where the problems know it. ``rank_probs`` are
    the mean probabilities of the rank-1, 2 and 3 candidates at T = 1 over all tokens,
    ``fork_rank_probs`` over forking tokens; ``entropy`` is in nats per token. ``groups`` gives
    pass@1 for parts of the problems ("strategy L"). ``counts`` are the correct completions of
    each problem. Completions that can't be scored count as wrong; ``bound`` maps k to what pass@k
    would be if they were all right. ``scale`` is what the adapter's effect was multiplied by.
    """

    label: str
    problems: int
    n: int
    temperature: float
    max_completion_length: int
    pass_at_k: dict[int, Interval]
    chance: dict[int, float] | None
    entropy: float
    rank_probs: tuple[float, float, float]
    fork_rank_probs: tuple[float, float, float]
    mean_length: float
    truncated: float
    unscorable: float
    groups: dict[str, Interval]
    counts: tuple[int, ...]
    problem_ids: tuple[str, ...]
    seconds: float
    note: str = ""
    bound: dict[int, float] = field(default_factory=dict)
    scale: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON; pass@k keys become "pass@8", what is not finite None."""
        out = asdict(self)
        out["pass_at_k"] = {f"pass@{k}": asdict(v) for k, v in self.pass_at_k.items()}
        out["bound"] = {f"pass@{k}": v for k, v in self.bound.items()}
        if self.chance is not None:
            out["chance"] = {f"pass@{k}": v for k, v in self.chance.items()}
        out["entropy"] = _finite(self.entropy)
        for name in ("rank_probs", "fork_rank_probs"):
            out[name] = [_finite(value) for value in out[name]]
        return out

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Evaluation:
        fields = dict(raw)
        fields["pass_at_k"] = {
            int(key.removeprefix("pass@")): Interval(**v) for key, v in raw["pass_at_k"].items()
        }
        bound = raw.get("bound", {}).items()
        fields["bound"] = {int(key.removeprefix("pass@")): v for key, v in bound}
        if raw["chance"] is not None:
            chance = raw["chance"].items()
            fields["chance"] = {int(key.removeprefix("pass@")): v for key, v in chance}
        fields["groups"] = {name: Interval(**v) for name, v in raw["groups"].items()}
        for name in ("counts", "problem_ids"):
            fields[name] = tuple(raw[name])
        fields["entropy"] = _or_nan(raw["entropy"])
        for name in ("rank_probs", "fork_rank_probs"):
            fields[name] = tuple(_or_nan(value) for value in raw[name])
        return cls(**fields)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


@dataclass(frozen=True)
class Plan:
    """What to evaluate: how many completions, which k, and how long it may take."""

    label: str
    n: int
    ks: tuple[int, ...]
    budget_seconds: float | None = None
    scale: float = 1.0


def evaluate(
    policy: Policy,
    pool: VerifierPool,
    prompts: Prompts,
    plan: Plan,
    progress: Callable[[int, int, str], None] | None = None,
) -> Evaluation:
    """Samples ``plan.n`` completions per problem and estimates pass@k.

    Sampling keys don't depend on the weights: two policies are compared on the same noise. When
    the budget would be exceeded, fewer problems are evaluated and ``note`` says so.
    """
    began = time.monotonic()
    config = policy.config
    sampling = Sampling(
        group_size=plan.n,
        max_completion_length=config.rollout.max_completion_length,
        temperature=config.eval.temperature,
        seed=config.seed,
        step="eval",
        batch_size=config.rollout.batch_size,
        prefill_chunk=config.rollout.prefill_chunk,
    )
    at_once = max(1, config.rollout.batch_size // plan.n)
    tally = _Tally(plan.n)
    for start in range(0, len(prompts), at_once):
        part = prompts[start : start + at_once]
        spent = time.monotonic() - began
        limit = plan.budget_seconds
        if start and limit is not None and spent * (start + len(part)) / start > limit:
            break
        groups = rollout(policy, part, sampling)
        tally.add(groups, pool.verify_groups(groups))
        tally.measure(policy, groups, config.loss.entropy_quantile)
        if progress is not None:
            done = start + len(part)
            progress(done, len(prompts), f"{plan.label}: {tally.running_pass_at_1():.1%} pass@1")
    return tally.result(plan, config, len(prompts), time.monotonic() - began)


class _Tally:
    """Counts over the problems evaluated so far."""

    def __init__(self, n: int):
        self.n = n
        self.problems: list[Problem] = []
        self.counts: list[int] = []
        self.lengths: list[int] = []
        self.truncated = 0
        self.unscorable: list[int] = []
        self.entropy: list[np.ndarray] = []
        self.ranks: list[np.ndarray] = []
        self.forking: list[np.ndarray] = []

    def add(self, groups: Sequence[RolloutGroup], verdicts: Sequence[Sequence[Verdict]]) -> None:
        for group, mine in zip(groups, verdicts, strict=True):
            self.problems.append(group.problem)
            self.counts.append(sum(v.correct for v in mine))
            self.unscorable.append(sum(v.reward is None for v in mine))
            self.lengths += [len(c.token_ids) for c in group.completions]
            self.truncated += sum(c.stop_reason == LENGTH for c in group.completions)

    def running_pass_at_1(self) -> float:
        return sum(self.counts) / (self.n * len(self.counts))

    def measure(self, policy: Policy, groups: Sequence[RolloutGroup], quantile: float) -> None:
        """Entropy and rank probabilities at T = 1 of each problem's first completions."""
        for group in groups:
            some = group.completions[:MEASURED_PER_PROBLEM]
            batch = group_batch(RolloutGroup(group.problem, group.prompt_ids, some))
            stats = policy.statistics(batch, simko_k=3, temperature=1.0, gradient=False)
            entropy, forking, probs = fork_statistics(stats, batch.loss_mask, quantile)
            mx.eval(entropy, forking, probs)
            real = np.array(batch.loss_mask) > 0
            self.entropy.append(np.array(entropy)[real])
            self.ranks.append(np.array(probs)[real])
            self.forking.append(np.array(forking)[real])

    def result(self, plan: Plan, config: Config, wanted: int, seconds: float) -> Evaluation:
        ranks, forking = np.concatenate(self.ranks), np.concatenate(self.forking)
        total = self.n * len(self.counts)
        note = ""
        if len(self.counts) < wanted:
            note = f"{len(self.counts)} of {wanted} problems: eval.budget_minutes was reached"
        chance = chance_pass_at_k(self.problems, plan.ks)
        return Evaluation(
            label=plan.label,
            problems=len(self.counts),
            n=self.n,
            temperature=config.eval.temperature,
            max_completion_length=config.rollout.max_completion_length,
            pass_at_k={k: self._interval(range(len(self.counts)), k) for k in plan.ks},
            chance=chance,
            entropy=float(np.concatenate(self.entropy).mean()),
            rank_probs=_three(ranks),
            fork_rank_probs=_three(ranks[forking]),
            mean_length=float(np.mean(self.lengths)),
            truncated=self.truncated / total,
            unscorable=sum(self.unscorable) / total,
            groups=self._by_group(config.eval.group_by),
            counts=tuple(self.counts),
            problem_ids=tuple(p.id for p in self.problems),
            seconds=seconds,
            note=note,
            bound={k: self._bound(k) for k in plan.ks},
            scale=plan.scale,
        )

    def _bound(self, k: int) -> float:
        most = map(sum, zip(self.counts, self.unscorable, strict=True))
        return sum(pass_at_k(self.n, count, k) for count in most) / len(self.counts)

    def _interval(self, which: Sequence[int] | range, k: int) -> Interval:
        return clustered_interval([pass_at_k(self.n, self.counts[i], k) for i in which])

    def _by_group(self, column: str | None) -> dict[str, Interval]:
        if column is None:
            return {}
        members: dict[str, list[int]] = {}
        for i, problem in enumerate(self.problems):
            value = _lookup(problem.columns, column)
            if value is not None:
                members.setdefault(f"{column} {value}", []).append(i)
        return {name: self._interval(members[name], 1) for name in sorted(members)}


def _lookup(columns: Mapping[str, Any], path: str) -> Any:
    value: Any = columns
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _three(ranks: np.ndarray) -> tuple[float, float, float]:
    means = ranks.mean(axis=0).tolist() if len(ranks) else []
    first, second, third, *_ = [*means, 0.0, 0.0, 0.0]
    return first, second, third


def chance_pass_at_k(problems: Sequence[Problem], ks: Sequence[int]) -> dict[int, float] | None:
    """Mean of 1 - (1 - q)^k, q a problem's "chance" column; None where a problem has none."""
    chances = [p.columns.get("chance") for p in problems]
    known = [q for q in chances if isinstance(q, (int, float))]
    if not known or len(known) < len(chances):
        return None
    return {k: sum(1 - (1 - q) ** k for q in known) / len(known) for k in ks}


def kept_path(run_dir: Path, step: int, scale: float = 1.0) -> Path:
    """Where ``evaluate_run`` keeps what it measured of a checkpoint."""
    scaled = "" if scale == 1 else f"-scale-{float(scale)!r}"
    return run_dir / "evaluations" / f"eval-step-{step:06d}{scaled}.json"


def _keep(path: Path, evaluations: Sequence[Evaluation], logger: Logger) -> None:
    """Replaces what was kept of an earlier call; a folder that can't be written to is a message."""
    content = json.dumps({"evaluations": [e.to_json() for e in evaluations]}, indent=2)
    try:
        checkpoint.write_atomically(path, content.encode() + b"\n")
    except OSError as error:
        logger.message(f"{path} can't be written ({error.strerror}): these figures are not kept.")


def evaluate_run(
    run_dir: Path,
    *,
    logger: Logger,
    base: bool = False,
    ks: list[int] | None = None,
    n: int | None = None,
    problems: int | None = None,
    step: int | str = "last",
    scale: float = 1.0,
) -> list[Evaluation]:
    """Evaluates a run's newest checkpoint (or the one of ``step``), after its base when asked, and
    keeps the result in the run's ``evaluations/``.

    ``step`` may be "best", too; ``scale`` multiplies the adapter's effect.
    ``ks``, ``n`` and ``problems`` default to the run's ``eval`` section; without ``n`` it is
    raised to twice the largest k if need be.

    Raises:
        UserError: no such run or checkpoint, or n < 2 k.
    """
    config = from_run(run_dir / "config.yaml")
    ks = sorted(set(config.eval.k if ks is None else ks))
    n = max([config.eval.n, *(2 * k for k in ks)]) if n is None else n
    validate_k(ks, n)
    problems = config.eval.problems if problems is None else problems
    require(problems >= 1, f"problems is {problems}: it must be at least 1.")
    source = read_source(run_dir, step, scale)
    dataset = data.load(config.data)
    heldout = dataset.heldout[:problems]
    for note in dataset.notes:
        logger.message(note)
    require(bool(heldout), "There are no held-out problems: set data.heldout or data.eval_path.")

    def progress(done: int, total: int, detail: str) -> None:
        logger.phase("evaluate", done, total, detail)

    results = []
    with ExitStack() as stack:
        # A copy: while the base is measured, a run that goes on may prune the checkpoint.
        adapter = Path(stack.enter_context(TemporaryDirectory()))
        for name, content in mlx_files(source).items():
            (adapter / name).write_bytes(content)
        pool = stack.enter_context(VerifierPool(config.verifier))
        trained = f"step {source.step}" + (f", scale {scale:g}" if scale != 1 else "")
        for label in ["base"] * base + [trained]:
            policy = load_base(config) if label == "base" else load_policy(config, adapter=adapter)
            prompts, dropped = policy.prompts.encode_all(heldout, policy.max_prompt_length)
            require(bool(prompts), f"All {dropped} held-out prompts are too long for this model.")
            if dropped and not results:
                logger.message(
                    f"{dropped} of {len(heldout)} held-out prompts are too long: dropped."
                )
            plan = Plan(label, n, tuple(ks), scale=1.0 if label == "base" else scale)
            results.append(evaluate(policy, pool, prompts, plan, progress))
            del policy, prompts  # never two models in memory
    _keep(kept_path(run_dir, source.step, scale), results, logger)
    return results
