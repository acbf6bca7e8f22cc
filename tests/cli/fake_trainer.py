"""``python fake_trainer.py train ...``: the command line over a trainer that only reports.

The seed says how it ends: 97 Ctrl-C, 98 SIGTERM, 99 a mistake of the user's, else well.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from cli.main import app
from simko_mlx.config import Config
from simko_mlx.types import UserError
from tests.cli.fakes import INFO, evaluated, evaluation, group, step

fake: Any = ModuleType("simko_mlx.trainer")


class Terminated(BaseException):
    pass


class Summary:
    best_step, stopped = None, False

    def __init__(self, run_dir: Path, last: int):
        self.run_dir, self.step = run_dir, last
        self.base, self.trained = evaluation("base", 0.18), evaluation(f"step {last}", 0.31)


def train(config: Config, run_dir: Path, logger: Any, **options: Any) -> Summary:
    (run_dir / "checkpoints" / "step-000002").mkdir(parents=True, exist_ok=True)
    (run_dir / "adapters").mkdir(exist_ok=True)
    logger.start({**INFO, "run_dir": str(run_dir), "steps": config.steps})
    logger.phase("evaluate", 0, 100)
    logger.step(evaluated(0), [])
    for number in range(1, config.steps + 1):
        logger.phase("rollout", 64, 128, "1,234 tok/s")
        logger.step(step(number), [group("L 3 + 5 \x1b[31m\n[bold]x[/bold]")])
        if number == 2:
            logger.message("No learning signal for 3 steps: every completion is wrong.")
            ends = {97: KeyboardInterrupt, 98: Terminated, 99: UserError("The model is mute.")}
            if config.seed in ends:
                raise ends[config.seed]
    logger.close()
    return Summary(run_dir, config.steps)


fake.train, fake.Terminated = train, Terminated
fake.new_run_dir = lambda output_dir, recipe: Path(output_dir or "runs") / recipe
sys.modules["simko_mlx.trainer"] = fake

app()
