"""The emulator itself: it computes what a kernel says, and notices what Metal would not forgive."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.metal_emulator import (
    CompiledKernel,
    EmulatedMetalKernel,
    EmulatorError,
    generated_source,
    needs_gxx,
)

pytestmark = needs_gxx

THREADS = 96
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
# One threadgroup per row: each simdgroup sums its part, the first one sums the parts.
ROW_SUM = """
  threadgroup float parts[THREADS / 32], total;  // two variables, one declaration
  const int width = x_shape[1];
  const uint row = threadgroup_position_in_grid.x;
  const uint me = thread_position_in_threadgroup.x;
  float sum = 0.0f;
  for (int i = me; i < width; i += THREADS) sum += float(x[row * width + i]);
  sum = simd_sum(sum);
  if (thread_index_in_simdgroup == 0) parts[simdgroup_index_in_threadgroup] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup_index_in_threadgroup == 0) {
    sum = simd_sum(me < THREADS / 32 ? parts[me] : 0.0f);
    if (me == 0) total = sum;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = me; i < width; i += THREADS) out[row * width + i] = T(total);
"""

SCALE = "uint i = thread_position_in_grid.x; out[i] = T(2 * a[i]);"
TYPE = [("T", mx.bfloat16)]


def row_sum(x: mx.array, make: Callable[..., Any] = EmulatedMetalKernel) -> mx.array:
    """Every element of the result is the sum of its row."""
    kernel = make(name="row_sum", input_names=["x"], output_names=["out"], source=ROW_SUM)
    return kernel(
        inputs=[x],
        template=[("T", x.dtype), ("THREADS", THREADS)],
        grid=(x.shape[0] * THREADS, 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )[0]


def rows(dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.array(np.random.default_rng(0).normal(size=(5, 301)), dtype=dtype)


def replaced(old: str, new: str, count: int = -1) -> Callable[..., Any]:
    """A kernel class whose text is edited; the edit must find something."""

    def mutate(text: str) -> str:
        assert old in text
        return text.replace(old, new, count)

    return functools.partial(EmulatedMetalKernel, mutate=mutate)


def call(
    source: str,
    *inputs: mx.array,
    shape: tuple[int, ...],
    dtype: mx.Dtype = mx.float32,
    grid: tuple[int, int, int] = (1, 1, 1),
    threadgroup: tuple[int, int, int] = (1, 1, 1),
    make: Callable[..., Any] = EmulatedMetalKernel,
    **options,
) -> mx.array:
    """A kernel of the inputs `a`, `b`, ... and one output `out`."""
    names = list("abc"[: len(inputs)])
    kernel = make(name="kernel", input_names=names, output_names=["out"], source=source)
    return kernel(
        inputs=list(inputs),
        grid=grid,
        threadgroup=threadgroup,
        output_shapes=[shape],
        output_dtypes=[dtype],
        **options,
    )[0]


def elementwise(source: str, *inputs: mx.array, size: int | None = None, **options) -> mx.array:
    """`source` computes `out[i]`; simdgroups are threadgroups."""
    size = inputs[0].size if size is None else size
    source = "const uint i = thread_position_in_grid.x;\n" + source
    where = {"shape": (size,), "grid": (size, 1, 1), "threadgroup": (32, 1, 1)}
    return call(source, *inputs, **where, **options)


# ---- what a kernel computes


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_a_threadgroup_sums_rows(dtype):
    x = rows(dtype)
    found = row_sum(x)
    assert found.dtype == dtype
    expected = np.array(x.astype(mx.float32)).astype(np.float64).sum(axis=1, keepdims=True)
    epsilon = {mx.float32: 1e-6, mx.float16: 2**-11, mx.bfloat16: 2**-8}[dtype]
    error = np.abs(np.array(found.astype(mx.float32)) - expected)
    assert (error <= epsilon * np.abs(expected) + 1e-5).all()


def test_the_text_is_what_mlx_generates_for_metal(capfd):
    kernel = mx.fast.metal_kernel(
        name="k", input_names=["x"], output_names=["out"], source="out[0] = x[0] + x_shape[0];"
    )
    text = generated_source(
        kernel,
        inputs=[mx.zeros((3, 4), dtype=mx.bfloat16)],
        template=[("T", mx.float16), ("K", -3), ("FLAG", True)],
        output_shapes=[(1,)],
        output_dtypes=[mx.float32],
        grid=(1, 1, 1),
        threadgroup=(1, 1, 1),
    )
    assert "const device bfloat16_t* x [[buffer(0)]]" in text
    assert "const constant int* x_shape [[buffer(1)]]" in text
    assert "<float16_t, -3, 1>" in text
    os.write(1, b"back")
    assert capfd.readouterr().out == "back"  # nothing of MLX's, and the descriptor is restored


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.int32, mx.uint8, mx.bool_])
def test_every_value_survives_the_way_through(dtype):
    numbers = mx.arange(2**16, dtype=mx.uint16)
    x = numbers.view(dtype) if dtype.size == 2 else (numbers % 200).astype(dtype)
    found = elementwise("out[i] = a[i];", x, dtype=dtype)
    word = mx.uint16 if dtype.size == 2 else dtype  # NaN isn't equal to itself
    assert found.dtype == dtype
    assert mx.array_equal(found.view(word), x.view(word))


def test_float_becomes_bfloat_as_in_mlx():
    x = mx.random.normal((4096,), key=mx.random.key(0)) * 1e-3
    special = [float("inf"), -float("inf"), 0.0, -0.0, 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8]
    x = mx.concatenate([x, mx.array(special)])
    found = elementwise("out[i] = bfloat16_t(a[i]);", x, dtype=mx.bfloat16)
    assert mx.array_equal(found.view(mx.uint16), x.astype(mx.bfloat16).view(mx.uint16))
    nan = elementwise("out[i] = bfloat16_t(NAN + a[i]);", mx.zeros((32,)), dtype=mx.bfloat16)
    assert mx.isnan(nan).all()


def test_template_arguments_arrive():
    found = elementwise(
        "out[i] = FLAG ? float(T(a[i])) * K : 0;",
        mx.full((32,), 1.3),
        template=[("T", mx.int32), ("K", -4), ("FLAG", True)],
    )
    assert (found == -4).all()


def test_inputs_of_few_elements_and_scalars_arrive():
    """MLX makes them constant, and a scalar a reference."""
    few, scalar = mx.array([1.0, 2.0, 3.0]), mx.array(10, dtype=mx.int32)
    found = elementwise("out[i] = a[i % 3] + b + c;", few, scalar, mx.array(0.5), size=32)
    assert mx.array_equal(found, mx.arange(32) % 3 + 11.5)
    assert call("out[0] = a + b;", 3, 0.25, shape=(1,)).item() == 3.25


def test_shapes_and_strides_are_those_of_a_contiguous_array():
    x = mx.arange(60).reshape(5, 4, 3).transpose(2, 0, 1)  # not contiguous itself
    source = "out[i] = i < 3 ? a_shape[i] : i < 6 ? a_strides[i - 3] : i < 7 ? a_ndim : a[i - 7];"
    found = elementwise(source, x, size=67)
    assert found[:7].tolist() == [3, 5, 4, 20, 4, 1, 3]
    assert mx.array_equal(found[7:], x.flatten())


def test_a_grid_that_isnt_a_multiple_of_the_threadgroup():
    """Metal cuts the last threadgroup; its last simdgroup has fewer lanes then."""
    found = elementwise("out[i] = threads_per_threadgroup.x * 100 + simd_sum(1);", mx.zeros((77,)))
    assert (found[:64] == 3232).all() and (found[64:] == 1313).all()


def test_three_axes():
    source = """
        uint3 p = thread_position_in_grid, n = threads_per_grid;
        out[(p.z * n.y + p.y) * n.x + p.x] =
            a + 1000 * threadgroup_position_in_grid.y + thread_index_in_threadgroup;
    """
    zero = mx.array(0)
    found = call(
        source, zero, shape=(4, 6, 8), dtype=mx.int32, grid=(8, 6, 4), threadgroup=(8, 3, 4)
    )
    z, y, x = np.indices((4, 6, 8))
    assert np.array_equal(np.array(found), 1000 * (y // 3) + (z * 3 + y % 3) * 8 + x)


def table(
    expressions: dict[str, Any], *inputs: mx.array, threads: int = 1, **options
) -> dict[str, np.ndarray]:
    """What each thread finds for each expression, in one kernel."""
    lines = [f"out[{n} * {threads} + i] = {e};" for n, e in enumerate(expressions)]
    found = call(
        "\n".join(["const uint i = thread_position_in_grid.x;", *lines]),
        *inputs,
        shape=(len(expressions), threads),
        grid=(threads, 1, 1),
        threadgroup=(threads, 1, 1),
        **options,
    )
    return dict(zip(expressions, np.array(found), strict=True))


def test_simd_functions():
    x = np.random.default_rng(1).permutation(64).astype(np.float32)
    lanes, halves = np.arange(64), x.reshape(2, 32)
    expected = {
        "simd_max(a[i])": halves.max(axis=1).repeat(32),
        "simd_min(a[i])": halves.min(axis=1).repeat(32),
        "simd_sum(a[i])": halves.sum(axis=1).repeat(32),
        "simd_any(a[i] == 63.0f)": (halves == 63).any(axis=1).repeat(32),
        "simd_all(a[i] < 63.0f)": (halves < 63).all(axis=1).repeat(32),
        "simd_broadcast(a[i], 7)": halves[:, 7].repeat(32),
        "simd_shuffle(a[i], 31 - i % 32)": halves[:, ::-1].ravel(),
        "simd_shuffle_xor(a[i], 8)": x[lanes ^ 8],
        "simd_shuffle_down(a[i], 5)": x[np.where(lanes % 32 < 27, lanes + 5, lanes)],
        "simd_shuffle_up(a[i], 5)": x[np.where(lanes % 32 >= 5, lanes - 5, lanes)],
    }
    for expression, found in table(expected, mx.array(x), threads=64).items():
        assert np.array_equal(found, expected[expression]), expression


def test_mathematical_functions():
    expected = {
        "metal::exp(2.0f)": np.exp(2.0),
        "metal::precise::log(3.0f)": np.log(3.0),
        "metal::fast::tanh(0.3f)": np.tanh(0.3),
        "metal::fma(2.0f, 3.0f, 4.0f)": 10,
        "metal::exp(-INFINITY)": 0,
        "metal::max(NAN, 1.0f)": 1,
        "metal::min(1.0f, NAN)": 1,
        "metal::max(-INFINITY, NAN)": -np.inf,
        "max(3, 5)": 5,
        "abs(-3)": 3,
        "metal::abs(-2.5f)": 2.5,
        "NAN": np.nan,
        "isnan(NAN) && !isnan(INFINITY)": 1,
        "isinf(-INFINITY) && !isinf(FLT_MAX)": 1,
        "isfinite(1.0f) && !isfinite(NAN)": 1,
        "select(1.0f, 2.0f, true)": 2,
        "clamp(7, 1, 5)": 5,
        "as_type<uint>(1.0f) == 0x3f800000u": 1,
        "sizeof(1.0)": 4,
        "sizeof(ushort(1)) * 10 + sizeof(half)": 22,
        "float(metal::exp(half(1.0f))) == float(half(2.7182818f))": 1,
        "log1p(1e-4f)": np.log1p(1e-4),
    }
    for expression, found in table(expected, mx.array(0.0)).items():
        assert found[0] == pytest.approx(expected[expression], rel=1e-6, nan_ok=True), expression


def test_it_stands_in_for_mlx_inside_a_gradient(monkeypatch):
    monkeypatch.setattr(mx.fast, "metal_kernel", EmulatedMetalKernel)
    source = "uint i = thread_position_in_grid.x; out[i] = scale * metal::exp(x[i]);"
    kernel = mx.fast.metal_kernel(
        name="scaled_exp", input_names=["x", "scale"], output_names=["out"], source=source
    )

    @mx.custom_function
    def scaled_exp(x, scale):
        return kernel(
            inputs=[x, scale],
            grid=(x.size, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[x.shape],
            output_dtypes=[mx.float32],
        )[0]

    @scaled_exp.vjp
    def _(primals, cotangent, output):
        return cotangent * scaled_exp(*primals), mx.sum(cotangent * output) / primals[1]

    def loss(x, scale):
        return (scaled_exp(2 * x, scale) ** 2).sum()

    x, scale = mx.random.normal((40,), key=mx.random.key(0)), mx.array(1.5)
    value, (to_x, to_scale) = mx.value_and_grad(loss, argnums=(0, 1))(x, scale)
    squares = (1.5 * np.exp(2 * np.array(x, dtype=np.float64))) ** 2
    assert value.item() == pytest.approx(squares.sum(), rel=1e-5)
    assert np.array(to_x) == pytest.approx(4 * squares, rel=1e-5)
    assert to_scale.item() == pytest.approx(2 * squares.sum() / 1.5, rel=1e-5)


# ---- what it notices


@pytest.mark.parametrize(
    ("old", "new"),
    [(f"{BARRIER}\n  if", "if"), (f"{BARRIER}\n  for", "for"), (BARRIER, "")],
    ids=["the first", "the second", "both"],
)
def test_a_dropped_barrier_is_caught(old, new):
    with pytest.raises(EmulatorError, match="out depends on the order of the threads"):
        row_sum(rows(), replaced(old, new))


def test_threadgroups_have_no_order():
    with pytest.raises(EmulatorError, match="out depends on the order of the threads"):
        elementwise("out[0] = threadgroup_position_in_grid.x;", mx.zeros((96,)))


def test_a_random_order_finds_what_forward_and_reverse_agree_on():
    """The last thread to write is 31 or 0."""
    with pytest.raises(EmulatorError, match="forward and 1 differ"):
        elementwise("out[0] = i == 0 || i == 31;", mx.zeros((32,)))


def test_a_simd_operation_of_some_lanes_only_is_caught():
    make = replaced("sum = simd_sum(sum);", "if (me % 32 < 9) sum = simd_sum(sum);")
    with pytest.raises(EmulatorError, match=r"simd_sum, line \d+"):
        row_sum(rows(), make)
    deadlock = r"deadlock: thread 0 waits at simd_sum, line 6 \(9 of 32 .* 23 threads have"
    with pytest.raises(EmulatorError, match=deadlock):
        elementwise("if (i < 9) out[i] = simd_sum(a[i]);", mx.zeros((32,)))


def test_lanes_that_meet_at_different_operations_are_divergent():
    """Counting alone would let the two halves' operations pair up."""
    divergent = "if (i % 2) {\n out[i] = simd_sum(1.0f);\n} else {\n out[i] = simd_sum(a[i]);\n}"
    with pytest.raises(EmulatorError, match="divergence: thread 1 is at simd_sum"):
        elementwise(divergent, mx.zeros((32,)))


