"""What training changed, weight by weight: W -> W + scale * (lora_a @ lora_b).T, or the weight
that was trained itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simko_mlx.export.source import Source
from simko_mlx.types import UserError


@dataclass(frozen=True)
class LoraChange:
    """A LoRA layer's effect; of an embedding (``transposed`` False) the product isn't turned."""

    a: np.ndarray
    b: np.ndarray
    scale: float
    transposed: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it belongs to."""
        rows, columns = self.a.shape[0], self.b.shape[-1]
        return (columns, rows) if self.transposed else (rows, columns)

    def apply(self, weight: np.ndarray) -> np.ndarray:
        """The changed weight; both float32."""
        b = np.float32(self.scale) * self.b
        # In the weight's own layout: a large matrix that is turned afterwards is slow to add.
        changed = b.T @ self.a.T if self.transposed else self.a @ b
        changed += weight
        return changed


@dataclass(frozen=True)
class Replacement:
    """A weight that was trained itself, ``scale`` of the way from the base's to it."""

    trained: np.ndarray
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.trained.shape

    def apply(self, weight: np.ndarray) -> np.ndarray:
        if self.scale == 1:
            return self.trained
        return weight + np.float32(self.scale) * (self.trained - weight)


Change = LoraChange | Replacement


def check_finite(source: Source) -> None:
    """Refuses a run whose weights have become useless.

    Raises:
        UserError: a value is NaN or infinite.
    """
    for name, value in source.weights.items():
        if not np.isfinite(value).all():
            raise UserError(
                f"{name} has values that are not finite at step {source.step}: export an earlier "
                "step with --step."
            )
