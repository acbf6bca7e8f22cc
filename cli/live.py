"""The live view of a terminal, and the choice between it and plain lines."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console, Group
from rich.control import Control
from rich.live import Live
from rich.text import Text

from simko_mlx.loggers import Logger, Silent
from simko_mlx.types import ScoredGroup, StepMetrics

from . import ui
from .plain import PlainView, evaluation_figures
from .screen import Screen, render

REFRESH = 0.1  # seconds between two pictures


@contextmanager
def view(*, plain: bool = False) -> Iterator[Logger]:
    """The logger that shows a run. The terminal is as it was whichever way the block is left."""
    # Not rich's own idea of a terminal: FORCE_COLOR would send cursor movements into a pipe.
    live = sys.stdout is not None and sys.stdout.isatty() and ui.can_rewrite() and not plain
    logger = LiveView() if live else PlainView()
    try:
        yield logger
    finally:
        logger.close()


class LiveView(Silent):
    """Draws a ``Screen``. No thread: it draws when it hears something, at most every 0.1 s."""

    def __init__(self, console: Console | None = None):
        self.console = console or ui.console()
        self.screen = Screen()
        self.live: Live | None = None
        self.drawn_at = 0.0
        self.drawn_width = 0
        self.stepped_at: float | None = None
        self.on_suspend: Any = None

    def start(self, info: dict[str, Any]) -> None:
        self.screen.info = info
        self.screen.step = int(info.get("start_step", 0))
        self.screen.messages += info.get("notes", ())
        self._open()
        self._draw(now=True)

    def phase(self, name: str, done: int, total: int, detail: str = "") -> None:
        changed = self.screen.phase is None or self.screen.phase[0] != name
        self.screen.phase = (name, done, total, detail)
        self._draw(now=changed)

    def step(self, metrics: StepMetrics, groups: list[ScoredGroup]) -> None:
        if any(name.startswith("eval/") for name in metrics.values):
            self.screen.evaluation = "  ".join(evaluation_figures(metrics))
            self.screen.phase = None
            self.stepped_at = None  # the time of an evaluation is not a step's
        else:
            now = time.monotonic()
            if self.stepped_at is not None:
                self.screen.durations.append(now - self.stepped_at)
            self.stepped_at = now
            self.screen.hear(metrics, groups)
        self._draw(now=True)

    def message(self, text: str) -> None:
        if self.live is None:  # before the start, and after the end
            self._print(text)
            return
        self.screen.messages.append(text)
        self._draw(now=True)

    def close(self) -> None:
        if self.live is None:
            return
        self._suspendable(False)
        self.live.stop()
        self.live = None
        # The picture is gone; what was said in it stays.
        for text in dict.fromkeys(self.screen.messages):
            self._print(text)

    def _open(self) -> None:
        if self.live is None:
            self.live = Live(
                console=self.console, auto_refresh=False, transient=True, vertical_overflow="crop"
            )
            self.live.start()
            self._suspendable(True)

    def _draw(self, *, now: bool) -> None:
        moment = time.monotonic()
        if self.live is None or (not now and moment - self.drawn_at < REFRESH):
            return
        self.drawn_at = moment
        width, height = self.console.size
        if width < self.drawn_width:
            # The terminal has broken the old lines in two: the cursor can't find their start.
            self.console.control(Control.clear(), Control.home())
        self.drawn_width = width
        # The cursor rests on an empty last line: ^C, echoed at the end of a full one, would wrap
        # and the picture could not be taken back cleanly.
        lines = render(self.screen, width, height - 1)
        self.live.update(Group(*lines, Text()), refresh=True)

    def _print(self, text: str) -> None:
        warning = ui.is_warning(text)
        prefix = "WARNING: " if warning else ""
        self.console.print(Text(prefix + ui.clean(text), style="bold yellow" if warning else ""))

    def _suspendable(self, on: bool) -> None:
        """Ctrl-Z gives the shell a clean terminal, `fg` brings the picture back."""
        if threading.current_thread() is not threading.main_thread():
            return
        if on:
            self.on_suspend = signal.signal(signal.SIGTSTP, self._suspend)
        else:
            signal.signal(signal.SIGTSTP, self.on_suspend)

    def _suspend(self, signum: int, frame: FrameType | None) -> None:
        live = self.live
        if live is not None:
            live.stop()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # stops here until `fg`
        signal.signal(signal.SIGTSTP, self._suspend)
        self.stepped_at = None
        if live is not None:
            live.start()
            self._draw(now=True)
