"""A step's problems -> groups of completions with verdicts and advantages."""

from __future__ import annotations

import time
from collections.abc import Mapping

from simko_mlx.advantages import group_advantages
from simko_mlx.evaluate import Prompts
from simko_mlx.loggers import Logger
from simko_mlx.policy import Policy
from simko_mlx.rollout import Sampling, rollout
from simko_mlx.types import RolloutGroup, ScoredGroup, UserError, Verdict
from simko_mlx.verifiers.pool import VerifierPool


def collect(
    policy: Policy, pool: VerifierPool, prompts: Prompts, step: int | str, logger: Logger
) -> tuple[list[ScoredGroup], float]:
    """The scored groups, in the prompts' order, and when the last completion had ended
    (``time.monotonic``): groups are judged while others still decode."""
    config = policy.config.rollout
    sampling = Sampling(
        group_size=config.group_size,
        max_completion_length=config.max_completion_length,
        temperature=config.temperature,
        seed=policy.config.seed,
        step=step,
        batch_size=config.batch_size,
        prefill_chunk=config.prefill_chunk,
        top_p=config.top_p,
        top_k=config.top_k,
    )
    began = time.monotonic()
    places: list[int] = []

    def judge(place: int, group: RolloutGroup) -> None:
        places.append(place)
        job.add(group)

    def progress(done: int, total: int, tokens: int) -> None:
        job.poll()
        rate = tokens / max(1e-9, time.monotonic() - began)
        logger.phase("rollout", done, total, f"{rate:,.0f} tok/s")

    with pool.verification() as job:
        groups = rollout(policy, prompts, sampling, progress, on_group=judge)
        rolled = time.monotonic()
        job.on_done = lambda done: logger.phase("verify", done, len(groups))
        logger.phase("verify", job.done, len(groups))
        verdicts = dict(zip(places, job.finish(), strict=True))
    _check_faults(groups, verdicts, pool.name, policy.config.verifier.max_fault_rate)
    scale = policy.config.advantage.scale_rewards
    return [_scored(group, verdicts[i], scale) for i, group in enumerate(groups)], rolled


def _scored(group: RolloutGroup, verdicts: list[Verdict], scale: bool) -> ScoredGroup:
    advantages = group_advantages([v.reward for v in verdicts], scale=scale)
    return ScoredGroup(group, tuple(verdicts), tuple(advantages))


def _check_faults(
    groups: list[RolloutGroup], verdicts: Mapping[int, list[Verdict]], name: str, limit: float
) -> None:
    """Raises UserError, with examples, where the verifier failed for a larger share than that."""
    failed = [
        f"{verdict.detail} with {group.completions[j].text[:60]!r} of problem {group.problem.id}"
        for i, group in enumerate(groups)
        for j, verdict in enumerate(verdicts[i])
        if verdict.fault
    ]
    total = sum(map(len, verdicts.values()))
    if len(failed) > limit * total:
        raise UserError(
            f"The verifier {name} failed for {len(failed)} of this step's {total} completions "
            f"through no fault of theirs ({'; '.join(failed[:3])}): correct it, or raise "
            f"verifier.max_fault_rate ({limit:g})."
        )
