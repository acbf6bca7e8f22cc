"""``simko-mlx probe``."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import click


def _range(ctx: click.Context, param: click.Parameter, value: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter("write two rates with a comma, like 0.1,0.9.") from None
    if not 0 <= low <= high <= 1:
        raise click.BadParameter("the rates lie between 0 and 1, the lower one first.")
    return low, high


@click.command("probe")
@click.argument("config", metavar="CONFIG")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Set any config key.")
@click.option("--problems", metavar="N", type=click.IntRange(1), default=32, show_default=True)
@click.option("--samples", metavar="N", type=click.IntRange(0), default=4, show_default=True)
@click.option("--until", metavar="HH:MM", help="Tell how many steps a run makes until then.")
@click.option(
    "--write",
    "path",
    metavar="FILE.jsonl",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the problems that are solved sometimes, for data.pass_rates.",
)
@click.option(
    "--keep", metavar="LOW,HIGH", default="0.1,0.9", show_default=True, callback=_range,
    help="The pass rates of the problems to write.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else on stdout.")
def command(
    config: str,
    sets: tuple[str, ...],
    problems: int,
    samples: int,
    until: str | None,
    path: Path | None,
    keep: tuple[float, float],
    as_json: bool,
) -> int:
    """Sample a few problems of CONFIG before a long run is started.

    Shows how often they are solved, what the verifier takes for the answer, and how long a step
    takes. Nothing is trained that is kept.
    """
    from . import probe_tables, progress, ui

    with ui.user_errors():
        from simko_mlx.config_sources import resolve

        at = ui.moment(until)
        resolved = resolve(config, sets=sets)
        from simko_mlx.probe import check_destination, probe, write

        if path is not None:
            check_destination(path)
        quiet = ui.stdout_to_stderr() if as_json else nullcontext()
        with quiet, progress.view() as view:
            found = probe(resolved.config, view, problems=problems)
    steps = None if at is None else found.steps_until(at)
    told = probe_tables.to_json(found, samples, steps)
    kept = 0
    try:
        # Before anything is printed: a pipe that closes early mustn't cost the rates.
        with ui.user_errors():
            kept = 0 if path is None else write(found, path, *keep)
    finally:  # and a full disk not what was found
        lines = [json.dumps(ui.finite(told), indent=2, allow_nan=False)]
        click.echo("\n".join(lines if as_json else probe_tables.lines(found, samples)))
    if as_json:
        return 0
    if steps is not None:
        click.echo(f"Until {until}: {steps:,} steps; `simko-mlx train --until {until}` stops then.")
    if path is not None:
        click.echo(probe_tables.written(kept, path, keep))
    return 0
