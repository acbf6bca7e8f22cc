"""The two pictures of a model card, as SVG: how training went, and pass@k against k.

Nothing here knows runs or files. The pictures bring their own light background, so that they read
on a dark page too, and hold neither script nor reference to anything outside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from xml.sax.saxutils import escape, quoteattr

from simko_mlx.metrics import Interval

WIDTH, HEIGHT = 720, 380
INK, MUTED, GRID, PAPER = "#1f2937", "#5b6472", "#e3e7ee", "#fdfdfe"
TRAINED, BEFORE, START, CHANCE = "#1d5fd1", "#5b6472", "#8a3ffc", "#b4560b"
FAINT = "#9dbdf0"  # single steps behind their running mean
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
LINE_HEIGHT = 17  # between two labels


@dataclass(frozen=True)
class Series:
    """A line of the pass@k picture: estimates by k, with intervals where there are any."""

    label: str
    colour: str
    values: Mapping[int, float]
    intervals: Mapping[int, Interval] = field(default_factory=dict)
    dashed: bool = False


@dataclass(frozen=True)
class Frame:
    """The plotted area, and how numbers become places in it."""

    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at_x(self, value: float) -> float:
        low, high = self.x
        share = (value - low) / (high - low) if high > low else 0.5
        return self.left + share * (self.right - self.left)

    def at_y(self, value: float) -> float:
        low, high = self.y
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


class Drawing:
    """SVG elements in the order in which they are drawn."""

    def __init__(self, title: str, description: str):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
            f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="{FONT}" font-size="13">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(description)}</desc>",
            f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8" '
            f'fill="{PAPER}" stroke="{GRID}"/>',
        ]
        self.text(20, 28, title, size=15, weight=600)

    def text(
        self, x: float, y: float, text: str, *, anchor: str = "start", **style: str | float
    ) -> None:
        size, weight = style.get("size", 13), style.get("weight", 400)
        colour, turn = style.get("colour", INK), style.get("turn")
        turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
            f'font-weight="{weight}" fill="{colour}"{turned}>{escape(text)}</text>'
        )

    def path(
        self, points: Sequence[tuple[float, float]], colour: str, **style: str | float
    ) -> None:
        """A line through the points; nothing where there are fewer than two."""
        if len(points) < 2:
            return
        way = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        dash = f" stroke-dasharray={quoteattr(str(style['dash']))}" if style.get("dash") else ""
        self.parts.append(
            f'<path d="{way}" fill="none" stroke="{colour}" stroke-width="{style.get("width", 2)}"'
            f' stroke-linejoin="round" stroke-linecap="round"{dash}/>'
        )

    def dot(
        self, x: float, y: float, colour: str, *, radius: float = 4, hollow: bool = False
    ) -> None:
        fill = (
            f'fill="{PAPER}" stroke="{colour}" stroke-width="2"' if hollow else f'fill="{colour}"'
        )
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" {fill}/>')

    def axes(
        self,
        frame: Frame,
        x_ticks: Sequence[tuple[float, str]],
        y_ticks: Sequence[tuple[float, str]],
        titles: tuple[str, str],
    ) -> None:
        """Grid lines, numbers, and the titles of both axes."""
        for value, label in y_ticks:
            y = frame.at_y(value)
            self.path([(frame.left, y), (frame.right, y)], GRID, width=1)
            self.text(frame.left - 8, y + 4.5, label, anchor="end", colour=MUTED)
        self.path([(frame.left, frame.bottom), (frame.right, frame.bottom)], MUTED, width=1)
        for value, label in x_ticks:
            x = frame.at_x(value)
            self.path([(x, frame.bottom), (x, frame.bottom + 5)], MUTED, width=1)
            self.text(x, frame.bottom + 20, label, anchor="middle", colour=MUTED)
        middle = (frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2
        self.text(middle[0], frame.bottom + 42, titles[0], anchor="middle", colour=MUTED)
        self.text(19, middle[1], titles[1], anchor="middle", colour=MUTED, turn=-90)

    def svg(self) -> str:
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """About ``most`` round values at equal distances, from low or below to high or beyond."""
    least = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(least))
    step = next(unit * m for m in (1, 2, 5, 10, 20) if unit * m >= least * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _number(value: float, step: float) -> str:
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    text = f"{value + 0.0:,.{places}f}"
    text = text if len(text) <= 7 else f"{value:g}"  # what fits beside the axis
    return text.replace("-", "\N{MINUS SIGN}")


def pass_at_k(series: Sequence[Series]) -> str:
    """pass@k against k on a log2 axis; each line is named at its right end.

    Every series has the same k, at least one.
    """
    ks = sorted(series[0].values)
    highest = max(
        [v for s in series for v in s.values.values()]
        + [i.high for s in series for i in s.intervals.values()]
    )
    marks = ticks(0.0, min(1.0, max(highest, 0.01)), 5)
    first, last = math.log2(ks[0]), math.log2(ks[-1])
    margin = 0.04 * (last - first)  # markers at the ends stay clear of the axis
    frame = Frame(76, 50, 540, 318, (first - margin, last + margin), (0.0, marks[-1]))
    named = ", ".join(s.label for s in series)
    drawing = Drawing("pass@k on held-out problems", f"pass@k against k: {named}.")
    step = 100 * (marks[1] - marks[0])
    y_ticks = [(v, _number(100 * v, step) + " %") for v in marks]
    drawing.axes(frame, _spaced(ks, frame), y_ticks, ("k, completions per problem", "pass@k"))
    ends = []
    for i, line in enumerate(series):
        # Side by side, where intervals would hide each other.
        shift = 5 * (i - (len(series) - 1) / 2)
        points = [(frame.at_x(math.log2(k)) + shift, frame.at_y(line.values[k])) for k in ks]
        drawing.path(points, line.colour, dash="5 5" if line.dashed else "")
        for k, (x, y) in zip(ks, points, strict=True):
            if k in line.intervals:
                low, high = (frame.at_y(v) for v in (line.intervals[k].low, line.intervals[k].high))
                drawing.path([(x, low), (x, high)], line.colour, width=1.5)
                for end in (low, high):
                    drawing.path([(x - 3, end), (x + 3, end)], line.colour, width=1.5)
            drawing.dot(x, y, line.colour, radius=3.5, hollow=line.dashed)
        ends.append(points[-1][1])
    right = frame.right + 8 if len(ks) > 1 else (frame.left + frame.right) / 2 + 30
    for line, y in zip(series, _apart(ends, frame), strict=True):
        value = f"{100 * line.values[ks[-1]]:.1f} %"
        drawing.text(right, y + 4.5, f"{line.label} {value}", colour=line.colour, weight=600)
    return drawing.svg()


def _spaced(ks: Sequence[int], frame: Frame) -> list[tuple[float, str]]:
    """The k that are named on the axis: from the last down, those that have room."""
    kept: list[tuple[float, str]] = []
    for k in reversed(ks):
        place, label = math.log2(k), f"{k:,}"
        room = 14 + 7 * len(label)
        if not kept or frame.at_x(kept[-1][0]) - frame.at_x(place) >= room:
            kept.append((place, label))
    return kept


def _apart(places: Sequence[float], frame: Frame) -> list[float]:
    """Heights of labels near the wanted ones, none upon another, all within the frame."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    result = list(places)
    for before, i in pairwise(order):
        result[i] = max(result[i], result[before] + LINE_HEIGHT)
    floor = frame.bottom - 7  # of a single k, labels stand within the axes
    for i in reversed(order):
        result[i] = min(result[i], floor)
        floor = result[i] - LINE_HEIGHT
    return result


