"""``simko-mlx train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from simko_mlx.config_sources import Resolved

FLAGS = ("model", "steps", "seed", "output_dir")


@click.command("train")
@click.option("-c", "--config", metavar="FILE|RECIPE", help="YAML file, or the name of a recipe.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Set any config key.")
@click.option("--resume", metavar="RUN", type=click.Path(path_type=Path), help="Go on with a run.")
@click.option("--dry-run", is_flag=True, help="Print each key, its value and its origin; stop.")
@click.option("--model", metavar="M", help="embedded, a folder, or a Hugging Face Hub id.")
@click.option("--steps", metavar="N", type=int, help="Number of training steps.")
@click.option("--seed", metavar="N", type=int, help="Seed of everything that is drawn.")
@click.option("--output-dir", metavar="DIR", help="Folder of this run.")
@click.option("--until", metavar="HH:MM", help="Stop, saved and evaluated, by this time.")
@click.option("--supervise", is_flag=True, help="Start it again when it runs out of memory.")
@click.option("--plain", is_flag=True, help="One line per step, also on a terminal.")
def command(**options: Any) -> int:
    """Train a model with verifiable rewards.

    Without --config the embedded tiny model learns Countdown, offline. A key is looked up in
    --set, flags, environment (SIMKO_MLX__OPTIM__LEARNING_RATE=1e-5), file, defaults.
    """
    from . import ui

    for name, own in ("config", "config"), ("output_dir", "folder"):
        if options["resume"] and options[name]:
            flag = name.replace("_", "-")
            raise click.UsageError(
                f"--resume goes on with the run's own {own}: leave out --{flag}."
            )
    with ui.user_errors():
        resolved = _resolve(options)
        options["until"] = ui.moment(options["until"])
        if options["dry_run"]:
            click.echo(ui.origins_table(resolved), nl=False)
            return 0
        return _train(resolved, options)


def _resolve(options: dict[str, Any]) -> Resolved:
    from simko_mlx.config_sources import resolve, resume_config

    flags = {name: options[name] for name in FLAGS}
    if options["resume"]:
        return resume_config(options["resume"], flags=flags, sets=options["sets"])
    return resolve(options["config"], flags=flags, sets=options["sets"])


def _train(resolved: Resolved, options: dict[str, Any]) -> int:
    from simko_mlx.trainer import Terminated, new_run_dir, train

    from . import live, summary, ui

    config, resume = resolved.config, options["resume"]
    run_dir = resume or new_run_dir(config.output_dir, resolved.recipe)
    if options["supervise"]:
        from . import supervise

        return supervise.run(config, run_dir, supervise.arguments(options), resume=bool(resume))
    with live.view(plain=options["plain"]) as view:
        try:
            how = {"recipe": resolved.recipe, "resume": bool(resume), "until": options["until"]}
            result = train(config, run_dir, view, **how)
        except (KeyboardInterrupt, Terminated) as stop:
            stopped = ui.TERMINATED if isinstance(stop, Terminated) else ui.INTERRUPTED
        else:
            stopped = 0
    if stopped:
        click.echo(summary.where_to_go_on(run_dir), err=True)
        return stopped
    summary.show(result, config)
    return 0
