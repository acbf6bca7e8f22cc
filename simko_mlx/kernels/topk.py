"""Exact top-K of each row without a sort over the whole vocabulary."""

from __future__ import annotations

import mlx.core as mx

BLOCK = 128


def top_k(values: mx.array, k: int) -> mx.array:
    """Column indices of the k largest values of each row, largest first.

    Among equal values the lowest index comes first. ``values`` (N, V) -> (N, min(k, V)) int32.
    The k largest values lie in the k blocks with the largest maxima, so only those are sorted; on
    Metal ``argpartition`` would sort the whole row.
    """
    rows, width = values.shape
    k = min(k, width)
    blocks = width // BLOCK
    if blocks <= k:
        return mx.argsort(-values, axis=-1)[:, :k].astype(mx.int32)  # argsort is stable
    whole = values[:, : blocks * BLOCK].reshape(rows, blocks, BLOCK)
    best = mx.argsort(-whole.max(axis=-1), axis=-1)[:, :k]
    best = mx.sort(best, axis=-1)  # ascending, so that the lowest index wins ties
    columns = (best[:, :, None] * BLOCK + mx.arange(BLOCK, dtype=best.dtype)).reshape(rows, -1)
    if width % BLOCK:
        rest = mx.arange(blocks * BLOCK, width, dtype=columns.dtype)
        rest = mx.broadcast_to(rest, (rows, rest.size))
        columns = mx.concatenate([columns, rest], axis=1)
    candidates = mx.take_along_axis(values, columns, axis=-1)
    order = mx.argsort(-candidates, axis=-1)[:, :k]
    return mx.take_along_axis(columns, order, axis=-1).astype(mx.int32)
