"""Where the time of a decode step goes, and what the machine could do at best.

A step of all rows is timed as it is, and with parts left out or replaced: without drawing tokens,
without the head, without attention, with caches that nothing is written to, without the model; the
differences are the parts. Variants take turns, and the least of --rounds is compared, which other
load disturbs least. In the same process: what the machine reads (a sum of 256 MiB) and multiplies
(2048 squared, float32), and the step's products with its weights alone, for the same rows. All in
CPU seconds; a part that is small beside the noise may come out below zero.

"compactions" is the share of a run with ragged lengths that goes into dropping finished rows.

What it doesn't measure: prefill, and how the parts compare on other devices.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any
from unittest import mock

import common
import mlx.core as mx
import mlx.nn as nn
from common import MIB
from rollout import SHAPES, Cell, Work, make_decoder, make_model

from simko_mlx import decoding
from simko_mlx.shared_prompts import Pair, SharedPromptCache

SAMPLE_BYTES = 256 * MIB
SQUARE = 2048
ATTEND, WRITE = SharedPromptCache.attend, SharedPromptCache.update_and_fetch


def no_write(cache: SharedPromptCache, keys: mx.array, values: mx.array) -> Pair:
    """Keys and values are computed, and left."""
    if cache.keys is None or cache.values is None:  # the first step, which makes room
        return WRITE(cache, keys, values)
    cache.used += keys.shape[2]
    old = [cache.keys[..., : cache.used, :], cache.values[..., : cache.used, :]]
    found, values = mx.depends(old, [keys, values])
    return found, values


def no_attention(
    cache: SharedPromptCache, queries: mx.array, keys: mx.array, values: mx.array, scale: float
) -> mx.array:
    return mx.depends([queries], [keys, values])[0]


class Headless(nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.inner, self.layers = model.model, model.layers

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        return self.inner(tokens, cache=cache)


class Nothing(Headless):
    """No model at all; prompts still fill their caches."""

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        return self.inner(tokens, cache=cache) if tokens.shape[1] > 1 else tokens[..., None]


def no_draw(logits: mx.array, random: mx.array, **_: Any) -> tuple[mx.array, mx.array]:
    return (logits[:, 0] * 0).astype(mx.int32), logits[:, 0]


def step_seconds(
    model: Any, work: Work, *, draw: Any = None, attend: Any = None, write: Any = None
) -> float:
    """CPU seconds of one step of all rows; prefill and the first step are left out."""
    decoder, rows = make_decoder(model, work)
    with (
        mock.patch.object(decoding, "draw", draw or decoding.draw),
        mock.patch.object(SharedPromptCache, "attend", attend or ATTEND),
        mock.patch.object(SharedPromptCache, "update_and_fetch", write or WRITE),
    ):
        steps = decoder.run(rows, lambda row: None)
        next(steps)
        start = time.process_time()
        count = sum(1 for _ in steps)
        return (time.process_time() - start) / count


def compaction(model: Any, work: Work) -> tuple[float, int]:
    """The share of a run's CPU seconds that goes into dropping finished rows, and how often."""
    decoder, rows = make_decoder(model, work)
    spent: list[float] = []
    compact = decoder.compact

    def timed(batch: Any, alive: list[int]) -> None:
        mx.synchronize()
        start = time.process_time()
        compact(batch, alive)
        mx.eval(batch.tokens, [[c.keys, c.values] for c in batch.caches])
        spent.append(time.process_time() - start)

    start = time.process_time()
    with mock.patch.object(decoder, "compact", timed):
        for _ in decoder.run(rows, lambda row: None):
            pass
    return sum(spent) / (time.process_time() - start), len(spent)


def fastest(call: Callable[[], Any], repeat: int = 5) -> float:
    """CPU seconds."""
    call()
    taken = []
    for _ in range(repeat):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return min(taken)


