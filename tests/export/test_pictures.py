"""The pictures of a model card: well-formed, self-contained, legible at the extremes."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from simko_mlx.export.pictures import (
    BEFORE,
    CHANCE,
    HEIGHT,
    TRAINED,
    WIDTH,
    Series,
    pass_at_k,
    ticks,
    training,
)
from simko_mlx.metrics import Interval

SVG = "{http://www.w3.org/2000/svg}"


def series(label: str, rate: float, ks: list[int], colour: str = TRAINED) -> Series:
    values = {k: 1 - (1 - rate) ** k for k in ks}
    intervals = {k: Interval(v, max(0.0, v - 0.05), min(1.0, v + 0.05)) for k, v in values.items()}
    return Series(label, colour, values, intervals)


def parsed(svg: str) -> ElementTree.Element:
    """The root, after looking for what must not be in any picture."""
    root = ElementTree.fromstring(svg)
    assert {e.tag.removeprefix(SVG) for e in root.iter()} <= {
        "svg", "title", "desc", "rect", "text", "path", "circle"
    }  # fmt: skip
    for element in root.iter():
        for name, value in element.attrib.items():
            assert "href" not in name and not name.startswith("on") and "url(" not in value
    assert not re.search(r"\b(nan|inf)\b", svg)
    for element in root.iter(f"{SVG}text"):
        assert 0 <= float(element.attrib["x"]) <= WIDTH
        assert 0 <= float(element.attrib["y"]) <= HEIGHT
    return root


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def points(root: ElementTree.Element, colour: str) -> list[tuple[float, float]]:
    return [
        (float(e.attrib["cx"]), float(e.attrib["cy"]))
        for e in root.iter(f"{SVG}circle")
        if colour in (e.attrib.get("fill"), e.attrib.get("stroke"))
    ]


@pytest.mark.parametrize("ks", [[1], [3], [1, 2], [1, 2, 4, 8], [1, 2, 4, 8, 16, 32, 64, 256]])
@pytest.mark.parametrize("rate", [0.0, 0.001, 0.3, 1.0])
def test_pass_at_k_draws_every_value_where_it_belongs(ks, rate):
    lines = [series("trained", rate, ks), series("base", rate / 2, ks, BEFORE)]
    chance = Series("chance", CHANCE, dict.fromkeys(ks, 0.0), dashed=True)
    root = parsed(pass_at_k([*lines, chance]))
    words = texts(root)
    assert f"trained {100 * lines[0].values[ks[-1]]:.1f} %" in words
    assert str(ks[-1]) in words
    drawn, zero = points(root, TRAINED), points(root, CHANCE)
    assert len(drawn) == len(zero) == len(ks)
    # Heights are proportional to values, distances to log2 k.
    heights = [zero[0][1] - y for _, y in drawn]
    values = list(lines[0].values.values())
    for (h1, v1), (h2, v2) in pairwise(zip(heights, values, strict=True)):
        assert h1 * v2 == pytest.approx(h2 * v1, abs=0.2)
    if len(ks) > 2:
        across = [(x - drawn[0][0]) / (drawn[-1][0] - drawn[0][0]) for x, _ in drawn]
        total = math.log2(ks[-1] / ks[0])
        assert across == pytest.approx([math.log2(k / ks[0]) / total for k in ks], abs=0.01)


def test_labels_of_equal_lines_do_not_cover_each_other():
    for rate in (0.0, 0.2, 1.0):
        root = parsed(pass_at_k([series(name, rate, [1, 2, 4]) for name in ("a", "b", "c")]))
        places = sorted(
            float(e.attrib["y"])
            for e in root.iter(f"{SVG}text")
            if re.match(r"[abc] [\d.]+ %", e.text or "")
        )
        assert len(places) == 3
        assert all(below - above >= 16 for above, below in pairwise(places))


def test_numbers_of_an_axis_have_room():
    root = parsed(pass_at_k([series("trained", 0.1, list(range(1, 41)))]))
    axis = [e for e in root.iter(f"{SVG}text") if (e.text or "").isdigit()]
    places = sorted(float(e.attrib["x"]) for e in axis)
    assert len(places) >= 5
    assert all(right - left >= 20 for left, right in pairwise(places))


@pytest.mark.parametrize("steps", [1, 3, 60, 1000])
@pytest.mark.parametrize("value", [0.0, 0.25, 1.0, -2.0, 7.5])
def test_training_is_drawn_whatever_its_length_and_range(steps, value):
    rewards = [(i, value) for i in range(1, steps + 1)]
    root = parsed(training(rewards, [(0, 0.0), (steps, 1.0)]))
    assert f"{steps:,}" in texts(root)
    assert len(points(root, CHANCE)) == 3  # with the legend's
    smoothed = any(text.startswith("running mean of ") for text in texts(root))
    assert smoothed == (steps >= 60)


def test_a_line_does_not_bridge_steps_without_a_reward():
    rewards = [(i, None if i in (4, 5) else 0.5) for i in range(1, 9)]
    root = parsed(training(rewards, []))
    lines = [e for e in root.iter(f"{SVG}path") if e.attrib["stroke"] == TRAINED]
    drawn = [e.attrib["d"].count("L") + 1 for e in lines]
    assert sorted(drawn) == [2, 3, 3]  # the legend's, steps 1 to 3, 6 to 8
    assert parsed(training([(1, None)], [])) is not None


def test_text_of_others_stays_text():
    root = parsed(pass_at_k([series("<script>alert(1)</script>&\"'", 0.2, [1, 2])]))
    assert any("<script>alert(1)</script>&\"'" in text for text in texts(root))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.013), (-3.2, 7), (0, 1000), (0, 0.05)])
def test_ticks_are_round_and_cover_the_range(low, high):
    marks = ticks(low, high, 5)
    assert 3 <= len(marks) <= 9
    assert marks[0] <= low + 1e-12 and marks[-1] >= high - 1e-12
    gaps = [b - a for a, b in pairwise(marks)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps))
    assert f"{gaps[0]:.0e}"[0] in "125"
