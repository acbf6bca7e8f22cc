"""What ``simko-mlx export`` prints: the files, and how far logits are apart."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from rich import box
from rich.table import Table

from simko_mlx import hub

from . import ui

if TYPE_CHECKING:
    from simko_mlx.export.check import Difference
    from simko_mlx.export.folder import Exported

NO_CONVERTER = (
    "llama.cpp's convert_hf_to_gguf.py was not found (--llama-cpp DIR names a checkout): nothing "
    "was written. These commands make a GGUF file:"
)


def show_export(done: Exported, to: str) -> None:
    """What was written, how it is used, and what to know of it."""
    files = done.files()
    width = max(map(len, files))
    for name, size in files.items():
        click.echo(f"  {ui.clean(name):{width}}  {hub.size(size):>9}")
    scale = "" if done.source.scale == 1 else f" at scale {done.source.scale:g}"
    click.echo(f"Step {done.source.step}{scale} of {done.source.run_dir} is in {done.folder}.")
    for note in done.notes:
        click.echo(f"Note: {ui.clean(note)}")
    if use := _use(done, to):
        click.echo(f"use it  {use}")


def _use(done: Exported, to: str) -> str:
    """A command that loads the export."""
    from simko_mlx.export.source import hub_id

    base = hub_id(done.source.config) or str(done.base.path)
    folder = str(done.folder)
    generate = ["mlx_lm.generate", "--model"]
    if to == "mlx":
        return shlex.join([*generate, base, "--adapter-path", folder, "--prompt", "..."])
    if to == "fused":
        return shlex.join([*generate, folder, "--prompt", "..."])
    return f"see {done.folder / 'README.md'}" if to == "peft" else ""


def show_differences(found: Sequence[Difference]) -> None:
    """A row for each program that loaded the export, or should have."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("loaded by", no_wrap=True)
    table.add_column("largest difference", justify="right")
    table.add_column("largest logit", justify="right")
    table.add_column("")
    for one in found:
        largest = "not checked" if one.largest is None else f"{one.largest:.1e}"
        judged = one.largest is not None and one.bound is not None
        verdict = "WRONG" if not one.ok else "ok" if judged else ""
        remark = "; ".join(filter(None, [verdict, ui.clean(one.note)]))
        table.add_row(one.where, largest, f"{one.logits_largest:.1f}", remark)
    console = ui.console()
    console.print()
    console.print(table)
    tokens = found[0].tokens
    console.print(f"Logits of {tokens} tokens of the run's first prompts.", highlight=False)
