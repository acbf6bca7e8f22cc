"""Hidden states (or logits) of a batch's completion tokens, with one forward pass per prompt.

The prompt, without its last token, is run once; each of its completions continues from its keys
and values, gradients included. Ways, from fast to slow; the slower ones serve models whose
attention takes no mask per row, or no position that is an array, or no cache at all:

    packed   prompts of different lengths in one batch
    single   one prompt length at a time, padded, so that few shapes occur
    exact    one prompt length at a time, not padded
    full     each row with its whole prompt, as mlx-lm trains
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from simko_mlx.batching import bucket
from simko_mlx.prefix import Lengths, prefix_caches
from simko_mlx.types import TokenBatch

Way = Literal["packed", "single", "exact", "full"]
WAYS: tuple[Way, ...] = ("packed", "single", "exact", "full")

Call = Callable[..., mx.array]
"""(ids (B, L), cache=...) -> what is wanted of each token: (B, L, D), hidden states or logits."""


@dataclass(frozen=True)
class Layout:
    """Where a batch's tokens are.

    ``rows`` and ``width`` are R and T; ``per_prompt`` the rows of each prompt; ``length`` the
    prefix's length where it is exact, else None. The arrays, all int32: ``prefix`` (P, S) the
    prompts without their last token; ``inputs`` (R, T) what the rows are given ("full": (R, W),
    with the prompt); ``lengths`` (P,) or scalar, of the prefixes; ``places`` (N,) where in the
    output the tokens with a loss are predicted; ``targets`` (N,) those tokens; ``back`` (R T,) the
    place of each of the batch's tokens among these, N where there is none.
    """

    way: Way
    rows: int
    width: int
    per_prompt: int
    length: int | None
    arrays: dict[str, mx.array]

    @property
    def key(self) -> tuple[Any, ...]:
        """All that isn't in the arrays or their shapes."""
        return self.way, self.rows, self.width, self.per_prompt, self.length


def lay_out(batch: TokenBatch, way: Way, *, bucketed: bool = False) -> Layout:
    """The layout of a batch; ``bucketed`` pads the prefix, and the tokens with a loss, so that few
    shapes occur (the extra ones are looked at by nobody).

    Raises:
        ValueError: its prompts differ in length, and this way can't have that.
    """
    lengths = [len(prompt) - 1 for prompt in batch.prompts]
    if way != "packed" and way != "full" and len(set(lengths)) > 1:
        raise ValueError(f"prompts of different lengths can't share a batch the {way} way")
    rows, width = batch.tokens.shape
    per_prompt = rows // len(batch.prompts)
    tokens, mask = np.array(batch.tokens), np.array(batch.loss_mask)
    kept = np.flatnonzero(mask)
    count = len(kept)
    if bucketed:
        kept = np.pad(kept, (0, _eighths(count, rows * width) - count))
    back = np.full(rows * width, len(kept), dtype=np.int32)
    back[kept[:count]] = np.arange(count)
    last = np.repeat([[prompt[-1]] for prompt in batch.prompts], per_prompt, axis=0)
    inputs = np.concatenate([last, tokens[:, :-1]], axis=1).astype(np.int32)
    places = kept
    if way == "full":
        inputs, start = _with_prompts(batch.prompts, inputs, per_prompt)
        if bucketed:
            extra = bucket(inputs.shape[1]) - inputs.shape[1]
            inputs = np.pad(inputs, ((0, 0), (0, extra)))
        places = kept // width * inputs.shape[1] + np.repeat(start, per_prompt)[kept // width]
        places = places + kept % width
    padded = way != "exact" and bucketed and max(lengths) > 0
    size = bucket(max(lengths)) if padded else max(lengths)
    prefix = np.zeros((len(batch.prompts), size), dtype=np.int32)
    for row, prompt in zip(prefix, batch.prompts, strict=True):
        row[: len(prompt) - 1] = prompt[:-1]
    ragged = way == "packed" and (len(set(lengths)) > 1)
    arrays = {
        "inputs": inputs,
        "places": places.astype(np.int32),
        "targets": tokens.reshape(-1)[kept].astype(np.int32),
        "back": back,
    }
    if way != "full":
        arrays["prefix"] = prefix
        arrays["lengths"] = np.array(lengths if ragged else lengths[0], dtype=np.int32)
    exact = way != "full" and not ragged and size == lengths[0]
    return Layout(
        way,
        rows,
        width,
        per_prompt,
        lengths[0] if exact else None,
        {name: mx.array(value) for name, value in arrays.items()},
    )


def _eighths(count: int, most: int) -> int:
    """``count`` rounded up to an eighth of ``most``."""
    step = -(-most // 8)
    return min(most, -(-count // step) * step)


def _with_prompts(
    prompts: tuple[tuple[int, ...], ...], inputs: np.ndarray, per_prompt: int
) -> tuple[np.ndarray, np.ndarray]:
    """(R, W) whole rows, right-padded (which needs no mask: a token never sees what follows it),
    and where each prompt's completions start to be predicted."""
    start = np.array([len(prompt) - 1 for prompt in prompts])
    whole = np.zeros((len(inputs), start.max() + inputs.shape[1]), dtype=np.int32)
    for p, prompt in enumerate(prompts):
        mine = slice(p * per_prompt, (p + 1) * per_prompt)
        whole[mine, : start[p]] = prompt[:-1]
        whole[mine, start[p] : start[p] + inputs.shape[1]] = inputs[mine]
    return whole, start


def outputs(model: nn.Module, call: Call, layout: Layout) -> mx.array:
    """(N, D): what ``call`` gives for the tokens with a loss, differentiable."""
    arrays = layout.arrays
    if layout.way == "full":
        out = call(arrays["inputs"])
        return out.reshape(-1, out.shape[-1])[arrays["places"]]
    caches = prefix_caches(model)
    if isinstance(caches, str):
        raise LookupError(caches)
    lengths: Lengths = arrays["lengths"] if layout.length is None else layout.length
    if arrays["prefix"].shape[1]:
        call(arrays["prefix"], cache=caches)  # of whose outputs nothing is looked at
    for cache in caches:
        cache.fan_out(layout.per_prompt, lengths)
    out = call(arrays["inputs"], cache=caches)
    return out.reshape(-1, out.shape[-1])[arrays["places"]]
