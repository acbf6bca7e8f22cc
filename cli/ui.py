"""Formatting that several commands share. Nothing here runs a model."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console

    from simko_mlx.config_sources import Resolved
    from simko_mlx.metrics import Interval

INTERRUPTED, TERMINATED, BROKEN_PIPE = 130, 143, 141  # exit codes, as shells give them
SPARKS = "▁▂▃▄▅▆▇█"
REPLACEMENT = "\ufffd"
# Direction marks and overrides reorder what a terminal shows.
BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Failure(click.ClickException):
    """A mistake of the user's, told in one sentence."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {clean(self.message)}", file=file, err=True)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns the library's UserError into a sentence on stderr and exit code 2."""
    from simko_mlx.types import UserError

    try:
        yield
    except UserError as error:
        raise Failure(str(error)) from error


def moment(text: str | None) -> float | None:
    """Seconds since the epoch of what ``--until`` says."""
    from simko_mlx.until import parse_until

    return None if text is None else parse_until(text).timestamp()


def step_option(ctx: click.Context, param: click.Parameter, value: str) -> int | str:
    """What ``--step`` says: a number, or one of the names."""
    if value in ("best", "last"):
        return value
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter("write a step's number, best, or last.") from None


def console(file: TextIO | None = None) -> Console:
    """A rich console that styles only a real terminal: FORCE_COLOR doesn't make one of a pipe."""
    from rich.console import Console

    file = sys.stdout if file is None else file
    terminal = file is not None and file.isatty()
    return Console(file=file, force_terminal=terminal, highlight=False)


def discard_stdout() -> None:
    """After a reader such as ``head`` went away: what is still buffered goes nowhere, silently."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def can_rewrite() -> bool:
    """Whether the terminal understands cursor movements."""
    return os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def clean(text: str) -> str:
    """Text of a model made harmless to print: line breaks as arrows, control characters, lone
    surrogates and direction overrides as U+FFFD."""
    return "".join(map(_clean, text.replace("\r\n", "\n")))


def _clean(char: str) -> str:
    if char == "\n":
        return "↵"
    if char == "\t":
        return " "
    if char in BIDI or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"):
        return REPLACEMENT
    return char


def is_warning(text: str) -> bool:
    """Sentences that tell the user that the run is going nowhere stand out."""
    return re.search(r"no learning signal|warning|not finite|\bnan\b", text, re.I) is not None


def spark(values: list[float], width: int) -> str:
    """The last ``width`` values as a line of blocks, the lowest at the bottom."""
    shown = [v for v in values[-width:] if math.isfinite(v)]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((v - low) * scale)] for v in shown)


def seconds(value: float) -> str:
    """42 s, 3:05, 2:03:05."""
    if not math.isfinite(value):
        return "?"
    total = round(value)
    if total < 60:
        return f"{total} s"
    hours, rest = divmod(total, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def interval(value: Interval, sign: str = "-") -> str:
    """18.4 [16.1, 20.9], in percent; ``sign`` "+" writes +18.4."""
    return f"{100 * value.estimate:{sign}.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def finite(value: Any) -> Any:
    """The value with NaN and infinities as None, which JSON can say."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def origins_table(resolved: Resolved) -> str:
    """Each key with its value, in a form that --set takes, and where it came from."""
    from simko_mlx.config import leaves

    here = f"{Path.cwd()}{os.sep}"
    rows = [
        (key, json.dumps(value, ensure_ascii=False), resolved.origins[key].removeprefix(here))
        for key, _, value in leaves(resolved.config)
    ]
    first = max(len(key) for key, _, _ in rows)
    # One long template must not push all origins off the screen.
    second = max(len(value) for _, value, _ in rows if len(value) <= 40)
    lines = [f"{key:{first}}  {value:{second}}  {origin}" for key, value, origin in rows]
    return "\n".join(map(clean, lines)) + "\n"


def open_standard_files() -> None:
    """Null devices in the place of closed standard files: what is opened next would get their
    numbers, and be written to by whatever prints."""
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """What is written to standard output meanwhile, by whom and however, goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
