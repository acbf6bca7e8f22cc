"""Head statistics without logits: the head and the loss's sums in one go, chunk by chunk.

With J the sampled token and the K candidates, g_j the cotangents of their log-probs, S their sum
and c_j = g_j - S p_j (without cancellation: see ``statistics.coefficients``),

    d loss / d hidden = (scale / T) [ sum over J of c_j slope_j W_j  -  S m ],
    m = sum over v outside J of p_v slope_v W_v.

m does not depend on the loss. In mode "tail" the forward pass forms it, a second product with the
head, and the backward pass only gathers K + 1 rows: two products of N x V x D instead of the three
of "recompute", which saves nothing and builds each chunk's logits again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import mlx.core as mx

from simko_mlx.kernels import metal, portable, selfcheck
from simko_mlx.kernels.budget import chunk_tokens
from simko_mlx.kernels.head import Head
from simko_mlx.kernels.reference import ranked_statistics
from simko_mlx.kernels.refine import refine
from simko_mlx.kernels.statistics import (
    Coefficients,
    HeadStatistics,
    RowSums,
    coefficients,
    is_lost,
    statistics,
)
from simko_mlx.kernels.topk import top_k

MODES = ("tail", "recompute", "nograd")
BACKENDS = ("auto", "reference", "portable", "metal")
MOST_CANDIDATES = 8


@dataclass(frozen=True)
class _Job:
    """One call's settings, resolved."""

    head: Head
    task: portable.Pass
    chunk: int
    forward: Callable[..., portable.Chunk]

    def spans(self, rows: int) -> Iterator[slice]:
        return (slice(start, start + self.chunk) for start in range(0, rows, self.chunk))


def head_statistics(
    hidden: mx.array,
    tokens: mx.array,
    head: Any,
    *,
    simko_k: int = 3,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk: int | None = None,
    mode: str = "tail",
    backend: str = "auto",
    candidates: mx.array | None = None,
) -> HeadStatistics:
    """Statistics of softmax(head(hidden) / temperature), never holding (N, V) logits.

    Args:
        hidden: (N, D), float32, float16 or bfloat16: what the model gives its head.
        tokens: (N,) integers in [0, V).
        head: a ``Head``, a weight (V, D), or an ``nn`` Linear or Embedding, quantised or not.
        simko_k: number of candidates K, 1 to 8; all of them where the vocabulary is smaller.
        temperature: the one that the tokens were sampled with, > 0.
        softcap: replaces the head's own.
        chunk: tokens at a time; None: what fits the documented budget (``chunk_tokens``).
        mode: "tail" (gradient with respect to ``hidden`` through ``logprobs`` and
            ``topk_logprobs``; two products with the head in all), "recompute" (three; gradients
            also with respect to a dense head's weight and bias, and through ``entropy``), or
            "nograd" (one).
        backend: "reference" (full logits, the specification, with the gradients of the mode),
            "portable" (plain MLX), "metal" (Metal kernels; modes "tail" and "nograd", and the
            first pass of "recompute"), or "auto": Metal's kernels where they have proved
            themselves on this machine, else portable.
        candidates: (N, K) ids whose log-probs are wanted instead of the top K, in mode "nograd".

    Returns:
        float32 statistics in (N,) and (N, K); a row with NaN or infinite logits, or with a token
        outside the vocabulary, is NaN alone. Given the logits, which the head's own product rounds,
        each figure and each row of the gradient is exact to 1e-5 relative.

    Raises:
        ValueError: shapes, names or numbers that don't fit.
        TypeError: arrays of another kind, or a ``head`` that is none of the above.
    """
    head = Head.of(head, softcap=softcap)
    _check(hidden, tokens, head, (simko_k, temperature, chunk, mode, backend))
    if candidates is not None:
        _check_candidates(candidates, len(tokens), simko_k, mode)
    else:
        simko_k = min(simko_k, head.vocabulary)
    # A token that is none makes its row a lost one; gathering with it would leave the arrays.
    known = (tokens >= 0) & (tokens < head.vocabulary)
    tokens = mx.where(known, tokens, 0).astype(mx.int32)
    hidden = mx.where(known[:, None], hidden, mx.array(mx.nan, dtype=hidden.dtype))
    if mode != "recompute":
        head = head.detached()
    if mode == "nograd":
        hidden = mx.stop_gradient(hidden)
    if len(tokens) == 0:
        return _empty(simko_k)
    if backend == "reference":
        return _reference(hidden, tokens, head, (simko_k, temperature, mode), candidates)
    dtype = head.logit_dtype(hidden.dtype)
    on_metal = backend == "metal" or (backend == "auto" and selfcheck.trusted(head, dtype))
    job = _Job(
        head,
        portable.Pass(simko_k, temperature, mode == "tail"),
        chunk or chunk_tokens(head.vocabulary, mode=mode, metal=on_metal),
        metal.forward if on_metal else portable.forward,
    )
    if mode == "tail":
        return _tail(job, hidden, tokens)
    if mode == "recompute":
        return _recompute(job, hidden, tokens)
    return _forward(job, hidden, tokens, candidates)[0]


