"""The ``simko-mlx`` command. Commands and what they need are imported when they are called."""

from __future__ import annotations

import difflib
import importlib
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from . import downloads, ui

COMMANDS = {
    "train": "Train a model; without arguments the embedded one.",
    "eval": "Measure pass@k of a run on its held-out problems.",
    "export": "Write the adapter for mlx-lm, for PEFT, or as a whole model.",
    "push": "Send a run's adapter and model card to the Hugging Face Hub.",
    "probe": "Sample a few problems before a long run: how hard, how long, what to change.",
    "verify": "Score recorded completions, and show what was taken as their answer.",
    "data": "Show a config's problems as the model sees them, and check their answers.",
    "plan": "Predict how much memory a run takes, and whether it fits.",
    "doctor": "Show what this machine offers, and whether the Metal kernels are used.",
}


class Commands(click.Group):
    """Imports the module of a command, ``cli/<name>.py``, when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f".{cmd_name}", __package__).command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}."
            ctx.fail(f"There is no command {args[0]!r}: {hint}")
        return super().resolve_command(ctx, args)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Show the version and exit."""
    if value:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"simko-mlx {version('simko-mlx')}")
        except PackageNotFoundError:
            click.echo("simko-mlx, not installed: a source checkout")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Reinforcement learning with verifiable rewards for language models on MLX."""


def run(args: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code."""
    try:
        with downloads.shown():
            result = cli.main(args, prog_name="simko-mlx", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:  # its message is the help
        error.show()
        return error.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "simko-mlx"
        click.echo(
            f"error: {error.format_message()} (`{where} --help` lists what there is)", err=True
        )
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return ui.INTERRUPTED
    except BrokenPipeError:
        ui.discard_stdout()
        return ui.BROKEN_PIPE


def app() -> None:
    ui.open_standard_files()
    # A terminal that can't show a character shows a question mark; the run goes on.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    code = ui.INTERRUPTED
    # A second Ctrl-C on the way out: the first has been heard, and only leaving is left.
    with suppress(KeyboardInterrupt):
        code = run()
        if code in (ui.INTERRUPTED, ui.TERMINATED):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)
