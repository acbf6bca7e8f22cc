"""What ``simko-mlx data`` prints."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from . import ui

if TYPE_CHECKING:
    from simko_mlx.data_report import Check, Lengths, Prompts, Stats

WIDTH = 80
BAR = 40
FAILURES = 20  # shown; --json has all


def show(found: Prompts) -> list[str]:
    """The prompts with a mark at each line break, so that none at an end goes unseen."""
    out = []
    for i, shown in enumerate(found.shown, 1):
        if i > 1:
            out.append("")
        head = f"{i}/{found.problems:,} {found.split}  {shown.id}  {shown.tokens:,} tokens"
        out += [ui.clean(head), f"answer: {_short(shown.answer, WIDTH - 8)}", "-" * WIDTH]
        *lines, last = shown.prompt.split("\n")
        out += [ui.clean(line) + "↵" for line in lines]
        out += [ui.clean(last)] if last else []
        out.append("-" * WIDTH)
    return out


def check(found: Check) -> list[str]:
    room = "no limit" if found.limit is None else f"room for {found.limit:,}"
    rule = f" (prompt.too_long is {found.too_long_is})" if found.too_long else ""
    accepted = found.problems - len(found.failures)
    by = f", {found.by_solution:,} of them by the column solution" if found.by_solution else ""
    out = [
        f"problems    {found.train:,} to train on, {found.heldout:,} held out",
        f"duplicates  {found.duplicates:,}",
        f"prompts     {found.shortest:,} to {found.longest:,} tokens, {room}; "
        f"{len(found.too_long):,} too long{rule}",
        f"answers     {accepted:,} of {found.problems:,} accepted{by}",
    ]
    for note in found.notes:
        out += textwrap.wrap(ui.clean(f"Note: {note}"), WIDTH)
    if found.too_long:
        some = ", ".join(f"{name} ({tokens:,})" for name, tokens in found.too_long[:5])
        out += textwrap.wrap(ui.clean(f"Longest allowed {found.limit:,}; too long: {some}"), WIDTH)
    if not found.failures:
        return out
    out += ["", "The verifier doesn't accept the answers of:"]
    for failure in found.failures[:FAILURES]:
        out.append(f"{_short(failure.id, 40)}  ({failure.split})")
        out.append(f"  answer  {_short(failure.answer, WIDTH - 10)}")
        if failure.taken is not None:
            out.append(f"  taken   {_short(failure.taken, WIDTH - 10)}")
        out.append(f"  why     {_short(failure.detail or 'not said', WIDTH - 10)}")
    if len(found.failures) > FAILURES:
        out.append(f"and of {len(found.failures) - FAILURES:,} more: --json lists them all")
    return out


def stats(found: Stats) -> list[str]:
    out = [f"{'tokens':18}{'count':>9}{'mean':>9}{'min':>7}{'p10':>7}{'median':>8}{'p90':>7}"
           f"{'p99':>7}{'max':>7}"]  # fmt: skip
    sections = (("prompts", found.prompts), ("answers", found.answers))
    for what, splits in sections:
        for split, some in splits.items():
            low, p10, p50, p90, p99, high = some.percentiles.values()
            out.append(
                f"{f'{what}, {split}':18}{some.count:>9,}{some.mean:>9,.1f}{low:>7,}{p10:>7,}"
                f"{p50:>8,}{p90:>7,}{p99:>7,}{high:>7,}"
            )
    for what, splits in sections:
        if "train" in splits:
            out += ["", f"{what} to train on", *_histogram(splits["train"])]
    for split, counts in found.columns.items():
        out += ["", ui.clean(f"{found.by}, {split}")]
        out += [f"{_short(value, 58):60}{count:>9,}" for value, count in counts.items()]
    return out


def _histogram(lengths: Lengths) -> list[str]:
    most = max(count for _, _, count in lengths.bins)
    rows = []
    for low, high, count in lengths.bins:
        bar = "#" * -(-count * BAR // most)  # anything that isn't nothing shows
        rows.append(f"{f'{low:,}-{high:,}':>15}{count:>9,}  {bar}".rstrip())
    return rows


def _short(text: str, width: int) -> str:
    text = ui.clean(text)
    return text if len(text) <= width else text[: width - 3] + "..."
