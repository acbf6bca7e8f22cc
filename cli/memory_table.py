"""What ``simko-mlx plan`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simko_mlx.memory import Outlook


def lines(found: Outlook, memory: float | None) -> list[str]:
    told = found.forecast
    shape = told.shape
    sizes = [
        ("weights", told.weights, "adapter included"),
        ("optimizer", told.optimizer, ""),
        ("rollout", told.rollout, f"{shape.rollout} completions side by side"),
        ("evaluation", told.evaluation, f"{shape.evaluation} completions side by side"),
        ("step", told.step, f"{shape.groups} x {shape.microbatch} completions of a microbatch"),
        ("peak", told.peak, f"of {_size(found.limit)} that a run may take"),
    ]
    where = "" if memory is None else f" (a Mac with {memory / 1e9:g} GB)"
    out = [f"predicted, for prompts of {shape.prompt} and completions of {shape.completion} tokens"]
    out += [f"{name:10}  {_size(size):>9}  {text}".rstrip() for name, size, text in sizes]
    out += [f"note: {note}" for note in found.notes]
    out.append(f"it fits{where}" if found.fits else f"it does NOT fit{where}")
    out += [f"change: {c}  -> {_size(c.peak)}" for c in found.changes]
    if not found.fits and not found.changes:
        out.append("change: a smaller or 4-bit model, or a lower rollout.max_completion_length")
    most = f"largest optim.microbatch_size that fits: {found.microbatch or 'none'}"
    return [*out, f"{most}; with grad_checkpoint=true: {found.checkpointed or 'none'}"]


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
