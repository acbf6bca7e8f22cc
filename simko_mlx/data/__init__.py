"""Problems: from files, from the Hub, from generators, or from the user's own function.

A source is a function ``f(config: DataConfig) -> Dataset``. The table names the built-in ones;
``data.source`` may also be an import path ``package.module:function`` to one of the user's, which
may return a list of Problems or rows instead. docs/data.md has an example of each.
"""

from __future__ import annotations

import difflib
import importlib

from simko_mlx.config import DataConfig
from simko_mlx.data.dataset import Dataset
from simko_mlx.data.pass_rates import select
from simko_mlx.types import UserError

__all__ = ["SOURCES", "Dataset", "load"]

SOURCES: dict[str, str] = {
    "countdown": "simko_mlx.data.generated:countdown",
    "instructions": "simko_mlx.data.instructions:load",
    "jsonl": "simko_mlx.data.files:load",
    "json": "simko_mlx.data.files:load",
    "csv": "simko_mlx.data.files:load",
    "parquet": "simko_mlx.data.files:load",
    "mlx-lm": "simko_mlx.data.mlx_lm:load",
    "hf": "simko_mlx.data.hub:load",
}

# What comes before the colon, as in "gym:chain_sum".
FAMILIES: dict[str, str] = {
    "gym": "simko_mlx.data.gym:load",
    "environment": "simko_mlx.data.environment:load",
}


def load(config: DataConfig) -> Dataset:
    """The problems that a config asks for, the same ones every time, without those whose measured
    pass rate is out of bounds.

    Raises:
        UserError: there is no such source, or it can't deliver; one sentence with the fix.
    """
    prefix, colon, _ = config.source.partition(":")
    target = FAMILIES.get(prefix) if colon else SOURCES.get(config.source)
    if target is None and ":" in config.source:
        target = "simko_mlx.data.generated:user_source"
    if target is None:
        close = difflib.get_close_matches(config.source.lower(), SOURCES, n=1)
        nearest = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"data.source is {config.source!r}: {nearest}Choose one of {', '.join(SOURCES)}, or "
            "write your own as package.module:function."
        )
    module, _, function = target.partition(":")
    return select(getattr(importlib.import_module(module), function)(config), config)
