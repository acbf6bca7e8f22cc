"""Ctrl-C and SIGTERM: at once where nothing is half done, else when that thing is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Terminated(BaseException):
    """SIGTERM arrived; like KeyboardInterrupt, no ``except Exception`` catches it."""


class Interrupts:
    """While entered, SIGINT raises KeyboardInterrupt and SIGTERM raises Terminated, both only
    outside of ``shield()`` blocks, and only once: what follows is saving and putting the terminal
    back, which an impatient second Ctrl-C must not break. Off the main thread it does nothing."""

    def __init__(self) -> None:
        self._depth = 0
        self._pending: int | None = None
        self._stopping = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._stopping:
            return
        if self._depth:
            self._pending = number
        else:
            self._raise(number)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Holds signals back until the block has ended."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._pending is not None and not self._depth:
            number, self._pending = self._pending, None
            self._raise(number)

    def _raise(self, number: int) -> None:
        self._stopping = True
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated
