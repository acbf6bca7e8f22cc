"""What the live view shows, as lines of text for a given size. Knows nothing about terminals."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from simko_mlx.types import ScoredGroup, StepMetrics

from . import ui

HISTORY = 60
RECENT = 10  # steps that the ETA goes by
LABEL, VALUE = 10, 8
# label, metric, form
METRICS = (
    ("reward", "reward/mean", "{:.3f}"),
    ("correct", "reward/correct", "{:.1%}"),
    ("mixed", "reward/mixed_groups", "{:.0%}"),
    ("entropy", "loss/entropy", "{:.3f}"),
    ("rank-1", "loss/rank1", "{:.3f}"),
    ("length", "rollout/length", "{:.1f}"),
    ("truncated", "rollout/truncated", "{:.1%}"),
    ("KL", "loss/kl", "{:.4f}"),
    ("clipped", "loss/clipped", "{:.1%}"),
    ("lr", "optim/learning_rate", "{:.2g}"),
    ("grad norm", "optim/grad_norm", "{:.3g}"),
    ("tok/s", "rollout/tokens_per_second", "{:,.0f}"),
    ("memory", "mem/peak_gb", "{:.2f} GB"),
    ("step time", "time/step", "{:.2f} s"),
)


@dataclass
class Sample:
    """One completion of the last step."""

    prompt: str
    completion: str
    reward: float | None
    correct: bool


@dataclass
class Screen:
    """All that the view has heard of so far."""

    info: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    phase: tuple[str, int, int, str] | None = None
    values: dict[str, float] = field(default_factory=dict)
    history: dict[str, deque[float]] = field(default_factory=dict)
    sample: Sample | None = None
    evaluation: str = ""
    messages: list[str] = field(default_factory=list)
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def steps(self) -> int:
        return int(self.info.get("steps", 0))

    def eta(self) -> str:
        """From the recent speed: a Mac that gets warm slows down."""
        if len(self.durations) < 2 or self.step >= self.steps:
            return ""
        return "ETA " + ui.seconds(median(self.durations) * (self.steps - self.step))

    def hear(self, metrics: StepMetrics, groups: list[ScoredGroup]) -> None:
        """Takes in a training step."""
        self.step, self.phase = metrics.step, None
        self.values = dict(metrics.values)
        for _, name, _ in METRICS:
            if name in metrics.values:
                past = self.history.setdefault(name, deque(maxlen=HISTORY))
                past.append(metrics.values[name])
        if groups:
            # Another one each step, by a rule that can't prefer good ones.
            scored = groups[metrics.step % len(groups)]
            index = metrics.step % len(scored.group.completions)
            self.sample = Sample(
                scored.group.problem.messages[-1]["content"],
                scored.group.completions[index].text,
                scored.verdicts[index].reward,
                scored.verdicts[index].correct,
            )


def render(screen: Screen, width: int, height: int) -> list[Text]:
    """At most ``height`` lines; what matters least goes first where there is no room."""
    top = [*_header(screen), _steps_bar(screen, width), _phase_bar(screen, width)]
    bottom = _messages(screen, width)
    if screen.evaluation:
        bottom.insert(0, Text(screen.evaluation))
    room = max(0, height - len(top) - len(bottom))
    middle = _metrics(screen, width)[:room]
    room -= len(middle)
    if screen.sample and room >= 3:
        middle += [Text(), *_sample(screen.sample, width, room - 2)]
    lines = (top + middle + bottom)[:height]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _header(screen: Screen) -> list[Text]:
    info = screen.info
    names = " · ".join(str(info[n]) for n in ("recipe", "model", "loss") if info.get(n))
    first = Text.assemble(("simko-mlx ", "bold"), (ui.clean(names), "bold cyan"))
    second = Text(ui.clean(str(info.get("run_dir", ""))), style="dim")
    return [first, second]


def bar(share: float, width: int) -> Text:
    filled = round(min(1.0, max(0.0, share)) * width)
    # Two shapes, for terminals without colours.
    return Text.assemble(("━" * filled, "green"), ("╌" * (width - filled), "dim"))


def _bar_line(name: str, share: float, count: str, detail: str, width: int) -> Text:
    after = f" {count}  {detail}".rstrip()
    # A long detail may not take the bar away.
    space = max(6, width - 10 - max(16, cell_len(after)))
    return Text.assemble(f"{name:9} ", bar(share, space), after)


def _steps_bar(screen: Screen, width: int) -> Text:
    done, total = screen.step, screen.steps
    share = done / total if total else 0.0
    return _bar_line("steps", share, f"{done}/{total}", screen.eta(), width)


def _phase_bar(screen: Screen, width: int) -> Text:
    if screen.phase is None:
        return Text("...", style="dim")
    name, done, total, detail = screen.phase
    share = done / total if total else 0.0
    return _bar_line(name, share, f"{done:,}/{total:,}", ui.clean(detail), width)


def _metrics(screen: Screen, width: int) -> list[Text]:
    cell = width // 2 - 1
    cells = [
        _metric(label, form.format(screen.values[name]), screen.history[name], cell)
        for label, name, form in METRICS
        if name in screen.values
    ]
    lines = [Text()] if cells else []
    for left in range(0, len(cells), 2):
        line = cells[left]
        line.pad_right(max(0, cell - line.cell_len))
        lines.append(Text.assemble(line, "  ", *cells[left + 1 : left + 2]))
    return lines


def _metric(label: str, value: str, past: deque[float], width: int) -> Text:
    text = Text.assemble((f"{label:{LABEL}}", "dim"), (f"{value:>{VALUE}}", "bold"))
    room = min(20, width - LABEL - VALUE - 2)
    if room >= 6 and len(past) > 1:
        text.append("  " + ui.spark(list(past), room), style="cyan")
    return text


def _sample(sample: Sample, width: int, room: int) -> list[Text]:
    reward = "not scorable" if sample.reward is None else f"reward {sample.reward:.3g}"
    style = "bold green" if sample.correct else "bold red"
    verdict = "correct" if sample.correct else "wrong"
    title = Text.assemble(("sample  ", "dim"), (f"{reward}, {verdict}", style))
    # The end of a prompt and of a completion says the most.
    prompt = _wrap(sample.prompt, width, min(2, max(1, room // 3)), "dim")
    return [title, *prompt, *_wrap(sample.completion, width, room - len(prompt), "")]


def _wrap(text: str, width: int, room: int, style: str) -> list[Text]:
    """The text in at most ``room`` lines of ``width`` cells; the middle of a long one is left out.

    Lines are cut by cells, not at spaces: code and chains of thought keep their own spacing.
    """
    text = ui.clean(text)
    lines, line = [], ""
    # Only so much of the ends can be shown.
    if len(text) > 2 * width * room:
        text = text[: width * room] + text[-width * room :]
    for char in text:
        if cell_len(line) + cell_len(char) > width:
            lines.append(line)
            line = ""
        line += char
    lines.append(line)
    if len(lines) > room:
        head = (room - 1) // 2
        tail = lines[len(lines) - (room - head) :]
        lines = [*lines[:head], "…" + tail[0][1:], *tail[1:]]
    return [Text(line, style=style) for line in lines[:room]]


def _messages(screen: Screen, width: int) -> list[Text]:
    """The last two, the last of them in two lines if it needs them."""
    lines: list[Text] = []
    shown = screen.messages[-2:]
    for index, text in enumerate(shown):
        room = 2 if index == len(shown) - 1 else 1
        warning = ui.is_warning(text)
        words = Text(("! " if warning else "") + ui.clean(text), end="")
        wrapped = list(words.wrap(Console(width=width), width))
        if len(wrapped) > room:
            wrapped[room - 1].append("…")
        style = "bold yellow" if warning else ""
        lines += [Text(line.plain, style=style) for line in wrapped[:room]]
    return lines
