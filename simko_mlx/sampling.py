"""Draws one token per row from softmax(logits), with random numbers that depend on keys alone.

By inversion, not by Gumbel noise: a row needs two random numbers, not one for each token of the
vocabulary, and the one exponential per logit serves the log-probability as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import apply_top_k, apply_top_p

from simko_mlx.kernels.exponential import exp

BLOCK = 128


def row_hasher(seed: int, step: int | str, problem_id: str, sample: int) -> Any:
    """The hash that a completion's keys derive from."""
    return hashlib.blake2b(repr((seed, step, problem_id, sample)).encode(), digest_size=8)


def token_key(hasher: Any, token: int) -> bytes:
    """8 bytes: the key that draws the token at this position of the completion."""
    keyed = hasher.copy()
    keyed.update(token.to_bytes(8, "little"))
    return keyed.digest()


def uniforms(keys: Iterable[bytes]) -> mx.array:
    """(B, 2) float32 in [0, 1), multiples of 2^-24: two for each 8-byte key."""
    words = np.frombuffer(b"".join(keys), dtype="<u4").reshape(-1, 2)
    return mx.array((words >> 8).astype(np.float32) * np.float32(2.0**-24))


def draw(
    logits: mx.array, random: mx.array, *, top_p: float = 1.0, top_k: int = 0
) -> tuple[mx.array, mx.array]:
    """(B, V) float32 logits and (B, 2) random numbers -> tokens (B,) and their log-probs (B,).

    The first random number chooses a block of 128 tokens by the blocks' masses, the second a token
    in it: in float32, no token's probability is off by more than some 1e-7 of its block's. A token
    of probability 0 is never drawn. ``top_p`` < 1 and ``top_k`` > 0 restrict what is drawn; the
    log-probs are those of the whole distribution nevertheless. Rows with NaN give log-prob NaN.
    """
    rows, vocabulary = logits.shape
    top = logits.max(axis=-1, keepdims=True)
    e = exp(logits - top)
    blocks = -(-vocabulary // BLOCK)
    whole = _blocks(e, blocks)
    masses = whole.sum(axis=-1)
    log_sum = mx.log(masses.sum(axis=-1))
    if top_p < 1.0 or top_k:
        kept = logits - top - log_sum[:, None]
        kept = apply_top_p(kept, top_p) if top_p < 1.0 else kept
        kept = apply_top_k(kept, top_k) if 0 < top_k < vocabulary else kept
        whole = _blocks(mx.where(mx.isinf(kept), 0.0, e), blocks)
        masses = whole.sum(axis=-1)
    block = _invert(masses, random[:, :1])
    inside = mx.take_along_axis(whole, block[:, None, None], axis=1).reshape(rows, BLOCK)
    token = block * BLOCK + _invert(inside, random[:, 1:])
    chosen = mx.take_along_axis(logits, token[:, None], axis=-1) - top
    return token, chosen[:, 0] - log_sum


def _blocks(e: mx.array, blocks: int) -> mx.array:
    missing = blocks * BLOCK - e.shape[-1]
    if missing:
        e = mx.pad(e, [(0, 0), (0, missing)])
    return e.reshape(-1, blocks, BLOCK)


def _invert(masses: mx.array, random: mx.array) -> mx.array:
    """(B, n) masses, (B, 1) in [0, 1) -> (B,) int32: the first place whose cumulative mass exceeds
    that share of the total; never one without mass, however sums are rounded."""
    cumulative = mx.cumsum(masses, axis=-1)
    found = (cumulative > random * cumulative[:, -1:]) & (masses > 0)
    first = mx.argmax(found, axis=-1)
    some = mx.take_along_axis(found, first[:, None], axis=-1)[:, 0]
    return mx.where(some, first, mx.argmax(masses, axis=-1)).astype(mx.int32)
