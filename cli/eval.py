"""``simko-mlx eval``."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from . import ui


def _ks(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    try:
        return sorted({int(part) for part in value.split(",")})
    except ValueError:
        raise click.BadParameter("write whole numbers with commas, like 1,8,64.") from None


POSITIVE = click.IntRange(1)


@click.command("eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--base", is_flag=True, help="Measure the base model too.")
@click.option("--k", "ks", metavar="1,2,4", callback=_ks, help="The k of pass@k.")
@click.option("--n", metavar="N", type=POSITIVE, help="Completions per problem, at least 2k.")
@click.option("--problems", metavar="N", type=POSITIVE, help="Number of held-out problems.")
@click.option(
    "--step", metavar="N|best|last", callback=ui.step_option, default="last", help="Checkpoint."
)
@click.option(
    "--scale", metavar="W", type=float, default=1.0, help="Multiplies the adapter's effect."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else on stdout.")
def command(run: Path, base: bool, as_json: bool, **options: Any) -> int:
    """Measure pass@k of RUN on its held-out problems, with 95% intervals."""
    from . import progress, summary

    with ui.user_errors():
        from simko_mlx.config_sources import from_run

        from_run(run / "config.yaml")  # a wrong path is told before the model is loaded
        from simko_mlx.evaluate import evaluate_run

        # A problem source of the user's may print, or start programs that do.
        quiet = ui.stdout_to_stderr() if as_json else nullcontext()
        with quiet, progress.view() as view:
            evaluations = evaluate_run(run, logger=view, base=base, **options)
    if as_json:
        found = {"run": str(run), "evaluations": [e.to_json() for e in evaluations]}
        click.echo(json.dumps(ui.finite(found), indent=2, allow_nan=False))
        return 0
    summary.show_evaluations({e.label: e for e in evaluations})
    return 0
