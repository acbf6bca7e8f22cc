"""What the Metal kernels must compute, each as a named check against float64.

The checks run on the kernels as they are, on Metal or emulated, and on kernels broken on purpose,
where the check that is named there must fail.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from simko_mlx.kernels import Head, metal
from simko_mlx.kernels.portable import Pass, special_ids
from tests.kernels.head_oracle import to64

LIMIT = 2e-6


def logits_of(rng: np.random.Generator, rows: int, vocabulary: int, spread: float) -> np.ndarray:
    return (rng.normal(size=(rows, vocabulary)) * spread).astype(np.float32)


def compare(
    raw: np.ndarray,
    tokens: np.ndarray,
    *,
    dtype: mx.Dtype = mx.float32,
    simko_k: int = 3,
    temperature: float = 1.0,
    scale: float = 1.0,
    softcap: float | None = None,
    limit: float = LIMIT,
) -> None:
    """Both kernels on raw logits (N, V) against float64, given the logits as the type has them."""
    given = mx.array(raw).astype(dtype)
    head = Head(mx.zeros((raw.shape[1], 1)), scale=scale, softcap=softcap)
    task = Pass(simko_k, temperature, want_mean=True)
    sums = metal.row_sums(given, mx.array(tokens.astype(np.int32)), head, task)
    z = to64(given) * scale
    slope = 1 / np.cosh(z / softcap) ** 2 if softcap else np.ones_like(z)
    z = (softcap * np.tanh(z / softcap) if softcap else z) / temperature

    order = np.argsort(-z, axis=-1, kind="stable")
    kept = min(simko_k + 1, z.shape[1])
    rows = np.arange(len(z))
    below = z - z[rows, order[:, 0]][:, None]
    e = np.exp(below)
    e[rows, order[:, 0]] = 0.0
    found = {name: np.array(value) for name, value in sums._asdict().items()}
    assert np.array_equal(found["ids"], order[:, :kept]), "other candidates"
    wanted = {
        "values": np.take_along_axis(z, order[:, :kept], axis=-1),
        "chosen": z[rows, tokens],
        "tail": e.sum(axis=-1),
        "weighted": (e * np.where(e > 0, below, 0)).sum(axis=-1),
    }
    for name, value in wanted.items():
        # A logit may be next to 0: it is compared with the row's largest.
        size = np.abs(z[np.isfinite(z)]).max() if name in ("values", "chosen") else 0.0
        same = np.where(found[name] == value, 0.0, np.abs(found[name] - value))
        scale_of = np.maximum(np.abs(np.where(same, value, 1)), max(size, 1e-300))
        error = float((same / scale_of).max())
        assert error < limit, f"{name} is off by {error:.1e}"

    special = special_ids(mx.array(tokens.astype(np.int32)), sums.ids, simko_k)
    shift = wanted["values"][:, -1].astype(np.float32)
    mass = metal.tail_mass(given, special, mx.array(shift), head, temperature)
    expected = np.exp(np.where(np.isfinite(z), z, -1e9) - shift[:, None].astype(np.float64)) * slope
    np.put_along_axis(expected, np.array(special), 0.0, axis=-1)
    assert mass.dtype == dtype
    error = np.abs(to64(mass) - expected).max()
    assert error < limit + mx.finfo(dtype).eps, f"the tail is off by {error:.1e}"


def plain() -> None:
    """Rows of normal logits; tokens anywhere, at rank 1 and just below the candidates."""
    rng = np.random.default_rng(0)
    raw = logits_of(rng, 6, 3001, 3.0)
    tokens = rng.integers(0, 3001, size=6)
    tokens[:3] = np.argsort(-raw, axis=-1)[[0, 1, 2], [0, 2, 3]]
    compare(raw, tokens)


def odd_widths() -> None:
    """Vocabularies around the sizes of a simdgroup, a round and two rounds, down to one token."""
    rng = np.random.default_rng(1)
    for vocabulary in (1, 2, 7, 31, 33, 1023, 1024, 1025, 2049):
        raw = logits_of(rng, 3, vocabulary, 2.0)
        raw[:, -1] = 9.0  # the last token is the best
        compare(raw, np.full(3, vocabulary - 1), simko_k=min(3, vocabulary))


def every_k() -> None:
    rng = np.random.default_rng(2)
    for simko_k in range(1, 9):
        compare(logits_of(rng, 2, 777, 2.0), np.array([1, 776]), simko_k=simko_k)


def ties() -> None:
    """Few distinct logits: among equal ones the lowest index comes first."""
    rng = np.random.default_rng(3)
    for simko_k in (1, 4, 8):
        raw = np.round(logits_of(rng, 8, 1500, 1.0))
        compare(raw, rng.integers(0, 1500, size=8), simko_k=simko_k)
    compare(np.zeros((2, 1500), dtype=np.float32), np.array([0, 1499]), simko_k=8)


def rising() -> None:
    """Each logit is a new maximum: everything so far has to move down, again and again."""
    raw = np.tile(np.linspace(-30, 5, 2000, dtype=np.float32), (2, 1))
    compare(raw, np.array([1999, 3]), limit=2e-5)
    compare(raw[:, ::-1].copy(), np.array([0, 1999]), limit=2e-5)


def all_negative() -> None:
    """Nothing may be taken for a logit of 0 that is none."""
    rng = np.random.default_rng(4)
    for vocabulary in (40, 1100):
        compare(logits_of(rng, 3, vocabulary, 1.0) - 60.0, np.array([0, 1, 2]))


def sure() -> None:
    """One token with nearly all the mass: what the others have keeps its digits."""
    rng = np.random.default_rng(5)
    raw = logits_of(rng, 5, 2000, 1.0)
    raw[np.arange(5), [0, 500, 999, 1024, 1999]] = [12.0, 20.0, 30.0, 50.0, 80.0]
    compare(raw, np.array([0, 500, 999, 3, 1999]))


def masked() -> None:
    """Logits of -inf, with fewer finite ones than candidates."""
    rng = np.random.default_rng(6)
    raw = np.full((4, 900), -np.inf, dtype=np.float32)
    for row, finite in enumerate(([5], [0, 899], [3, 400, 401], list(range(0, 900, 3)))):
        raw[row, finite] = rng.normal(size=len(finite))
    head = Head(mx.zeros((900, 1)))
    tokens = np.array([5, 899, 3, 0])
    sums = metal.row_sums(mx.array(raw), mx.array(tokens), head, Pass(4, 1.0, True))
    order = np.argsort(-raw, axis=-1, kind="stable")[:, :5]
    assert np.array_equal(np.array(sums.ids), order)
    assert np.array_equal(np.array(sums.values), np.take_along_axis(raw, order, axis=-1))
    below = raw.astype(np.float64) - raw.max(axis=-1, keepdims=True)
    wanted = np.exp(below).sum(axis=-1) - 1
    assert np.abs(np.array(sums.tail) - wanted).max() < LIMIT * wanted.max()
    weighted = (np.exp(below) * np.where(np.isfinite(below), below, 0)).sum(axis=-1)
    assert np.abs(np.array(sums.weighted) - weighted).max() < 1e-4
    special = special_ids(mx.array(tokens), sums.ids, 4)
    mass = metal.tail_mass(mx.array(raw), special, mx.zeros((4,)), head, 1.0)
    expected = np.exp(raw)
    np.put_along_axis(expected, np.array(special), 0.0, axis=-1)
    assert np.abs(np.array(mass) - expected).max() < LIMIT


def lost() -> None:
    """NaN, infinity, or nothing finite: that row shows it, the others don't notice."""
    rng = np.random.default_rng(7)
    whole = logits_of(rng, 6, 1300, 2.0)
    raw = whole.copy()
    raw[1, 7], raw[2, 1299], raw[4] = np.nan, np.inf, -np.inf
    tokens, head = mx.array([0, 1, 2, 3, 4, 1299]), Head(mx.zeros((1300, 1)))
    task = Pass(3, 1.0, True)
    sums = metal.row_sums(mx.array(raw), tokens, head, task)
    before = metal.row_sums(mx.array(whole), tokens, head, task)
    tail, top = np.array(sums.tail), np.array(sums.values[:, 0])
    assert (np.isfinite(tail) & np.isfinite(top)).tolist() == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]
    for name in sums._fields:
        now, then = (np.array(getattr(x, name))[[0, 3, 5]] for x in (sums, before))
        assert np.array_equal(now, then), name


def settings() -> None:
    """Scale, cap and temperature."""
    rng = np.random.default_rng(8)
    raw = logits_of(rng, 3, 1201, 4.0)
    tokens = np.array([0, 600, 1200])
    compare(raw, tokens, temperature=0.7, limit=1e-5)
    compare(raw, tokens, scale=0.0625, limit=1e-5)
    compare(raw, tokens, softcap=30.0, temperature=1.3, scale=1.5, limit=1e-5)


def half_types() -> None:
    rng = np.random.default_rng(9)
    for dtype in (mx.bfloat16, mx.float16):
        for simko_k in (1, 3):
            raw = logits_of(rng, 4, 1500, 3.0)  # rounding makes many of them equal
            compare(raw, rng.integers(0, 1500, size=4), dtype=dtype, simko_k=simko_k)


def many_tokens() -> None:
    """The sums of a real vocabulary keep float32's digits."""
    rng = np.random.default_rng(10)
    compare(logits_of(rng, 1, 151_936, 1.0), np.array([77]))


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (
        *(plain, odd_widths, every_k, ties, rising, all_negative),
        *(sure, masked, lost, settings, half_types, many_tokens),
    )
}
