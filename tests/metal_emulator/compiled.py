"""A kernel's text compiled by g++, and runs of it."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import mlx.core as mx
import numpy as np
import pytest

from tests.metal_emulator.source import EmulatorError, KernelText, Parameter

HERE = Path(__file__).parent
TIMEOUT = 60  # seconds, for each compilation and each run
MAX_THREADS = 1024  # of a threadgroup, on every Apple GPU
MAX_BUFFERS = 31  # of a kernel
POISON = 0xFF  # NaN as a float, -1 as an int

# As in Metal a literal 1.0 is a float, and arithmetic is IEEE's, which MLX asks for. Variables that
# nobody set get a pattern, so that reading one shows. -O1 makes compiling and running shortest.
KERNEL_FLAGS = (
    *("-std=c++17", "-O1", "-g1", "-fno-exceptions", "-fno-rtti", "-Wno-attributes"),
    *("-fsingle-precision-constant", "-ffp-contract=off", "-ftrivial-auto-var-init=pattern"),
    "-Werror=return-type",
)
# The runtime jumps between stacks, which _FORTIFY_SOURCE would take for an error.
RUNTIME_FLAGS = ("-std=c++17", "-O2", "-g1", "-U_FORTIFY_SOURCE")
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "halt_on_error=1",
}

TYPE_NAMES = {
    mx.bool_: "bool",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.float16: "float16_t",
    mx.bfloat16: "bfloat16_t",
    mx.float32: "float",
}

Size = tuple[int, int, int]
Schedule = Literal["forward", "reverse"] | int
"""In which order threads go on; a number seeds a random order."""


def _have_gxx() -> bool:
    """On macOS g++ is Clang; before 12, g++ has no _Float16 and no -ftrivial-auto-var-init."""
    if not sys.platform.startswith("linux") or shutil.which("g++") is None:
        return False
    asked = subprocess.run(
        ["g++", "-dumpversion"], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    major = asked.stdout.strip().partition(".")[0]
    return asked.returncode == 0 and major.isdecimal() and int(major) >= 12


HAVE_GXX = _have_gxx()
needs_gxx = pytest.mark.skipif(not HAVE_GXX, reason="needs g++ to compile the Metal kernels' text")


def to_bytes(array: mx.array) -> bytes:
    if array.dtype == mx.bfloat16:  # numpy has none
        array = array.view(mx.uint16)
    return np.array(array).tobytes()


def to_numpy(data: bytes, shape: Sequence[int], dtype: mx.Dtype) -> np.ndarray:
    """bfloat16 as the uint16 of its bits."""
    words = {mx.bfloat16: "uint16", mx.bool_: "uint8"}
    name = words.get(dtype) or str(dtype).rpartition(".")[2]
    return np.frombuffer(data, dtype=name).reshape(tuple(shape))


def to_mlx(array: np.ndarray, dtype: mx.Dtype) -> mx.array:
    if dtype == mx.bool_:
        return mx.array(array != 0)
    found = mx.array(array)
    return found if found.dtype == dtype else found.view(dtype)


@cache
def _session_folder() -> tempfile.TemporaryDirectory:
    """Removed when Python exits."""
    return tempfile.TemporaryDirectory(prefix="metal-emulator-")


def _gxx(*arguments: str | Path) -> None:
    done = subprocess.run(
        ["g++", *map(str, arguments)], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    if done.returncode != 0:
        raise EmulatorError(f"g++ refuses the kernel:\n{done.stderr}")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


class _Builder:
    """Compiles into a folder, and only what isn't there yet."""

    def __init__(self, folder: Path, sanitize: str) -> None:
        self._folder = folder
        self._sanitize = (f"-fsanitize={sanitize}", "-fno-sanitize-recover=all") if sanitize else ()
        headers = [(HERE / name).read_text() for name in ("runtime.h", "metal_shim.h")]
        self._common = "".join([*headers, *self._sanitize])

    def _once(self, name: str, *arguments: str | Path) -> Path:
        target = self._folder / name
        if not target.exists():
            unfinished = self._folder / f"{os.getpid()}-{name}"
            _gxx(*arguments, *self._sanitize, "-I", HERE, "-o", unfinished)
            unfinished.replace(target)  # at once, so that nobody finds half of it
        return target

    def _runtime(self) -> Path:
        """One for all kernels: compiling it takes longer than compiling a kernel."""
        source = HERE / "runtime.cpp"
        digest = _digest(self._common, *RUNTIME_FLAGS, source.read_text())
        return self._once(f"{digest}.o", *RUNTIME_FLAGS, "-c", source)

    def program(self, unit: str) -> Path:
        runtime = self._runtime()
        digest = _digest(self._common, *KERNEL_FLAGS, runtime.name, unit)
        source = self._folder / f"{digest}.cpp"
        source.write_text(unit)
        return self._once(digest, *KERNEL_FLAGS, source, runtime)


