"""A trainer that trains nothing, so that the command line can be tried without a model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).parent / "fake_trainer.py"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment() -> dict[str, str]:
    """This process's, without what would change the output, and with the repository on the path."""
    dropped = ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "LINES")
    kept = {k: v for k, v in os.environ.items() if k not in dropped and "SIMKO_MLX" not in k}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}


@pytest.fixture
def simko(tmp_path: Path, environment: dict[str, str]) -> Run:
    """Runs the command line in an empty folder; ``fake`` puts the fake trainer in the real one's
    place."""

    def run(
        *args: str, fake: bool = False, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        program = [str(FAKE)] if fake else ["-m", "cli"]
        return subprocess.run(
            [sys.executable, *program, *args],
            cwd=tmp_path,
            env={**environment, **(env or {})},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run
