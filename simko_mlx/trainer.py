"""The loop: problems, rollout, verify, advantages, batch, loss, update, log."""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from simko_mlx import checkpoint, data, memory, rundir
from simko_mlx.advice import GapWatch, SignalWatch
from simko_mlx.collect import collect
from simko_mlx.config import Config, semantic
from simko_mlx.config_sources import dump
from simko_mlx.curriculum import Curriculum
from simko_mlx.evaluate import Evaluation, Prompts
from simko_mlx.export import at_end
from simko_mlx.interrupts import Interrupts, Terminated
from simko_mlx.learner import Learner, Report, random_words
from simko_mlx.loggers import Fanout, JsonlLogger, Logger, cut_back
from simko_mlx.metrics import group_metrics
from simko_mlx.planner import Shape
from simko_mlx.policy import Policy, load_policy
from simko_mlx.rollout import Diverged
from simko_mlx.run_evaluations import RunEvaluations
from simko_mlx.rundir import new_run_dir
from simko_mlx.types import (
    STOP,
    Completion,
    Problem,
    RolloutGroup,
    ScoredGroup,
    StepMetrics,
    UserError,
    require,
)
from simko_mlx.until import Until
from simko_mlx.verifiers.pool import VerifierPool

__all__ = ["RunSummary", "Terminated", "new_run_dir", "train"]


RESTRICTED = (
    "Warning: rollout.top_p or top_k restricts what is sampled, but the loss scores the whole "
    "distribution: its gradient is then biased. Leave them out unless that is what you want."
)


@dataclass(frozen=True)
class RunSummary:
    """What a run came to; evaluations that were switched off are None."""

    run_dir: Path
    step: int
    base: Evaluation | None
    trained: Evaluation | None
    best_step: int | None


@dataclass
class TrainState:
    """What changes during a run; a checkpoint holds all of it (with the logs' lengths)."""

    policy: Policy
    learner: Learner
    step: int = 0
    best: dict[str, Any] | None = None
    evaluated: int = 0  # the last step that had its small evaluation


def train(
    config: Config,
    run_dir: Path,
    logger: Logger,
    *,
    recipe: str = "",
    resume: bool = False,
    until: float | None = None,
) -> RunSummary:
    """Trains to ``config.steps``, from the start or from a run directory's newest checkpoint, or
    until a time (seconds since the epoch) by which the last evaluation, too, should have ended.

    Raises:
        UserError: one sentence; whatever had been saved stays valid.
        KeyboardInterrupt, Terminated: on SIGINT and SIGTERM, after saving.
    """
    config = dataclasses.replace(config, prompt=dataclasses.replace(config.prompt))
    config.prompt.date = config.prompt.date or datetime.date.today().isoformat()
    try:
        with ExitStack() as stack:
            interrupts = stack.enter_context(Interrupts())
            stack.enter_context(rundir.claimed(run_dir, resume=resume))
            saved = rundir.saved_state(config, run_dir) if resume else None
            dataset = data.load(config.data)
            require(
                len(dataset.train) >= config.rollout.problems_per_step,
                f"There are {len(dataset.train)} problems to train on, fewer than "
                f"rollout.problems_per_step = {config.rollout.problems_per_step}: lower it.",
            )
            pool = stack.enter_context(VerifierPool(config.verifier))
            _try_verifier(pool, dataset.train[0])
            policy = load_policy(config, adapter=saved[0] if saved else None)
            rundir.pin(config, policy.path, policy.start)
            run = _Run(config, run_dir, policy, pool, dataset)
            run.until.at = until
            return run.go(logger, interrupts, recipe, saved)
    except OSError as error:
        if checkpoint.is_full(error):
            raise checkpoint.no_space("the run's logs", run_dir) from error
        raise