def run_here(cell: Cell, rounds: int) -> dict[str, Any]:
    """The child: everything about one model."""
    model, work = make_model(cell.model), cell.work(cell.seeds[0])
    parts = step_parts(model, work, rounds)
    share, times = compaction(model, replace(cell, case="ragged").work(cell.seeds[0]))
    return {
        **parts,
        **limits(model, work, cell.mean // 2),
        "compaction": {"share": share, "times": times},
    }


def step_parts(model: Any, work: Work, rounds: int) -> dict[str, Any]:
    headless, nothing = Headless(model), Nothing(model)
    variants: dict[str, Callable[[], float]] = {
        "all": lambda: step_seconds(model, work),
        "no draw": lambda: step_seconds(model, work, draw=no_draw),
        "no head": lambda: step_seconds(headless, work, draw=no_draw),
        "no attention": lambda: step_seconds(headless, work, draw=no_draw, attend=no_attention),
        "no writes": lambda: step_seconds(
            headless, work, draw=no_draw, attend=no_attention, write=no_write
        ),
        "no model": lambda: step_seconds(nothing, work, draw=no_draw),
    }
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            taken[name].append(call())
    t = {name: min(values) for name, values in taken.items()}
    return {
        "step": t["all"],
        "parts": {
            "sampling": t["all"] - t["no draw"],
            "head": t["no draw"] - t["no head"],
            "attention": t["no head"] - t["no attention"],
            "writing caches": t["no attention"] - t["no writes"],
            "rest of the model": t["no writes"] - t["no model"],
            "Python and keys": t["no model"],
        },
    }


def limits(model: Any, work: Work, half: int) -> dict[str, float]:
    """What a step reads and multiplies, and what the machine does of each in a CPU second."""
    rows = len(work.lengths)
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    inputs = [mx.random.normal((rows, w.shape[1])) for w in weights]
    big, square = mx.ones(SAMPLE_BYTES // 4), mx.random.normal((SQUARE, SQUARE))
    mx.eval(inputs, big, square)
    pairs = list(zip(inputs, weights, strict=True))
    parameters = sum(w.size for w in weights)
    filled = decoding.prefill(model, work.prompts[-1], 512)
    token = sum(c.nbytes for c in filled) / filled[0].offset  # bytes of its keys and values
    cached = token * (sum(map(len, work.prompts)) + rows * half)
    return {
        "products": fastest(lambda: mx.eval([x @ w.T for x, w in pairs])),
        "gigabytes": (4 * parameters + cached) / 1e9,
        "gigaflop": 2 * parameters * rows / 1e9,
        "bandwidth": SAMPLE_BYTES / 1e9 / fastest(lambda: mx.eval(big.sum())),
        "multiplies": 2 * SQUARE**3 / 1e9 / fastest(lambda: mx.eval(square @ square)),
    }


def show(name: str, rows: int, p: dict[str, Any]) -> str:
    lines = [[k, f"{v * 1e3:.2f}", f"{v / p['step']:.0%}"] for k, v in p["parts"].items()]
    lines.append(["step", f"{p['step'] * 1e3:.2f}", "100%"])
    rates = [p["gigabytes"] / p["step"], p["gigaflop"] / p["step"]]
    return "\n".join(
        [
            f"{name}, {rows} rows",
            common.table(["part", "CPU ms", "share"], lines),
            f"reads {rates[0]:.2f} GB/s: {rates[0] / p['bandwidth']:.0%} of the machine's "
            f"{p['bandwidth']:.1f} (sum of {SAMPLE_BYTES // MIB} MiB)",
            f"multiplies {rates[1]:.1f} GFLOP/s: {rates[1] / p['multiplies']:.0%} of the machine's "
            f"{p['multiplies']:.1f} ({SQUARE} squared); the products with weights alone take "
            f"{p['products'] * 1e3:.2f} ms, {p['products'] / p['step']:.0%} of the step",
            f"ragged: {p['compaction']['times']} compactions, {p['compaction']['share']:.1%} "
            "of the CPU time\n",
        ]
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=SHAPES, default=["tiny", "20M"])
    add("--prompts", type=int, default=8, metavar="P")
    add("--group", type=int, default=8, metavar="G", help="completions of each prompt (default 8)")
    add("--prompt", type=int, default=64, help="tokens of a prompt, on average (default 64)")
    add("--mean", type=int, default=64, help="tokens of a completion (default 64)")
    add("--rounds", type=int, default=5, help="runs of each variant (default 5)")
    add("--threads", type=int, default=1, help="of OpenBLAS; 0 leaves it to itself (default 1)")
    add("--timeout", type=float, default=1800.0, help="seconds per model (default 1800)")
    add("--json", metavar="FILE", help="also write everything to FILE")
    add("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if min(args.prompts, args.group, args.prompt - 3, args.mean - 2, args.rounds) < 1:
        parser.error("sizes and counts must be at least 1, --mean 3 and --prompt 4")
    return args


def main() -> None:
    args = parse()
    if args.cell is not None:
        spec = json.loads(args.cell)
        print(json.dumps(run_here(Cell(**spec["cell"]), spec["rounds"])))
        return
    facts = common.machine() | {"load": os.getloadavg()}
    common.print_machine(facts)
    print(f"load      {' '.join(f'{x:.1f}' for x in facts['load'])}, BLAS threads {args.threads}\n")
    env = {"OPENBLAS_NUM_THREADS": str(args.threads)} if args.threads else {}
    rows = []
    for model in args.models:
        cell = Cell("ours", model, "equal", [1], args.prompts, args.group, args.mean, args.prompt)
        spec = {"cell": asdict(cell), "rounds": args.rounds}
        got = common.run_cell(__file__, spec, timeout=args.timeout, env=env)
        shown = got["error"] if "error" in got else show(model, args.prompts * args.group, got)
        print(shown, flush=True)
        rows.append({"model": model, **got})
    common.write_json(args.json, {"machine": facts, "rows": rows})


if __name__ == "__main__":
    main()