def _check(hidden: Any, tokens: Any, head: Head, settings: tuple[Any, Any, Any, str, str]) -> None:
    simko_k, temperature, chunk, mode, backend = settings
    if not (isinstance(hidden, mx.array) and mx.issubdtype(hidden.dtype, mx.floating)):
        raise TypeError("hidden must be an mx.array of floats")
    if not (isinstance(tokens, mx.array) and mx.issubdtype(tokens.dtype, mx.integer)):
        raise TypeError("tokens must be an mx.array of integers")
    if hidden.ndim != 2 or tokens.shape != hidden.shape[:1]:
        raise ValueError(f"hidden is (N, D) and tokens (N,), not {hidden.shape}, {tokens.shape}")
    if head.width != hidden.shape[1]:
        raise ValueError(f"a head of width {head.width} can't take hidden states {hidden.shape}")
    if head.bias is not None and head.bias.shape != (head.vocabulary,):
        raise ValueError(f"a bias for {head.vocabulary} tokens can't have shape {head.bias.shape}")
    if head.softcap is not None and not (head.softcap >= 0 and isfinite(head.softcap)):
        raise ValueError(f"softcap is {head.softcap}: it must be a positive number, or None")
    if not (isinstance(simko_k, int) and 1 <= simko_k <= MOST_CANDIDATES):
        raise ValueError(f"simko_k is {simko_k}: it must be from 1 to {MOST_CANDIDATES}")
    if not (temperature > 0 and isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}: it must be greater than 0, and finite")
    if chunk is not None and not (isinstance(chunk, int) and chunk >= 1):
        raise ValueError(f"chunk is {chunk}: it must be a whole number from 1 up, or None")
    if mode not in MODES or backend not in BACKENDS:
        raise ValueError(f"mode is one of {MODES}, backend one of {BACKENDS}")


def _check_candidates(candidates: Any, rows: int, simko_k: int, mode: str) -> None:
    if not (isinstance(candidates, mx.array) and mx.issubdtype(candidates.dtype, mx.integer)):
        raise TypeError("candidates must be an mx.array of integers")
    if mode != "nograd" or candidates.shape != (rows, simko_k):
        raise ValueError(
            f"candidates go with mode nograd and have shape {(rows, simko_k)}, as simko_k says, "
            f"not {candidates.shape}"
        )


def _empty(simko_k: int) -> HeadStatistics:
    none, some = mx.zeros((0,)), mx.zeros((0, simko_k))
    return HeadStatistics(none, some, some.astype(mx.int32), none, none, none > 0)


def _reference(
    hidden: mx.array,
    tokens: mx.array,
    head: Head,
    settings: tuple[int, float, str],
    candidates: mx.array | None,
) -> HeadStatistics:
    simko_k, temperature, mode = settings
    # A lost row must not meet the head: its gradient is 0, and 0 x NaN would be in all weights.
    lost = _broken(hidden)[:, None]
    raw = head.raw(mx.where(lost, 0.0, hidden))
    ids = top_k(mx.stop_gradient(raw).astype(mx.float32), simko_k)
    logits = mx.where(lost, mx.nan, head.finish(raw, temperature))
    out = ranked_statistics(logits, tokens, ids)
    if candidates is not None:
        at = portable.logits_at(logits, candidates)
        out = _at(out, candidates, at - logits.max(axis=-1, keepdims=True))
    return _without_gradient(out, entropy=mode == "recompute")


def _at(out: HeadStatistics, candidates: mx.array, below_top: mx.array) -> HeadStatistics:
    """With the log-probs of these ids in the place of the top K's; the top's is -log(sum)."""
    logprobs = below_top + out.topk_logprobs[:, :1]
    return out._replace(topk_ids=candidates.astype(mx.int32), topk_logprobs=logprobs)


def _forward(
    job: _Job, hidden: mx.array, tokens: mx.array, candidates: mx.array | None = None
) -> tuple[HeadStatistics, RowSums, list[mx.array]]:
    """All chunks: statistics, sums, and what a backward pass of mode "tail" needs besides.

    One after the other: each waits for the last, or their logits would pile up."""
    chunks: list[portable.Chunk] = []
    head = job.head.for_hidden(hidden.dtype)
    for span in job.spans(len(tokens)):
        part = hidden[span]
        if chunks:
            # On everything of it: what one output still waits for keeps whole rows of logits.
            part = mx.depends([part], _arrays(chunks[-1]))[0]
        some = None if candidates is None else candidates[span]
        chunk = job.forward(part, tokens[span], head, job.task, some)
        if head.logit_dtype(hidden.dtype) == mx.float32:
            chunk = refine(part, tokens[span], job.head, job.task, chunk)
        chunks.append(chunk)
    sums = RowSums(*(_join(parts) for parts in zip(*(c.sums for c in chunks), strict=True)))
    # A cap would make finite logits of an infinite hidden state.
    sums = sums._replace(tail=mx.where(_broken(hidden), mx.nan, sums.tail))
    out = statistics(sums, job.task.simko_k)
    means = [c.mean for c in chunks if c.mean is not None]
    slopes = [c.slopes for c in chunks if c.slopes is not None]
    if candidates is not None:
        at = _join([c.at for c in chunks if c.at is not None])
        out = _at(out, candidates, at - sums.values[:, :1])
    return out, sums, [_join(parts) for parts in (means, slopes) if parts]


