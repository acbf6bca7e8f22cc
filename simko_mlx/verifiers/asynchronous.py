"""Values that a user's function may return at once, or as something to wait for."""

from __future__ import annotations

import inspect
from typing import Any

# One loop for all calls of a worker: an async function may keep a connection that belongs to it.
_runners: list[Any] = []


def result(value: Any) -> Any:
    """The value, waited for if it is awaitable.

    Raises:
        RuntimeError: it was cancelled; beside whatever the function raises.
    """
    if not inspect.isawaitable(value):
        return value
    import asyncio  # here, because it takes long for workers that don't need it

    async def waited() -> Any:
        try:
            return await value
        except asyncio.CancelledError as error:  # which is no Exception
            raise RuntimeError("it was cancelled") from error

    if not _runners:
        _runners.append(asyncio.Runner())
    return _runners[0].run(waited())
