"""Hidden states instead of logits, from any model of mlx-lm whose head can be found.

A stand-in takes the place of the head for the length of a forward pass. It records what the model
gives its head and answers with something of the logits' shape; whatever the model does to that is
never evaluated, since nothing asks for it. What the model does to real logits (a scale, a cap) is
found out by handing it known numbers instead, so no model's code needs to be known here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from simko_mlx.kernels import Head
from simko_mlx.kernels.head import EMBEDDING, LINEAR
from simko_mlx.kernels.selfcheck import HeadShape

PROBE_TOKENS = 8
HUGE = 2.0**15  # far above any cap, and finite in float16


class _StandIn(nn.Module):
    """Takes the place of a Linear head."""

    def __init__(self, answer: Callable[[mx.array], mx.array]):
        super().__init__()
        self.answer = answer

    def __call__(self, hidden: mx.array) -> mx.array:
        return self.answer(hidden)


class HeadTap:
    """The head of a model: ``parent[name]`` is a Linear, or ``parent`` an Embedding whose
    ``as_linear`` is the head (``name`` None)."""

    def __init__(self, model: nn.Module, parent: Any, name: str | None):
        self.model: Any = model
        self.parent = parent
        self.name = name
        self.scale = 1.0
        self.softcap: float | None = None
        self.dtype = mx.float32  # of the logits; with the two above it is found out by find_head

    @property
    def module(self) -> Any:
        return self.parent if self.name is None else self.parent[self.name]

    @property
    def trains(self) -> bool:
        """Whether the head itself is trained, and so needs gradients of its own."""
        return bool(self.module.trainable_parameters())

    def head(self) -> Head:
        """The head with its current weights."""
        return Head.of(self.module, softcap=self.softcap, scale=self.scale)

    def shape(self) -> HeadShape:
        """What of it the Metal kernels must be checked for."""
        return HeadShape.of(self.head(), self.dtype)

    def hidden(self, input_ids: mx.array, cache: Any = None) -> mx.array:
        """(B, L) ids -> what the model gives its head, (B, L, D).

        Raises:
            LookupError: the model uses this head never, or more than once.
        """
        size = self.module.weight.shape[0]
        # Never evaluated, only of the right shape.
        return self.run(input_ids, lambda h: mx.zeros((*h.shape[:-1], size), dtype=h.dtype), cache)[
            0
        ]

    def run(
        self, input_ids: mx.array, answer: Callable[[mx.array], mx.array], cache: Any = None
    ) -> tuple[mx.array, mx.array]:
        """(what the head was given, what the model made of ``answer`` to it)."""
        seen: list[mx.array] = []

        def stand_in(hidden: mx.array) -> mx.array:
            seen.append(hidden)
            return answer(hidden)

        with self._replaced_by(stand_in):
            out = self.model(input_ids) if cache is None else self.model(input_ids, cache=cache)
        if len(seen) != 1:
            raise LookupError(f"the model uses this head {len(seen)} times")
        return seen[0], out

    @contextmanager
    def _replaced_by(self, answer: Callable[[mx.array], mx.array]) -> Iterator[None]:
        if self.name is None:
            self.parent.as_linear = answer  # hides the method of this one instance
            try:
                yield
            finally:
                del self.parent.as_linear
            return
        module = self.module
        self.parent[self.name] = _StandIn(answer)  # in its place: the order of parameters stays
        try:
            yield
        finally:
            self.parent[self.name] = module


def find_head(model: nn.Module) -> HeadTap | str:
    """The model's head, proved on a few tokens; or why there is none to be had, as half a sentence.

    The head is what has a row for each logit and is used exactly once; with scale and cap, as
    ``Head`` computes them, it must reproduce the model's logits: to the bit where there is neither,
    else within rounding.
    """
    ids = mx.arange(1, PROBE_TOKENS + 1, dtype=mx.int32)[None]
    wanted = model(ids)  # type: ignore[operator]
    reasons = []
    for tap in _candidates(model, wanted.shape[-1]):
        try:
            problem = _prove(tap, ids, wanted)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            problem = str(error)
        if not problem:
            return tap
        reasons.append(problem)
    return reasons[0] if reasons else f"no layer has a row for each of {wanted.shape[-1]} logits"


def likely_head(model: nn.Module, vocabulary: int) -> HeadTap | None:
    """The first layer that could be the head, without running the model; scale and cap are not
    known, but for a cap that the model's settings name."""
    for tap in _candidates(model, vocabulary):
        try:
            tap.hidden(mx.zeros((1, 1), dtype=mx.int32))
        except LookupError:
            continue
        tap.softcap = getattr(getattr(model, "args", None), "final_logit_softcapping", None)
        return tap
    return None


def _candidates(model: nn.Module, vocabulary: int) -> Iterator[HeadTap]:
    """Heads of their own first: a model with one doesn't use its embedding for that."""
    modules: list[Any] = model.modules()
    # The layer inside a LoRA layer is only a part of the head, if so far the only one that matters.
    adapted = [m for m in modules if "lora_a" in m]
    inside = {id(child) for parent in adapted for child in parent.values()}
    for parent in modules:
        for name, child in list(parent.items()):
            fits = type(child) in LINEAR and child.weight.shape[0] == vocabulary
            if fits and id(child) not in inside:
                yield HeadTap(model, parent, name)
    for module in modules:
        fits = type(module) in EMBEDDING and module.weight.shape[0] == vocabulary
        if fits and id(module) not in inside:
            yield HeadTap(model, module, None)


def _prove(tap: HeadTap, ids: mx.array, wanted: mx.array) -> str | None:
    """Sets scale and cap; what is wrong, or None."""
    hidden = tap.hidden(ids)
    raw = tap.head().raw(hidden)
    tap.dtype = raw.dtype
    tap.scale, tap.softcap = _afterwards(tap, ids, raw)
    found = tap.head().finish(raw, 1.0)
    wanted = wanted.astype(mx.float32)
    if found.shape != wanted.shape:
        return f"its logits have shape {wanted.shape}, the head's {found.shape}"
    plain = tap.scale == 1.0 and tap.softcap is None
    # The model rounds after each operation, in its own type.
    limit = mx.zeros_like(wanted) if plain else 3 * mx.finfo(raw.dtype).eps * mx.abs(wanted)
    error = mx.abs(found - wanted)
    if bool(mx.all(error <= limit)):  # False for NaN
        return None
    return f"its logits differ by {float(error.max()):.2g} from what the head gives"


def _afterwards(tap: HeadTap, ids: mx.array, raw: mx.array) -> tuple[float, float | None]:
    """What the model does to logits: scale and cap, read off two known ones."""

    def made_of(value: float) -> float:
        _, out = tap.run(ids, lambda hidden: mx.full(raw.shape, value, dtype=raw.dtype))
        return float(out.reshape(-1)[0])

    high = made_of(HUGE)
    # Flat: there is a cap, and small logits show the scale.
    if math.isfinite(high) and made_of(HUGE / 2) == high:
        small = 2.0**-6
        scale = made_of(small) / small
        return (1.0 if abs(scale - 1.0) < 1e-4 else scale), high
    return made_of(1.0), None