def _broken(hidden: mx.array) -> mx.array:
    """(N,) bool: rows with a value that is NaN or infinite."""
    return mx.isnan((hidden * 0.0).sum(axis=-1))


def _arrays(chunk: portable.Chunk) -> list[mx.array]:
    return [*chunk.sums, *(x for x in chunk[1:] if x is not None)]


def _join(parts: Any) -> mx.array:
    return mx.concatenate(parts) if len(parts) > 1 else parts[0]


def _tail(job: _Job, hidden: mx.array, tokens: mx.array) -> HeadStatistics:
    fields = len(HeadStatistics._fields)
    saved = fields + len(RowSums._fields)

    @mx.custom_function
    def run(hidden: mx.array, tokens: mx.array) -> tuple[mx.array, ...]:
        out, sums, rest = _forward(job, hidden, tokens)
        return (*out, *sums, *rest)

    @run.vjp
    def run_vjp(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array]:
        hidden, tokens = primals
        sums = RowSums(*outputs[fields:saved])
        mean, *slopes = outputs[saved:]
        special = coefficients(sums, tokens, cotangents[0], cotangents[1])
        factor = job.head.scale / job.task.temperature
        grad = -special.mass[:, None] * mean
        columns = special.values * slopes[0] if slopes else special.values
        # One column after the other: (N, K + 1, D) at once would outweigh a chunk's logits.
        for j in range(columns.shape[1]):
            grad = grad + columns[:, j : j + 1] * job.head.rows(special.ids[:, j])
        grad = mx.where(is_lost(sums)[:, None], 0.0, grad * factor)
        return grad.astype(hidden.dtype), mx.zeros_like(tokens)

    results: Any = run(hidden, tokens)
    return _without_gradient(HeadStatistics(*results[:fields]), entropy=False)


def _without_gradient(out: HeadStatistics, *, entropy: bool) -> HeadStatistics:
    return out._replace(
        entropy=out.entropy if entropy else mx.stop_gradient(out.entropy),
        logsumexp=mx.stop_gradient(out.logsumexp),
    )


def _recompute(job: _Job, hidden: mx.array, tokens: mx.array) -> HeadStatistics:
    fields, head = len(HeadStatistics._fields), job.head
    # Arguments of the function, not captured: what is captured has no gradient.
    weights = {} if head.quantised else {"weight": head.weight}
    if head.bias is not None:
        weights["bias"] = head.bias

    def with_weights(weights: dict[str, mx.array]) -> _Job:
        return replace(job, head=replace(head, **weights))

    @mx.custom_function
    def run(hidden: mx.array, tokens: mx.array, weights: Any) -> tuple[mx.array, ...]:
        out, sums, _ = _forward(with_weights(weights), hidden, tokens)
        return (*out, *sums)

    @run.vjp
    def run_vjp(primals: Any, cotangents: Any, outputs: Any) -> tuple[Any, ...]:
        hidden, tokens, weights = primals
        here = with_weights(weights)
        head = here.head.for_hidden(hidden.dtype)
        sums = RowSums(*outputs[fields:])
        special = coefficients(sums, tokens, cotangents[0], cotangents[1])
        entropy = cotangents[3]
        grads: list[mx.array] = []
        d_weights = {name: mx.zeros(w.shape) for name, w in weights.items()}
        for span in here.spans(len(tokens)):
            mine = RowSums(*(x[span] for x in sums))
            # A lost row must not meet the head: 0 x NaN would be in all weights' gradients.
            part = mx.where(is_lost(mine)[:, None], 0.0, hidden[span])
            # On the weights' gradient too, or each chunk's logits would wait for it.
            part = mx.depends([part], [grads[-1], *d_weights.values()])[0] if grads else part
            some = portable.Cotangents(Coefficients(*(x[span] for x in special)), entropy[span])
            grad, raw = portable.recompute(part, head, mine, some, temperature=job.task.temperature)
            grads.append(grad)
            if "weight" in weights:
                part = part.astype(mx.float32)
                d_weights["weight"] = mx.addmm(d_weights["weight"], raw.T, part)
            if "bias" in weights:
                d_weights["bias"] = d_weights["bias"] + raw.sum(axis=0)
        d_weights = {name: d.astype(weights[name].dtype) for name, d in d_weights.items()}
        return _join(grads).astype(hidden.dtype), mx.zeros_like(tokens), d_weights

    results: Any = run(hidden, tokens, weights)
    return _without_gradient(HeadStatistics(*results[:fields]), entropy=True)
