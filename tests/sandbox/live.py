"""The sandbox of this machine, for tests that need a real one."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import pytest

from simko_mlx.sandbox.backend import Backend, choose
from simko_mlx.sandbox.run import check_works
from simko_mlx.types import UserError

UID = 54321


def settings() -> dict[str, Any]:
    return {"enabled": True, "uid": UID if os.geteuid() == 0 else None}


@cache
def why_not() -> str:
    """Why there is no sandbox here; empty if there is one."""
    try:
        check_works(choose(settings()))
    except UserError as error:
        return str(error)
    return ""


def backend() -> Backend:
    """Skips the test, with the reason, where there is no sandbox."""
    if why_not():
        pytest.skip(f"not run: {why_not()}")
    return choose(settings())
