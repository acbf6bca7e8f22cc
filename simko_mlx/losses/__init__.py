"""Objectives, each a function of head statistics: one file and one line in the table."""

from __future__ import annotations

import importlib
from typing import cast

from simko_mlx.losses.common import LossFn
from simko_mlx.losses.grpo import grpo
from simko_mlx.losses.simko import simko, simko_loss
from simko_mlx.types import UserError

LOSSES: dict[str, LossFn] = {"grpo": grpo, "simko": simko}

__all__ = ["LOSSES", "LossFn", "find_loss", "grpo", "simko", "simko_loss"]


def find_loss(name: str) -> LossFn:
    """The loss of that name, or of an import path "package.module:function".

    Raises:
        UserError: there is none.
    """
    if name in LOSSES:
        return LOSSES[name]
    module, colon, function = name.partition(":")
    if not colon:
        known = ", ".join(sorted(LOSSES))
        raise UserError(f"loss.name is {name!r}: choose {known}, or give package.module:function.")
    try:
        return cast(LossFn, getattr(importlib.import_module(module), function))
    except (ImportError, AttributeError) as error:
        raise UserError(f"loss.name is {name!r} but it can't be imported: {error}.") from error
