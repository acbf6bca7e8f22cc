"""Progress of downloads from the Hub, on stderr: a bar on a terminal, two lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from simko_mlx import hub

from . import ui


@contextmanager
def shown() -> Iterator[None]:
    """Shows the downloads of the block, whichever command makes them."""
    view = Downloads()
    try:
        with hub.progress_to(view):
            yield
    finally:
        view.close()


class Downloads:
    """Called by whatever thread has bytes to tell of, one repository after the other."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty() and ui.can_rewrite()
        self.lock = threading.Lock()
        self.name: str | None = None  # of what is being fetched
        self.began = self.shown_at = 0.0
        self.bar: Any = None

    def __call__(self, done: int, total: int, name: str) -> None:
        with self.lock:
            now = time.monotonic()
            if self.name is None:
                self.name, self.began = name, now
                self._open(name, total)
            if self.bar is not None and (now - self.shown_at >= 0.1 or done == total):
                self.shown_at = now
                self.bar.update(0, completed=done, refresh=True)
            if done == total:
                self._close()
                took = ui.seconds(now - self.began)
                click.echo(f"Downloaded {ui.clean(name)}: {hub.size(total)} in {took}.", err=True)
                self.name = None

    def _open(self, name: str, total: int) -> None:
        if not self.terminal:
            click.echo(f"Downloading {ui.clean(name)}: {hub.size(total)}.", err=True)
            return
        from rich import progress
        from rich.text import Text

        self.bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=ui.console(sys.stderr),
            transient=True,
            auto_refresh=False,
        )
        self.bar.add_task(Text(ui.clean(name)).markup, total=total)
        self.bar.start()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def close(self) -> None:
        """Takes an unfinished bar off the terminal."""
        with self.lock:
            self._close()
