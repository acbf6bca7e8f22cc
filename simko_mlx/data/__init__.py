"""Problems: from files, from generators, or from the user's own function.

A source is a function ``f(config: DataConfig) -> Dataset``. The table names the built-in ones;
``data.source`` may also be an import path ``package.module:function`` to one of the user's, which
may return a list of Problems or rows instead.
"""

from __future__ import annotations

import difflib
import importlib

from simko_mlx.config import DataConfig
from simko_mlx.data.dataset import Dataset
from simko_mlx.types import UserError

__all__ = ["SOURCES", "Dataset", "load"]

SOURCES: dict[str, str] = {
    "countdown": "simko_mlx.data.generated:countdown",
    "instructions": "simko_mlx.data.instructions:load",
    "jsonl": "simko_mlx.data.files:load",
    "parquet": "simko_mlx.data.files:load",
}


def load(config: DataConfig) -> Dataset:
    """The problems that a config asks for, the same ones every time.

    Raises:
        UserError: there is no such source, or it can't deliver; one sentence with the fix.
    """
    target = SOURCES.get(config.source)
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
    return getattr(importlib.import_module(module), function)(config)
