"""Signals are held back by shields and heard once."""

from __future__ import annotations

import os
import signal

import pytest

from simko_mlx.interrupts import Interrupts, Terminated


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_shield_holds_a_signal_until_its_end(number, error):
    seen = []
    with pytest.raises(error), Interrupts() as interrupts:
        with interrupts.shield():
            with interrupts.shield():
                send(number)
                seen.append("inside")
            seen.append("still inside")
        seen.append("never")
    assert seen == ["inside", "still inside"]


def test_only_the_first_signal_counts():
    saved = []
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        try:
            send(signal.SIGINT)
        finally:
            send(signal.SIGINT)
            with interrupts.shield():
                send(signal.SIGTERM)
            saved.append(True)
    assert saved == [True]


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
