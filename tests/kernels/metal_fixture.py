"""The Metal kernels for tests: on Metal itself where there is a Mac, else emulated by g++."""

from __future__ import annotations

import mlx.core as mx
import pytest

from simko_mlx.kernels import metal
from tests.metal_emulator import HAVE_GXX, EmulatedMetalKernel

REASON = "neither Metal nor g++ 12 to emulate it with"


@pytest.fixture
def metal_backend(monkeypatch: pytest.MonkeyPatch):
    """Makes backend "metal" work; yields "metal" or "emulated"."""
    if mx.metal.is_available():
        yield "metal"
        return
    if not HAVE_GXX:
        pytest.skip(REASON)
    monkeypatch.setattr(mx.fast, "metal_kernel", EmulatedMetalKernel)
    metal._kernel.cache_clear()
    yield "emulated"
    metal._kernel.cache_clear()