def training(
    rewards: Sequence[tuple[int, float | None]], evaluations: Sequence[tuple[int, float]]
) -> str:
    """Mean reward of each step with a running mean, and the evaluations' pass@1 as points.

    ``rewards`` are (step, mean reward), None where no completion could be scored, in the order of
    steps, at least one; ``evaluations`` (step, pass@1).
    """
    known = [r for _, r in rewards if r is not None]
    values = known + [v for _, v in evaluations] + [0.0]
    low, high = min(values), max(values)
    high = high if high - low > 0.05 else low + 0.05
    marks = ticks(low, high, 5)
    last = max(step for step, _ in [*rewards, *evaluations])
    steps = ticks(0, max(last, 1), 8, whole=True)
    frame = Frame(76, 76, 694, 318, (0, max(last, 1)), (marks[0], marks[-1]))
    drawing = Drawing(
        "Reward in training",
        f"Mean reward of each step up to step {last}, and pass@1 of evaluations.",
    )
    y_ticks = [(v, _number(v, marks[1] - marks[0])) for v in marks]
    x_ticks = [(v, f"{v:,.0f}") for v in steps if v <= last or last == 0]
    axis = "reward, pass@1" if evaluations else "reward"
    drawing.axes(frame, x_ticks, y_ticks, ("step", axis))
    if marks[0] < 0:
        zero = frame.at_y(0.0)
        drawing.path([(frame.left, zero), (frame.right, zero)], MUTED, width=1)
    window = min(50, len(rewards) // 12)
    smooth = window > 1
    for run in _runs(rewards):
        points = [(frame.at_x(step), frame.at_y(value)) for step, value in run]
        width = 2.0 if not smooth else 1.2 if len(rewards) <= 300 else 0.8
        drawing.path(points, FAINT if smooth else TRAINED, width=width)
        if len(rewards) <= 30 or len(points) == 1:
            for x, y in points:
                drawing.dot(x, y, TRAINED, radius=3)
    legend = [("mean reward of a step", FAINT if smooth else TRAINED, "line")]
    if smooth:
        means = _running_mean(rewards, window)
        for run in _runs(means):
            drawing.path([(frame.at_x(s), frame.at_y(m)) for s, m in run], TRAINED, width=2.5)
        legend.append((f"running mean of {window} steps", TRAINED, "line"))
    for step, value in evaluations:
        drawing.dot(frame.at_x(step), frame.at_y(value), CHANCE, radius=4.5, hollow=True)
    if evaluations:
        legend.append(("pass@1 on held-out problems", CHANCE, "dot"))
    _legend(drawing, legend)
    return drawing.svg()


def _legend(drawing: Drawing, entries: Sequence[tuple[str, str, str]]) -> None:
    x = 22.0
    for label, colour, kind in entries:
        if kind == "dot":
            drawing.dot(x + 9, 49, colour, radius=4.5, hollow=True)
        else:
            drawing.path([(x, 49), (x + 18, 49)], colour, width=2.5)
        drawing.text(x + 25, 53.5, label, colour=MUTED)
        x += 25 + 6.9 * len(label) + 22


def _runs(values: Sequence[tuple[int, float | None]]) -> list[list[tuple[int, float]]]:
    """Stretches of steps that have a value: a line must not bridge what was not measured."""
    runs: list[list[tuple[int, float]]] = [[]]
    for step, value in values:
        if value is None:
            runs.append([])
        else:
            if runs[-1] and step != runs[-1][-1][0] + 1:
                runs.append([])
            runs[-1].append((step, value))
    return [run for run in runs if run]


def _running_mean(
    rewards: Sequence[tuple[int, float | None]], window: int
) -> list[tuple[int, float]]:
    """Means over the last ``window`` known rewards, from the first full window on."""
    known = [(step, value) for step, value in rewards if value is not None]
    return [
        (known[i][0], sum(v for _, v in known[i - window + 1 : i + 1]) / window)
        for i in range(window - 1, len(known))
    ]
