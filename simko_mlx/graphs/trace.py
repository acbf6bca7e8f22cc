"""The graph that MLX would evaluate for a function, without evaluating or allocating any of it.

``mx.export_function`` hands a graph over, but stops at functions with gradients of their own
(``mx.custom_function``, ``mx.checkpoint``). While a graph is taken, stand-ins cut the function
there: what such a call returns becomes a marked placeholder, and so does the gradient that its own
rule forms; what the placeholders stand for is put back in when the graph is read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mlx.core as mx

from simko_mlx.graphs.cuts import MARK, Cut, Cuts, Spec, flatten

NOTHING = ("Copy", "StopGradient")  # what simplification leaves out


class Node(NamedTuple):
    """One primitive: its name, the names of the arrays that it takes and makes, its settings."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    arguments: list[Any]


@dataclass
class Graph:
    """Nodes in an order of evaluation, and all arrays by name. ``inputs`` are the function's
    arguments in their order, ``constants`` what it captured, ``outputs`` what it returned."""

    nodes: list[Node] = field(default_factory=list)
    arrays: dict[str, Spec] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def trace(fn: Callable[..., Any], *args: Any, simplified: bool = False) -> Graph:
    """The graph that ``mx.eval(fn(*args))`` would evaluate.

    Args:
        fn: returns a tree of arrays. What it differentiates with ``mx.value_and_grad`` or
            ``nn.value_and_grad`` and what it wraps with ``mx.checkpoint`` or ``mx.custom_function``
            must be made while it runs, not before.
        args: trees of arrays, of which only shapes and types matter: they may be lazy, such as
            ``mx.zeros`` that nothing ever evaluates. Weights belong here, since those that ``fn``
            captures have to be in memory. A module that ``fn`` updates with them is left with
            arrays of the trace: give it its own again.
        simplified: as ``mx.compile`` simplifies it, what is the same taken together.

    Raises:
        ValueError: the function contains what MLX can't export, or captures one of its arguments.
    """
    flat, rebuild = flatten(args)
    cuts = Cuts()
    count, drawing = 0, io.StringIO()

    def run(*arrays: mx.array) -> list[mx.array]:
        nonlocal count
        cuts.seed = arrays[0] if arrays else None
        with cuts.installed():
            outputs = flatten(fn(*rebuild(arrays)))[0]
        count = len(outputs)
        outputs += (x for cut in cuts.made for x in (*cut.inputs, *cut.values))
        # Drawn last: one node that takes all outputs in their order.
        mx.export_to_dot(drawing, mx.depends(outputs, outputs[:1])[0])
        return outputs

    events: list[dict[str, Any]] = []
    with _random_state_kept():
        mx.export_function(events.append, run, *flat)
    if simplified:
        graph = _read_events(events)
        names, graph.outputs = graph.outputs[count:], graph.outputs[:count]
        _put_back(graph, names, cuts.made)
        return graph
    return _assemble(events, drawing.getvalue(), count, cuts.made)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Dropout draws from the global generator, which would be left with arrays of the trace."""
    state: Any = mx.random.state
    high, low = (int(x) for x in state[0].tolist())
    try:
        yield
    finally:
        mx.random.seed(high << 32 | low)


def _read_events(events: list[dict[str, Any]]) -> Graph:
    """The simplified graph, as ``mx.export_function`` tells it; with names unlike a drawing's."""
    graph = Graph()
    for event in events:
        kind = event["type"]
        if kind == "constants":
            constants = [(f"@{name}", array) for name, array in event["constants"]]
            graph.constants = [name for name, _ in constants]
            graph.arrays |= {name: Spec(tuple(x.shape), x.dtype) for name, x in constants}
            continue
        names: dict[str, tuple[str, ...]] = {}
        for side in ("inputs", "outputs"):
            names[side] = tuple(f"@{x[0]}" for x in event.get(side, ()))
            for name, (_, shape, dtype) in zip(names[side], event.get(side, ()), strict=True):
                graph.arrays[name] = Spec(tuple(shape), dtype)
        if kind == "inputs":
            graph.inputs = list(names["inputs"])
        elif kind == "outputs":
            graph.outputs = list(names["outputs"])
        elif kind == "primitive":
            graph.nodes.append(
                Node(event["name"], names["inputs"], names["outputs"], event["arguments"])
            )
    return graph


