"""Arrays to the bytes of a safetensors file, in the types that models come in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from simko_mlx.types import require

DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}


def to_safetensors(
    arrays: Mapping[str, np.ndarray], dtype: str, metadata: Mapping[str, str]
) -> bytes:
    """A safetensors file of float32 arrays, written as ``f32``, ``f16`` or ``bf16``.

    The same arrays always give the same bytes, so that pushing them twice changes nothing: MLX
    itself writes them in another order in each process, and numpy has no bfloat16.

    Raises:
        UserError: a value is too large for the type.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    parts, end = [], 0
    for name, value in sorted(arrays.items()):
        cast = mx.array(np.ascontiguousarray(value)).astype(DTYPES[dtype])
        require(
            dtype == "f32" or bool(mx.all(mx.isfinite(cast)).item()),
            f"{name} has values too large for {dtype}: export it with --dtype f32 or bf16.",
        )
        data = np.array(cast.view(mx.uint16) if dtype == "bf16" else cast).tobytes()
        offsets = [end, end + len(data)]
        header[name] = {"dtype": dtype.upper(), "shape": list(value.shape), "data_offsets": offsets}
        parts.append(data)
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *parts))
