"""Arrays to the bytes of a safetensors file, in the types that models come in."""

from __future__ import annotations

import io
from collections.abc import Mapping

import mlx.core as mx
import numpy as np

from simko_mlx.types import require

DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}


def to_safetensors(
    arrays: Mapping[str, np.ndarray], dtype: str, metadata: Mapping[str, str]
) -> bytes:
    """A safetensors file of float32 arrays, written as ``f32``, ``f16`` or ``bf16``.

    Raises:
        UserError: a value is too large for the type.
    """
    tensors = {}
    for name, value in arrays.items():
        tensors[name] = mx.array(np.ascontiguousarray(value)).astype(DTYPES[dtype])
        require(
            dtype == "f32" or bool(mx.all(mx.isfinite(tensors[name])).item()),
            f"{name} has values too large for {dtype}: export it with --dtype f32 or bf16.",
        )
    file = io.BytesIO()
    mx.save_safetensors(file, tensors, dict(metadata))  # type: ignore[arg-type]
    return file.getvalue()
