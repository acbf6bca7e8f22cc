"""Progress of ``simko-mlx eval``, on stderr so that stdout holds the result alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from simko_mlx.loggers import Silent

from . import ui


class EvalView(Silent):
    """A line that is rewritten on a terminal; elsewhere only the messages."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty() and ui.can_rewrite()
        self.shown_at = 0.0
        self.open = False

    def start(self, info: dict[str, Any]) -> None:
        for note in info.get("notes", ()):
            self.message(note)

    def phase(self, name: str, done: int, total: int, detail: str = "") -> None:
        now = time.monotonic()
        if not self.terminal or (now - self.shown_at < 0.1 and done < total):
            return
        self.shown_at, self.open = now, True
        width = ui.console(sys.stderr).width - 1
        line = ui.clean(f"{name} {done:,}/{total:,} {detail}")[:width]
        sys.stderr.write(f"\r{line:{width}}")
        sys.stderr.flush()

    def message(self, text: str) -> None:
        self.close()
        click.echo(ui.clean(text), err=True)

    def close(self) -> None:
        if self.open:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self.open = False


@contextmanager
def view() -> Iterator[EvalView]:
    found = EvalView()
    try:
        yield found
    finally:
        found.close()
