"""What MLX's primitives do with buffers: make one, share their input's, or take it over.

Written after MLX's CPU backend; Metal's does the same, but for primitives that it has for itself.
An array is a view of a buffer, with strides as MLX would give it, since copies and donation depend
on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from simko_mlx.graphs.trace import Node, Spec

DONATION_SLACK = 16384  # bytes by which a donated buffer may be larger than what goes into it
UNARY = (
    "Abs ArcCos ArcCosh ArcSin ArcSinh ArcTan ArcTanh BitwiseInvert Ceil Cos Cosh Erf ErfInv "
    "Exp Expm1 Floor LayerNorm Log Log1p LogicalNot Negative RMSNorm RoPE Round Sigmoid Sign "
    "Sin Sinh Sqrt Square Tan Tanh "
)
BINARY = (
    "Add ArcTan2 BitwiseBinary Divide Equal Greater GreaterEqual Less LessEqual LogAddExp "
    "LogicalAnd LogicalOr Maximum Minimum Multiply NotEqual Power Remainder Subtract "
)


class Buffer:
    """Memory, and how many arrays and queued operations hold it."""

    __slots__ = ("born", "bytes", "died", "holders", "op", "shape")

    def __init__(self, op: str, shape: tuple[int, ...], size: int):
        self.op, self.shape, self.bytes = op, shape, size
        self.holders = 0
        self.born = self.died = -1


@dataclass
class Array:
    """``data_size`` counts the elements that are in memory; ``dense`` says that there are no holes
    between them, ``row`` and ``column`` that they lie in that order."""

    shape: tuple[int, ...]
    item: int  # bytes
    buffer: Buffer
    strides: tuple[int, ...]
    data_size: int
    dense: bool = True
    row: bool = True
    column: bool = False
    uses: int = 0  # by operations to come, and by whoever keeps the array

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.item

    @property
    def donatable(self) -> bool:
        return self.uses == 1 and self.buffer.holders == 1

    def view(self, spec: Spec, strides: tuple[int, ...] | None = None, **changes: Any) -> Array:
        """The same buffer as another array."""
        strides = self.strides if strides is None else strides
        array = Array(spec.shape, spec.dtype.size, self.buffer, strides, self.data_size)
        array.dense, array.row, array.column = self.dense, self.row, self.column
        for name, value in changes.items():
            setattr(array, name, value)
        return array


def new_array(op: str, spec: Spec, like: Array | None = None) -> Array:
    """In a buffer of its own; ``like``: in the order of that dense array."""
    item = spec.dtype.size
    if like is not None:
        buffer = Buffer(op, spec.shape, like.data_size * item)
        return replace(like, shape=spec.shape, item=item, buffer=buffer, uses=0)
    size = prod(spec.shape)
    column = size <= 1 or size == max(spec.shape)
    buffer = Buffer(op, spec.shape, size * item)
    return Array(spec.shape, item, buffer, row_strides(spec.shape), size, column=column)


def row_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def _orders(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, bool, bool]:
    """(elements without broadcast ones, row-contiguous, column-contiguous)."""
    size, forward, backward, row, column = 1, 1, 1, True, True
    for i in range(len(shape)):
        j = len(shape) - 1 - i
        column &= strides[i] == forward or shape[i] == 1
        row &= strides[j] == backward or shape[j] == 1
        forward *= shape[i]
        backward *= shape[j]
        size *= shape[i] if strides[i] > 0 else 1
    return size, row, column


@dataclass
class Effect:
    """What an operation leaves: its outputs, copies that it needs until it has run, and how many
    kernels it dispatches."""

    outputs: list[Array]
    temporaries: list[Array] = field(default_factory=list)
    kernels: int = 1


def apply(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    """The effect of one primitive; one that is not known here makes new outputs."""
    rule = RULES.get(node.op)
    if rule is None or not specs or any(0 in spec.shape for spec in specs):
        return Effect([new_array(node.op, spec) for spec in specs])
    return rule(node, inputs, specs)


def _fits(a: Array, spec: Spec) -> bool:
    """Whether MLX would donate the array to an output."""
    size = prod(spec.shape) * spec.dtype.size
    return a.donatable and a.item == spec.dtype.size and a.buffer.bytes <= size + DONATION_SLACK


def _reuse(node: Node, spec: Spec, like: Array, candidates: list[Array]) -> Effect:
    """Of the first candidate that may be donated, else new in the order of ``like``."""
    for a in candidates:
        if _fits(a, spec):
            return Effect([a.view(spec)])
    return Effect([new_array(node.op, spec, like)])


def _unary(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    a = inputs[0]
    return _reuse(node, specs[0], a, [a]) if a.dense else Effect([new_array(node.op, specs[0])])


def _elementwise(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    """Binary operations and Select."""
    spec = specs[0]
    scalars = [a.data_size == 1 for a in inputs]
    if all(scalars):
        return Effect([new_array(node.op, spec, inputs[-1])])
    if len(inputs) == 2 and any(scalars):
        other = inputs[scalars.index(False)]
        if other.dense:
            return _reuse(node, spec, other, [other])
    elif all(a.row for a in inputs) or all(a.column for a in inputs):
        return _reuse(node, spec, inputs[1 if len(inputs) == 3 else 0], inputs)
    for a in inputs:
        if a.row and a.size == prod(spec.shape) and _fits(a, spec):
            return Effect([a.view(spec, row_strides(spec.shape))])
    return Effect([new_array(node.op, spec)])


def _copied(op: str, a: Array, spec: Spec, *, whole: bool) -> Effect:
    """A copy, or the array itself where it may be donated; ``whole``: as it lies in memory."""
    if whole and _fits(a, spec):
        return Effect([a.view(spec)], kernels=0)
    return Effect([new_array(op, spec, a if whole else None)])


def _as_type(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    a = inputs[0]
    effect = _copied(node.op, a, specs[0], whole=a.dense and not (node.op == "Full" and _one(a)))
    effect.kernels = 1
    return effect


def _one(a: Array) -> bool:
    return a.data_size == 1


def _updated(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    """A copy of the first input with something written into it."""
    a = inputs[0]
    if "Slice" in node.op:
        whole = a.dense and a.size == a.data_size and not _one(a)
    elif "catter" in node.op:
        whole = a.row
    else:
        whole = a.dense and 0 not in a.strides
    effect = _copied(node.op, a, specs[0], whole=whole)
    effect.kernels += 1
    return effect


def _contiguous(a: Array, temporaries: list[Array], *, fine: bool) -> Array:
    """The array, or where it isn't fine a temporary copy in row order."""
    if fine:
        return a
    size = prod(a.shape)
    buffer = Buffer("copy", a.shape, size * a.item)
    temporaries.append(Array(a.shape, a.item, buffer, row_strides(a.shape), size))
    return temporaries[-1]


