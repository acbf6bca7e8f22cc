"""What ``simko-mlx push`` shows: the files first, a bar while they are sent, what came of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from simko_mlx.export.hub_session import HubTrouble, Refused
from simko_mlx.export.repository import Content, Pushed, Silent

from . import ui

if TYPE_CHECKING:
    from rich.progress import Progress


class Trouble(ui.Failure):
    """The network's or the Hub's doing, not the user's."""

    exit_code = 1


def show_files(repo: str, content: Content) -> None:
    """Sizes first; what to know about the files goes to stderr."""
    sizes = content.sizes
    for note in content.notes:
        click.echo(f"note: {ui.clean(note)}", err=True)
    click.echo(f"For {ui.clean(repo)}, bytes:")
    width = len(f"{sum(sizes.values()):,}")
    for path, size in sizes.items():
        click.echo(f"  {size:{width},}  {path}")
    click.echo(f"  {sum(sizes.values()):{width},}  in {len(sizes)} files")


def show(pushed: Pushed) -> None:
    if pushed.commit is None:
        click.echo(f"Nothing has changed, and no commit was made: {pushed.url}")
        return
    files = len(pushed.files) + len(pushed.unchanged)
    click.echo(f"Pushed, {len(pushed.files)} of {files} files new or changed: {pushed.url}")


class PushView(Silent):
    """A bar of bytes on a terminal's stderr; in a pipe the list of files alone."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty() and ui.can_rewrite()
        self.bar: Progress | None = None

    def files(self, repo: str, content: Content) -> None:
        show_files(repo, content)
        sys.stdout.flush()

    def sent(self, done: int, total: int, path: str) -> None:
        if not self.terminal:
            return
        if self.bar is None:
            self.bar = _bar()
            self.bar.start()
            self.bar.add_task("sending", total=total)
        self.bar.update(self.bar.task_ids[0], completed=done)
        if done == total:
            self.close()  # what is left is one short request

    def message(self, text: str) -> None:
        self.close()
        click.echo(ui.clean(text), err=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _bar() -> Progress:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=ui.console(sys.stderr), transient=True, expand=True)


@contextmanager
def view() -> Iterator[PushView]:
    found = PushView()
    try:
        yield found
    finally:
        found.close()


@contextmanager
def failures(command: str) -> Iterator[None]:
    """A sentence, and the command to repeat on a line of its own."""
    try:
        yield
    except (HubTrouble, Refused) as error:
        failure = (Trouble if isinstance(error, HubTrouble) else ui.Failure)(str(error))
        failure.show()
        click.echo(command, err=True)
        raise click.exceptions.Exit(failure.exit_code) from error
    except KeyboardInterrupt as error:
        click.echo("Stopped; the repository is as it was, or has it all. Again with:", err=True)
        click.echo(command, err=True)
        raise click.exceptions.Exit(ui.INTERRUPTED) from error
