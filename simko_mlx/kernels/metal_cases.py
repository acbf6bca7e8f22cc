"""The cases on which the Metal kernels must agree with the portable path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from simko_mlx.kernels import metal, portable
from simko_mlx.kernels.head import Head

WIDTH = 64
ROWS = 24
SUMS_TOLERANCE = 1e-4
# Relative to a row's largest value. Half-precision products round the tail's mean.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2}


@dataclass(frozen=True)
class Case:
    """``kind``: "plain", "ties" (equal rows of the head), "masked" (a bias of -inf for all but
    two tokens), "sure" (logits far apart), "lost" (NaN and infinite hidden states in two rows)."""

    vocabulary: int
    dtype: str
    kind: str = "plain"
    simko_k: int = 3
    temperature: float = 1.0
    scale: float = 1.0
    softcap: float | None = None
    rows: int = ROWS

    def __str__(self) -> str:
        settings = f"V {self.vocabulary}, K {self.simko_k}, T {self.temperature}"
        cap = "" if self.softcap is None else f", softcap {self.softcap}"
        return f"{self.kind} case of {self.dtype} ({settings}, scale {self.scale}{cap})"


def cases(vocabulary: int, dtype: str, scale: float, softcap: float | None) -> Iterator[Case]:
    """Small ones of every kind and type, then the model's own shape."""
    for kind in ("plain", "ties", "masked", "sure", "lost"):
        for kept in ("float32", "float16", "bfloat16"):
            yield Case(1031, kept, kind)
    for size in (1, 2, 5, 31, 32, 33, 4096, 5003):
        yield Case(size, "float32", simko_k=min(8, size))
    for simko_k in range(1, 9):
        yield Case(700, "float32", "ties", simko_k=simko_k, rows=1 + simko_k)
    yield Case(3001, "float32", temperature=0.7, softcap=30.0)
    yield Case(3001, "bfloat16", temperature=1.3, softcap=15.0, scale=0.25)
    own = Case(vocabulary, dtype, scale=scale, softcap=softcap)
    for kind in ("plain", "sure", "lost"):
        yield replace(own, kind=kind)
        yield replace(own, kind=kind, temperature=0.8, simko_k=8)


def make(case: Case) -> tuple[mx.array, mx.array, Head]:
    """Hidden states (rows, WIDTH), tokens (rows,) and a head, the same ones every time."""
    rng = np.random.default_rng([case.vocabulary, case.simko_k, case.rows])
    dtype: mx.Dtype = getattr(mx, case.dtype)
    weight = rng.normal(size=(case.vocabulary, WIDTH)).astype(np.float32) * 0.4
    hidden = rng.normal(size=(case.rows, WIDTH)).astype(np.float32) * (
        4.0 if case.kind == "sure" else 0.7
    )
    tokens = rng.integers(0, case.vocabulary, size=case.rows)
    bias = None
    if case.kind == "ties":
        weight = weight[rng.integers(0, max(1, case.vocabulary // 7), size=case.vocabulary)]
    if case.kind == "masked":
        bias = np.full(case.vocabulary, -np.inf, dtype=np.float32)
        bias[[3, case.vocabulary - 2]] = 0.0
        tokens[:] = 3
    if case.kind == "lost":
        hidden[1, 5], hidden[2, 7] = np.nan, np.inf
    head = Head(
        mx.array(weight).astype(dtype),
        bias=None if bias is None else mx.array(bias).astype(dtype),
        scale=case.scale,
        softcap=case.softcap,
    )
    return mx.array(hidden).astype(dtype), mx.array(tokens.astype(np.int32)), head


def disagreement(case: Case) -> str | None:
    """What differs between the two on this case, if anything."""
    hidden, tokens, head = make(case)
    simko_k = min(case.simko_k, case.vocabulary)
    task = portable.Pass(simko_k, case.temperature, want_mean=True)
    found = metal.forward(hidden, tokens, head, task)
    wanted = portable.forward(hidden, tokens, head, task)
    lost = _array(~mx.isfinite(wanted.sums.tail)) | ~np.isfinite(_array(wanted.sums.values[:, 0]))
    if not np.array_equal(lost, ~np.isfinite(_array(found.sums.tail))):
        return "another set of rows is not finite"
    good = ~lost
    if not good.any():
        return None
    names = ("values", "chosen", "tail", "weighted")
    pairs = [(name, getattr(found.sums, name), getattr(wanted.sums, name)) for name in names]
    if found.mean is None or wanted.mean is None:
        return "there is no mean"
    for name, mine, other in [*pairs, ("mean", found.mean, wanted.mean)]:
        limit = TOLERANCE[case.dtype] if name == "mean" else SUMS_TOLERANCE
        error = _row_error(_array(mine)[good], _array(other)[good])
        if not error <= limit:
            return f"{name} differs by {error:.1e}"
    same_arithmetic = case.softcap is None and case.scale == 1.0 and case.temperature == 1.0
    ids = _array(found.sums.ids)[good], _array(wanted.sums.ids)[good]
    # With a cap or a temperature two logits may round to a tie in one of them alone.
    if same_arithmetic and not np.array_equal(*ids):
        return "other candidates"
    return None


def _array(x: mx.array) -> np.ndarray:
    return np.array(x)


def _row_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference relative to the row's largest finite value; equal infinities differ by
    nothing, and what is no number in one of them alone by infinity."""
    found, wanted = found.reshape(len(found), -1), wanted.reshape(len(wanted), -1)
    with np.errstate(invalid="ignore"):
        difference = np.where(found == wanted, 0.0, np.abs(found - wanted))
    size = np.where(np.isfinite(wanted), np.abs(wanted), 0.0).max(axis=-1)
    errors = difference.max(axis=-1) / np.maximum(size, 1e-30)
    return float("inf") if np.isnan(errors).any() else float(errors.max())


def first_disagreement(
    vocabulary: int, dtype: str, scale: float = 1.0, softcap: float | None = None
) -> str | None:
    """The first case that the kernels get wrong, in words; None if they get all right."""
    for case in cases(vocabulary, dtype, scale, softcap):
        problem = disagreement(case)
        if problem:
            return f"{problem} in the {case}"
    return None