def _matmul(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    temporaries: list[Array] = []
    for a in inputs[:2]:
        rows, columns = a.shape[-2:]
        plain = a.strides[-2:] == (columns, 1) or a.strides[-2:] == (1, rows)
        _contiguous(a, temporaries, fine=plain)
    out = Effect([new_array(node.op, specs[0])])
    if node.op == "AddMM":
        c = inputs[2]
        out = _copied(node.op, c, specs[0], whole=c.row and not _one(c))
    return Effect(out.outputs, temporaries, 1 + len(temporaries) + (node.op == "AddMM"))


def _quantized(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    temporaries: list[Array] = []
    for a in inputs[: 3 if node.op == "GatherQMM" else 4]:
        fine = a.row
        if node.op == "GatherQMM":
            fine = a.strides[-2:] == (a.shape[-1], 1)
        _contiguous(a, temporaries, fine=fine)
    return Effect([new_array(node.op, specs[0])], temporaries, 1 + len(temporaries))


def _softmax(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    a = inputs[0]
    if not (a.dense and a.strides[-1] == 1):
        return Effect([new_array(node.op, specs[0])], kernels=2)
    return Effect([a.view(specs[0]) if a.donatable else new_array(node.op, specs[0], a)])


def _row_reader(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    """Scan and LogSumExp."""
    temporaries: list[Array] = []
    a = inputs[0]
    fine = a.row if node.op == "Scan" else a.dense and a.strides[-1] == 1
    _contiguous(a, temporaries, fine=fine)
    outputs = [new_array(node.op, spec) for spec in specs]
    return Effect(outputs, temporaries, 1 + len(temporaries))


def _concatenate(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    return Effect([new_array(node.op, specs[0])], kernels=len(inputs))


# Views.


def _same(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    """Copy, StopGradient, Depends; and CustomTransforms, whose own outputs are its last inputs."""
    first = len(inputs) - len(specs) if node.op == "CustomTransforms" else 0
    outputs = [a.view(s) for a, s in zip(inputs[first:], specs, strict=False)]
    return Effect(outputs, kernels=0)


def _broadcast(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    a, spec = inputs[0], specs[0]
    own = [0 if n == 1 else s for n, s in zip(a.shape, a.strides, strict=True)]
    strides = (*[0] * (len(spec.shape) - len(own)), *own)
    orders = {"row": False, "column": False} if prod(spec.shape) > a.size else {}
    return Effect([a.view(spec, strides, **orders)], kernels=0)


def _expand(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    strides = list(inputs[0].strides)
    for axis in node.arguments[0]:
        strides.insert(axis, 1)
    return Effect([inputs[0].view(specs[0], tuple(strides))], kernels=0)


def _squeeze(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    axes = node.arguments[0]
    strides = tuple(s for i, s in enumerate(inputs[0].strides) if i not in axes)
    return Effect([inputs[0].view(specs[0], strides)], kernels=0)


def _transpose(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    a, spec = inputs[0], specs[0]
    strides = tuple(a.strides[axis] for axis in node.arguments[0])
    if not (a.dense and a.data_size == a.size):
        return Effect([a.view(spec, strides)], kernels=0)
    _, row, column = _orders(spec.shape, strides)
    return Effect([a.view(spec, strides, row=row, column=column)], kernels=0)


def _part(a: Array, spec: Spec, steps: list[int]) -> Array:
    strides = tuple(s * step for s, step in zip(a.strides, steps, strict=True))
    spans = [s * (n - 1) for s, n in zip(strides, spec.shape, strict=True)]
    data_size = sum(abs(span) for span in spans) + 1
    size, row, column = _orders(spec.shape, strides)
    return a.view(
        spec, strides, data_size=data_size, dense=size == data_size, row=row, column=column
    )


def _slice(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    steps = list(node.arguments[2])
    return Effect([_part(inputs[0], specs[0], steps)], kernels=0)


def _split(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    steps = [1] * len(inputs[0].shape)
    return Effect([_part(inputs[0], spec, steps) for spec in specs], kernels=0)


def _as_strided(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    strides = tuple(node.arguments[1])
    size, row, column = _orders(specs[0].shape, strides)
    changes = {"data_size": size, "row": row, "column": column}
    return Effect([inputs[0].view(specs[0], strides, **changes)], kernels=0)


def _reshape(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    a, spec = inputs[0], specs[0]
    if a.row:
        column = a.size <= 1 or a.size == max(spec.shape)
        return Effect([a.view(spec, row_strides(spec.shape), column=column)], kernels=0)
    strides = _reshaped(a, spec.shape)
    if strides is None:
        return Effect([new_array(node.op, spec)])
    return Effect([a.view(spec, strides)], kernels=0)


def _reshaped(a: Array, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The strides of a view of that shape, if there can be one."""
    if not a.shape:
        return (0,) * len(shape)
    runs = [[a.shape[0], a.strides[0]]]
    for n, stride in list(zip(a.shape, a.strides, strict=True))[1:]:
        if n != 1 and stride * n == runs[-1][1]:
            runs[-1] = [runs[-1][0] * n, stride]
        elif n != 1:
            runs.append([n, stride])
    strides: list[int] = []
    at = 0
    for n in shape:
        if at < len(runs) and runs[at][0] % n == 0:
            runs[at][0] //= n
            strides.append(runs[at][0] * runs[at][1])
            at += runs[at][0] == 1
        elif n == 1:
            strides.append(strides[-1])
        else:
            return None
    return tuple(strides)


def _bits(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    """View: the same bytes as another type."""
    a, spec = inputs[0], specs[0]
    if a.item == spec.dtype.size:
        return Effect([a.view(spec)], kernels=0)
    if not a.row:
        return Effect([new_array(node.op, spec)])
    strides, size = row_strides(spec.shape), prod(spec.shape)
    return Effect([a.view(spec, strides, data_size=size)], kernels=0)


Rule = Callable[[Node, list[Array], list[Spec]], Effect]
RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY.split(), _unary),
    **dict.fromkeys([*BINARY.split(), "Select"], _elementwise),
    **dict.fromkeys(["AsType", "Full"], _as_type),
    **dict.fromkeys(["SliceUpdate", "DynamicSliceUpdate", "Scatter", "ScatterAxis"], _updated),
    **dict.fromkeys(["MaskedScatter", "Sort", "Partition"], _updated),
    **dict.fromkeys(["Matmul", "AddMM", "GatherMM", "SegmentedMM"], _matmul),
    **dict.fromkeys(["QuantizedMatmul", "GatherQMM"], _quantized),
    **dict.fromkeys(["Scan", "LogSumExp"], _row_reader),
    **dict.fromkeys(["Copy", "StopGradient", "Depends", "CustomTransforms"], _same),
    **dict.fromkeys(["Broadcast", "BroadcastAxes"], _broadcast),
    **dict.fromkeys(["Reshape", "Flatten", "Unflatten"], _reshape),
    "Softmax": _softmax,
    "Concatenate": _concatenate,
    "ExpandDims": _expand,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "AsStrided": _as_strided,
    "View": _bits,
}
