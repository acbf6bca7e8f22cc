"""Cutting a function where MLX can't export its graph: at functions with gradients of their own.

What a call of such a function returns becomes a marked placeholder, and so does the gradient that
the function's own rule forms; ``Cut`` says what each placeholder stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import mlx.core as mx

MARK = 1 << 40  # offsets from here on mark placeholders: no array is as large


class Spec(NamedTuple):
    """An array that need not exist: its shape and type."""

    shape: tuple[int, ...]
    dtype: mx.Dtype


def flatten(tree: Any) -> tuple[list[mx.array], Callable[[Sequence[Any]], Any]]:
    """The arrays of a tree, and what puts others in their places."""
    if isinstance(tree, mx.array):
        return [tree], lambda arrays: arrays[0]
    if hasattr(tree, "_fields"):  # tree_unflatten would make plain lists of named tuples
        flat, rebuild = flatten(list(tree))
        return flat, lambda arrays: type(tree)(*rebuild(arrays))
    if isinstance(tree, dict):
        flat, rebuild = flatten(list(tree.values()))
        return flat, lambda arrays: dict(zip(tree, rebuild(arrays), strict=True))
    if isinstance(tree, (list, tuple)):
        parts = [flatten(item) for item in tree]

        def join(arrays: Sequence[Any]) -> Any:
            out, at = [], 0
            for flat, rebuild in parts:
                out.append(rebuild(arrays[at : at + len(flat)]))
                at += len(flat)
            return type(tree)(out)

        return [x for flat, _ in parts for x in flat], join
    return [], lambda arrays: tree


class Cut(NamedTuple):
    """``marks`` are the placeholders of one call's outputs or gradients, ``values`` what they
    stand for; ``inputs`` the call's arguments, where it is an operation of its own, ``op``."""

    marks: list[int]
    values: list[mx.array]
    inputs: list[mx.array]
    op: str = "CustomTransforms"


class _Call(NamedTuple):
    """A call, within something differentiated, of a function that has a gradient of its own."""

    function: _CustomFunction
    args: list[mx.array]
    rebuild: Callable[[Sequence[Any]], Any]
    outputs: list[mx.array]  # placeholders, of which the graph knows
    rebuild_outputs: Callable[[Sequence[Any]], Any]


