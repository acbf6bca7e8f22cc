"""``simko-mlx plan``."""

from __future__ import annotations

import json
import re

import click

UNITS = {"": 1e9, "GB": 1e9, "G": 1e9, "GIB": 2.0**30, "MB": 1e6, "M": 1e6, "MIB": 2.0**20}


def _memory(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", value.strip())
    unit = UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or float(found[1]) == 0:
        raise click.BadParameter("write the memory as 16GB.")
    return float(found[1]) * unit


@click.command("plan")
@click.option("-c", "--config", metavar="FILE|RECIPE", help="YAML file, or the name of a recipe.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Set any config key.")
@click.option("--model", metavar="M", help="embedded, a folder, or a Hugging Face Hub id.")
@click.option(
    "--memory", metavar="16GB", callback=_memory, help="Of the Mac to plan for; default: this one."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else on stdout.")
def command(
    config: str | None,
    sets: tuple[str, ...],
    model: str | None,
    memory: float | None,
    as_json: bool,
) -> int:
    """Predict how much memory a run takes, and say what to change where it doesn't fit.

    No weight is loaded and nothing is computed. Exit code 1 where the run doesn't fit.
    """
    from . import memory_table, ui

    with ui.user_errors():
        from simko_mlx.config_sources import resolve

        resolved = resolve(config, flags={"model": model}, sets=sets)
        from simko_mlx.memory import look_ahead

        with ui.stdout_to_stderr():
            found = look_ahead(resolved.config, total=memory)
    if as_json:
        click.echo(json.dumps(ui.finite(found.to_json()), indent=2, allow_nan=False))
    else:
        click.echo("\n".join(map(ui.clean, memory_table.lines(found, memory))))
    return 0 if found.fits else 1
