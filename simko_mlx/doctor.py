"""What this machine offers: versions, device, memory, and whether the Metal kernels are used."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, dataclass
from typing import Any

from simko_mlx import OPENBLAS
from simko_mlx.config import Config
from simko_mlx.kernels import budget, selfcheck
from simko_mlx.kernels.selfcheck import HeadShape, Verdict
from simko_mlx.policy import load_base
from simko_mlx.rundir import environment

COMMON = HeadShape(vocabulary=151_936, dtype="bfloat16")
"""The head that is asked about without a model: Qwen's vocabulary in the usual type."""


@dataclass(frozen=True)
class Report:
    """``healthy`` is False where something that this machine has doesn't work."""

    environment: dict[str, Any]
    memory_gib: float
    linux: bool
    openblas: bool
    compiler: bool
    metal: bool
    head: HeadShape
    head_problem: str | None
    kernels: Verdict
    chunk: int
    chunk_budget_gib: float

    @property
    def healthy(self) -> bool:
        # A head that can't be taken apart needs no kernels.
        return self.kernels.ok or not self.metal or self.head_problem is not None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "healthy": self.healthy}


def examine(model: str | None = None, *, recheck: bool = False) -> Report:
    """Looks at the machine, and at the head of ``model`` where one is named.

    Args:
        model: embedded, a folder, or a Hugging Face Hub id.
        recheck: believe no earlier verdict on the kernels, for this head or any other.

    Raises:
        UserError: the model can't be loaded.
    """
    shape, problem = COMMON, None
    if recheck:
        selfcheck.forget()
    if model is not None:
        policy = load_base(Config(model=model))
        problem = policy.head_problem
        if policy.tap is not None:
            shape = policy.tap.shape()
    kernels = selfcheck.verdict(shape)
    return Report(
        environment=environment(),
        memory_gib=budget.working_memory() / budget.GIB,
        linux=sys.platform.startswith("linux"),
        openblas=OPENBLAS,
        compiler=shutil.which("g++") is not None,
        metal=selfcheck.has_metal(),
        head=shape,
        head_problem=problem,
        kernels=kernels,
        chunk=budget.chunk_tokens(shape.vocabulary, metal=kernels.ok),
        chunk_budget_gib=budget.budget_bytes(metal=kernels.ok) / budget.GIB,
    )
