"""Whether a run fits into memory, what to change where it doesn't, and what a run does about it."""

from __future__ import annotations

import bisect
import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from simko_mlx import data
from simko_mlx.config import Config, set_key
from simko_mlx.kernels.budget import working_memory
from simko_mlx.planner import (
    Forecast,
    Memo,
    Shape,
    Unpredictable,
    forecast,
    largest_batch,
    step_peak,
)
from simko_mlx.policy import Policy, load_outline
from simko_mlx.step import Step
from simko_mlx.types import UserError, require

GB = 10**9
SMALL_MAC = 36 * GB
SHARES = (2 / 3, 3 / 4)  # of a Mac's memory that macOS recommends a process to keep to
LEAST_CACHE = GB // 4
UNKNOWN_PROMPT = 512  # tokens, where neither data nor prompt.max_length tell
PLANNED = (
    *("grad_checkpoint", "optim.microbatch_size", "optim.microbatch_tokens", "optim.compile"),
    *("optim.head_chunk", "optim.head_backend", "rollout.batch_size", "rollout.prefill_chunk"),
    "rollout.share_prompts",
)


def usable(total: float | None = None) -> int:
    """Bytes that a run may take: of this machine, or of a Mac with ``total`` bytes of memory."""
    if total is None:
        return working_memory()
    return int(total * (SHARES[0] if total <= SMALL_MAC else SHARES[1]))


def limit_of(config: Config) -> int:
    """Bytes that this run may take."""
    limit = config.memory.limit
    return working_memory() if limit is None else int(limit * GB)


@dataclass(frozen=True)
class Change:
    """Config keys with other values, what they bring the peak to, and whether that fits."""

    keys: dict[str, Any]
    peak: int

    def __str__(self) -> str:
        return " ".join(f"--set {key}={_text(value)}" for key, value in self.keys.items())


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def changes(
    policy: Policy, config: Config, found: Forecast, limit: int, memo: Memo | None = None
) -> list[Change]:
    """The smallest changes that make a run fit, those of one phase together; tried, not guessed.

    Empty where nothing here helps: then the model itself, or completions so long, are too much.
    """
    if found.weights + found.optimizer > limit:
        return []
    keys: dict[str, Any] = {}
    here, memo = copy.deepcopy(config), {} if memo is None else memo
    prompt = found.shape.prompt

    def step(config: Config) -> int:
        return step_peak(policy, config, prompt, memo=memo)

    def rollout(config: Config) -> int:
        now = forecast(policy, config, prompt, memo=memo)
        return max(now.rollout, now.evaluation)

    for peak, tries in ((step, [*_for_steps(config)]), (rollout, [*_for_rollouts(policy, config)])):
        if peak(here) <= limit:
            continue
        most = copy.deepcopy(here)
        for key, value in tries:
            set_key(most, key, value)
        if peak(most) > limit:
            return []
        for key, value in tries:
            set_key(here, key, value)
            keys[key] = value
            if peak(here) <= limit:
                break
    return [Change(keys, forecast(policy, here, prompt, memo=memo).peak)] if keys else []


def _for_steps(config: Config) -> Iterator[tuple[str, Any]]:
    if not config.grad_checkpoint:
        yield "grad_checkpoint", True
    rows = Shape.of(config, 1).microbatch
    while rows > 1:
        rows = -(-rows // 2)
        yield "optim.microbatch_size", rows
    yield "optim.head_chunk", 8


def _for_rollouts(policy: Policy, config: Config) -> Iterator[tuple[str, Any]]:
    if config.rollout.share_prompts is None and not policy.shares_prompts:
        yield "rollout.share_prompts", True
    rows = config.rollout.batch_size
    while rows > 1:
        rows //= 2
        yield "rollout.batch_size", rows


def largest_microbatch(
    policy: Policy, config: Config, prompt: int, limit: int, memo: Memo | None = None
) -> int:
    """The most completions of a group per forward pass with which a step fits; 0 for none."""
    here, memo = copy.deepcopy(config), {} if memo is None else memo
    sizes = [config.rollout.group_size]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)

    def fits(rows: int) -> bool:
        here.optim.microbatch_size = rows
        return step_peak(policy, here, prompt, memo=memo) <= limit

    # The ends first: mostly they settle it.
    if fits(sizes[0]):
        return sizes[0]
    if not fits(sizes[-1]):
        return 0
    return sizes[bisect.bisect_left(sizes, True, key=fits)]


