"""The time of day until which a run may go on."""

from __future__ import annotations

import datetime
import time
from collections import deque

from simko_mlx.types import UserError

RECENT = 5  # steps


def parse_until(text: str, now: datetime.datetime | None = None) -> datetime.datetime:
    """ "07:00", the next time it is that late here, or a date and time, "2026-01-31 07:00".

    Raises:
        UserError: it is neither, or it has passed.
    """
    now = now or datetime.datetime.now()
    words = f"--until is {text!r}: write a time of day like 07:00, or 2026-01-31 07:00."
    try:
        if len(text) <= len("07:00:00"):
            found = datetime.datetime.combine(now.date(), datetime.time.fromisoformat(text))
            return found if found > now else found + datetime.timedelta(days=1)
        found = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError(words) from error
    if found.tzinfo is not None:
        found = found.astimezone().replace(tzinfo=None)
    if found <= now:
        raise UserError(f"--until is {text!r}, which has passed: name a time to come.")
    return found


class Until:
    """Tells before each step whether it would still end in time, by how long the last ones took.

    ``at`` is in seconds since the epoch, None for never; ``reserve`` is for what comes after the
    last step.
    """

    def __init__(self, at: float | None, reserve: float = 0.0):
        self.at = at
        self.reserve = reserve
        self._took: deque[float] = deque(maxlen=RECENT)

    def step_took(self, seconds: float) -> None:
        self._took.append(seconds)

    def is_near(self, now: float | None = None) -> bool:
        """Whether the next step would end too late."""
        if self.at is None:
            return False
        now = time.time() if now is None else now
        return now + max(self._took, default=0.0) + self.reserve >= self.at
