"""The kernels that ``mx.compile`` makes of a graph: chains of elementwise operations become one.

After MLX's own rules: an operation joins the one that takes its output if nothing outside the
kernel takes it too; a kernel has at most 24 inputs and is at most 11 operations deep; broadcasts
are made anew for each kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

from simko_mlx.graphs.buffers import BINARY, UNARY, Array, Effect, new_array, row_strides
from simko_mlx.graphs.cuts import Spec
from simko_mlx.graphs.trace import Graph, Node

DEPTH, ARRAYS = 11, 24
NOT_FUSED = {"LayerNorm", "RMSNorm", "RoPE"}
FUSED = {*UNARY.split(), *BINARY.split(), "AsType", "Select", "Broadcast"} - NOT_FUSED


def fuse(graph: Graph) -> Graph:
    """The graph as ``mx.compile`` leaves it."""
    return _Fusion(graph).run()


def in_order(graph: Graph) -> list[Node]:
    """The nodes that the outputs need, inputs first, found depth first."""
    maker = {name: node for node in graph.nodes for name in node.outputs}
    order: list[Node] = []
    seen: set[int] = set()
    for output in graph.outputs:
        stack: list[tuple[Node, Iterator[str]]] = []
        todo = maker.get(output)
        while todo is not None or stack:
            if todo is not None and id(todo) not in seen:
                seen.add(id(todo))
                stack.append((todo, iter(todo.inputs)))
            node, rest = stack[-1] if stack else (None, iter(()))
            todo = next((maker[x] for x in rest if x in maker and id(maker[x]) not in seen), None)
            if todo is None and node is not None:
                order.append(node)
                stack.pop()
    return order


class _Fusion:
    def __init__(self, graph: Graph):
        self.graph = graph
        self.nodes = in_order(graph)
        self.maker = {name: node for node in self.nodes for name in node.outputs}
        self.kept = set(graph.outputs)
        # Who takes an array, by the name of what it makes.
        self.takers: dict[str, list[str]] = {}
        for node in self.nodes:
            for name in node.inputs:
                self.takers.setdefault(name, []).append(node.outputs[0])
        self.copies = 0

    def run(self) -> Graph:
        fused: set[str] = set()
        nodes: list[Node] = []
        for node in reversed(self.nodes):
            if node.outputs[0] in fused:
                continue
            members = self._members(node)
            if len(members) <= 1:
                nodes.append(node)
                continue
            inputs, inner = self._kernel(node.outputs[0], members)
            fused.update(inner)
            self._replace_takers(inputs, inner, members, node.outputs[0])
            # MLX's order: the outputs within the kernel, then its last.
            outputs = [name for name in inner if name in self.kept or name == node.outputs[0]]
            constants = [name in self.graph.constants for name in inputs]
            nodes.append(Node("Compiled", tuple(inputs), tuple(outputs), [constants]))
        return replace(self.graph, nodes=nodes[::-1])

    def _members(self, node: Node) -> set[str]:
        """The operations that form one kernel with this one as its last."""
        members: set[str] = set()
        outside: set[str] = set()
        if node.op == "Broadcast":
            return members
        shape = self.graph.arrays[node.outputs[0]].shape

        def visit(name: str, depth: int) -> None:
            if name in members:
                return
            made = self.maker.get(name)
            elsewhere = name in self.kept and self.graph.arrays[name].shape != shape
            if depth >= DEPTH or made is None or made.op not in FUSED or elsewhere:
                outside.add(name)
                return
            if depth and not members.issuperset(self.takers[name]):
                if made.op == "Broadcast" and len(outside) < ARRAYS:
                    visit(self._split(made, members), depth)
                else:
                    outside.add(name)
                return
            (outside.add if name in self.kept else outside.discard)(name)
            if len(outside) >= ARRAYS:
                return
            members.add(name)
            for source in self.maker[name].inputs:
                visit(source, depth + 1)

        visit(node.outputs[0], 0)
        return members

    def _split(self, made: Node, members: set[str]) -> str:
        """A broadcast of its own for those of its takers that are in the kernel."""
        name = made.outputs[0]
        self.copies += 1
        copy = f"{name} {self.copies}"
        self.maker[copy] = made._replace(outputs=(copy,))
        self.graph.arrays[copy] = self.graph.arrays[name]
        self.takers[copy] = [x for x in self.takers[name] if x in members]
        self.takers[name] = [x for x in self.takers[name] if x not in members]
        self.takers.setdefault(made.inputs[0], []).append(copy)
        for taker in self.takers[copy]:
            node = self.maker[taker]
            inputs = tuple(copy if x == name else x for x in node.inputs)
            self.maker[taker] = node._replace(inputs=inputs)
        return copy

    def _kernel(self, last: str, members: set[str]) -> tuple[list[str], list[str]]:
        """(inputs, members) in MLX's order."""
        inputs: dict[str, None] = {}
        inner: dict[str, None] = {}
        visited: set[str] = set()

        def visit(name: str) -> None:
            if name not in members:
                inputs.setdefault(name)
            elif name not in visited:
                visited.add(name)
                for source in self.maker[name].inputs:
                    visit(source)
                inner.setdefault(name)

        visit(last)
        return list(inputs), list(inner)

    def _replace_takers(
        self, inputs: list[str], inner: list[str], members: set[str], last: str
    ) -> None:
        for name in inner[:-1]:
            if name in self.kept:
                self.takers[name] = [x for x in self.takers.get(name, ()) if x not in members]
            else:
                self.takers.pop(name, None)
        for name in inputs:
            self.takers[name] = [x for x in self.takers[name] if x not in members] + [last]


def apply_compiled(node: Node, inputs: list[Array], specs: list[Spec]) -> Effect:
    """What a compiled kernel does with buffers."""
    shape = specs[-1].shape
    full = [a for a in inputs if a.shape]
    dense = [a for a in full if a.shape == shape]
    if len(full) == 1:
        together = len(dense) == 1 and dense[0].dense
    else:
        rows, columns = (all(getattr(a, x) for a in dense) for x in ("row", "column"))
        together = (len(dense) == len(full) and (rows or columns)) or not shape
        together = together and (bool(full) or not shape)
    rest = iter(zip(inputs, node.arguments[0], strict=True))
    like = next((a for a in inputs if together and a.size == prod(shape)), None)
    outputs: list[Array] = []
    for spec in specs:
        for a, constant in rest:
            fits = a.item == spec.dtype.size and a.donatable and not constant
            if together and fits and a.shape:
                outputs.append(a.view(spec))
                break
            if not together and fits and a.row and a.size == prod(spec.shape):
                outputs.append(a.view(spec, row_strides(spec.shape)))
                break
        else:
            outputs.append(new_array(node.op, spec, like))
    return Effect(outputs)