@dataclass(frozen=True)
class Outlook:
    """What ``look_ahead`` found; bytes. ``microbatch`` is the largest that fits as the config is,
    ``checkpointed`` with grad_checkpoint; ``changes`` what makes a run fit that doesn't."""

    forecast: Forecast
    limit: int
    fits: bool
    microbatch: int
    checkpointed: int
    chunk: int | None
    changes: list[Change]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return {
            "forecast": self.forecast.to_json(),
            "limit": self.limit,
            "fits": self.fits,
            "largest_microbatch": self.microbatch,
            "largest_microbatch_checkpointed": self.checkpointed,
            "head_chunk": self.chunk,
            "changes": [{"keys": c.keys, "peak": c.peak} for c in self.changes],
            "notes": self.notes,
        }


def look_ahead(config: Config, *, total: float | None = None) -> Outlook:
    """Tells the memory of a config's run without loading a weight.

    Args:
        total: bytes of memory of the Mac that it is for; default: this machine.

    Raises:
        UserError: the model or the config can't be read, or the model can't be traced.
    """
    limit = limit_of(config) if total is None else usable(total)
    policy = load_outline(config)
    prompt, notes = longest_prompt(policy, config)
    try:
        memo: Memo = {}
        found = forecast(policy, config, prompt, memo=memo)
        fits = found.peak <= limit
        better = [] if fits else changes(policy, config, found, limit, memo)
        largest = largest_microbatch(policy, config, prompt, limit, memo)
        saving = copy.deepcopy(config)
        saving.grad_checkpoint = True
        most = largest
        if largest < config.rollout.group_size:
            most = max(largest, largest_microbatch(policy, saving, prompt, limit, memo))
    except Unpredictable as error:
        raise UserError(
            f"The memory of {config.model} can't be told ({error}): start the run with "
            "memory.plan=false; its dry step measures."
        ) from error
    return Outlook(found, limit, fits, largest, most, policy.chunk, better, notes)


def longest_prompt(policy: Policy, config: Config) -> tuple[int, list[str]]:
    """Tokens of the longest prompt of the config's data, or the most that it allows where the data
    isn't there yet."""
    try:
        dataset = data.load(config.data)
    except UserError as error:
        allowed = config.prompt.max_length or UNKNOWN_PROMPT
        return allowed, [f"The data can't be read yet ({error}) Prompts are taken for {allowed}."]
    problems = [*dataset.train, *dataset.heldout[: config.eval.problems]]
    lengths = [len(policy.prompts.encode(problem)) for problem in problems]
    limit = policy.max_prompt_length
    kept = [n for n in lengths if limit is None or n <= limit]
    words = "No prompt fits: raise prompt.max_length, or lower rollout.max_completion_length."
    require(bool(kept), words)
    return max(kept), []


@dataclass(frozen=True)
class Plan:
    """How a run uses memory: what was told before, what the dry step took (bytes; None: there was
    none), the limit, and everything that decides in which pieces the step is computed."""

    forecast: dict[str, Any] | None
    measured: int | None
    limit: int
    execution: dict[str, Any]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "forecast": self.forecast,
            "measured_step": self.measured,
            "limit": self.limit,
            "execution": self.execution,
        }


