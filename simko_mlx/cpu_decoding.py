"""What a decode step on a CPU does in fewer or quicker operations than MLX would by itself.

Rotary positions: on a GPU ``mx.fast.rope`` is one kernel. On a CPU it is written out in some 25
operations for each layer's queries and again for its keys, most of them for the sines of the same
positions. Here those are computed once.

SwiGLU: its exponentials take a tenth of a step where MLX's exp is slow (``exponential.py``).

mlx-lm's models find both by name: those names are replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from simko_mlx.kernels.exponential import exp, has_slow_exp

SWIGLU = "swiglu"
Table = tuple[mx.array, mx.array]  # what x is multiplied with, and x with its pairs swapped


class _Now:
    is_decoding = False


@contextmanager
def quick_step() -> Iterator[None]:
    """While it lasts, the model is asked for more tokens, without a gradient.

    Single new tokens (B, heads, 1, D) are rotated with tables that are made once for each
    kind of rotation; the results are those of ``mx.fast.rope``, bit for bit. Those of SwiGLU are
    within some 1e-6.
    """
    if mx.default_device().type != mx.DeviceType.cpu:
        yield
        return
    plain = mx.fast.rope
    tables: dict[Any, tuple[Any, Table]] = {}

    def rope(x: mx.array, dims: int, *, traditional: bool, **rest: Any) -> mx.array:
        if x.ndim != 4 or x.shape[2] != 1:
            return plain(x, dims, traditional=traditional, **rest)
        known = (_name(v) for v in rest.values())
        key = (x.shape[0], x.shape[3], x.dtype, dims, traditional, *rest, *known)
        if key not in tables:
            # With what it was made from: an array's id is its own only while it lives.
            tables[key] = rest, _table(plain, x, dims, traditional, rest)
        as_is, swapped = tables[key][1]
        return x * as_is + _swap_pairs(x, dims, traditional) * swapped

    mx.fast.rope, _Now.is_decoding = rope, True
    try:
        yield
    finally:
        mx.fast.rope, _Now.is_decoding = plain, False


def quicken(model: nn.Module) -> None:
    """Makes a model's SwiGLU quicker in such steps, where it is slow."""
    if not has_slow_exp():
        return
    for module in {sys.modules[type(part).__module__] for part in model.modules()}:
        plain = getattr(module, SWIGLU, None)
        if plain is not None and not hasattr(plain, "__wrapped__"):
            setattr(module, SWIGLU, _quick_in_steps(plain))


def _quick_in_steps(plain: Any) -> Any:
    @wraps(plain)
    def swiglu(gate: mx.array, x: mx.array) -> mx.array:
        if _Now.is_decoding and gate.dtype == mx.float32:
            return gate * x / (1.0 + exp(gate, -1.0))
        return plain(gate, x)

    return swiglu


def _name(value: Any) -> Any:
    return id(value) if isinstance(value, mx.array) else value


def _table(plain: Any, x: mx.array, dims: int, traditional: bool, rest: dict[str, Any]) -> Table:
    """(1 or B, 1, 1, D) each: a pair (1, 0) is rotated to (cos, sin), whatever the conventions."""
    offset = rest["offset"]
    rows = offset.size if isinstance(offset, mx.array) else 1
    place = mx.arange(x.shape[3])
    inside = place < dims
    first = place % 2 == 0 if traditional else place < dims // 2
    ones = mx.broadcast_to((first & inside).astype(x.dtype), (rows, 1, 1, x.shape[3]))
    turned = plain(ones, dims, traditional=traditional, **rest)
    other = _swap_pairs(turned, dims, traditional)
    cos, sin = mx.where(first, turned, other), mx.where(first, -other, turned)
    return mx.where(inside, cos, 1), mx.where(inside, sin, 0)


def _swap_pairs(x: mx.array, dims: int, traditional: bool) -> mx.array:
    """The two numbers of each pair in each other's place; what isn't rotated stays where it is."""
    if traditional:
        pairs = x[..., :dims].reshape(*x.shape[:-1], dims // 2, 2)
        parts = [pairs[..., ::-1].reshape(*x.shape[:-1], dims)]
    else:
        parts = [x[..., dims // 2 : dims], x[..., : dims // 2]]
    if dims < x.shape[-1]:
        parts.append(x[..., dims:])
    return mx.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
