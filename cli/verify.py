"""``simko-mlx verify``."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("verify")
@click.argument("config", metavar="CONFIG")
@click.option(
    "--completions",
    metavar="FILE.jsonl",
    required=True,
    type=click.Path(path_type=Path),
    help="Recorded completions, such as a run's rollouts.jsonl.",
)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Set any config key.")
@click.option("--wrong", is_flag=True, help="Show only those that aren't correct.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Show at most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else on stdout.")
def command(
    config: str,
    completions: Path,
    sets: tuple[str, ...],
    wrong: bool,
    limit: int | None,
    as_json: bool,
) -> int:
    """Score recorded completions with the verifier of CONFIG, a file or a recipe.

    Shows which part of each text was taken as the answer, and why it is right or wrong.
    """
    from . import ui, verdicts

    with ui.user_errors():
        from simko_mlx.config_sources import resolve
        from simko_mlx.recorded import judge

        resolved = resolve(config, sets=sets)
        with ui.stdout_to_stderr():
            judged, notes = judge(resolved.config, completions)
    shown = [one for one in judged if not (wrong and one.verdict.correct)][:limit]
    if as_json:
        found = {
            "summary": verdicts.summary(judged),
            "completions": [verdicts.to_json(one) for one in shown],
        }
        click.echo(json.dumps(ui.finite(found), indent=2, allow_nan=False))
        return 0
    for note in notes:
        click.echo(ui.clean(note), err=True)
    for one in shown:
        click.echo("\n".join(verdicts.lines(one)))
    if len(shown) < len(judged):
        click.echo(f"({len(shown):,} of {len(judged):,} shown)")
    click.echo(verdicts.sentence(verdicts.summary(judged)))
    return 0
