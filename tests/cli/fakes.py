"""Made-up results of steps and evaluations."""

from __future__ import annotations

from simko_mlx.evaluate import Evaluation
from simko_mlx.metrics import Interval
from simko_mlx.types import (
    Completion,
    Problem,
    RolloutGroup,
    ScoredGroup,
    StepMetrics,
    Verdict,
)


def evaluation(label: str, pass_at_1: float, ks: tuple[int, ...] = (1, 2, 4, 8, 16)) -> Evaluation:
    def interval(value: float) -> Interval:
        return Interval(value, max(0.0, value - 0.03), min(1.0, value + 0.03))

    return Evaluation(
        label=label,
        problems=3,
        n=32,
        temperature=1.0,
        max_completion_length=12,
        pass_at_k={k: interval(min(1.0, pass_at_1 * k**0.5)) for k in ks},
        chance={k: 1 - (1 - 0.055) ** k for k in ks},
        entropy=0.41,
        rank_probs=(0.8, 0.1, 0.05),
        fork_rank_probs=(0.5, 0.2, 0.1),
        mean_length=10.9,
        truncated=0.01,
        unscorable=0.0,
        groups={"strategy L": interval(pass_at_1), "strategy R": interval(pass_at_1 / 2)},
        counts=(round(32 * pass_at_1), 0, 3),
        problem_ids=("a", "b", "c"),
        seconds=3.0,
    )


def group(text: str, reward: float | None = 1.0, prompt: str = "3 5 2 > 16 :") -> ScoredGroup:
    problem = Problem("p", ({"role": "user", "content": prompt},), "16")
    completion = Completion((1, 2), (-0.1, -0.2), text, "stop")
    rollout = RolloutGroup(problem, (1,), (completion,))
    return ScoredGroup(rollout, (Verdict(reward, bool(reward)),), (0.5,))


def step(number: int, reward: float = 0.3) -> StepMetrics:
    return StepMetrics(
        number,
        {
            "reward/mean": reward,
            "reward/correct": reward,
            "reward/mixed_groups": 0.9,
            "reward/unscorable": 0.0,
            "rollout/length": 10.8,
            "rollout/truncated": 0.01,
            "rollout/tokens_per_second": 12340.0,
            "loss/entropy": 0.5,
            "loss/rank1": 0.8,
            "optim/learning_rate": 1e-3,
            "optim/grad_norm": 0.83,
            "time/step": 0.45,
            "mem/peak_gb": 0.41,
        },
    )


def evaluated(number: int) -> StepMetrics:
    values = {"eval/tier": "full", "eval/label": "base", "eval/pass@1": 0.184, "eval/pass@8": 0.77}
    return StepMetrics(number, values)  # type: ignore[arg-type]


INFO = {
    "run_dir": "runs/countdown-tiny",
    "recipe": "countdown-tiny",
    "model": "embedded",
    "device": "Device(cpu, 0)",
    "parameters": 353_000,
    "trainable": 12_000,
    "steps": 10,
    "start_step": 0,
    "problems": 1000,
    "heldout": 100,
    "problems_per_step": 16,
    "group_size": 8,
    "loss": "simko",
    "stop_tokens": ["'.' (7)"],
    "notes": ["3 of 1000 prompts are too long: dropped."],
}