class CompiledKernel:
    """A generated text as a program.

    Args:
        text: from ``generated_source``.
        sanitize: for g++'s ``-fsanitize=``, such as "address,undefined".
        cache: folder for what is compiled; by default one for the whole session.
    """

    def __init__(self, text: str, *, sanitize: str = "", cache: Path | None = None) -> None:
        kernel = KernelText(text)
        self._buffers = kernel.buffers
        if len(self._buffers) > MAX_BUFFERS:
            raise EmulatorError(f"{len(self._buffers)} buffers, Metal has {MAX_BUFFERS}")
        folder = Path(_session_folder().name) if cache is None else cache
        self.program = _Builder(folder, sanitize).program(kernel.translation_unit())

    def run(
        self,
        buffers: Mapping[str, mx.array],
        outputs: Mapping[str, tuple[Sequence[int], mx.Dtype]],
        grid: Size,
        threadgroup: Size,
        schedule: Schedule = "forward",
        *,
        init_value: float | None = None,
    ) -> list[np.ndarray]:
        """The outputs, in the order given, as numpy arrays; bfloat16 as the uint16 of its bits.

        Args:
            buffers: inputs by name; those that tell a shape, stride or number of axes are added.
            outputs: (shape, dtype) by name. What the kernel doesn't write stays 0xff.
            grid: threads in all, as for Metal's dispatchThreads.
            threadgroup: threads per threadgroup.
            schedule: which thread goes on first; the result must not depend on it.
            init_value: what outputs hold before the kernel runs, instead of 0xff.
        """
        threadgroup = _checked_threadgroup(grid, threadgroup)
        contents = [_content(p, buffers, outputs, init_value) for p in self._buffers]
        sizes = [
            f"{'w' if p.is_output else 'r'}{len(content)}"
            for p, content in zip(self._buffers, contents, strict=True)
        ]
        words = [str(word) for word in (schedule, *grid, *threadgroup)]
        written = self._call([*words, *sizes], b"".join(contents))
        return self._split(written, outputs)

    def _call(self, words: list[str], stdin: bytes) -> bytes:
        try:
            done = subprocess.run(
                [str(self.program), *words],
                input=stdin,
                capture_output=True,
                timeout=TIMEOUT,
                check=False,
                env={**os.environ, **SANITIZER_OPTIONS},
            )
        except subprocess.TimeoutExpired:
            raise EmulatorError(f"the kernel ran for more than {TIMEOUT} s") from None
        if done.returncode != 0:
            message = _without_fiber_warning(done.stderr.decode(errors="replace"))[:4000]
            raise EmulatorError(f"the kernel failed ({done.returncode}): {message}")
        return done.stdout

    def _split(
        self, written: bytes, outputs: Mapping[str, tuple[Sequence[int], mx.Dtype]]
    ) -> list[np.ndarray]:
        """The program writes outputs in the order of the signature."""
        found = {}
        for parameter in self._buffers:
            if parameter.is_output:
                shape, dtype = outputs[parameter.name]
                size = math.prod(shape) * dtype.size
                found[parameter.name] = to_numpy(written[:size], shape, dtype)
                written = written[size:]
        return [found[name] for name in outputs]


def _without_fiber_warning(message: str) -> str:
    """AddressSanitizer warns of programs that change stacks, whether or not it matters."""
    lines = message.splitlines(keepends=True)
    return "".join(line for line in lines if "makecontext/swapcontext" not in line)


def _checked_threadgroup(grid: Size, threadgroup: Size) -> Size:
    if min(*grid, *threadgroup) < 1:
        raise EmulatorError(f"an empty grid {grid} or threadgroup {threadgroup}")
    if math.prod(threadgroup) > MAX_THREADS:
        raise EmulatorError(f"a threadgroup of {math.prod(threadgroup)}, Metal has {MAX_THREADS}")
    # MLX makes it no larger than the grid.
    x, y, z = (min(g, t) for g, t in zip(grid, threadgroup, strict=True))
    return x, y, z


def _content(
    parameter: Parameter,
    buffers: Mapping[str, mx.array],
    outputs: Mapping[str, tuple[Sequence[int], mx.Dtype]],
    init_value: float | None,
) -> bytes:
    name = parameter.name
    if parameter.is_output and name in outputs:
        shape, dtype = outputs[name]
        _check_type(parameter, dtype)
        if init_value is not None:
            return to_bytes(mx.full(tuple(shape), init_value, dtype=dtype))
        return bytes([POISON]) * (math.prod(shape) * dtype.size)
    if name in buffers:
        _check_type(parameter, buffers[name].dtype)
        return to_bytes(buffers[name])
    base, _, property_ = name.rpartition("_")
    if base in buffers and property_ in ("shape", "strides", "ndim"):
        return _property(buffers[base].shape, property_)
    raise EmulatorError(f"nothing given for the buffer {name}")


def _check_type(parameter: Parameter, dtype: mx.Dtype) -> None:
    if TYPE_NAMES.get(dtype) != parameter.type:
        raise EmulatorError(f"{parameter.name} is {parameter.type} in the text, given as {dtype}")


def _property(shape: Sequence[int], which: str) -> bytes:
    """Inputs always arrive row-contiguous."""
    if which == "ndim":
        return np.int32(len(shape)).tobytes()
    if which == "shape":
        return np.array(shape, dtype=np.int32).tobytes()
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return np.array(strides, dtype=np.int64).tobytes()
