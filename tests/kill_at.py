"""Runs the small training run and sends itself a signal at the n-th moment worth dying at.

    python -m tests.kill_at RUN MOMENT SIGNAL RESUME

Moments are before and after every file sync, rename and replace, and every evaluation of arrays,
decoded token and finished step. MOMENT is a number, or save-N to count only moments inside of
saves; 0 never kills and prints the number of moments. The signal goes to this process alone.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import simko_mlx  # noqa: F401  before mlx
from simko_mlx import checkpoint, learner
from simko_mlx import rollout as rollout_module
from simko_mlx.loggers import Silent
from simko_mlx.trainer import Terminated, train
from tests.runs import small_config

KEYS = {"eval__every": 3, "eval__every_problems": 2, "eval__every_n": 2, "steps": 6}


class Moments:
    def __init__(self, fatal: str, number: int):
        self.only_saves = fatal.startswith("save-")
        self.fatal = int(fatal.removeprefix("save-"))
        self.count, self.number, self.saving = 0, number, 0

    def tick(self) -> None:
        self.count += bool(self.saving or not self.only_saves)
        if self.count == self.fatal:
            sys.stderr.write(f"dying {'inside' if self.saving else 'outside'} a save\n")
            sys.stderr.flush()
            os.kill(os.getpid(), self.number)

    def around(self, module, name: str) -> None:
        original = getattr(module, name)

        def wrapped(*args, **kwargs):
            self.tick()
            result = original(*args, **kwargs)
            self.tick()
            return result

        setattr(module, name, wrapped)

    def within_save(self) -> None:
        original = checkpoint.save

        def wrapped(*args, **kwargs):
            self.saving += 1
            try:
                return original(*args, **kwargs)
            finally:
                self.saving -= 1

        checkpoint.save = wrapped


def main() -> int:
    folder, fatal, number, resume = sys.argv[1:]
    moments = Moments(fatal, int(getattr(signal, number)))
    moments.within_save()
    for module, name in (
        (os, "fsync"),
        (os, "rename"),
        (os, "replace"),
        (learner.mx, "eval"),
        (rollout_module.Decoder, "step"),
        (checkpoint, "prune"),
    ):
        moments.around(module, name)

    class Ticking(Silent):
        def step(self, metrics, groups):
            moments.tick()

    try:
        train(small_config(**KEYS), Path(folder), Ticking(), resume=resume == "resume")
    except KeyboardInterrupt:
        return 130
    except Terminated:
        return 143
    sys.stdout.write(f"{moments.count}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
