"""Short runs of the real trainer on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simko_mlx.config import Config, set_key
from simko_mlx.loggers import Silent
from simko_mlx.trainer import RunSummary, train

SMALL: dict[str, Any] = {
    "steps": 4,
    "data.size": 40,
    "data.heldout": 12,
    "memory.plan": False,
    "memory.dry_step": False,
    "rollout.problems_per_step": 4,
    "rollout.group_size": 4,
    "rollout.max_completion_length": 12,
    "policy.lora_parameters.scale": 4.0,
    "optim.learning_rate": 1e-3,
    "loss.alpha": 0.1,
    "eval.problems": 6,
    "eval.n": 4,
    "eval.k": [1, 2],
    "checkpoint.every": 2,
}
TIMED = ("time/", "rollout/tokens_per_second", "mem/")


class Recorder(Silent):
    """Keeps what a logger is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[Any] = []
        self.groups: list[Any] = []
        self.info: dict[str, Any] = {}

    def start(self, info):
        self.info = info

    def step(self, metrics, groups):
        self.steps.append(metrics)
        self.groups.append(groups)

    def message(self, text):
        self.messages.append(text)


def small_config(**changes: Any) -> Config:
    """The small run with dotted keys changed, dots written as double underscores."""
    config = Config()
    for key, value in {**SMALL, **{k.replace("__", "."): v for k, v in changes.items()}}.items():
        set_key(config, key, value)
    return config


def run(config: Config, folder: Path, *, resume: bool = False) -> tuple[RunSummary, Recorder]:
    recorder = Recorder()
    return train(config, folder, recorder, recipe="test", resume=resume), recorder


def metrics(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(TIMED)} for row in rows]
