"""``simko-mlx export``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click

from . import ui

PATH = click.Path(path_type=Path)


@click.command("export")
@click.argument("run", type=PATH)
@click.option("--to", required=True, metavar="mlx|peft|fused|gguf", help="The form it is to have.")
@click.option("--out", required=True, metavar="DIR", type=PATH, help="A new folder for it.")
@click.option(
    "--step", metavar="N|best|last", callback=ui.step_option, default="last", help="Checkpoint."
)
@click.option(
    "--scale", metavar="W", type=float, default=1.0, help="Multiplies the adapter's effect."
)
@click.option("--dtype", type=click.Choice(["bf16", "f16", "f32"]), help="Type of the weights.")
@click.option("--base", metavar="MODEL", help="peft: the base's name on the Hub, or its original.")
@click.option("--check", is_flag=True, help="Load the export again and compare its logits.")
@click.option("--python", metavar="PYTHON", help="One with torch, transformers and peft.")
@click.option("--llama-cpp", metavar="DIR", type=PATH, help="gguf: a checkout of llama.cpp.")
def command(run: Path, to: str, out: Path, check: bool, **options: Any) -> int:
    """Write what RUN has trained for mlx-lm, for PEFT, or merged into its base model.

    mlx and peft are adapters; fused is a whole model in full precision, and gguf one for llama.cpp.
    """
    from . import export_tables, progress

    with ui.user_errors():
        _check_options(to, check, options)
        from simko_mlx.config_sources import from_run

        from_run(run / "config.yaml")  # a wrong path is told before anything large is imported
        from simko_mlx.export.check import check_export
        from simko_mlx.export.folder import NoConverter, Request, export
        from simko_mlx.interrupts import Interrupts, Terminated

        made_from = options.pop("base")
        with progress.view() as view:
            try:
                with Interrupts():
                    done = export(run, out, Request(to, made_from=made_from, **options))
            except NoConverter as error:
                click.echo(export_tables.NO_CONVERTER, err=True)
                click.echo(str(error), nl=False)
                return 1
            except Terminated:  # what was half done is gone again
                return ui.TERMINATED
            view.close()
            export_tables.show_export(done, to)
            if not check:
                return 0
            view.phase("check", 0, 1, "loading it again")
            found = check_export(to, done.source, done.base, out, options["python"])
    export_tables.show_differences(found)
    return 0 if all(difference.ok for difference in found) else 1


def _check_options(to: str, check: bool, options: dict[str, Any]) -> None:
    """
    Raises:
        click.UsageError: an option that nothing would read, in what is asked for.
    """
    if check and (to == "gguf" or ":" in to):
        raise click.UsageError(f"--check can't load {to}: it compares mlx, peft and fused.")
    for name, key, fits, where in (
        ("--base", "base", to == "peft", "--to peft"),
        ("--llama-cpp", "llama_cpp", to == "gguf", "--to gguf"),
        ("--python", "python", check or to == "gguf", "--check or --to gguf"),
    ):
        if options[key] is not None and not fits:
            raise click.UsageError(f"{name} belongs to {where}: leave it out.")
    python = options["python"]
    if python is not None and shutil.which(python) is None:  # before anything is written
        raise click.UsageError(f"--python is {python!r}: there is no such program.")
