"""Gradient checkpointing: a layer's inside is computed again in the backward pass, not kept.

mlx-lm's own ``grad_checkpoint`` loses the gradient that flows through a shared prefix: 97 % of it
is wrong, silently, since ``mx.checkpoint`` has no gradient for arrays that its function captures.
Here a layer's parameters, its inputs and what its cache holds are all arguments, and what the
layer leaves in its cache is an output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from simko_mlx.prefix import Prefix


@contextmanager
def checkpointed_layers(model: nn.Module, on: bool = True) -> Iterator[None]:
    """Within the block, every layer of the model keeps nothing but its inputs for the gradient."""
    layers: list[Any] = list(model.layers or []) if on else []
    classes = {type(layer) for layer in layers}
    originals = {cls: cls.__call__ for cls in classes}
    mine = {id(layer) for layer in layers}
    for cls in classes:
        cls.__call__ = _checkpointed(originals[cls], mine)
    try:
        yield
    finally:
        for cls in classes:
            cls.__call__ = originals[cls]


def _checkpointed(original: Callable[..., Any], mine: set[int]) -> Callable[..., Any]:
    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if id(layer) not in mine:  # another model's layer of the same class
            return original(layer, *args, **kwargs)
        trainable = layer.trainable_parameters()
        given = {**{str(i): arg for i, arg in enumerate(args)}, **kwargs}
        caches = {name: x for name, x in given.items() if isinstance(x, Prefix)}
        floats = {name: x for name, x in given.items() if _is_float(x)}

        # As they are now: the backward pass runs the inside again, when they have gone on.
        before = {name: c.with_arrays(c.arrays()) for name, c in caches.items()}
        random: list[mx.array] = []
        again = False

        def inside(trainable: Any, floats: Any, states: Any) -> Any:
            layer.update(trainable)
            copies = {name: c.with_arrays(states[name]) for name, c in before.items()}
            here = {**given, **floats, **copies}
            some = [here.pop(str(i)) for i in range(len(args))]
            with _same_dropout(random, again):
                out = original(layer, *some, **here)
            return out, {name: c.arrays() for name, c in copies.items()}

        states = {name: c.arrays() for name, c in caches.items()}
        run: Any = mx.checkpoint(inside)
        out, after = run(trainable, floats, states)
        again = True
        layer.update(trainable)  # not what the inside was traced with
        for name, cache in caches.items():
            cache.take(after[name])
        return out

    return call


@contextmanager
def _same_dropout(states: list[mx.array], again: bool) -> Iterator[None]:
    """Within the block, dropout leaves in ``states`` what it draws from, or, ``again``, draws the
    same from there: otherwise the gradient would be that of other masks than the loss."""
    module: Any = mx.random
    original = module.bernoulli
    before = iter(states)

    def bernoulli(*args: Any, **kwargs: Any) -> mx.array:
        if again:
            # As MLX's generator does: one half is its next state, the other the key.
            kwargs["key"] = mx.random.split(next(before))[1]
        else:
            states.append(module.state[0])
        return original(*args, **kwargs)

    module.bernoulli = bernoulli
    try:
        yield
    finally:
        module.bernoulli = original


def _is_float(x: Any) -> bool:
    return isinstance(x, mx.array) and mx.issubdtype(x.dtype, mx.floating)
