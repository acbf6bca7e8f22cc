"""``simko-mlx train --supervise``: the run in a process of its own, started again when that dies.

Metal ends a process that runs out of memory, and Linux kills it: nothing inside can catch that.
"""

from __future__ import annotations

import datetime
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from simko_mlx.config import Config

FLAGS = ("model", "steps", "seed")
MOST = 3  # restarts for the same cause
# What running out of memory looks like: Metal's library aborts, Linux kills.
OUT_OF_MEMORY = (signal.SIGABRT, signal.SIGKILL)
WANTED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # how people stop a program


def run(config: Config, run_dir: Path, arguments: Mapping[str, list[str]], *, resume: bool) -> int:
    """Runs ``simko-mlx train`` with these arguments until it ends by itself; its exit code.

    A process that a signal ended goes on from the last checkpoint, with half the microbatch where
    memory may have been the cause; after three restarts for one cause it is given up.
    """
    rows = min(config.optim.microbatch_size or config.rollout.group_size, config.rollout.group_size)
    causes: Counter[int] = Counter()
    smaller: dict[str, Any] = {}
    while True:
        command = [sys.executable, "-m", __package__ or "simko_mlx_cli", "train"]
        if resume:
            command += ["--resume", str(run_dir), *arguments["go on"]]
        else:
            command += [*arguments["start"], "--output-dir", str(run_dir)]
        command += [part for key, value in smaller.items() for part in ("--set", f"{key}={value}")]
        code = _wait(command)
        if code >= 0:
            return code
        if -code in WANTED:  # before the child could answer it itself
            return 128 - code
        cause = signal.Signals(-code)
        causes[cause] += 1
        resume = resume or (run_dir / "checkpoints").is_dir()
        if causes[cause] > MOST:
            click.echo(
                f"error: the run was ended by {cause.name} {MOST + 1} times; it is given up. Go on "
                f"with `simko-mlx train --resume {run_dir}` once the cause is found "
                "(`simko-mlx plan` tells what it takes).",
                err=True,
            )
            return 1
        words = "it goes on from the last checkpoint" if resume else "it starts again"
        if cause in OUT_OF_MEMORY:
            if rows > 1:
                rows //= 2
                smaller["optim.microbatch_size"] = rows
                smaller["optim.microbatch_tokens"] = 0  # or small groups would be put together
                words += f" with optim.microbatch_size={rows}"
            else:
                smaller["grad_checkpoint"] = "true"
                words += " with grad_checkpoint=true"
        click.echo(
            f"The run was ended by {cause.name} ({causes[cause]} of {MOST}): {words}.", err=True
        )


def arguments(options: Mapping[str, Any]) -> dict[str, list[str]]:
    """What of a command line a supervised run is given: when it starts, and when it goes on."""
    going_on: list[str] = [
        f"--{name}={options[name]}" for name in FLAGS if options[name] is not None
    ]
    for assignment in options["sets"]:
        going_on += ["--set", assignment]
    if options["until"] is not None:
        at = datetime.datetime.fromtimestamp(options["until"])
        going_on += ["--until", at.isoformat(sep=" ", timespec="seconds")]
    going_on += ["--plain"] if options["plain"] else []
    config = ["--config", options["config"]] if options["config"] else []
    return {"start": [*config, *going_on], "go on": going_on}


def _wait(command: list[str]) -> int:
    """The exit code of a command, which gets what ends this process: Ctrl-C reaches both anyway,
    and is the child's to answer; SIGTERM is passed on."""
    child = subprocess.Popen(command)
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: child.terminate()),
    }
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
