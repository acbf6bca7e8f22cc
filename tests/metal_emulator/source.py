"""The text that MLX hands to Metal for one call of a kernel, and that text as C++ for g++."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx


class EmulatorError(RuntimeError):
    """The kernel didn't compile, or didn't run as Metal requires."""


@contextmanager
def _stdout_to(path: Path) -> Iterator[None]:
    """File descriptor 1 itself: MLX prints from C++, which sys.stdout doesn't see."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    libc.fflush(None)
    keep = os.dup(1)
    try:
        with path.open("wb") as file:
            os.dup2(file.fileno(), 1)
            try:
                yield
            finally:
                libc.fflush(None)
                os.dup2(keep, 1)
    finally:
        os.close(keep)


def generated_source(
    kernel: Callable[..., Any],
    *,
    inputs: Sequence[mx.array],
    template: Sequence[tuple[str, Any]],
    output_shapes: Sequence[Sequence[int]],
    output_dtypes: Sequence[mx.Dtype],
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
) -> str:
    """What MLX generates for this call of what ``mx.fast.metal_kernel`` returned.

    Without Metal a kernel can't be called, but it can be exported, and MLX generates its text then.
    Only the inputs' shapes and types matter, so they may be traced.
    """

    def call(*arrays: mx.array) -> Any:
        return kernel(
            inputs=list(arrays),
            template=list(template),
            output_shapes=output_shapes,
            output_dtypes=output_dtypes,
            grid=grid,
            threadgroup=threadgroup,
            verbose=True,
        )

    placeholders = [mx.zeros(x.shape, dtype=x.dtype) for x in inputs]
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder, "printed")
        with _stdout_to(printed):
            mx.export_function(str(Path(folder, "kernel.mlxfn")), call, *placeholders)
        text = printed.read_text(encoding="utf-8")
    fenced = re.search(r"```\n(.*)```", text, re.DOTALL)
    if fenced is None:
        raise EmulatorError(f"MLX printed no kernel: {text!r}")
    return fenced[1]


@dataclass(frozen=True)
class Parameter:
    """A buffer of the kernel's signature; its place in the list is the buffer's index."""

    name: str
    type: str
    passed_by: Literal["*", "&"]
    is_output: bool

    def argument(self, index: int) -> str:
        pointer = f"({self.type}*)buffers[{index}]"
        return pointer if self.passed_by == "*" else f"*{pointer}"


_SIGNATURE = re.compile(r"\[\[kernel\]\] void (\w+)\((.*?)\) \{\n", re.DOTALL)
_BUFFER = re.compile(
    r"(const )?(?:device|constant) (\S+)([*&]) (\w+) \[\[buffer\((\d+)\)\]\]", re.DOTALL
)
_ATTRIBUTE = re.compile(r"\w+ (\w+) \[\[\1\]\]")
_INSTANTIATION = re.compile(
    r"\ntemplate \[\[host_name\(.*?decltype\(\w+(<.*?>)\) .*?;\s*\Z", re.DOTALL
)
_DECLARATOR = r"\w+\s*(?:\[[^\[\]]*\]\s*)*"
_THREADGROUP_VARIABLES = re.compile(
    rf"\bthreadgroup\s+(\w+)\s+({_DECLARATOR}(?:,\s*{_DECLARATOR})*);"
)


def _without_comments(text: str) -> str:
    """Words in comments would be taken for declarations. Line numbers stay."""
    return re.sub(
        r"[ \t]*//[^\n]*|/\*.*?\*/",
        lambda found: "\n" * found[0].count("\n"),
        text,
        flags=re.DOTALL,
    )


def _share_threadgroup_variables(text: str) -> str:
    """``threadgroup float x[4], y;`` becomes one EMULATOR_THREADGROUP for each name."""

    def shared(found: re.Match[str]) -> str:
        declared = re.findall(r"(\w+)\s*((?:\[[^\[\]]*\]\s*)*)(?:,|\Z)", found[2])
        macros = [f"EMULATOR_THREADGROUP({found[1]}, {name}, {dims})" for name, dims in declared]
        return " ".join(macros) + "\n" * found[0].count("\n")

    text = _THREADGROUP_VARIABLES.sub(shared, text)
    # What is left must be a pointer or reference; a variable would silently not be shared.
    left = re.search(r"\bthreadgroup\s+(?!const\b)\w+\s+\w+[^\n]*", text)
    if left:
        raise EmulatorError(f"cannot read this threadgroup variable: {left[0]}")
    return text


class KernelText:
    """A generated text taken apart."""

    def __init__(self, text: str) -> None:
        self._text = _without_comments(text)
        signature = _SIGNATURE.search(self._text)
        if signature is None:
            raise EmulatorError("the text has no [[kernel]] function")
        self.name, self._parameters = signature[1], signature[2]

    @cached_property
    def buffers(self) -> list[Parameter]:
        found = _BUFFER.findall(self._parameters)
        if [int(index) for *_, index in found] != list(range(len(found))):
            raise EmulatorError("the kernel's buffers aren't numbered one by one")
        return [
            Parameter(name, type_, passed_by, is_output=not const)
            for const, type_, passed_by, name, _ in found
        ]

    def translation_unit(self) -> str:
        """C++ that defines the runtime's ``kernel_entry``."""
        instantiation = _INSTANTIATION.search(self._text)
        body = self._text[: instantiation.start()] if instantiation else self._text
        arguments = [parameter.argument(i) for i, parameter in enumerate(self.buffers)]
        arguments += [f"at.{name}" for name in _ATTRIBUTE.findall(self._parameters)]
        template = instantiation[1] if instantiation else ""
        return "\n".join(
            [
                '#include "metal_shim.h"',
                '#line 1 "kernel.metal"',
                _share_threadgroup_variables(body),
                '#line 1 "entry.cpp"',
                "void emulator::kernel_entry(void* const* buffers, const Position& at) {",
                f"  {self.name}{template}({', '.join(arguments)});",
                "}",
                "",
            ]
        )