def prepare(
    policy: Policy, config: Config, step: Step, prompt: int, saved: dict[str, Any] | None
) -> Plan:
    """Tells the run's peak, sets MLX's limits, and tries a step of the largest shape.

    ``saved`` is the plan of the checkpoint that the run goes on from: with the same settings it is
    taken as it is, since other pieces would round differently.

    Raises:
        UserError: the run can't fit into this machine's memory.
    """
    limit = limit_of(config)
    given = execution(config)
    if saved is not None and saved["execution"]["given"] == given:
        policy.head_chunk = saved["execution"]["head_chunk"]
        _set_limits(config, limit, _peak(saved["forecast"], saved["measured_step"]))
        return Plan(saved["forecast"], saved["measured_step"], limit, saved["execution"])
    notes: list[str] = []
    found = None
    if config.memory.plan:
        try:
            found = forecast(policy, config, prompt, step=step)
        except Unpredictable as error:
            notes.append(f"The peak of memory can't be told for this model ({error}).")
    if found is not None and found.peak > limit:
        notes.append(_too_much(policy, config, found, limit))
    told = None if found is None else found.to_json()
    _set_limits(config, limit, _peak(told, None))
    measured = dry_step(step, Shape.of(config, prompt)) if config.memory.dry_step else None
    _set_limits(config, limit, _peak(told, measured))
    if measured is not None and measured > limit:
        notes.append(
            f"Warning: a step of the largest shape took {measured / GB:.1f} GB, more than the "
            f"{limit / GB:.1f} GB that there are: set grad_checkpoint=true or a smaller "
            "optim.microbatch_size."
        )
    chosen = {"given": given, "way": policy.way, "compiled": step.compiles}
    chosen |= {"head_chunk": policy.chunk, "head_backend": policy.head_backend}
    return Plan(told, measured, limit, chosen, tuple(notes))


def execution(config: Config) -> dict[str, Any]:
    """The settings that decide in which pieces a step is computed, and so what it takes."""
    values: dict[str, Any] = {}
    for key in PLANNED:
        node: Any = config
        for part in key.split("."):
            node = getattr(node, part)
        values[key] = node
    return values


def _too_much(policy: Policy, config: Config, found: Forecast, limit: int) -> str:
    """A warning; where not even all memory would do, an error."""
    words = f"This run is predicted to take {found.peak / GB:.1f} GB"
    try:
        better = changes(policy, config, found, limit)
    except Unpredictable:
        better = []
    fix = (
        f"{better[0]} brings it to {better[0].peak / GB:.1f} GB"
        if better
        else "choose a smaller or 4-bit model, or lower rollout.max_completion_length"
    )
    if found.peak <= _ceiling(config, limit):
        return f"Warning: {words}, more than the {limit / GB:.1f} GB to work with: {fix}."
    raise UserError(
        f"{words} and there are {limit / GB:.1f} GB: {fix} (memory.plan=false starts it anyway)."
    )


def _ceiling(config: Config, limit: int) -> int:
    """Bytes above which a run isn't even tried: beyond what it is recommended to keep to, macOS
    gets slow before it gives up."""
    total = mx.device_info().get("memory_size") if mx.metal.is_available() else None
    return limit if config.memory.limit is not None else int(total or limit)


def _peak(told: dict[str, Any] | None, measured: int | None) -> int:
    """Bytes that the run is known to need."""
    return max(told["peak"] if told else 0, measured or 0)


def _set_limits(config: Config, limit: int, peak: int) -> None:
    """MLX's limit of memory, and of the freed buffers that it keeps: what ``peak`` leaves."""
    memory = config.memory
    mx.set_memory_limit(limit)
    left = max(LEAST_CACHE, limit - peak)
    cache = int(memory.cache_limit * GB) if memory.cache_limit else left
    mx.set_cache_limit(cache)
    if memory.wired_limit is not None and sys.platform == "darwin":
        mx.set_wired_limit(int(memory.wired_limit * GB))


def dry_step(step: Step, shape: Shape) -> int:
    """Peak bytes of one microbatch of the largest shape, whose gradient is thrown away."""
    batch = largest_batch(step.config, shape, ragged=step.policy.way == "packed")
    model = step.policy.model
    mx.eval(model.parameters())
    model.train()
    mx.clear_cache()
    mx.reset_peak_memory()
    try:
        mx.eval(step(batch))
    except RuntimeError as error:
        raise UserError(
            f"A step of the largest shape doesn't work on this machine ({error}): set "
            "grad_checkpoint=true, or a smaller optim.microbatch_size."
        ) from error
    finally:
        model.eval()
    return mx.get_peak_memory()
