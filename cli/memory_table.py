"""What ``simko-mlx plan`` prints."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simko_mlx.memory import Outlook

WIDTH = 80


def lines(found: Outlook, memory: float | None) -> list[str]:
    told, shape = found.forecast, found.forecast.shape
    step = f"{shape.microbatch} completions"
    step = f"{shape.groups} x {step}" if shape.groups > 1 else step
    sizes = [
        ("weights", told.weights, "of the model, adapter included"),
        ("optimizer", told.optimizer, "two moments for each number that trains"),
        ("rollout", told.rollout, f"{shape.rollout.rows} completions side by side"),
        ("evaluation", told.evaluation, f"{shape.tested} completions side by side"),
        ("step", told.step, f"forward and backward pass of {step}"),
        ("peak", told.peak, f"the largest of these; there are {_size(found.limit)} for it"),
    ]
    machine = "this machine" if memory is None else f"a Mac with {_size(memory)}"
    out = [
        f"Predicted for {machine}, prompts of {shape.prompt} and completions of "
        f"{shape.completion} tokens.",
        "Rollout, evaluation and step take turns, and include weights and optimizer.",
        "",
        *(f"{name:10}  {_size(size):>9}  {text}".rstrip() for name, size, text in sizes),
        "",
    ]
    for note in found.notes:
        out += textwrap.wrap(f"Note: {note}", WIDTH)
    return [*out, *_verdict(found)]


def _verdict(found: Outlook) -> list[str]:
    if not found.fits and not found.changes:
        text = (
            "It does NOT fit, and no setting of batches would help: choose a smaller or a 4-bit "
            "model, or lower rollout.max_completion_length."
        )
        return textwrap.wrap(text, WIDTH)
    if found.fits:
        out = ["It fits."]
    else:
        out = ["It does NOT fit. This makes it fit:"]
        out += [f"  {c}  (peak {_size(c.peak)})" for c in found.changes]
    saved = f", {found.checkpointed} with grad_checkpoint=true"
    most = f"Largest optim.microbatch_size: {found.microbatch or 'none fits'}"
    return [*out, most + (saved if found.checkpointed > found.microbatch else "")]


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