def test_a_thread_that_returns_before_a_barrier_is_a_deadlock():
    make = replaced(BARRIER, f"if (me == 40) return; {BARRIER}", 1)
    with pytest.raises(EmulatorError, match=r"deadlock.*threadgroup_barrier.* 1 threads have"):
        row_sum(rows(), make)


def test_a_lane_that_doesnt_exist_cannot_be_read():
    with pytest.raises(EmulatorError, match=r"simd_shuffle_xor, line .* reads from lane"):
        elementwise("out[i] = simd_shuffle_xor(a[i], 8);", mx.zeros((44,)))


@pytest.mark.parametrize("offset", [1, -1])
def test_a_read_outside_a_buffer_is_caught_by_the_address_sanitizer(offset):
    shifted = replaced("x[row * width + i]", f"x[int(row * width + i) + {offset}]")
    with pytest.raises(EmulatorError, match="heap-buffer-overflow"):
        row_sum(rows(), functools.partial(shifted, sanitize="address"))


def test_the_sanitizers_find_nothing_in_a_sound_kernel():
    sound = functools.partial(EmulatedMetalKernel, sanitize="address,undefined")
    assert mx.array_equal(row_sum(rows(), sound), row_sum(rows()))


def test_undefined_arithmetic_is_caught():
    checked = functools.partial(EmulatedMetalKernel, sanitize="address,undefined")
    ones = mx.ones((32,), dtype=mx.int32)
    with pytest.raises(EmulatorError, match="signed integer overflow"):
        elementwise("out[i] = a[i] + 2147483647;", ones, make=checked)


