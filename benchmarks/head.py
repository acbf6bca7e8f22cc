"""Peak memory and time of the head: hidden states -> log-probs of tokens and of the top 3, with the
entropy, and back to the gradient with respect to the hidden states.

Methods:
  tail               head_statistics(mode="tail"), what training with LoRA uses
  recompute          head_statistics(mode="recompute"), what training the head too uses
  full               full logits, as one writes it first: logsumexp, argpartition, take_along_axis,
                     entropy from exp(z - lse)
  checkpoint         the same code on chunks of tokens under mx.checkpoint, chunks as in "tail"
  checkpoint-narrow  that, with MLX_BFS_MAX_WIDTH=1: MLX then queues fewer chunks at once

Each cell is a process of its own: random hidden states (T, D) and head (V, D), a warm-up on 8
tokens, then --repeat timed calls at most, no more once two minutes are used. Times are medians.
Peak is the largest, by MLX's count of bytes, less the head's; "process" is by how much the process
grew, where the system tells. On the CPU that is less: MLX allocates the results of operations ahead
of their turn, and so counts pages that nothing has touched yet. A cell that would not fit the
memory, or whose call would take longer than --limit, going by the same method's cell before, is not
run.

What it doesn't measure: the rest of the model, gradients of the head's own weights, and how exact
anything is. "loss", "entropy" and "grad" are relative differences from the first row, there to show
that all compute the same; full logits lose digits of their own (a flat float32 sum over the
vocabulary).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import common
import mlx.core as mx
import numpy as np
from common import GIB, MIB

from simko_mlx.kernels import Head, chunk_tokens, head_statistics, selfcheck
from simko_mlx.kernels.budget import CPU_BYTES, METAL_BYTES

METHODS = ("tail", "recompute", "full", "checkpoint", "checkpoint-narrow")
NARROW = {"MLX_BFS_MAX_WIDTH": "1"}
MODES = ("tail", "recompute", "nograd")
NAMES = {"peak": "peak", "process": "process", "wall": "wall", "cpu": "CPU"}
DTYPES = ("float32", "bfloat16", "float16")
K = 3
WARM_TOKENS = 8
ENOUGH_SECONDS = 120.0
FULL_BYTES = 32  # per logit at the peak of full logits, measured with this program
CHECKPOINT_BYTES = 35  # per logit of a chunk under mx.checkpoint, and beside that
PILED_BYTES = 9  # per logit of all chunks: something of each is kept until the end
PROCESS_BYTES = GIB  # what a process needs besides


class Inputs(NamedTuple):
    """Hidden states (T, D), head (V, D), tokens (T,), and (T,) each: the weights that the log-probs
    of tokens and of candidates have in the loss."""

    hidden: mx.array
    weight: mx.array
    tokens: mx.array
    token_weights: mx.array
    topk_weights: mx.array


Loss = Callable[..., tuple[mx.array, mx.array]]
"""(*Inputs) -> loss, and the sum of the entropies."""


def make_inputs(tokens: int, vocabulary: int, width: int, dtype: str) -> Inputs:
    """Random ones whose logits have a standard deviation of about 3."""
    mx.random.seed(0)
    kind = getattr(mx, dtype)
    inputs = Inputs(
        mx.random.normal((tokens, width)).astype(kind),
        (mx.random.normal((vocabulary, width)) * (3.0 / width**0.5)).astype(kind),
        mx.random.randint(0, vocabulary, (tokens,)),
        mx.random.uniform(0.5, 1.5, (tokens,)) / tokens,
        mx.random.uniform(0.5, 1.5, (tokens,)) / tokens,
    )
    mx.eval(inputs)
    return inputs


def full_logits(
    hidden: mx.array,
    weight: mx.array,
    tokens: mx.array,
    token_weights: mx.array,
    topk_weights: mx.array,
) -> tuple[mx.array, mx.array]:
    """What one writes first."""
    # mx.checkpoint asks for gradients of all arguments, and an index has none.
    tokens = mx.stop_gradient(tokens)
    z = (hidden @ weight.T).astype(mx.float32)
    lse = mx.logsumexp(z, axis=-1, keepdims=True)
    logprobs = mx.take_along_axis(z, tokens[:, None], axis=-1) - lse
    ids = mx.argpartition(-mx.stop_gradient(z), kth=K - 1, axis=-1)[:, :K]
    topk_logprobs = mx.take_along_axis(z, ids, axis=-1) - lse
    p = mx.exp(z - lse)
    entropy = -(p * (z - lse)).sum(axis=-1)
    loss = (token_weights * logprobs[:, 0]).sum()
    loss = loss + (topk_weights[:, None] * topk_logprobs).sum()
    return loss, mx.stop_gradient(entropy).sum()


def checkpointed(chunk: int) -> Loss:
    """``full_logits`` on chunks, each computed again for its gradient."""
    one = mx.checkpoint(full_logits)

    def run(hidden: mx.array, weight: mx.array, *rest: mx.array) -> tuple[mx.array, mx.array]:
        loss, entropy = mx.array(0.0), mx.array(0.0)
        for start in range(0, len(hidden), chunk):
            span = slice(start, start + chunk)
            more = one(hidden[span], weight, *(x[span] for x in rest))
            loss, entropy = loss + more[0], entropy + more[1]
        return loss, entropy

    return run


def ours(mode: str, chunk: int) -> Loss:
    def run(
        hidden: mx.array,
        weight: mx.array,
        tokens: mx.array,
        token_weights: mx.array,
        topk_weights: mx.array,
    ) -> tuple[mx.array, mx.array]:
        stats = head_statistics(hidden, tokens, weight, simko_k=K, mode=mode, chunk=chunk)
        loss = (token_weights * stats.logprobs).sum()
        loss = loss + (topk_weights[:, None] * stats.topk_logprobs).sum()
        return loss, mx.stop_gradient(stats.entropy).sum()

    return run


def automatic_chunk(vocabulary: int, width: int, dtype: str, mode: str) -> int:
    """The chunk that ``head_statistics`` takes by itself."""
    kind = getattr(mx, dtype)
    weight = mx.zeros((vocabulary, width), dtype=kind)  # for its shape; it is never evaluated
    return chunk_tokens(vocabulary, mode=mode, metal=selfcheck.trusted(Head.of(weight), kind))


def make_step(method: str, chunk: int) -> Callable[[Inputs], tuple[mx.array, ...]]:
    """Inputs -> (loss, entropy, gradient); in mode "nograd" without the gradient."""
    if method == "nograd":
        return lambda inputs: ours(method, chunk)(*inputs)
    if method == "full":
        loss: Loss = full_logits
    elif method.startswith("checkpoint"):
        loss = checkpointed(chunk)
    else:
        loss = ours(method, chunk)
    both = mx.value_and_grad(loss)

    def step(inputs: Inputs) -> tuple[mx.array, ...]:
        values, gradient = both(*inputs)
        return (*values, gradient)

    return step


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    method: str
    vocabulary: int
    tokens: int
    width: int
    dtype: str
    chunk: int
    repeat: int
    save: str | None = None  # where the gradient goes

    @property
    def logits(self) -> int:
        return self.vocabulary * self.tokens

    @property
    def weight_bytes(self) -> int:
        return self.vocabulary * self.width * getattr(mx, self.dtype).size

    def predicted_peak(self) -> int:
        """Bytes of the whole process."""
        one = self.chunk * self.vocabulary
        if self.method == "full":
            work = FULL_BYTES * self.logits
        elif self.method.startswith("checkpoint"):
            work = CHECKPOINT_BYTES * one + PILED_BYTES * self.logits
        else:
            work = max(CPU_BYTES[self.method], METAL_BYTES[self.method]) * one
        return work + self.weight_bytes + 8 * self.tokens * self.width * 4 + PROCESS_BYTES


def run_here(cell: Cell) -> dict[str, Any]:
    """The child: measures one cell."""
    inputs = make_inputs(cell.tokens, cell.vocabulary, cell.width, cell.dtype)
    step = make_step(cell.method, cell.chunk)
    few = Inputs(*(x if i == 1 else x[:WARM_TOKENS] for i, x in enumerate(inputs)))
    mx.eval(step(few))
    mx.clear_cache()

    def call() -> list[mx.array]:
        result = list(step(inputs))
        mx.eval(result)
        return result

    runs: list[common.Measured] = []
    out: list[mx.array] = []
    while len(runs) < cell.repeat and sum(r.wall for r in runs) < ENOUGH_SECONDS:
        out.clear()  # or they would be in the next run's peak
        measured, out = common.measure(call)
        runs.append(measured)
    if cell.save and len(out) > 2:
        np.save(cell.save, np.array(out[2].astype(mx.float32)))
    return {
        "peak": max(r.peak for r in runs) - inputs.weight.nbytes,
        "added": max(r.peak - r.before for r in runs),
        "process": max(r.process for r in runs),
        "wall": statistics.median(r.wall for r in runs),
        "cpu": statistics.median(r.cpu for r in runs),
        "walls": [r.wall for r in runs],
        "loss": float(out[0]),
        "entropy": float(out[1]),
    }


class Runner:
    """Runs cells that fit memory and time, and remembers how long a logit took."""

    def __init__(self, *, limit: float | None, timeout: float):
        self.limit = limit
        self.timeout = timeout
        self.seconds_per_logit: dict[str, float] = {}

    def run(self, cell: Cell) -> dict[str, Any]:
        """What the child says, or "error" with the reason why there is nothing."""
        predicted = cell.predicted_peak()
        if predicted > common.available_memory():
            return {"error": f"not run: {predicted / GIB:.1f} GiB predicted"}
        seconds = self.seconds_per_logit.get(cell.method, 0.0) * cell.logits
        if self.limit is not None and seconds > self.limit:
            return {"error": f"not run: {seconds / 60:.1f} minutes predicted"}
        env = NARROW if cell.method == "checkpoint-narrow" else None
        found = common.run_cell(__file__, asdict(cell), timeout=self.timeout, env=env)
        if "error" not in found:
            self.seconds_per_logit[cell.method] = found["wall"] / cell.logits
        return found


def cells_of(args: argparse.Namespace, vocabulary: int, tokens: int, folder: str) -> list[Cell]:
    """All rows of one table: each chunked method at its automatic chunk and at the given ones."""
    cells = []
    for method in args.methods:
        mode = method if method in MODES else "tail"
        chunks = [automatic_chunk(vocabulary, args.width, args.dtype, mode), *args.chunk]
        chunks = [tokens] if method == "full" else [min(c, tokens) for c in chunks]
        for chunk in dict.fromkeys(chunks):
            save = str(Path(folder) / f"{method}-{chunk}.npy")
            size = (vocabulary, tokens, args.width, args.dtype)
            cells.append(Cell(method, *size, chunk, args.repeat, save))
    return cells


def compare(rows: Sequence[dict[str, Any]]) -> None:
    """Adds to each row how far it is from the first that ran, and its ratios to full logits."""
    ran = [row for row in rows if "error" not in row]
    full = next((row for row in ran if row["method"] == "full"), None)
    wanted = np.load(ran[0]["save"]) if ran else np.zeros(0)
    for row in ran:
        for name in ("loss", "entropy"):
            row[f"{name}_difference"] = abs(row[name] / ran[0][name] - 1.0)
        difference = np.linalg.norm(np.load(row["save"]) - wanted)
        row["gradient_difference"] = float(difference / np.linalg.norm(wanted))
        if full is not None:
            row["to_full"] = {name: row[name] / full[name] for name in NAMES if full[name]}


def show(rows: Sequence[dict[str, Any]]) -> str:
    header = ["method", "chunk", "peak MiB", "process MiB", "wall s", "CPU s"]
    header += [f"{name}/full" for name in NAMES.values()] + ["loss", "entropy", "grad"]
    lines, notes = [], []
    for row in rows:
        if "error" in row:
            notes.append(f"{row['method']} (chunk {row['chunk']}): {row['error']}")
            continue
        ratios = row.get("to_full", {})
        lines.append(
            [row["method"], str(row["chunk"])]
            + [f"{row[name] / MIB:.1f}" for name in ("peak", "process")]
            + [f"{row[name]:.2f}" for name in ("wall", "cpu")]
            + [f"{ratios[name]:.3f}" if name in ratios else "-" for name in NAMES]
            + [f"{row[f'{name}_difference']:.0e}" for name in ("loss", "entropy", "gradient")]
        )
    return "\n".join([common.table(header, lines), *notes])


def run_tables(args: argparse.Namespace) -> list[dict[str, Any]]:
    runner = Runner(limit=None if args.all else args.limit, timeout=args.timeout)
    everything: list[dict[str, Any]] = []
    for vocabulary in args.vocab:
        for tokens in args.tokens:
            with tempfile.TemporaryDirectory() as folder:
                cells = cells_of(args, vocabulary, tokens, folder)
                rows = [asdict(cell) | runner.run(cell) for cell in cells]
                compare(rows)
            print(f"V = {vocabulary:,}, T = {tokens:,}, D = {args.width}, {args.dtype}")
            print(show(rows) + "\n", flush=True)
            everything += [{k: v for k, v in row.items() if k != "save"} for row in rows]
    return everything


def run_bytes(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Bytes per logit of one chunk: by how much the peak grows when chunks grow from C / 2 to C, of
    the same 4 C tokens, so that what is O(N D) drops out."""
    runner = Runner(limit=None, timeout=args.timeout)
    found, lines = [], []
    for vocabulary in args.vocab:
        for mode in MODES:
            chunk = (args.chunk or [128])[0]
            size = (vocabulary, 4 * chunk, args.width, args.dtype)
            large, small = (
                runner.run(Cell(mode, *size, c, args.repeat)) for c in (chunk, chunk // 2)
            )
            row: dict[str, Any] = {"mode": mode, "vocabulary": vocabulary, "chunk": chunk}
            error = large.get("error") or small.get("error")
            if error:
                row["error"] = error
                lines.append([mode, f"{vocabulary:,}", str(chunk), error, "", ""])
            else:
                grown = large["added"] - small["added"]
                row["bytes_per_logit"] = grown / ((chunk - chunk // 2) * vocabulary)
                row["all_bytes_per_logit"] = large["added"] / (chunk * vocabulary)
                row["process_bytes_per_logit"] = large["process"] / (chunk * vocabulary)
                names = ("bytes_per_logit", "all_bytes_per_logit", "process_bytes_per_logit")
                figures = [f"{row[name]:.1f}" for name in names]
                lines.append([mode, f"{vocabulary:,}", str(chunk), *figures])
            found.append(row)
    header = ["mode", "V", "chunk", "bytes per logit", "with O(N D)", "process, with O(N D)"]
    print(common.table(header, lines))
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--vocab", type=int, nargs="+", default=[32_000, 151_936, 262_144], metavar="V")
    add("--tokens", type=int, nargs="+", default=[512, 2048, 8192], metavar="T")
    add("--width", type=int, default=512, metavar="D", help="default 512")
    add("--dtype", choices=DTYPES, default="float32", help="of hidden states and head")
    add("--chunk", type=int, nargs="+", default=[], help="chunks to try beside the automatic one")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--repeat", type=int, default=3, help="timed calls per cell, at most (default 3)")
    add("--limit", type=float, default=600.0, help="seconds that one call may take (default 600)")
    add("--all", action="store_true", help="no --limit; what does not fit memory is still not run")
    add("--timeout", type=float, default=1800.0, help="seconds per cell (default 1800)")
    add("--bytes", action="store_true", help="only the bytes per logit of one chunk, per mode")
    add("--json", metavar="FILE", help="also write everything to FILE")
    add("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if min([*args.vocab, *args.tokens, args.width, args.repeat, *args.chunk]) < 1:
        parser.error("sizes and counts must be at least 1")
    if args.bytes and args.chunk and args.chunk[0] < 2:
        parser.error("--bytes halves the chunk: give at least 2")
    return args


def main() -> None:
    args = parse()
    if args.cell is not None:
        print(json.dumps(run_here(Cell(**json.loads(args.cell)))))
        return
    facts = common.machine()
    common.print_machine(facts)
    rows = run_bytes(args) if args.bytes else run_tables(args)
    common.write_json(args.json, {"machine": facts, "rows": rows})


if __name__ == "__main__":
    main()
