"""Where the figures of a run go. A logger only listens; it never changes the run.

The JSONL logger always writes. The terminal's live view is another logger, kept in ``cli/`` so
that the library neither prints nor imports rich.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Protocol

from simko_mlx.types import ScoredGroup, StepMetrics


class Logger(Protocol):
    """Listens to a run. Every method returns at once and must not raise."""

    def start(self, info: dict[str, Any]) -> None:
        """Once, before the first step: what is about to run (names, sizes, total steps)."""

    def phase(self, name: str, done: int, total: int, detail: str = "") -> None:
        """Progress of "rollout", "verify", "update" or "evaluate" within the current step."""

    def step(self, metrics: StepMetrics, groups: list[ScoredGroup]) -> None:
        """A finished step; ``groups`` is empty for an evaluation."""

    def message(self, text: str) -> None:
        """A sentence that the user should read."""

    def close(self) -> None:
        """Once, at the end, however it came."""


class Silent:
    """The logger that listens to nothing; a base to override what one cares about."""

    def start(self, info: dict[str, Any]) -> None: ...
    def phase(self, name: str, done: int, total: int, detail: str = "") -> None: ...
    def step(self, metrics: StepMetrics, groups: list[ScoredGroup]) -> None: ...
    def message(self, text: str) -> None: ...
    def close(self) -> None: ...


class Fanout:
    """Passes everything on to several loggers, in order."""

    def __init__(self, loggers: list[Logger]):
        self.loggers = loggers

    def start(self, info: dict[str, Any]) -> None:
        for logger in self.loggers:
            logger.start(info)

    def phase(self, name: str, done: int, total: int, detail: str = "") -> None:
        for logger in self.loggers:
            logger.phase(name, done, total, detail)

    def step(self, metrics: StepMetrics, groups: list[ScoredGroup]) -> None:
        for logger in self.loggers:
            logger.step(metrics, groups)

    def message(self, text: str) -> None:
        for logger in self.loggers:
            logger.message(text)

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()


class JsonlLogger(Silent):
    """``metrics.jsonl`` (a line per step or evaluation) and ``rollouts.jsonl`` (a line per
    completion, with its problem, text, tokens, reward and advantage)."""

    FILES = ("metrics.jsonl", "rollouts.jsonl")

    def __init__(self, run_dir: Path):
        self._files = [open(run_dir / name, "ab") for name in self.FILES]  # noqa: SIM115

    def step(self, metrics: StepMetrics, groups: list[ScoredGroup]) -> None:
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in metrics.values.items()
        }
        self._write(0, {"step": metrics.step, **values})  # JSON has no NaN
        for scored in groups:
            rows = zip(scored.group.completions, scored.verdicts, scored.advantages, strict=True)
            for index, (completion, verdict, advantage) in enumerate(rows):
                self._write(
                    1,
                    {
                        "step": metrics.step,
                        "problem": scored.group.problem.id,
                        "sample": index,
                        "text": completion.text,
                        "token_ids": list(completion.token_ids),
                        "stop_reason": completion.stop_reason,
                        "reward": verdict.reward,
                        "correct": verdict.correct,
                        "detail": verdict.detail,
                        "taken": verdict.taken,
                        "fault": verdict.fault,
                        "advantage": advantage,
                    },
                )

    def _write(self, which: int, row: dict[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False)
        # A lone surrogate can come out of a byte-level tokenizer; the log must still be UTF-8.
        self._files[which].write(line.encode("utf-8", "backslashreplace") + b"\n")
        self._files[which].flush()

    def offsets(self) -> dict[str, int]:
        """Bytes written so far, made durable: what a checkpoint cuts the logs back to."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        return {n: f.tell() for n, f in zip(self.FILES, self._files, strict=True)}

    def close(self) -> None:
        for file in self._files:
            file.close()


def cut_back(run_dir: Path, offsets: dict[str, int]) -> None:
    """Truncates each log to the length it had at a checkpoint."""
    for name, size in offsets.items():
        path = run_dir / name
        if path.exists() and path.stat().st_size > size:
            os.truncate(path, size)
