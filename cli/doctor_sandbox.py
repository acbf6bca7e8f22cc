"""``simko-mlx doctor --sandbox``: are programs that a model wrote kept where they should be?"""

from __future__ import annotations

import json
from dataclasses import asdict

import click


def tell(uid: int | None, *, as_json: bool) -> int:
    """Prints one line for each layer of the sandbox; 1 where one doesn't hold."""
    from simko_mlx.sandbox.probe import probe

    from . import ui

    lines = probe({"enabled": True, "uid": uid})
    if as_json:
        click.echo(json.dumps([asdict(line) for line in lines], indent=2))
    else:
        for line in lines:
            click.echo(f"{'ok  ' if line.holds else 'FAIL'}  {line.layer:12} {ui.clean(line.said)}")
    return 0 if all(line.holds for line in lines) else 1
