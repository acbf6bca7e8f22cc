"""Runs Metal kernels on the CPU, for tests on machines without Metal.

MLX itself generates the text that Metal would compile; g++ compiles that text against a small shim
of Metal's library, and a runtime runs each threadgroup's threads as fibers. It finds wrong
results, reads past a buffer's end (with a sanitizer), missing barriers, divergent simd operations
and memory that nobody wrote. It says nothing of speed, of Metal's own compiler or its rounding,
nor of address spaces.
"""

from tests.metal_emulator.compiled import HAVE_GXX, CompiledKernel, needs_gxx
from tests.metal_emulator.emulator import EmulatedMetalKernel
from tests.metal_emulator.source import EmulatorError, generated_source

__all__ = [
    "HAVE_GXX",
    "CompiledKernel",
    "EmulatedMetalKernel",
    "EmulatorError",
    "generated_source",
    "needs_gxx",
]
