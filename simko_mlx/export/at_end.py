"""The push at the end of a training run (``hub.repo``), which never fails the run."""

from __future__ import annotations

from pathlib import Path

from simko_mlx.config import Config
from simko_mlx.export.hub_session import HubTrouble
from simko_mlx.export.push import (
    PushOptions,
    check_repo,
    check_token,
    push,
    retry_command,
)
from simko_mlx.export.repository import Content, Silent
from simko_mlx.interrupts import Terminated
from simko_mlx.loggers import Logger
from simko_mlx.types import UserError


def notes(config: Config) -> list[str]:
    """What would keep the push from working, told when training starts.

    Raises:
        UserError: hub.repo can't be a repository's id.
    """
    if config.hub.repo is None:
        return []
    try:
        check_repo(config.hub.repo)
    except UserError as error:
        raise UserError(f"hub.repo: {error}") from error
    try:
        check_token()
    except UserError as error:
        return [f"Warning: the push to {config.hub.repo} at the end would fail. {error}"]
    return []


# Whatever goes wrong in a push, the run that is about to end has gone well.
_ANYTHING = (
    *(UserError, HubTrouble, OSError, ValueError, TypeError, AttributeError, LookupError),
    *(RuntimeError, ArithmeticError, AssertionError),
)
_STOPS = (KeyboardInterrupt, Terminated)


def push_at_end(config: Config, run_dir: Path, logger: Logger) -> None:
    """Pushes the last step to ``hub.repo``; a failure is a message with the command to repeat."""
    repo = config.hub.repo
    if repo is None:
        return
    options = PushOptions(kinds=tuple(config.hub.to), private=config.hub.private)
    try:
        pushed = push(run_dir, repo, options, _Heard(logger))
    except (*_ANYTHING, *_STOPS) as error:
        command = retry_command(run_dir, repo, options)
        why = str(error) or type(error).__name__
        if isinstance(error, _STOPS):
            why = "The push was stopped."
        logger.message(f"Warning: the run is complete, but was not pushed. {why}")
        logger.message(f"To push it later: {command}")
    else:
        logger.message(f"Pushed to {pushed.url}" if pushed.commit else f"{pushed.url} has it all.")


class _Heard(Silent):
    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def files(self, repo: str, content: Content) -> None:
        for note in content.notes:
            self.logger.message(note)

    def sent(self, done: int, total: int, path: str) -> None:
        self.logger.phase("push", done, total, "bytes")

    def message(self, text: str) -> None:
        self.logger.message(text)