def test_what_nobody_wrote_shows():
    holed = "if (i != 5) out[i] = 0;"
    found = elementwise(holed, mx.zeros((32,)))
    assert mx.isnan(found).tolist() == [i == 5 for i in range(32)]
    found = elementwise(holed, mx.zeros((32,)), dtype=mx.int32)
    assert found.tolist() == [-int(i == 5) for i in range(32)]


def test_threadgroup_memory_is_fresh_in_every_threadgroup(monkeypatch):
    monkeypatch.setattr(EmulatedMetalKernel, "schedules", ("forward",))
    source = "threadgroup float seen;\nout[i] = seen; if (i % 32 == 31) seen = 1;"
    assert mx.isnan(elementwise(source, mx.zeros((96,)))).all()


def test_too_much_threadgroup_memory_is_caught():
    with pytest.raises(EmulatorError, match="32772 bytes of threadgroup memory"):
        elementwise("threadgroup float x[8193]; x[i] = a[i]; out[i] = x[i];", mx.zeros((32,)))


def test_init_value_is_what_outputs_hold_at_first():
    found = call("out[1] = T(a);", 7, shape=(3,), dtype=mx.bfloat16, init_value=2, template=TYPE)
    assert found.tolist() == [2, 7, 2]


@pytest.mark.parametrize(
    "source",
    [
        "double x = a[i]; out[i] = float(x);",
        "out[i] = std::exp(a[i]);",
        "out[i] = expm1(a[i]);",
        "bfloat16_t x = a[i]; out[i] = x;",
        "bfloat16_t x = bfloat16_t(a[i]); out[i] = x * x;",
        "out[i] = metal::max(a[i], 0);",
    ],
)
def test_what_metal_has_not_doesnt_compile(source):
    with pytest.raises(EmulatorError, match=r"kernel.metal:\d+:\d+: error"):
        elementwise(source, mx.zeros((32,)))


