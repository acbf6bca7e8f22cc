"""A decode step on a CPU: the same rotations as ``mx.fast.rope``'s, the same SwiGLU as mlx-lm's."""

from __future__ import annotations

import sys

import mlx.core as mx
import numpy as np
import pytest

from simko_mlx.cpu_decoding import SWIGLU, quick_step, quicken
from tests.test_head_tap import build

ROWS = mx.array([3, 0, 700])
FREQS = mx.exp(mx.arange(4) * 0.7)


@pytest.mark.parametrize("offset", [0, 41, mx.array(9), ROWS], ids=str)
@pytest.mark.parametrize("dims", [8, 12])
@pytest.mark.parametrize("traditional", [False, True])
@pytest.mark.parametrize("kind", [{"base": 1e4, "scale": 1.0}, {"base": 5e5, "scale": 0.25}, "own"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_bit_for_bit(offset, dims, traditional, kind, dtype):
    kind = {"base": None, "scale": 1.0, "freqs": FREQS} if kind == "own" else kind
    dims = 8 if "freqs" in kind else dims
    x = mx.random.normal((3, 2, 1, 12), key=mx.random.key(1)).astype(dtype)
    wanted = mx.fast.rope(x, dims, traditional=traditional, offset=offset, **kind)
    with quick_step():
        for _ in range(2):
            found = mx.fast.rope(x, dims, traditional=traditional, offset=offset, **kind)
            assert found.dtype == dtype
            assert mx.array_equal(found, wanted)


def test_other_positions_and_kinds_have_tables_of_their_own():
    x = mx.random.normal((3, 2, 1, 8), key=mx.random.key(2))

    def turned():
        return [
            mx.fast.rope(x, 8, traditional=False, base=base, scale=1.0, offset=offset)
            for offset in (5, 6, ROWS, ROWS + 1)
            for base in (1e4, 1e6)
        ]

    wanted = turned()
    with quick_step():
        found = turned()
    assert all(map(mx.array_equal, found, wanted))
    assert len({np.array(x).tobytes() for x in found}) == len(found)


def test_several_tokens_and_what_comes_after_are_left_alone():
    x = mx.random.normal((1, 2, 5, 8), key=mx.random.key(3))
    plain = mx.fast.rope
    wanted = plain(x, 8, traditional=False, base=1e4, scale=1.0, offset=3)
    with quick_step():
        found = mx.fast.rope(x, 8, traditional=False, base=1e4, scale=1.0, offset=3)
    assert mx.array_equal(found, wanted)
    with pytest.raises(RuntimeError), quick_step():
        raise RuntimeError
    assert mx.fast.rope is plain


@pytest.mark.parametrize("slow", [False, True])
def test_swiglu(monkeypatch, slow):
    """Quicker in steps, where exp is slow, and only there; as exact at both ends."""
    monkeypatch.setattr("simko_mlx.cpu_decoding.has_slow_exp", lambda: slow)
    model = build("qwen2")
    module = sys.modules[type(model).__module__]
    plain = getattr(module, SWIGLU)
    plain = getattr(plain, "__wrapped__", plain)
    monkeypatch.setattr(module, SWIGLU, plain)
    gate = mx.concatenate([mx.linspace(-12, 12, 999), mx.array([-1e3, -90, 0, 90, 1e3])])
    x = mx.random.normal(gate.shape, key=mx.random.key(4))
    quicken(model)
    quicken(model)
    found = getattr(module, SWIGLU)
    assert (found is plain) is not slow
    assert mx.array_equal(found(gate, x), plain(gate, x))
    with quick_step():
        quick, half = found(gate, x), found(gate.astype(mx.bfloat16), x.astype(mx.bfloat16))
    assert mx.allclose(quick, plain(gate, x), rtol=3e-6, atol=1e-30)
    assert mx.array_equal(half, plain(gate.astype(mx.bfloat16), x.astype(mx.bfloat16)))
