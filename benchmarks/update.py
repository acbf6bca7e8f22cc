"""The training step with one forward pass per prompt, against full rows, and against the machine.

Ways (simko_mlx/forward.py), each one microbatch of one group, in a process of its own:
  full           every completion with its whole prompt, as mlx-lm trains
  shared         the prompt once, its completions after it: what `simko-mlx train` does
  shared+ck      that with grad_checkpoint
  shared+jit     that compiled, as by default; padded to few sizes (its first call is not timed)
  shared+jit+ck  both

"error" is the largest difference of any gradient from full rows', by its largest member; "rate" is
the products' 2 x multiply-adds per CPU second, as a share of what a large float32 product reaches
on one core in the same process. Peak is MLX's count beyond weights.

--profile shows where the time of one shared step goes, by leaving parts out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import mlx.core as mx
import numpy as np
from common import MIB
from mlx.utils import tree_flatten, tree_unflatten
from step_setup import make_model

from simko_mlx.advantages import group_advantages
from simko_mlx.config import Config
from simko_mlx.forward import lay_out, outputs
from simko_mlx.losses import find_loss
from simko_mlx.policy import Policy, load_policy
from simko_mlx.step import Step
from simko_mlx.types import TokenBatch

WAYS = ("full", "shared", "shared+ck", "shared+jit", "shared+jit+ck")
GEMM = 1024


def make_policy(spec: dict[str, Any], folder: Path) -> Policy:
    from step_setup import Shape

    make_model(folder, Shape(spec["vocab"], spec["hidden"], spec["layers"]))
    config = Config(model=str(folder))
    config.grad_checkpoint = "ck" in spec["way"]
    config.optim.compile = "jit" in spec["way"]
    config.policy.lora_parameters.scale = 2.0
    policy = load_policy(config)
    # Not zero, as in the middle of a run: a fresh adapter's second factor hides half the gradient.
    mx.random.seed(1)
    arrays = tree_flatten(policy.model.trainable_parameters())
    drawn = [(name, mx.random.normal(a.shape) * 0.02) for name, a in arrays]  # type: ignore[misc]
    policy.model.update(tree_unflatten(drawn))
    mx.eval(policy.model.parameters())
    if spec["way"] == "full":
        policy.way = "full"
    return policy


def make_batch(spec: dict[str, Any]) -> TokenBatch:
    rng = np.random.default_rng(0)
    rows, width = spec["group"], spec["completion"]
    correct = np.arange(rows) % 3 == 0
    return TokenBatch(
        prompts=(tuple(int(i) for i in rng.integers(0, spec["vocab"], spec["prompt"])),),
        tokens=mx.array(rng.integers(0, spec["vocab"], (rows, width)).astype(np.int32)),
        loss_mask=mx.ones((rows, width)),
        advantages=mx.array(group_advantages([float(c) for c in correct])),
        correct=mx.array([bool(c) for c in correct]),
        normalizer=float(rows * width),
    )


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, float, int]:
    """Best wall and CPU seconds, and the peak of bytes beyond what was held before."""
    wall = cpu = float("inf")
    peak = 0
    for _ in range(repeats):
        measured, result = common.measure(lambda: _evaluated(call()))
        del result
        mx.clear_cache()
        wall, cpu = min(wall, measured.wall), min(cpu, measured.cpu)
        peak = max(peak, measured.peak - measured.before)
    return wall, cpu, peak


def _evaluated(result: Any) -> Any:
    mx.eval(result)
    return result


def gemm_rate(repeats: int = 5) -> float:
    """Float32 operations per CPU second in a large product."""
    a, b = mx.random.normal((GEMM, GEMM)), mx.random.normal((GEMM, GEMM))
    mx.eval(a, b)
    _, cpu, _ = timed(lambda: a @ b, repeats)
    return 2 * GEMM**3 / cpu


def operations(policy: Policy, spec: dict[str, Any]) -> float:
    """Operations of a step's products as the shared way needs them, 2 for each multiply-add: all
    weights but the embedding forward, once more for the inputs' gradients (a frozen weight needs
    none of its own), attention, and the head twice."""
    weights = dict(tree_flatten(policy.model.parameters()))  # type: ignore[arg-type]
    inner = sum(w.size for n, w in weights.items() if w.ndim > 1 and "embed" not in n)
    head = spec["vocab"] * spec["hidden"]
    prompt, width, rows = spec["prompt"], spec["completion"], spec["group"]
    tokens = prompt + rows * width
    pairs = prompt * prompt / 2 + rows * width * (prompt + width / 2)
    attention = 2 * pairs * spec["hidden"] * spec["layers"]
    return 2.0 * (2 * inner * tokens + 3 * attention + 2 * head * rows * width)


def cell(spec: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        policy = make_policy(spec, Path(folder) / "model")
    step = Step(policy, policy.config, find_loss("simko"))
    batch = make_batch(spec)
    policy.model.train()
    began = time.perf_counter()
    _, gradient = _evaluated(step(batch))
    first = time.perf_counter() - began
    rate = gemm_rate()
    wall, cpu, peak = timed(lambda: step(batch), spec["repeat"])
    flat = {n: np.array(g) for n, g in tree_flatten(gradient)}  # type: ignore[misc]
    np.savez(spec["out"], **flat)  # type: ignore[arg-type]
    found = {"wall": wall, "cpu": cpu, "peak": peak, "first": first, "way": policy.way}
    found |= {"rate": operations(policy, spec) / cpu / rate, "gflops": rate / 1e9}
    if spec.get("profile"):
        found["parts"] = parts(policy, step, batch, spec["repeat"])
    return found


def parts(policy: Policy, step: Step, batch: TokenBatch, repeats: int) -> dict[str, float]:
    """CPU seconds of a step and of what is left of it without its last parts."""
    layout = lay_out(batch, policy.way, bucketed=step.compiles)
    tap = policy.tap
    assert tap is not None
    trainable = policy.model.trainable_parameters()
    weights = mx.random.normal((int(layout.arrays["places"].size), tap.head().width))
    mx.eval(weights)

    def hidden(parameters: Any) -> mx.array:
        policy.model.update(parameters)
        return (outputs(policy.model, tap.hidden, layout) * weights).sum()

    def forward() -> Any:
        return policy.statistics_at(layout, simko_k=3, temperature=1.0).logprobs

    calls = {
        "whole step": lambda: step(batch),
        "model, forward and backward, without the head": lambda: mx.grad(hidden)(trainable),
        "model, forward": lambda: outputs(policy.model, tap.hidden, layout),
        "model and head, forward": forward,
    }
    return {name: timed(call, repeats)[1] for name, call in calls.items()}


def difference(one: Path, other: Path) -> float:
    """The largest difference of any two gradients, by the largest member of all."""
    a, b = np.load(one), np.load(other)
    largest = max(np.abs(a[n]).max() for n in a.files)
    return float(max(np.abs(a[n] - b[n]).max() for n in a.files) / largest)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            out = Path(folder) / f"{way}.npz"
            spec = {**vars(args), "way": way, "out": str(out)}
            spec["profile"] = args.profile and way == "shared"
            found = common.run_cell(__file__, spec, timeout=args.timeout)
            if "error" not in found:
                found["gradient"] = difference(Path(folder) / "full.npz", out)
            rows.append({"arm": way, **found})
            print(f"  {way}: {found.get('error', 'done')}", flush=True)
    return rows


def show(rows: Sequence[dict[str, Any]]) -> str:
    full = rows[0]
    lines = []
    for row in rows:
        if "error" in row or "error" in full:
            lines.append([row["arm"], *[row.get("error", "-")] * 7])
            continue
        ratios = [f"{full['cpu'] / row['cpu']:.2f}", f"{row['peak'] / full['peak']:.3f}"]
        times = [f"{row['wall']:.2f}", f"{row['cpu']:.2f}", f"{row['peak'] / MIB:.0f}"]
        lines.append([row["arm"], *times, *ratios, f"{row['rate']:.0%}", f"{row['gradient']:.0e}"])
    header = ["way", "wall s", "CPU s", "peak MiB", "times faster", "of its peak", "rate", "error"]
    return common.table(header, lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., Any] = parser.add_argument
    add("--prompt", type=int, default=512, help="tokens of the prompt (default 512)")
    add("--completion", type=int, default=64, help="tokens of a completion (default 64)")
    add("--group", type=int, default=16, help="completions (default 16)")
    add("--hidden", type=int, default=384, help="size of the hidden states (default 384)")
    add("--layers", type=int, default=8, help="default 8")
    add("--vocab", type=int, default=16_384, help="default 16,384")
    add("--repeat", type=int, default=3, help="timed steps, of which the best counts (default 3)")
    add("--timeout", type=float, default=900, help="seconds for one way (default 900)")
    add("--profile", action="store_true", help="also show where the time goes")
    add("--json", metavar="FILE", help="also write everything to FILE")
    add("--cell", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    args = parse()
    if args.cell:
        print(json.dumps(cell(json.loads(args.cell))))
        return
    facts = common.machine()
    common.print_machine(facts)
    rows = run(args)
    print(f"\n{show(rows)}")
    for row in rows:
        for name, seconds in row.get("parts", {}).items():
            print(f"  {seconds:6.2f} CPU s  {name}")
    common.write_json(args.json, {"machine": facts, "rows": rows})


if __name__ == "__main__":
    main()