def test_a_threadgroup_variable_it_cannot_place_is_refused():
    with pytest.raises(EmulatorError, match="cannot read this threadgroup variable"):
        elementwise("threadgroup float x = 1.0f; out[i] = x + a[i];", mx.zeros((32,)))


@pytest.mark.parametrize(
    ("grid", "threadgroup"), [((0, 1, 1), (1, 1, 1)), ((2048, 1, 1), (1025, 1, 1))]
)
def test_a_launch_that_metal_refuses(grid, threadgroup):
    with pytest.raises(EmulatorError, match=r"an empty grid|a threadgroup of 1025"):
        call("out[0] = a;", 1.0, shape=(1,), grid=grid, threadgroup=threadgroup)


def test_a_kernel_that_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr("tests.metal_emulator.compiled.TIMEOUT", 2)
    with pytest.raises(EmulatorError, match="more than 2 s"):
        elementwise("for (uint n = 1; n; n += 2) out[i] = n;", mx.zeros((32,)))


def test_a_stack_overflow_is_a_crash():
    """It reaches 300 kB or more below the last thread's stack, where other threads' are."""
    deep = "struct Deep { static float f(int n) { return n ? f(n - 1) + 1 : 0; } };\n"
    with pytest.raises(EmulatorError, match=r"failed \(-11\)"):
        elementwise(f"{deep} out[i] = i == 31 ? Deep::f(40000 + a[i]) : 0;", mx.zeros((32,)))


