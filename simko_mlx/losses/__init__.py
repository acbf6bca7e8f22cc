"""Objectives, each a function of head statistics: one file and one line in the table."""

from __future__ import annotations

from typing import cast

from simko_mlx.imports import import_function
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
    if ":" not in name:
        known = ", ".join(sorted(LOSSES))
        raise UserError(f"loss.name is {name!r}: choose {known}, or give package.module:function.")
    return cast(LossFn, import_function(name, "loss.name", with_cwd=True))