def _try_verifier(pool: VerifierPool, problem: Problem) -> None:
    """One call before the run exists: a verifier that doesn't fit the problems is told now."""
    answer = Completion((), (), problem.answer, STOP)
    pool.verify_groups([RolloutGroup(problem, (), (answer,))])


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
        learner = Learner(policy, config)
        self.notes = [*dataset.notes, *policy.notes, *learner.notes, *at_end.notes(config)]
        if config.rollout.top_p < 1 or config.rollout.top_k:
            self.notes.append(RESTRICTED)
        self.train_prompts = self._encode(dataset.train, "training")
        heldout = dataset.heldout[: max(config.eval.problems, config.eval.every_problems)]
        self.eval_prompts = self._encode(heldout, "held-out") if heldout else []
        require(
            len(self.train_prompts) >= config.rollout.problems_per_step,
            f"Only {len(self.train_prompts)} prompts fit into the context, fewer than "
            "rollout.problems_per_step: lower it or rollout.max_completion_length.",
        )
        self.state = TrainState(policy, learner)
        names = [problem.id for problem, _ in self.train_prompts]
        self.curriculum = Curriculum(config, names, dataset.pass_rates)
        ids: list[Any] = [(p.id, p.answer, ids) for p, ids in self.train_prompts]
        if config.data.order == "easy-first":
            ids += sorted(dataset.pass_rates.items())
        self.fingerprint = f"{random_words(ids):016x}"
        stops = [repr(text) for text in policy.stop_tokens.values()]
        self.watch = SignalWatch(config.rollout.max_completion_length, stops)
        self.until = Until(None)
        self.gaps = GapWatch(str(policy.dtype).removeprefix("mlx.core."))

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
        self._plan(saved[1].get("plan") if saved else None)
        checkpoint.clean(self.run_dir)
        if saved is not None:
            self._restore(*saved)
        elif (self.run_dir / "metrics.jsonl").exists():
            cut_back(self.run_dir, dict.fromkeys(JsonlLogger.FILES, 0))
        checkpoint.write_atomically(self.run_dir / "config.yaml", dump(self.config).encode())
        about = {**rundir.environment(self.policy.path), "problems": len(self.train_prompts)}
        content = json.dumps(about, indent=2).encode() + b"\n"
        checkpoint.write_atomically(self.run_dir / "env.json", content)
        self.jsonl = JsonlLogger(self.run_dir)
        self.logger = Fanout([self.jsonl, logger])
        self.evaluations = RunEvaluations(
            self.run_dir, self.policy, self.pool, self.eval_prompts, self.logger
        )
        if saved is not None:
            self.evaluations.small_seconds = saved[1]["small_seconds"]
        try:
            self.logger.start(self._info(recipe))
            if saved is not None and self.state.step >= self.config.steps:
                self.logger.message(
                    f"The run is at step {self.state.step} of {self.config.steps}: there is "
                    "nothing to train; a larger number of steps goes on."
                )
            return self._train()
        finally:
            self.logger.close()

    def _plan(self, saved: dict[str, Any] | None) -> None:
        """Tells and limits the memory that the run takes, before it has a folder with anything."""
        prompts = [*self.train_prompts, *self.eval_prompts]
        longest = max(len(ids) for _, ids in prompts)
        learner = self.state.learner
        self.memory = memory.prepare(self.policy, self.config, learner.step, longest, saved)
        learner.budget = min(learner.budget, Shape.of(self.config, longest).tokens)
        self.notes += self.memory.notes

    def _train(self) -> RunSummary:
        try:
            self._save()
            base = self.evaluations.before(self.state.step)
            self._small_evaluation()  # a run that was stopped during one still owes it
            if base is not None and self.config.eval.after:
                self.until.reserve = base.seconds
            while self.state.step < self.config.steps and not self.until.is_near():
                began = time.monotonic()
                self._step()
                self._after_step()
                self.until.step_took(time.monotonic() - began)
            if self.state.step < self.config.steps:
                self._stop_early()
        except (KeyboardInterrupt, Terminated, UserError) as error:
            # No step is half done here: a verifier that fails does so before weights change.
            if not isinstance(error, (checkpoint.NoSpace, Diverged)):
                with self.interrupts.shield():
                    self._save()
            raise
        trained = self.evaluations.after(self.state.step, base)
        at_end.push_at_end(self.config, self.run_dir, self.logger)
        best = self.state.best["step"] if self.state.best else None
        return RunSummary(self.run_dir, self.state.step, base, trained, best)

    def _stop_early(self) -> None:
        with self.interrupts.shield():
            self._save()
        at = time.strftime("%H:%M", time.localtime(self.until.at))
        self.logger.message(
            f"Stopped after step {self.state.step} of {self.config.steps}: the next would not end "
            f"by {at}. `simko-mlx train --resume {self.run_dir}` goes on."
        )

    # --- one step ---------------------------------------------------------------------------

    def _step(self) -> None:
        began = time.monotonic()
        mx.reset_peak_memory()
        number = self.state.step + 1
        scored, rolled = collect(
            self.policy, self.pool, self._problems(number), number, self.logger
        )
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
            self.curriculum.record(number, scored)
            ended = time.monotonic()
            times = {
                "time/rollout": rolled - began,
                "time/verify": verified - rolled,
                "time/update": ended - verified,
                "time/step": ended - began,
            }
            values = {**group_metrics(scored), **report.metrics(), **times}
            values["optim/learning_rate"] = self.state.learner.learning_rate
            tokens = values["rollout/tokens"]
            values["rollout/tokens_per_second"] = tokens / max(1e-9, rolled - began)
            values["mem/peak_gb"] = mx.get_peak_memory() / 1e9
            self.logger.step(StepMetrics(number, values), scored)
        self._speak(number, scored, report)

    def _problems(self, number: int) -> Prompts:
        return [self.train_prompts[i] for i in self.curriculum.choose(number)]

    def _speak(self, number: int, scored: list[ScoredGroup], report: Report) -> None:
        for problem in report.problems:
            self.logger.message(f"Step {number}: {problem}.")
        for advice in (self.watch.look(scored), self.gaps.look(report.decode_gap)):
            if advice:
                self.logger.message(advice)

    def _after_step(self) -> None:
        self._small_evaluation()
        step, config = self.state.step, self.config
        if step % config.checkpoint.every == 0 or step == config.steps:
            with self.interrupts.shield():
                self._save()

    def _small_evaluation(self) -> None:
        """Where one is due and not done yet; its checkpoint is kept if none was better."""
        state, every = self.state, self.config.eval.every
        due = every and (state.step % every == 0 or state.step == self.config.steps)
        if not due or state.step <= state.evaluated:
            return
        result = self.evaluations.small(state.step)
        with self.interrupts.shield():
            # The state first: a logger that stops the run must find the evaluation done.
            state.evaluated = state.step
            score = None if result is None else self.evaluations.score(state.step, result)
            better = score is not None and _better(score, state.best)
            state.best = score if better else state.best
            if result is not None:
                self.evaluations.log(state.step, result, "small")
            if better:
                self._save()

    # --- state ------------------------------------------------------------------------------

    def _save(self) -> None:
        state = {
            "step": self.state.step,
            "best": self.state.best,
            "evaluated": self.state.evaluated,
            "small_seconds": self.evaluations.small_seconds,
            "semantic": semantic(self.config),
            "problems": self.fingerprint,
            "logs": self.jsonl.offsets(),
            "plan": self.memory.to_json(),
            "curriculum": self.curriculum.state(),
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
        self.state.evaluated = state["evaluated"]
        self.curriculum.restore(state.get("curriculum") or {})
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
            "memory": self.memory.to_json(),
            "notes": self.notes,
        }


def _better(result: dict[str, Any], best: dict[str, Any] | None) -> bool:
    """Whether a small evaluation beats the best so far; one made with other settings is no match
    and gives way."""
    if best is None or any(best[key] != result[key] for key in result.keys() - {"step", "value"}):
        return True
    return result["value"] > best["value"]
