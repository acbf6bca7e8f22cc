"""A stand-in for ``mx.fast.metal_kernel`` that runs on any Linux machine with g++."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from tests.metal_emulator.compiled import CompiledKernel, Schedule, Size, to_mlx
from tests.metal_emulator.source import EmulatorError, generated_source

# The real one, whoever replaces mx.fast.metal_kernel later.
_metal_kernel = mx.fast.metal_kernel

Mutation = Callable[[str], str]


class EmulatedMetalKernel:
    """What ``mx.fast.metal_kernel(...)`` returns, run by the emulator.

    ``monkeypatch.setattr(mx.fast, "metal_kernel", EmulatedMetalKernel)`` makes a product's own
    wiring run without Metal. A call runs at once, also inside ``mx.grad``, but not inside
    ``mx.compile``, where arrays have no values. Inputs arrive row-contiguous even where the kernel
    doesn't ask for it.

    ``mutate`` edits MLX's text before it is compiled, for tests that break a kernel on purpose;
    ``sanitize`` is for g++'s ``-fsanitize=``. Either may be set on the class, or for one kernel
    with ``functools.partial(EmulatedMetalKernel, mutate=...)``. A call runs once for each of
    ``schedules``, and the results must agree bit for bit.
    """

    mutate: ClassVar[Mutation | None] = None
    sanitize: ClassVar[str] = ""
    schedules: ClassVar[Sequence[Schedule]] = ("forward", "reverse", 1)
    cache: ClassVar[Path | None] = None

    def __init__(
        self,
        name: str,
        input_names: Sequence[str],
        output_names: Sequence[str],
        source: str,
        header: str = "",
        ensure_row_contiguous: bool = True,
        atomic_outputs: bool = False,
        compile_options: dict[str, Any] | None = None,
        *,
        mutate: Mutation | None = None,
        sanitize: str | None = None,
    ) -> None:
        if atomic_outputs:
            raise EmulatorError("atomic outputs are not emulated")
        self.name = name
        self._input_names, self._output_names = list(input_names), list(output_names)
        self._mutate, self._sanitize = mutate, sanitize
        self._kernel = _metal_kernel(
            name=name,
            input_names=input_names,
            output_names=output_names,
            source=source,
            header=header,
            ensure_row_contiguous=ensure_row_contiguous,
            compile_options=compile_options,
        )

    def __call__(
        self,
        *,
        inputs: Sequence[Any],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: Size,
        threadgroup: Size,
        template: Sequence[tuple[str, Any]] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: Any = None,
    ) -> list[mx.array]:
        # Traced arrays have values, but what numpy reads must not be part of the trace.
        arrays = [mx.stop_gradient(x if isinstance(x, mx.array) else mx.array(x)) for x in inputs]
        text = self._text(
            inputs=arrays,
            template=template or [],
            output_shapes=output_shapes,
            output_dtypes=output_dtypes,
            grid=grid,
            threadgroup=threadgroup,
        )
        if verbose:
            print(text)
        sanitize = type(self).sanitize if self._sanitize is None else self._sanitize
        compiled = CompiledKernel(text, sanitize=sanitize, cache=type(self).cache)
        buffers = dict(zip(self._input_names, arrays, strict=True))
        specs = zip(output_shapes, output_dtypes, strict=True)
        outputs = dict(zip(self._output_names, specs, strict=True))
        results = [
            compiled.run(buffers, outputs, grid, threadgroup, schedule, init_value=init_value)
            for schedule in type(self).schedules
        ]
        self._check_agreement(results)
        return [to_mlx(x, dtype) for x, dtype in zip(results[0], output_dtypes, strict=True)]

    def _text(self, **call: Any) -> str:
        text = generated_source(self._kernel, **call)
        mutate = self._mutate or type(self).mutate
        return mutate(text) if mutate else text

    def _check_agreement(self, results: list[list[np.ndarray]]) -> None:
        for schedule, result in zip(type(self).schedules[1:], results[1:], strict=True):
            for name, first, other in zip(self._output_names, results[0], result, strict=True):
                if first.tobytes() != other.tobytes():
                    raise EmulatorError(
                        f"{self.name}: {name} depends on the order of the threads: "
                        f"{type(self).schedules[0]} and {schedule} differ"
                    )
