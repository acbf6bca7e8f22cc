"""``simko-mlx push``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import ui


def _kinds(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
    if not set(kinds) <= {"peft", "mlx"}:
        raise click.BadParameter("write peft, mlx or both with a comma.")
    return kinds


SECONDS = click.FloatRange(0, min_open=True)


@click.command("push")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("repo", metavar="[OWNER/]NAME")
@click.option("--to", "kinds", metavar="peft,mlx", default="peft,mlx", callback=_kinds,
              help="What to push: PEFT's files at the root, MLX's under mlx/.")  # fmt: skip
@click.option("--step", metavar="N|best|last", default="last", callback=ui.step_option,
              help="Checkpoint to push; default: the last.")  # fmt: skip
@click.option(
    "--scale", metavar="W", type=float, default=1.0, help="Multiplies the adapter's effect."
)
@click.option("--private", is_flag=True, help="Make the repository private, if it is new.")
@click.option("--create-pr", is_flag=True, help="Open a pull request.")
@click.option("--timeout", "seconds", metavar="S", type=SECONDS, default=60.0,
              help="Longest wait for a reply, in seconds; default: 60.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="List what would be sent; needs no network.")
def command(run: Path, repo: str, dry_run: bool, **options: Any) -> int:
    """Send RUN's adapter and model card to the Hugging Face Hub, as one commit.

    The token is that of `hf auth login` or HF_TOKEN. A push can be repeated, and sends only what
    has changed. Exit codes: 2 for what you must change, 1 for what the network or the Hub did.
    """
    from . import push_view

    with ui.user_errors():
        from simko_mlx.config_sources import from_run

        from_run(run / "config.yaml")  # a wrong path is told before anything is loaded
        from simko_mlx.export import push

        push.check_repo(repo)
        chosen = push.PushOptions(**options)
        if dry_run:
            push_view.show_files(repo, push.prepare(run, repo, chosen))
            click.echo("Nothing was sent (--dry-run).")
            return 0
        with push_view.failures(push.retry_command(run, repo, chosen)):
            with push_view.view() as view:
                pushed = push.push(run, repo, chosen, view)
            push_view.show(pushed)
    return 0
