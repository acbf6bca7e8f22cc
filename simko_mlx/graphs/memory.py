"""How much memory MLX will take for a computation, told from its graph without running it.

Simulated is what ``mx.eval`` does with the graph of a function: the order in which it takes the
primitives (breadth first from the outputs, at most 20 wide), which of them make new buffers, which
share their input's (views) or take it over (donation: the last use of a buffer of the right size),
copies of what isn't contiguous, and when buffers are let go. MLX allocates an operation's output
when it queues the operation, ahead of the device, and frees a buffer when the last operation that
reads it has run; how far the queue may run ahead is a property of the device. The device is taken
to be the slower one: its queue is always full.

Not simulated: the allocator's cache, which ``mx.get_peak_memory`` leaves out too, and its rounding;
scratch memory within BLAS and within Metal's kernels; that MLX waits for the device once its memory
limit is reached. Functions that the traced one itself compiles with ``mx.compile`` count as if they
weren't.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import mlx.core as mx

from simko_mlx.graphs.buffers import Array, Buffer, apply, new_array
from simko_mlx.graphs.fusion import apply_compiled, fuse
from simko_mlx.graphs.trace import Graph, Node, Spec, trace

WIDTH = 20  # MLX_BFS_MAX_WIDTH


class Queue(NamedTuple):
    """How far MLX queues operations ahead of a device: ``tasks`` pieces of work, each of ``steps``
    dispatches, or fewer where their inputs have more than ``elements`` in all (None: no matter).
    ``releases``: whether letting go of an operation's inputs is a dispatch of its own. ``phases``:
    within how many dispatches the first task may end, which depends on what ran before."""

    steps: int
    tasks: int = 10
    elements: int | None = None
    releases: bool = True
    phases: int = 1


CPU = Queue(steps=10, phases=10)
# One command buffer is one task; 20 operations on phones, 50 and 50 Mi elements on Max and Ultra.
# By MLX's source: not measured on a Mac.
METAL = Queue(steps=41, elements=41 << 20, releases=False)
NONE_AHEAD = Queue(steps=1, tasks=0)
"""The device keeps up with whoever queues: the least that evaluation can take."""


class Held(NamedTuple):
    """A buffer: the primitive that made it, the shape that it was made for, its bytes."""

    op: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Peak:
    """All in bytes. ``peak`` is the most that is held at once beyond what was held before, and
    ``least`` what it is where the queue's tasks happen to end most favourably; ``inputs`` are the
    arguments, which were held before; ``outputs`` is what is held afterwards in addition.
    ``largest`` are the largest buffers at the peak."""

    peak: int
    least: int
    inputs: int
    outputs: int
    largest: list[Held]


def peak_bytes(
    fn: Callable[..., Any],
    *args: Any,
    given: Sequence[int] = (),
    compiled: bool = False,
    queue: Queue | None = None,
    largest: int = 10,
) -> Peak:
    """The memory that ``mx.eval(fn(*args))`` will take, without evaluating anything.

    Args:
        fn: as for ``trace.trace``.
        args: trees of arrays, lazy ones too, which stay so.
        given: positions of arguments that nobody else holds, so that their buffers may be reused
            or let go, as those of a cache that is updated in place.
        compiled: as if ``fn`` were compiled with ``mx.compile``; pass the plain function.
        queue: how far the device's queue runs ahead; default: that of the default device.
        largest: how many of the buffers at the peak to tell.
    """
    graph = trace(fn, *args, simplified=compiled)
    if compiled:
        graph = fuse(graph)
    if queue is None:
        queue = METAL if mx.default_device().type == mx.DeviceType.gpu else CPU
    owners = [i for i, arg in enumerate(args) for _ in leaves(arg)]
    freed = {name for name, i in zip(graph.inputs, owners, strict=True) if i in given}
    return simulate(graph, queue, freed=freed, largest=largest)


def leaves(tree: Any) -> list[mx.array]:
    """The arrays of a tree of dicts, lists and tuples."""
    if isinstance(tree, mx.array):
        return [tree]
    if isinstance(tree, dict):
        return [x for item in tree.values() for x in leaves(item)]
    return [x for item in tree for x in leaves(item)] if isinstance(tree, (list, tuple)) else []


def simulate(
    graph: Graph, queue: Queue = CPU, *, freed: set[str] | None = None, largest: int = 10
) -> Peak:
    """The memory of evaluating a graph's outputs; ``freed`` are the inputs that nobody else
    holds. See ``peak_bytes``."""
    tape = _tape(graph)
    runs = [_Run(graph, tape, queue, freed or set(), phase) for phase in range(queue.phases)]
    for run in runs:
        for node in tape:
            run.step(node)
        run.wait(all_of_it=True)
    run = max(runs, key=lambda run: run.peak)
    least = min(run.peak for run in runs)
    at_peak = [b for b in run.made if b.born <= run.peak_at and not 0 <= b.died <= run.peak_at]
    at_peak.sort(key=lambda b: -b.bytes)
    inputs = sum(_nbytes(graph.arrays[name]) for name in graph.inputs)
    held = [Held(b.op, b.shape, b.bytes) for b in at_peak[:largest]]
    return Peak(run.peak, least, inputs, run.active, held)


def _nbytes(spec: Spec) -> int:
    return prod(spec.shape) * spec.dtype.size


def _tape(graph: Graph) -> list[Node]:
    """The nodes that the outputs need, in the order in which MLX evaluates them."""
    maker = {name: node for node in graph.nodes for name in node.outputs}
    end = Node("Synchronize", tuple(graph.outputs), (), [])
    uses: Counter[int] = Counter()  # by node: MLX counts an output's siblings with it
    reach, seen = [end], {id(end)}
    while reach:
        for name in reach.pop().inputs:
            node = maker.get(name)
            if node is not None:
                uses[id(node)] += 1
                if id(node) not in seen:
                    seen.add(id(node))
                    reach.append(node)
    tape, at = [end], 0
    waiting: list[tuple[Node, int]] = []
    while at < len(tape) or waiting:
        if at < len(tape):
            node, first = tape[at], 0
            at += 1
        else:
            node, first = waiting.pop()
        for j in range(first, len(node.inputs)):
            source = maker.get(node.inputs[j])
            if source is None:
                continue
            if len(tape) - at >= WIDTH:
                waiting.append((node, j))
                break
            uses[id(source)] -= 1
            if uses[id(source)] == 0:
                tape.append(source)
    return tape[:0:-1]


class _Run:
    """An evaluation under way."""

    def __init__(self, graph: Graph, tape: list[Node], queue: Queue, freed: set[str], phase: int):
        self.graph, self.queue = graph, queue
        self.active = self.peak = self.clock = self.peak_at = 0
        self.made: list[Buffer] = []
        self.waiting: deque[list[Buffer] | None] = deque()  # None ends a task
        self.tasks = self.elements = 0
        self.steps = phase
        self.uses = Counter(name for node in tape for name in node.inputs)
        self.uses.update(graph.outputs)
        self.arrays: dict[str, Array] = {}
        for name in (*graph.inputs, *graph.constants):
            array = new_array("input", graph.arrays[name])
            array.uses = self.uses[name] + (name not in freed)
            array.buffer.holders = 1
            self.arrays[name] = array

    def step(self, node: Node) -> None:
        """Queues one primitive."""
        inputs = [self.arrays[name] for name in node.inputs]
        rule = apply_compiled if node.op == "Compiled" else apply
        effect = rule(node, inputs, [self.graph.arrays[name] for name in node.outputs])
        for array in (*effect.outputs, *effect.temporaries):
            self._hold(array.buffer)
        own = effect.outputs[0].buffer
        queued = {id(a.buffer): a.buffer for a in (*inputs, *effect.outputs[1:])}
        queued.pop(id(own), None)
        # A temporary's hold passes to the queue.
        buffers = [*queued.values(), *(a.buffer for a in effect.temporaries)]
        for buffer in queued.values():
            buffer.holders += 1
        self._dispatch(effect.kernels, buffers, sum(a.data_size for a in inputs))
        while self.tasks > self.queue.tasks:
            self.wait()
        for name, array in zip(node.outputs, effect.outputs, strict=True):
            self.arrays[name] = array
            array.uses = self.uses[name]
            if not array.uses:
                self._let_go(array.buffer)
        for array in inputs:
            array.uses -= 1
            if not array.uses:
                self._let_go(array.buffer)

    def _dispatch(self, kernels: int, buffers: list[Buffer], elements: int) -> None:
        queue = self.queue
        self.elements += elements
        for last in (*[False] * kernels, True):
            if last:
                self.waiting.append(buffers)
            self.steps += queue.releases or not last
            full = queue.elements is not None and last and self.elements >= queue.elements
            if (self.steps >= queue.steps and (queue.releases or last)) or full:
                self.steps = self.elements = 0
                self.tasks += 1
                self.waiting.append(None)

    def wait(self, *, all_of_it: bool = False) -> None:
        """Until the device has run a task, or everything."""
        while self.waiting:
            done = self.waiting.popleft()
            if done is None:
                self.tasks -= 1
                if not all_of_it:
                    return
            for buffer in done or ():
                self._let_go(buffer)

    def _hold(self, buffer: Buffer) -> None:
        if not buffer.holders:
            self.clock += 1
            buffer.born = self.clock
            self.made.append(buffer)
            self.active += buffer.bytes
            if self.active > self.peak:
                self.peak, self.peak_at = self.active, self.clock
        buffer.holders += 1

    def _let_go(self, buffer: Buffer) -> None:
        buffer.holders -= 1
        if not buffer.holders:
            self.clock += 1
            buffer.died = self.clock
            self.active -= buffer.bytes
