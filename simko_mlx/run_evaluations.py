"""The evaluations of one training run: before, small ones on the way, and after."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from simko_mlx import checkpoint
from simko_mlx.evaluate import Evaluation, Plan, Prompts, evaluate
from simko_mlx.loggers import Logger
from simko_mlx.policy import Policy
from simko_mlx.types import StepMetrics
from simko_mlx.verifiers.pool import VerifierPool

# Shares of eval.budget_minutes: the first evaluation (the last is as large), all small ones.
FULL_SHARE, SMALL_SHARE = 0.4, 0.2


def _read(path: Path) -> Evaluation | None:
    """A kept evaluation; None where there is none, or a damaged one, to be made anew."""
    try:
        return Evaluation.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class RunEvaluations:
    """Evaluates the policy as it is, logs the figures, keeps the results in ``evaluations/``."""

    def __init__(
        self, run_dir: Path, policy: Policy, pool: VerifierPool, prompts: Prompts, logger: Logger
    ):
        self.folder = run_dir / "evaluations"
        self.policy = policy
        self.pool = pool
        self.prompts = prompts
        self.logger = logger
        self.config = policy.config.eval
        self.budget = 60 * self.config.budget_minutes
        self.small_seconds = 0.0
        self.told = False

    def before(self, step: int) -> Evaluation | None:
        """The start's evaluation; a resumed run (``step`` > 0) finds the one that was made then."""
        if not (self.config.before and self.prompts):
            return None
        settings = self.policy.config.policy
        label = "start" if settings.adapter_path else "base"
        path = self.folder / f"{label}.json"
        base = _read(path)
        if base is not None and self._as_planned(base):
            if step == 0:  # its line in the log was cut back with all that came after
                self.log(0, base)
            return base
        with ExitStack() as stack:
            if step > 0:
                # Resumed with other eval settings: the start is the base with LoRA off, or else
                # its weights are gone (`simko-mlx eval --base` can still load the base).
                if label != "base" or settings.fine_tune_type != "lora":
                    return None
                stack.enter_context(self.policy.reference())
            base = self._full(label, self.config.problems, self.budget * FULL_SHARE)
        self._keep(base)
        return base

    def _as_planned(self, base: Evaluation) -> bool:
        """Whether an evaluation was made with today's settings (its budget may have been short)."""
        return (
            base.n == self.config.n
            and set(base.pass_at_k) == set(self.config.k)
            and base.temperature == self.config.temperature
            and (bool(base.note) or base.problems == min(self.config.problems, len(self.prompts)))
            and base.problems <= self.config.problems
            and base.problem_ids == tuple(p.id for p, _ in self.prompts[: base.problems])
        )

    def after(self, step: int, base: Evaluation | None) -> Evaluation | None:
        """The same problems as before, after the last step."""
        if not (self.config.after and self.prompts):
            return None
        problems = base.problems if base else self.config.problems
        # The same problems as before, unless answers have become so much slower that the whole
        # budget would not do.
        left = self.budget - self.small_seconds - (base.seconds if base else 0.0)
        trained = self._full(f"step {step}", problems, max(0.0, left))
        self._keep(trained)
        return trained

    def small(self, step: int) -> Evaluation | None:
        """A few problems and completions, not logged yet; None when the budget is used up."""
        if not self.prompts:
            return None
        left = self.budget * SMALL_SHARE - self.small_seconds
        if left <= 0:
            if not self.told:
                self.logger.message("eval.budget_minutes is used up: no more small evaluations.")
            self.told = True
            return None
        ks = tuple(k for k in sorted(set(self.config.k)) if 2 * k <= self.config.every_n)
        plan = Plan(f"step {step}", self.config.every_n, ks or (1,), left)
        result = self._evaluate(self.prompts[: self.config.every_problems], plan)
        self.small_seconds += result.seconds
        return result

    def score(self, step: int, result: Evaluation) -> dict[str, Any] | None:
        """The value of ``eval.metric`` with the settings that it depends on; None where the budget
        has cut the evaluation short."""
        if result.note:
            return None
        return {
            "metric": self.config.metric,
            "n": result.n,
            "problems": result.problems,
            "temperature": result.temperature,
            "value": result.pass_at_k[int(self.config.metric.removeprefix("pass@"))].estimate,
            "step": step,
        }

    def _full(self, label: str, problems: int, budget: float | None) -> Evaluation:
        plan = Plan(label, self.config.n, tuple(sorted(set(self.config.k))), budget)
        result = self._evaluate(self.prompts[:problems], plan)
        self.log(0 if label in ("base", "start") else int(label.removeprefix("step ")), result)
        return result

    def _evaluate(self, prompts: Prompts, plan: Plan) -> Evaluation:
        def progress(done: int, total: int, detail: str) -> None:
            self.logger.phase("evaluate", done, total, detail)

        return evaluate(self.policy, self.pool, prompts, plan, progress)

    def log(self, step: int, result: Evaluation, tier: str = "full") -> None:
        """Hands the figures to the loggers."""
        values: dict[str, Any] = {"eval/tier": tier, "eval/label": result.label}
        values |= {f"eval/pass@{k}": v.estimate for k, v in result.pass_at_k.items()}
        values |= {"eval/entropy": result.entropy, "eval/rank1": result.rank_probs[0]}
        values |= {"eval/n": result.n, "eval/problems": result.problems}
        values |= {"time/eval": result.seconds}
        self.logger.step(StepMetrics(step, values), [])

    def _keep(self, result: Evaluation) -> None:
        name = result.label.replace(" ", "-") + ".json"
        content = json.dumps(result.to_json(), indent=2).encode() + b"\n"
        checkpoint.write_atomically(self.folder / name, content)