class _CustomFunction:
    """Stands in for ``mx.custom_function``."""

    def __init__(self, fn: Callable[..., Any], cuts: Cuts):
        self.fn = fn
        self.cuts = cuts
        self.rule: Callable[..., Any] | None = None

    def vjp(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        self.rule = rule
        return self

    def jvp(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        return self

    vmap = jvp

    def __call__(self, *args: Any) -> Any:
        return self.fn(*args) if self.rule is None else self.cuts.call(self, args)

    def pull(self, call: _Call, cotangents: list[mx.array]) -> list[mx.array]:
        """The gradients of a call's arguments, by the function's own rule."""
        args = call.rebuild(call.args)
        primals = args[0] if len(args) == 1 else args
        assert self.rule is not None
        grads = self.rule(
            primals, call.rebuild_outputs(cotangents), call.rebuild_outputs(call.outputs)
        )
        return flatten(grads)[0]


class _Checkpoint(_CustomFunction):
    """Stands in for ``mx.checkpoint``, whose rule runs the function again once it has run."""

    def __init__(self, fn: Callable[..., Any], cuts: Cuts):
        super().__init__(lambda args, kwargs: fn(*args, **kwargs), cuts)
        self.rule = self.pull

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.cuts.call(self, (args, kwargs))

    def pull(self, call: _Call, cotangents: list[mx.array]) -> list[mx.array]:
        again = mx.depends(call.args, call.outputs)

        def flat_fn(arrays: Sequence[mx.array]) -> list[mx.array]:
            return flatten(self.fn(*call.rebuild(arrays)))[0]

        return self.cuts.vjp(flat_fn, again, lambda _: cotangents)[1]


class _GatherMM(_CustomFunction):
    """Stands in for ``mx.gather_mm`` on sorted indices, whose gradient takes an operation,
    ``SegmentedMM``, that MLX can't export."""

    def __init__(self, cuts: Cuts, real: Callable[..., Any]):
        super().__init__(self._forward, cuts)
        self.rule = self.pull
        self.real = real

    def __call__(self, a: mx.array, b: mx.array, *args: Any, **kwargs: Any) -> Any:
        if not (kwargs.get("sorted_indices") and self.cuts.handlers):
            return self.real(a, b, *args, **kwargs)
        return self.cuts.call(self, (a, b, args, kwargs))

    def _forward(self, a: mx.array, b: mx.array, args: Any, kwargs: Any) -> mx.array:
        return self.real(a, b, *args, **kwargs)

    def pull(self, call: _Call, cotangents: list[mx.array]) -> list[mx.array]:
        a, b, args, kwargs = call.rebuild(call.args)
        (d_out,) = cotangents
        d_a = mx.vjp(lambda a: self._forward(a, b, args, kwargs), [a], [d_out])[1][0]
        parts = [d_out.flatten(0, -2).swapaxes(0, 1), a.flatten(0, -2)]
        mark, d_b = self.cuts.placeholder(Spec((*b.shape[:-2], b.shape[-1], b.shape[-2]), b.dtype))
        self.cuts.made.append(Cut([mark], [], parts, "SegmentedMM"))
        return [d_a, d_b.swapaxes(-1, -2), *call.args[2:]]


class Cuts:
    """Where a function was cut, and the stand-ins that cut it."""

    def __init__(self) -> None:
        self.made: list[Cut] = []
        self.marks = 0
        self.seed: mx.array | None = None  # an argument
        # What outer differentiation does with a call, innermost last.
        self.handlers: list[Callable[[_Call], list[mx.array]]] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, stand_in in (
                ("custom_function", lambda fn: _CustomFunction(fn, self)),
                ("checkpoint", lambda fn: _Checkpoint(fn, self)),
                ("value_and_grad", self.value_and_grad),
                ("grad", lambda fn, argnums=None: self.grad(fn, argnums)),
                ("gather_mm", _GatherMM(self, mx.gather_mm)),
                ("contiguous", _contiguous),
            ):
                stack.enter_context(patch.object(mx, name, stand_in))
            yield

    def placeholder(self, like: mx.array | Spec) -> tuple[int, mx.array]:
        self.marks += 1
        # Made of an argument: functions that MLX compiles tell by that that they are traced.
        nothing = mx.array(0) if self.seed is None else self.seed
        nothing = nothing.astype(like.dtype)
        zeros = [0] * len(like.shape)
        return self.marks, mx.as_strided(nothing, like.shape, zeros, MARK + self.marks)

    def stand_in_for(self, values: list[mx.array], inputs: list[mx.array]) -> list[mx.array]:
        marked = [self.placeholder(value) for value in values]
        self.made.append(Cut([mark for mark, _ in marked], values, inputs))
        return [array for _, array in marked]

    def call(self, function: _CustomFunction, args: Any) -> Any:
        """What a call of such a function returns."""
        flat, rebuild = flatten(args)
        handler = self.handlers[-1] if self.handlers else None
        self.handlers.append(self._outside)
        tree = function.fn(*rebuild(flat))
        self.handlers.pop()
        outputs, rebuild_outputs = flatten(tree)
        made = _Call(function, flat, rebuild, outputs, rebuild_outputs)
        return rebuild_outputs((handler or self._outside)(made))

    def _outside(self, call: _Call) -> list[mx.array]:
        """Nothing differentiates the call."""
        return self.stand_in_for(call.outputs, call.args)

    def _with_handler(self, handler: Callable[[_Call], list[mx.array]], fn: Any, *args: Any) -> Any:
        self.handlers.append(handler)
        try:
            return fn(*args)
        finally:
            self.handlers.pop()

    def vjp(
        self,
        fn: Callable[[Sequence[mx.array]], list[mx.array]],
        primals: list[mx.array],
        cotangents_of: Callable[[list[mx.array]], list[mx.array]],
    ) -> tuple[list[mx.array], list[mx.array]]:
        """(outputs, gradients of the primals), both flat, with calls in ``fn`` cut out."""
        found: list[_Call] = []

        def watch(call: _Call) -> list[mx.array]:
            found.append(call)
            return call.outputs

        expected = self._with_handler(watch, fn, primals)
        floats_given = [x for call in found for x in call.args if _is_float(x)]
        once, places = _distinct([*expected, *floats_given])
        leaves = [[self.placeholder(x) for x in call.outputs] for call in found]
        # Gradients reach what a call was given only where that is made of floats.
        pulled = [[self.placeholder(x) for x in call.args if _is_float(x)] for call in found]
        calls: list[_Call] = []

        def cut(*arrays: mx.array) -> list[mx.array]:
            rest = iter(arrays[len(primals) :])
            calls.clear()

            def replace(call: _Call) -> list[mx.array]:
                calls.append(call)
                return [next(rest) for _ in call.outputs]

            outputs = self._with_handler(replace, fn, arrays[: len(primals)])
            both = [*outputs, *(x for call in calls for x in call.args if _is_float(x))]
            return [both[i] for i in once]

        leaf_arrays = [x for group in leaves for _, x in group]
        weights = [*cotangents_of(expected), *(x for group in pulled for _, x in group)]
        # Of an output that is given twice, as weights that two calls share, MLX would take only
        # the first cotangent.
        sums: list[Any] = [None] * len(once)
        for place, weight in zip(places, weights, strict=True):
            sums[place] = weight if sums[place] is None else sums[place] + weight
        outputs, grads = mx.vjp(cut, [*primals, *leaf_arrays], sums)
        gradients = iter(grads[len(primals) :])
        for call, group, marks in zip(calls, leaves, pulled, strict=True):
            self.made.append(Cut([mark for mark, _ in group], call.outputs, call.args))
            outer = call._replace(outputs=[x for _, x in group])
            own = self._with_handler(
                self._outside, call.function.pull, outer, [next(gradients) for _ in group]
            )
            floats = [g for g, x in zip(own, call.args, strict=True) if _is_float(x)]
            self.made += [Cut([m], [g], []) for (m, _), g in zip(marks, floats, strict=True)]
        return [outputs[i] for i in places[: len(expected)]], grads[: len(primals)]

    def value_and_grad(self, fn: Callable[..., Any], argnums: Any = None) -> Callable[..., Any]:
        """Stands in for ``mx.value_and_grad``."""
        numbers = [argnums or 0] if not isinstance(argnums, (list, tuple)) else list(argnums)

        def both(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
            primals, rebuild = flatten([args[i] for i in numbers])
            result: list[Any] = [None]

            def flat_fn(arrays: Sequence[mx.array]) -> list[mx.array]:
                full = list(args)
                for i, value in zip(numbers, rebuild(arrays), strict=True):
                    full[i] = value
                result[0] = fn(*full, **kwargs)
                loss = result[0] if isinstance(result[0], mx.array) else result[0][0]
                return [loss]

            outputs, grads = self.vjp(flat_fn, primals, lambda out: [mx.ones_like(out[0])])
            value = result[0]
            if not isinstance(value, mx.array):
                value = type(value)([outputs[0], *value[1:]])
            else:
                value = outputs[0]
            tree = rebuild(grads)
            return value, tree if isinstance(argnums, (list, tuple)) else tree[0]

        return both

    def grad(self, fn: Callable[..., Any], argnums: Any = None) -> Callable[..., Any]:
        """Stands in for ``mx.grad``."""
        both = self.value_and_grad(fn, argnums)
        return lambda *args, **kwargs: both(*args, **kwargs)[1]


def _contiguous(x: mx.array, *_: Any, **__: Any) -> mx.array:
    """Stands in for ``mx.contiguous``, which MLX can't export: also a buffer of the same size, but
    where ``x`` has one to itself."""
    return x + mx.zeros((), dtype=x.dtype)


def _is_float(x: mx.array) -> bool:
    return mx.issubdtype(x.dtype, mx.floating)


def _distinct(arrays: Sequence[mx.array]) -> tuple[list[int], list[int]]:
    """Where each array comes first, and for all of them the place among these."""
    found: dict[int, int] = {}
    once: list[int] = []
    for i, array in enumerate(arrays):
        if id(array) not in found:
            found[id(array)] = len(once)
            once.append(i)
    return once, [found[id(array)] for array in arrays]
