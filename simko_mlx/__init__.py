"""Reinforcement learning with verifiable rewards on MLX, with SimKO.

Importing the package loads nothing heavy. On Linux it first makes OpenBLAS available to MLX, if
the system has it: MLX's CPU wheel links the reference BLAS, which multiplies float32 matrices
about 16 to 30 times slower. That must happen before ``mlx.core`` is imported, hence here.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simko_mlx.losses import simko_loss

__version__ = "0.1.0"
__all__ = ["OPENBLAS", "__version__", "simko_loss"]


def _load_openblas() -> bool:
    if not sys.platform.startswith("linux") or "mlx.core" in sys.modules:
        return False
    try:
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


OPENBLAS = _load_openblas()
"""Whether MLX's matrix products go through OpenBLAS (Linux only)."""


def __getattr__(name: str) -> Any:
    if name == "simko_loss":
        from simko_mlx.losses import simko_loss

        return simko_loss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