# ---- how it is called


def test_a_compiled_kernel_runs_on_its_own():
    kernel = mx.fast.metal_kernel(
        name="scale", input_names=["a"], output_names=["out"], source=SCALE
    )
    x = mx.array([1.0, 2.0, 3.0] * 11, dtype=mx.bfloat16)
    launch = {"grid": (33, 1, 1), "threadgroup": (32, 1, 1)}
    text = generated_source(
        kernel, inputs=[x], template=TYPE, output_shapes=[(33,)], output_dtypes=[x.dtype], **launch
    )
    outputs = {"out": (x.shape, x.dtype)}
    for schedule in ("forward", "reverse", 7):
        (bits,) = CompiledKernel(text).run({"a": x}, outputs, **launch, schedule=schedule)
        assert bits.dtype == np.uint16
        assert mx.array_equal(mx.array(bits).view(mx.bfloat16), x + x)
    with pytest.raises(EmulatorError, match="a is bfloat16_t in the text"):
        CompiledKernel(text).run({"a": x.astype(mx.float16)}, outputs, **launch)
    with pytest.raises(EmulatorError, match="nothing given for the buffer a"):
        CompiledKernel(text).run({"b": x}, outputs, **launch)


def test_what_is_compiled_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(EmulatedMetalKernel, "cache", tmp_path)

    def programs() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir() if not p.suffix}

    elementwise("out[i] = a[i];", mx.zeros((32,)))
    first = programs()
    elementwise("out[i] = a[i];", mx.ones((32,)))
    elementwise("out[i] = a[i];  // a comment", mx.ones((32,)))
    assert len(first) == 1 and programs() == first
    elementwise("out[i] = a[i] + 1;", mx.ones((32,)))
    assert len(programs()) == 2
