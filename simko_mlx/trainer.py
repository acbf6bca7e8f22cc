"""The loop: problems, rollout, verify, advantages, batch, loss, update, log."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlx.core as mx

from simko_mlx import OPENBLAS, __version__, checkpoint, data
from simko_mlx.advantages import group_advantages
from simko_mlx.advice import SignalWatch
from simko_mlx.config import Config, semantic
from simko_mlx.config_sources import dump, from_run
from simko_mlx.evaluate import Evaluation, Plan, Prompts, evaluate
from simko_mlx.interrupts import Interrupts, Terminated
from simko_mlx.learner import Learner, Report, random_words
from simko_mlx.loggers import Fanout, JsonlLogger, Logger, cut_back
from simko_mlx.policy import Policy, load_policy
from simko_mlx.rollout import Sampling, rollout
from simko_mlx.types import LENGTH, RolloutGroup, ScoredGroup, StepMetrics, UserError, require
from simko_mlx.verifiers.pool import VerifierPool

__all__ = ["RunSummary", "Terminated", "new_run_dir", "train"]

SMALL, FULL = "small", "full"
# Shares of eval.budget_minutes: the first and the last evaluation, and all small ones together.
FULL_SHARE, SMALL_SHARE = 0.4, 0.2


@dataclass(frozen=True)
class RunSummary:
    """What a run came to. ``stopped`` is never set by a run that went to its end."""

    run_dir: Path
    step: int
    base: Evaluation | None
    trained: Evaluation | None
    best_step: int | None
    stopped: bool = False


@dataclass
class TrainState:
    """What changes during a run; a checkpoint holds all of it (with the logs' lengths)."""

    policy: Policy
    learner: Learner
    step: int = 0
    best: dict[str, Any] | None = None
    totals: dict[str, float] = field(default_factory=dict)


def new_run_dir(output_dir: str | None, recipe: str) -> Path:
    """Where a run will live; the folder is made when training starts."""
    if output_dir is not None:
        return Path(output_dir).expanduser()
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = Path("runs") / f"{recipe or 'run'}-{stamp}"
    return path if not path.exists() else path.with_name(f"{path.name}-{time.time_ns() % 1000}")


def train(
    config: Config, run_dir: Path, logger: Logger, *, recipe: str = "", resume: bool = False
) -> RunSummary:
    """Trains to ``config.steps``, from the start or from a run directory's newest checkpoint.

    Raises:
        UserError: one sentence; whatever had been saved stays valid.
        KeyboardInterrupt, Terminated: on SIGINT and SIGTERM, after saving.
    """
    config = dataclasses.replace(config, prompt=dataclasses.replace(config.prompt))
    config.prompt.date = config.prompt.date or datetime.date.today().isoformat()
    try:
        with ExitStack() as stack:
            interrupts = stack.enter_context(Interrupts())
            if resume or run_dir.exists():
                _require_run(run_dir, resume)
                stack.enter_context(checkpoint.locked(run_dir))
            saved = _saved_state(config, run_dir) if resume else None
            dataset = data.load(config.data)
            require(
                len(dataset.train) >= config.rollout.problems_per_step,
                f"There are {len(dataset.train)} problems to train on, fewer than "
                f"rollout.problems_per_step = {config.rollout.problems_per_step}: lower it.",
            )
            pool = stack.enter_context(_verifier_pool(config))
            policy = load_policy(config, adapter=saved[0] if saved else None)
            if not run_dir.exists():
                _make_folder(run_dir)
                stack.enter_context(checkpoint.locked(run_dir))
            run = _Run(config, run_dir, policy, pool, dataset)
            return run.go(logger, interrupts, recipe, saved)
    except OSError as error:
        if checkpoint.is_full(error):
            raise checkpoint.no_space("the run's logs", run_dir) from error
        raise


def _require_run(run_dir: Path, resume: bool) -> None:
    is_run = (run_dir / "config.yaml").is_file()
    if resume:
        require(is_run, f"{run_dir} is not a run directory: it has no config.yaml.")
        return
    require(run_dir.is_dir(), f"output_dir {run_dir} is a file: choose another name.")
    require(
        not is_run,
        f"{run_dir} already holds a run: continue it with `simko-mlx train --resume {run_dir}`, or "
        "choose another output_dir.",
    )


def _make_folder(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True)
    except OSError as error:
        if checkpoint.is_full(error):
            raise
        raise UserError(
            f"output_dir {run_dir} can't be made ({error.strerror}): choose another."
        ) from error


def _verifier_pool(config: Config) -> VerifierPool:
    verifier = config.verifier
    return VerifierPool(
        verifier.name,
        correct_at=verifier.correct_at,
        timeout=verifier.timeout,
        workers=verifier.workers,
    )


def _saved_state(config: Config, run_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint, after making sure that it belongs to this configuration.

    Raises:
        UserError: semantic keys differ, or the checkpoint is damaged.
    """
    checkpoint.clean(run_dir)
    saved = checkpoint.load(run_dir)
    before = saved[1]["semantic"] if saved else semantic(from_run(run_dir / "config.yaml"))
    now = semantic(config)
    changed = [
        f"{key}: {before.get(key)!r} -> {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    require(
        not changed,
        f"{run_dir} can't be resumed with other settings ({'; '.join(changed)}): leave them as "
        "they were, or start a new run.",
    )
    return saved


class _Run:
    """One run while it is going."""

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        policy: Policy,
        pool: VerifierPool,
        dataset: data.Dataset,
    ):
        self.config = config
        self.run_dir = run_dir
        self.policy = policy
        self.pool = pool
        self.notes = list(dataset.notes)
        self.train_prompts = self._encode(dataset.train, "training")
        heldout = dataset.heldout[: max(config.eval.problems, config.eval.every_problems)]
        self.eval_prompts = self._encode(heldout, "held-out") if heldout else []
        require(
            len(self.train_prompts) >= config.rollout.problems_per_step,
            f"Only {len(self.train_prompts)} prompts fit into the context, fewer than "
            "rollout.problems_per_step: lower it or rollout.max_completion_length.",
        )
        self.state = TrainState(policy, Learner(policy, config))
        self.small_seconds = 0.0
        ids = [(problem.id, ids) for problem, ids in self.train_prompts]
        self.fingerprint = f"{random_words(ids):016x}"
        stops = [repr(text) for text in policy.stop_tokens.values()]
        self.watch = SignalWatch(config.rollout.max_completion_length, stops)

    def _encode(self, problems: Sequence[Any], what: str) -> Prompts:
        limit = self.policy.max_prompt_length
        prompts, dropped = self.policy.prompts.encode_all(problems, limit)
        if dropped:
            self.notes.append(f"{dropped} of {len(problems)} {what} prompts are too long: dropped.")
        return prompts

    def go(
        self,
        logger: Logger,
        interrupts: Interrupts,
        recipe: str,
        saved: tuple[Path, dict[str, Any]] | None,
    ) -> RunSummary:
        self.interrupts = interrupts
        checkpoint.clean(self.run_dir)
        if saved is not None:
            self._restore(*saved)
        elif (self.run_dir / "metrics.jsonl").exists():
            cut_back(self.run_dir, dict.fromkeys(JsonlLogger.FILES, 0))
        checkpoint.write_atomically(self.run_dir / "config.yaml", dump(self.config).encode())
        environment = json.dumps(_environment(), indent=2).encode() + b"\n"
        checkpoint.write_atomically(self.run_dir / "env.json", environment)
        self.jsonl = JsonlLogger(self.run_dir)
        self.logger = Fanout([self.jsonl, logger])
        try:
            self.logger.start(self._info(recipe))
            return self._train()
        finally:
            self.logger.close()

    def _train(self) -> RunSummary:
        try:
            self._save()
            base = self._base_evaluation()
            while self.state.step < self.config.steps:
                self._step()
                self._after_step()
        except (KeyboardInterrupt, Terminated):
            with self.interrupts.shield():
                self._save()
            raise
        trained = None
        if self.config.eval.after and self.eval_prompts:
            count = base.problems if base else self.config.eval.problems
            trained = self._full_evaluation(f"step {self.state.step}", count, None)
            self._keep_evaluation(trained)
        best = self.state.best["step"] if self.state.best else None
        return RunSummary(self.run_dir, self.state.step, base, trained, best)

    # --- one step ---------------------------------------------------------------------------

    def _step(self) -> None:
        began = time.monotonic()
        mx.reset_peak_memory()
        number = self.state.step + 1
        groups = self._rollout(number)
        rolled = time.monotonic()
        scored = self._score(groups)
        verified = time.monotonic()
        with ExitStack() as held:
            # From the first change of a weight on, the step goes to its end.
            def hold() -> None:
                if not held_already:
                    held_already.append(True)
                    held.enter_context(self.interrupts.shield())

            held_already: list[bool] = []
            report = self.state.learner.learn(
                scored,
                number,
                before_change=hold,
                progress=lambda done, total: self.logger.phase("update", done, total),
            )
            hold()
            self.state.step = number
            ended = time.monotonic()
            times = {
                "time/rollout": rolled - began,
                "time/verify": verified - rolled,
                "time/update": ended - verified,
                "time/step": ended - began,
            }
            values = {**_group_metrics(scored), **report.metrics(), **times}
            values["optim/learning_rate"] = self.state.learner.learning_rate
            tokens = values["rollout/tokens"]
            values["rollout/tokens_per_second"] = tokens / max(1e-9, rolled - began)
            values["mem/peak_gb"] = mx.get_peak_memory() / 1e9
            self._count(report)
            self.logger.step(StepMetrics(number, values), scored)
        self._speak(number, scored, report)

    def _rollout(self, number: int) -> list[RolloutGroup]:
        config = self.config.rollout
        sampling = Sampling(
            group_size=config.group_size,
            max_completion_length=config.max_completion_length,
            temperature=config.temperature,
            seed=self.config.seed,
            step=number,
            batch_size=config.batch_size,
            prefill_chunk=config.prefill_chunk,
        )
        began = time.monotonic()

        def progress(done: int, total: int, tokens: int) -> None:
            rate = tokens / max(1e-9, time.monotonic() - began)
            self.logger.phase("rollout", done, total, f"{rate:,.0f} tok/s")

        return rollout(self.policy, self._problems(number), sampling, progress)

    def _problems(self, number: int) -> Prompts:
        """The problems of a step: each epoch goes once through a shuffle of (seed, epoch)."""
        size = self.config.rollout.problems_per_step
        per_epoch = len(self.train_prompts) // size
        epoch, place = divmod(number - 1, per_epoch)
        order = list(range(len(self.train_prompts)))
        random.Random(random_words(self.config.seed, "epoch", epoch)).shuffle(order)
        return [self.train_prompts[i] for i in order[place * size : (place + 1) * size]]

    def _score(self, groups: list[RolloutGroup]) -> list[ScoredGroup]:
        total = len(groups)
        self.logger.phase("verify", 0, total)
        verdicts = self.pool.verify_groups(
            groups, lambda done: self.logger.phase("verify", done, total)
        )
        scale = self.config.advantage.scale_rewards
        return [
            ScoredGroup(
                group, tuple(mine), tuple(group_advantages([v.reward for v in mine], scale=scale))
            )
            for group, mine in zip(groups, verdicts, strict=True)
        ]

    def _count(self, report: Report) -> None:
        for name in ("updates", "skipped_groups", "skipped_updates"):
            self.state.totals[name] = self.state.totals.get(name, 0) + getattr(report, name)

    def _speak(self, number: int, scored: list[ScoredGroup], report: Report) -> None:
        for problem in report.problems:
            self.logger.message(f"Step {number}: {problem}; that update was skipped.")
        advice = self.watch.look(scored)
        if advice:
            self.logger.message(advice)

    def _after_step(self) -> None:
        step, config = self.state.step, self.config
        last = step == config.steps
        if self.eval_prompts and config.eval.every and (step % config.eval.every == 0 or last):
            self._small_evaluation(step)
        if step % config.checkpoint.every == 0 or last:
            with self.interrupts.shield():
                self._save()

    # --- evaluation -------------------------------------------------------------------------

    def _base_evaluation(self) -> Evaluation | None:
        """Before the first step; a resumed run finds the one that was made then."""
        if not (self.config.eval.before and self.eval_prompts):
            return None
        label = "start" if self.config.policy.adapter_path else "base"
        path = self.run_dir / "evaluations" / f"{label}.json"
        if path.exists():
            base = Evaluation.from_json(json.loads(path.read_bytes()))
            if base.n == self.config.eval.n and set(base.pass_at_k) == set(self.config.eval.k):
                return base
        budget = 60 * self.config.eval.budget_minutes * FULL_SHARE
        with ExitStack() as stack:
            if self.state.step > 0:
                # A run resumed with other eval settings: the start is the base with LoRA off,
                # or else its weights are gone (`simko-mlx eval --base` can still load them).
                if label != "base" or self.config.policy.fine_tune_type != "lora":
                    return None
                stack.enter_context(self.policy.reference())
            base = self._full_evaluation(label, self.config.eval.problems, budget)
        self._keep_evaluation(base)
        return base

    def _full_evaluation(self, label: str, problems: int, budget: float | None) -> Evaluation:
        config = self.config.eval
        plan = Plan(label, config.n, tuple(sorted(set(config.k))), budget)
        return self._evaluate(self.eval_prompts[:problems], plan, FULL)

    def _small_evaluation(self, step: int) -> None:
        config = self.config.eval
        left = 60 * config.budget_minutes * SMALL_SHARE - self.small_seconds
        if left <= 0:
            if self.small_seconds < float("inf"):
                self.logger.message("eval.budget_minutes is used up: no more small evaluations.")
            self.small_seconds = float("inf")
            return
        ks = tuple(k for k in sorted(set(config.k)) if 2 * k <= config.every_n)
        plan = Plan(f"step {step}", config.every_n, ks or (1,), left)
        result = self._evaluate(self.eval_prompts[: config.every_problems], plan, SMALL)
        self.small_seconds += result.seconds
        value = result.pass_at_k[int(config.metric.removeprefix("pass@"))].estimate
        if self.state.best is None or value > self.state.best["value"]:
            self.state.best = {"step": step, "metric": config.metric, "value": value}
            with self.interrupts.shield():
                self._save()

    def _evaluate(self, prompts: Prompts, plan: Plan, tier: str) -> Evaluation:
        def progress(done: int, total: int, detail: str) -> None:
            self.logger.phase("evaluate", done, total, detail)

        result = evaluate(self.policy, self.pool, prompts, plan, progress)
        values: dict[str, Any] = {"eval/tier": tier, "eval/label": plan.label}
        values |= {f"eval/pass@{k}": v.estimate for k, v in result.pass_at_k.items()}
        values |= {"eval/entropy": result.entropy, "eval/rank1": result.rank_probs[0]}
        values |= {"eval/n": result.n, "eval/problems": result.problems}
        values |= {"time/eval": result.seconds}
        self.logger.step(StepMetrics(self.state.step, values), [])
        return result

    def _keep_evaluation(self, result: Evaluation) -> None:
        name = result.label.replace(" ", "-") + ".json"
        data_bytes = json.dumps(result.to_json(), indent=2).encode() + b"\n"
        checkpoint.write_atomically(self.run_dir / "evaluations" / name, data_bytes)

    # --- state ------------------------------------------------------------------------------

    def _save(self) -> None:
        state = {
            "step": self.state.step,
            "best": self.state.best,
            "totals": self.state.totals,
            "semantic": semantic(self.config),
            "problems": self.fingerprint,
            "logs": self.jsonl.offsets(),
        }
        adapter = self.policy.adapter_files()
        files = {
            **adapter,
            "optimizer.safetensors": self.state.learner.state_file(),
            "state.json": json.dumps(state, indent=2).encode() + b"\n",
        }
        checkpoint.save(self.run_dir, self.state.step, files)
        for name, content in adapter.items():
            checkpoint.write_atomically(self.run_dir / "adapters" / name, content)
        protect = {self.state.best["step"]} if self.state.best else set()
        checkpoint.prune(self.run_dir, self.config.checkpoint.keep, protect)

    def _restore(self, folder: Path, state: dict[str, Any]) -> None:
        require(
            state["problems"] == self.fingerprint,
            f"The training problems or the tokenizer have changed since {folder} was saved: "
            "restore them, or start a new run.",
        )
        self.state.learner.load_state((folder / "optimizer.safetensors").read_bytes())
        self.state.step = state["step"]
        self.state.best = state["best"]
        self.state.totals = state["totals"]
        cut_back(self.run_dir, state["logs"])

    def _info(self, recipe: str) -> dict[str, Any]:
        config = self.config
        stops = [f"{text!r} ({i})" for i, text in self.policy.stop_tokens.items()]
        return {
            "run_dir": str(self.run_dir),
            "recipe": recipe,
            "model": config.model,
            "device": str(mx.default_device()),
            "parameters": self.policy.parameters,
            "trainable": self.policy.trainable,
            "steps": config.steps,
            "start_step": self.state.step,
            "problems": len(self.train_prompts),
            "heldout": len(self.eval_prompts),
            "problems_per_step": config.rollout.problems_per_step,
            "group_size": config.rollout.group_size,
            "loss": config.loss.name,
            "stop_tokens": stops,
            "notes": self.notes,
        }


def _group_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    verdicts = [v for scored in groups for v in scored.verdicts]
    completions = [c for scored in groups for c in scored.group.completions]
    rewards = [v.reward for v in verdicts if v.reward is not None]
    tokens = sum(len(c.token_ids) for c in completions)
    return {
        "reward/mean": sum(rewards) / max(1, len(rewards)),
        "reward/correct": sum(v.correct for v in verdicts) / len(verdicts),
        "reward/mixed_groups": sum(any(s.advantages) for s in groups) / len(groups),
        "reward/unscorable": sum(v.reward is None for v in verdicts) / len(verdicts),
        "rollout/tokens": float(tokens),
        "rollout/length": tokens / len(completions),
        "rollout/truncated": sum(c.stop_reason == LENGTH for c in completions) / len(completions),
    }


def _environment() -> dict[str, Any]:
    versions = {}
    for name in ("mlx", "mlx-lm", "numpy", "transformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "simko-mlx": __version__,
        **versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(mx.default_device()),
        "device_info": {k: str(v) for k, v in mx.device_info().items()},
        "openblas": OPENBLAS,
    }
