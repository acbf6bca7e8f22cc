"""The view for pipes, files and plain terminals: one line per step, no control characters."""

from __future__ import annotations

import signal
import sys
from typing import Any, TextIO

from simko_mlx.loggers import Silent
from simko_mlx.types import ScoredGroup, StepMetrics

from . import ui

# metric -> how it reads in a line; shares are shown in percent
FIGURES = {
    "reward/mean": "reward {:.3f}",
    "reward/correct": "correct {:.1%}",
    "reward/mixed_groups": "mixed {:.0%}",
    "reward/unscorable": "unscorable {:.1%}",
    "rollout/length": "length {:.1f}",
    "rollout/truncated": "cut {:.0%}",
    "loss/loss": "loss {:.4f}",
    "loss/entropy": "entropy {:.3f}",
    "loss/rank1": "rank1 {:.3f}",
    "loss/kl": "kl {:.4f}",
    "loss/clipped": "clipped {:.1%}",
    "optim/learning_rate": "lr {:.3g}",
    "optim/grad_norm": "norm {:.3g}",
    "rollout/tokens_per_second": "{:,.0f} tok/s",
    "mem/peak_gb": "{:.2f} GB",
    "time/step": "{:.2f} s",
}
QUIET_AT_ZERO = {"reward/unscorable", "loss/clipped"}


class PlainView(Silent):
    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stdout
        self.steps = 0
        self.evaluating = False
        self.gone = False

    def start(self, info: dict[str, Any]) -> None:
        self.steps = int(info.get("steps", 0))
        for line in header(info):
            self._line(line)
        for note in info.get("notes", ()):
            self._line(f"note: {note}")

    def phase(self, name: str, done: int, total: int, detail: str = "") -> None:
        if name == "evaluate" and not self.evaluating:
            self._line("evaluating ...")
        self.evaluating = name == "evaluate"

    def step(self, metrics: StepMetrics, groups: list[ScoredGroup]) -> None:
        self.evaluating = False
        of = f"/{self.steps}" if self.steps else ""
        self._line(f"step {metrics.step}{of}  " + "  ".join(figures(metrics)))

    def message(self, text: str) -> None:
        self._line(("WARNING: " if ui.is_warning(text) else "note: ") + text)

    def _line(self, text: str) -> None:
        if self.gone:
            return
        try:
            print(ui.clean(text), file=self.stream, flush=True)
        except BrokenPipeError:
            # The reader (`| head`) went away. A logger must not raise: ask the run to stop the
            # way Ctrl-C does, so that it saves first.
            self.gone = True
            ui.discard_stdout()
            signal.raise_signal(signal.SIGINT)


def header(info: dict[str, Any]) -> list[str]:
    """What is about to run, in one to three lines."""
    names = ("recipe", "model", "loss", "device")
    lines = ["  ".join(f"{name} {info[name]}" for name in names if info.get(name))]
    sizes = [
        f"{info[key]:,} {text}"
        for key, text in (
            ("parameters", "parameters"),
            ("trainable", "trainable"),
            ("problems", "problems"),
            ("heldout", "held out"),
        )
        if isinstance(info.get(key), int)
    ]
    if "problems_per_step" in info and "group_size" in info:
        sizes.append(f"{info['problems_per_step']} x {info['group_size']} completions a step")
    lines.append(", ".join(sizes))
    if info.get("stop_tokens"):
        lines.append("stops at " + ", ".join(map(str, info["stop_tokens"])))
    if (info.get("memory") or {}).get("forecast"):
        told = info["memory"]["forecast"]
        phases = ("rollout", "evaluation", "step")
        parts = ", ".join(f"{name} {told[name] / 1e9:.2f}" for name in phases if told[name])
        limit = info["memory"]["limit"] / 1e9
        measured = info["memory"].get("measured_step")
        tried = f"; a dry step took {measured / 1e9:.2f}" if measured else ""
        lines.append(
            f"memory {told['peak'] / 1e9:.2f} of {limit:.1f} GB predicted ({parts}){tried}"
        )
    if info.get("run_dir"):
        lines.append(f"run {info['run_dir']}")
    return [line for line in lines if line]


def figures(metrics: StepMetrics) -> list[str]:
    values = metrics.values
    if any(name.startswith("eval/") for name in values):
        return evaluation_figures(metrics)
    return [
        form.format(values[name])
        for name, form in FIGURES.items()
        if name in values and (values[name] or name not in QUIET_AT_ZERO)
    ]


def evaluation_figures(metrics: StepMetrics) -> list[str]:
    """What was evaluated, pass@k in the order of k, then the other figures."""
    values = {name[5:]: v for name, v in metrics.values.items() if name.startswith("eval/")}
    words = [str(values.pop(name, "")) for name in ("tier", "label")]
    found = [" ".join(word for word in ["eval", *words] if word)]
    for name, value in values.items():
        percent = name.startswith("pass@")
        found.append(f"{name} {100 * value:.1f}%" if percent else f"{name} {value:.4g}")
    return found
