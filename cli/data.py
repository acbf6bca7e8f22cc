"""``simko-mlx data show | check | stats``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

OPTIONS = (
    click.argument("config", required=False),
    click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Set any config key."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else on stdout."),
)


def _common(function: Callable[..., int]) -> Callable[..., int]:
    for option in reversed(OPTIONS):
        function = option(function)
    return function


@click.group("data")
def command() -> None:
    """Look at the problems of CONFIG: a YAML file, or the name of a recipe."""


@command.command("show")
@_common
@click.option("--n", default=3, type=click.IntRange(1), metavar="N", help="How many; default: 3.")
@click.option("--split", default="train", type=click.Choice(["train", "heldout"]))
def show(**options: Any) -> int:
    """Print prompts exactly as the model sees them, with their number of tokens."""
    _report("show", **options)
    return 0


@command.command("check")
@_common
def check(**options: Any) -> int:
    """Check every problem: duplicates, length, and that its own answer is accepted.

    Exit code 1 where the verifier doesn't accept the answer of a problem, or `train` would refuse
    a prompt as too long.
    """
    return 0 if _report("check", **options).passes else 1


@command.command("stats")
@_common
@click.option("--by", metavar="COLUMN", help="Count the values of this column (a dotted path).")
def stats(**options: Any) -> int:
    """Show how long prompts and answers are, in tokens."""
    _report("stats", **options)
    return 0


def _report(
    name: str, config: str | None, sets: tuple[str, ...], as_json: bool, **options: Any
) -> Any:
    """What ``data_report.<name>`` finds, after printing it."""
    from . import data_tables, progress, ui

    with ui.user_errors():
        from simko_mlx.config_sources import resolve

        resolved = resolve(config, sets=sets)  # a wrong key is told before anything is loaded
        from simko_mlx import data_report

        with ui.stdout_to_stderr(), progress.view() as view:
            material = data_report.load_material(resolved.config)
            found = getattr(data_report, name)(material, progress=view.phase, **options)
    if as_json:
        click.echo(json.dumps(ui.finite(found.to_json()), indent=2, allow_nan=False))
    else:
        click.echo("\n".join(getattr(data_tables, name)(found)))
    return found
