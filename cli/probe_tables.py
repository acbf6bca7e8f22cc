"""What ``simko-mlx probe`` prints."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import ui, verdicts

if TYPE_CHECKING:
    from simko_mlx.probe import Probe, Sample

WIDTH, BAR = 80, 40


def lines(found: Probe, samples: int) -> list[str]:
    figures = found.figures
    out = [f"{figures.problems} problems, {figures.group_size} completions of each.", ""]
    out += _histogram(found)
    shares = [
        ("correct", figures.correct, "of the completions"),
        ("all right", figures.all_right, "of the problems: they teach nothing"),
        ("all wrong", figures.all_wrong, "of the problems: they teach nothing"),
        ("mixed", figures.mixed, "of the problems have different rewards"),
        ("cut off", figures.truncated, f"at {figures.max_completion_length} tokens"),
        ("unscorable", figures.unscorable, "of the completions"),
    ]
    out += ["", *(f"{name:10}  {100 * share:5.1f}%  {text}" for name, share, text in shares)]
    out.append(f"{'length':10}  {figures.mean_length:6,.0f}  tokens on average")
    seconds = found.seconds
    parts = ", ".join(f"{name} {seconds[name]:.1f}" for name in ("rollout", "verify", "update"))
    out += ["", f"A step takes {found.step_seconds:.1f} s ({parts}); peak {found.peak_gb:.2f} GB."]
    for sample in found.samples[:samples]:
        out += ["", *_sample(sample)]
    out.append("")
    for note in found.notes:
        out += textwrap.wrap(ui.clean(note), WIDTH)
    if not found.notes:
        out.append("Nothing stands out: the run may start.")
    return out


def _histogram(found: Probe) -> list[str]:
    counts = found.histogram()
    most = max(counts)
    rows = ["pass rate   problems"]
    for i, count in enumerate(counts):
        name = f"{10 * i:3}-{10 * (i + 1) - 1}%" if i < len(counts) - 1 else " 90-100%"
        bar = "█" * -(-BAR * count // most)
        rows.append(f"{name:10}  {count:8}  {bar}".rstrip())
    return rows


def _sample(sample: Sample) -> list[str]:
    text = sample.text + (" (cut off)" if sample.truncated else "")
    return verdicts.block(sample.problem, sample.answer, text, sample.verdict)


def written(kept: int, path: Path, keep: tuple[float, float]) -> str:
    return (
        f"{kept} problems with a pass rate from {keep[0]:g} to {keep[1]:g} written to {path}. "
        f"Train on them with --set data.pass_rates={path} --set data.unmeasured=drop"
    )


def to_json(found: Probe, samples: int, steps: int | None) -> dict[str, Any]:
    return {
        "figures": asdict(found.figures),
        "rates": [asdict(rate) | {"pass_rate": rate.pass_rate} for rate in found.rates],
        "histogram": found.histogram(),
        "seconds": {**found.seconds, "step": found.step_seconds},
        "peak_gb": found.peak_gb,
        "steps_until": steps,
        "samples": [asdict(sample) for sample in found.samples[:samples]],
        "notes": list(found.notes),
    }
