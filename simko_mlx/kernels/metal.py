"""One chunk of tokens through the head with Metal kernels: the same contract as ``portable``.

The forward kernel reads each row of logits once, for everything that ``RowSums`` holds; the tail
kernel reads it once more and writes what the second product with the head takes. The kernels are
text: ``head_common.metal`` before ``head_forward.metal`` and ``head_tail.metal``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx

from simko_mlx.kernels.head import Head
from simko_mlx.kernels.portable import (
    LARGEST_TAIL,
    NEGLIGIBLE,
    Chunk,
    Pass,
    logits_at,
    special_ids,
    special_slopes,
)
from simko_mlx.kernels.statistics import RowSums

THREADS = 256  # per threadgroup; K + 1 candidates in registers rule out the largest groups
FOLDER = Path(__file__).parent


def source(name: str) -> str:
    """The text of ``head_<name>.metal``."""
    return (FOLDER / f"head_{name}.metal").read_text(encoding="utf-8")


@cache
def _kernel(name: str) -> Any:
    inputs, outputs = {
        "forward": (("logits", "tokens", "head"), ("values", "ids", "chosen", "tail", "weighted")),
        "tail": (("logits", "special", "shift", "head"), ("mass",)),
    }[name]
    return mx.fast.metal_kernel(
        name=f"simko_head_{name}",
        input_names=list(inputs),
        output_names=list(outputs),
        source=source(name),
        header=source("common"),
    )


def _settings(head: Head, temperature: float) -> mx.array:
    return mx.array([head.scale, head.softcap or 0.0, 1.0 / temperature], dtype=mx.float32)


def row_sums(raw: mx.array, tokens: mx.array, head: Head, task: Pass) -> RowSums:
    """The forward kernel on raw logits (C, V), C and V at least 1, and tokens in [0, V)."""
    rows, vocabulary = raw.shape
    kept = min(task.simko_k + 1, vocabulary)
    out = _kernel("forward")(
        inputs=[raw, tokens, _settings(head, task.temperature)],
        template=[("L", kept), ("THREADS", THREADS)],
        output_shapes=[(rows, kept), (rows, kept), (rows,), (rows,), (rows,)],
        output_dtypes=[mx.float32, mx.int32, mx.float32, mx.float32, mx.float32],
        grid=(rows * THREADS, 1, 1),
        threadgroup=(THREADS, 1, 1),
    )
    values, ids, chosen, tail, weighted = out
    # Twice the same logit may be twice another rounding; the difference must be exactly 0.
    chosen = mx.where(ids[:, 0] == tokens, values[:, 0], chosen)
    return RowSums(values, ids, chosen, tail, weighted)


def tail_mass(
    raw: mx.array, special: mx.array, shift: mx.array, head: Head, temperature: float
) -> mx.array:
    """The tail kernel on raw logits (C, V): exp(z - shift) slope, in the logits' type."""
    rows = raw.shape[0]
    (mass,) = _kernel("tail")(
        inputs=[raw, special, shift, _settings(head, temperature)],
        template=[("J", special.shape[1]), ("THREADS", THREADS), ("O", raw.dtype)],
        output_shapes=[raw.shape],
        output_dtypes=[raw.dtype],
        grid=(rows * THREADS, 1, 1),
        threadgroup=(THREADS, 1, 1),
    )
    return mass


def forward(
    hidden: mx.array,
    tokens: mx.array,
    head: Head,
    task: Pass,
    candidates: mx.array | None = None,
) -> Chunk:
    """As ``portable.forward``."""
    raw = head.raw(hidden)
    sums = row_sums(raw, tokens, head, task)
    at = None
    if candidates is not None:
        at = head.finish(logits_at(raw, candidates), task.temperature)
    if not task.want_mean:
        return Chunk(sums, at=at)
    top, last = sums.values[:, 0], sums.values[:, -1]
    shift = mx.where(mx.isfinite(last), last, top)
    # In logarithms: 1 / shrink may overflow where the tail is nothing beside the candidates.
    shift = shift + _log_shrink(sums, shift) if hidden.dtype == mx.float16 else shift
    special = special_ids(tokens, sums.ids, task.simko_k)
    mass = tail_mass(raw, special, shift, head, task.temperature)
    factor = mx.exp(mx.maximum(shift - top, NEGLIGIBLE)) / (1.0 + sums.tail)
    mean = head.back(mass).astype(mx.float32) * factor[:, None]
    return Chunk(sums, mean, special_slopes(head, raw, special), at)


def _log_shrink(sums: RowSums, shift: mx.array) -> mx.array:
    """How far to lower the tail so that its product with the head stays within float16.

    The tail's mass at this shift is at most R exp(m - shift); where the candidates have most of
    that, the tail may vanish, being less than their rounding.
    """
    log_mass = mx.log(sums.tail) + (sums.values[:, 0] - shift)
    return mx.maximum(0.0, log_mass - mx.log(mx.array(LARGEST_TAIL)))