def _read_drawing(text: str) -> list[Node]:
    """The nodes of a graph that ``mx.export_to_dot`` drew, without settings."""
    nodes: list[tuple[str, list[str], list[str]]] = []
    for line in text.splitlines():
        label = re.search(r'\[label ="(\w+)', line)
        if label:
            nodes.append((label[1], [], []))
        elif arrow := re.fullmatch(r'"(\w+)" -> \d+', line):
            nodes[-1][1].append(arrow[1])
        elif arrow := re.fullmatch(r'\d+ -> "(\w+)"', line):
            nodes[-1][2].append(arrow[1])
    return [Node(op, tuple(inputs), tuple(outputs), []) for op, inputs, outputs in nodes]


def _assemble(events: list[dict[str, Any]], drawing: str, count: int, cuts: list[Cut]) -> Graph:
    """The graph as drawn, with shapes and settings from its simplified form, and with what was cut
    out put back in. ``count`` of the outputs are the function's own."""
    plain = _read_events(events)
    *drawn, end = _read_drawing(drawing)
    returned = end.inputs[: len(plain.outputs)]
    graph, same = _counterparts(plain, drawn, dict(zip(returned, plain.outputs, strict=True)))
    # What no node makes goes by its name in the simplified graph.
    made = {name for node in drawn for name in node.outputs}
    renamed = {name: e for name, e in same.items() if name not in made}
    graph = _renamed(graph, renamed)
    graph.inputs, graph.constants = plain.inputs, plain.constants
    returned = [renamed.get(name, name) for name in returned]
    graph.outputs = returned[:count]
    _put_back(graph, returned[count:], cuts)
    return graph


def _renamed(graph: Graph, names: dict[str, str]) -> Graph:
    nodes = [n._replace(inputs=tuple(names.get(x, x) for x in n.inputs)) for n in graph.nodes]
    return Graph(nodes, graph.arrays)


def _counterparts(
    plain: Graph, drawn: list[Node], same: dict[str, str]
) -> tuple[Graph, dict[str, str]]:
    """The drawn nodes with what is known of their counterparts in the simplified graph, found by
    following both from the outputs: inputs of counterparts are counterparts."""
    makers = {name: node for node in plain.nodes for name in node.outputs}
    drawn_makers = {name: node for node in drawn for name in node.outputs}
    graph = Graph(arrays=dict(plain.arrays))
    todo, done = list(same), set()
    while todo:
        node = drawn_makers.get(todo.pop())
        if node is None or id(node) in done:
            continue
        done.add(id(node))
        known = next(same[name] for name in node.outputs if name in same)
        if node.op in NOTHING:
            twin = Node(node.op, (known,), (known,), [])
        elif known in makers:
            twin = makers[known]
        else:
            raise ValueError(f"MLX's two accounts of a graph differ at {node.op}.")
        same |= zip((*node.inputs, *node.outputs), (*twin.inputs, *twin.outputs), strict=True)
        todo += node.inputs
        graph.nodes.append(Node(twin.op, node.inputs, node.outputs, twin.arguments))
    graph.arrays |= {name: plain.arrays[e] for name, e in same.items()}
    return graph, same


def _put_back(graph: Graph, names: Sequence[str], cuts: list[Cut]) -> None:
    """Replaces the placeholders. ``names`` are those of all cuts' inputs and values, one cut after
    the other."""
    found: dict[int, str] = {}
    for node in graph.nodes:
        if node.op == "AsStrided" and node.arguments[2] > MARK:
            found[node.arguments[2] - MARK] = node.outputs[0]
    marked = set(found.values())
    graph.nodes = [node for node in graph.nodes if node.outputs[0] not in marked]
    same: dict[str, str] = {}
    rest = iter(names)
    for cut in cuts:
        inputs = [next(rest) for _ in cut.inputs]
        values = [next(rest) for _ in cut.values]
        if not inputs:
            same |= {found[m]: v for m, v in zip(cut.marks, values, strict=True) if m in found}
        elif any(mark in found for mark in cut.marks):
            outputs = [found.get(mark, f"unused {mark}") for mark in cut.marks]
            graph.arrays |= {o: graph.arrays[v] for o, v in zip(outputs, values, strict=False)}
            graph.nodes.append(Node(cut.op, (*inputs, *values), tuple(outputs), []))

    def resolve(name: str) -> str:
        while name in same:
            name = same[name]
        return name

    graph.nodes = _renamed(graph, {name: resolve(name) for name in same}).nodes
    graph.outputs = [resolve(name) for name in graph.outputs]
