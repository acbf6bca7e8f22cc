"""The logits that matter most, computed once more and better.

A float32 product rounds each logit: of 30 by some 3e-6, and where a token is nearly certain that
much is wrong, relatively, with everything the others have left. The product's sum over D runs along
one accumulator; here the few largest logits are summed in two levels, which leaves little more than
the rounding of the result. It costs K + 2 products with a row instead of V.

Half-precision logits are left alone: the model samples from those, rounded as they are.
"""

from __future__ import annotations

import mlx.core as mx

from simko_mlx.kernels.head import Head
from simko_mlx.kernels.portable import NEGLIGIBLE, Chunk, Pass
from simko_mlx.kernels.statistics import row_sum

BLOCK = 32


def refine(hidden: mx.array, tokens: mx.array, head: Head, task: Pass, chunk: Chunk) -> Chunk:
    """The chunk with better ``values`` and ``chosen``, and what follows from them.

    Ranks stay those of the product, even where two logits differ by less than its rounding: the
    tail was summed without exactly these candidates.
    """
    sums = chunk.sums
    kept = sums.ids.shape[1]
    ids = mx.concatenate([sums.ids, tokens[:, None]], axis=1)
    new = head.finish(_products(hidden, head, ids), task.temperature)
    old = mx.concatenate([sums.values, sums.chosen[:, None]], axis=1)
    # The token counts once, and the top not at all.
    apart = ~mx.any(sums.ids == tokens[:, None], axis=-1, keepdims=True)
    counts = mx.concatenate([mx.ones_like(sums.ids[:, 1:]) > 0, apart], axis=1)
    old_mass, old_weighted = _sums(old, counts)
    new_mass, new_weighted = _sums(new, counts)

    rise = new[:, 0] - old[:, 0]
    down = mx.exp(-rise)
    rest = mx.maximum(sums.tail - old_mass, 0.0)
    weighted = mx.minimum(sums.weighted - old_weighted, 0.0) - rise * rest
    tail = down * rest + new_mass
    out = chunk._replace(
        sums=sums._replace(
            values=new[:, :kept],
            chosen=new[:, kept],
            tail=tail,
            weighted=down * weighted + new_weighted,
        )
    )
    if chunk.mean is None:
        return out
    return out._replace(mean=chunk.mean * (down * (1.0 + sums.tail) / (1.0 + tail))[:, None])


def _products(hidden: mx.array, head: Head, ids: mx.array) -> mx.array:
    """(C, L) float32: each hidden state with the head's rows of its ids."""
    out = row_sum(hidden.astype(mx.float32)[:, None] * head.rows(ids), block=BLOCK)
    return out if head.bias is None else out + head.bias[ids].astype(mx.float32)


def _sums(logits: mx.array, counts: mx.array) -> tuple[mx.array, mx.array]:
    """Mass and weighted mass relative to the first column, of the other columns that count."""
    below = mx.maximum(logits[:, 1:] - logits[:, :1], NEGLIGIBLE)
    e = mx.where(counts, mx.exp(below), 0.0)
    return e.sum(axis=-1), (e * below).sum(axis=-1)
