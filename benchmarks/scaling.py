"""How the cost of a step grows with the length of completions, and memory with the number of steps.

Cost: whole steps (rollout and update, 8 problems x 8 completions) at lengths up to --longest, the
stop token disabled. The CPU seconds per token are fitted by a + b x length, as attention has it;
"off" is how far each length is from that line. Each length is a process of its own.

Steps: --steps tiny steps of the real trainer on the embedded model; the process's resident set is
read after each, and its slope fitted by the median of slopes between all pairs (Theil-Sen) over the
last three quarters.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import mlx.core as mx
import numpy as np
from common import MIB
from meter import process_bytes
from step_setup import Shape, make_model, make_prompts

from simko_mlx.advantages import group_advantages
from simko_mlx.config import Config, set_key
from simko_mlx.learner import Learner
from simko_mlx.loggers import Silent
from simko_mlx.policy import load_policy
from simko_mlx.rollout import Sampling, rollout
from simko_mlx.trainer import train
from simko_mlx.types import Problem, ScoredGroup, Verdict

PROBLEMS, GROUP, PROMPT = 8, 8, 64
SHAPE = Shape(2048, 128, 4)
TINY = {
    "data.size": 40,
    "data.heldout": 0,
    "rollout.problems_per_step": 2,
    "rollout.group_size": 2,
    "rollout.max_completion_length": 4,
    "eval.before": False,
    "eval.after": False,
    "checkpoint.every": 10**6,
    "optim.compile": False,
}


def cost(spec: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds per token of rollout and update, the best of the repeats."""
    length = spec["length"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        make_model(path, SHAPE)
        config = Config(model=str(path))
        config.rollout.max_completion_length = length
        config.policy.lora_parameters.scale = 2.0
        policy = load_policy(config)
    policy.stop_tokens = {SHAPE.vocabulary: "never drawn"}
    learner = Learner(policy, config)
    prompts = [
        (Problem(str(i), ({"role": "user", "content": ""},), ""), tuple(ids))
        for i, ids in enumerate(make_prompts(PROBLEMS, PROMPT, SHAPE.vocabulary))
    ]
    tokens = PROBLEMS * GROUP * length
    best = {"rollout": float("inf"), "update": float("inf")}
    peak = 0
    for repeat in range(spec["repeat"]):
        sampling = Sampling(GROUP, length, 1.0, 0, repeat, PROBLEMS * GROUP, 512)
        sampled, groups = common.measure(lambda s=sampling: rollout(policy, prompts, s))
        scored = []
        for group in groups:
            verdicts = tuple(Verdict(float(i % 2), i % 2 == 1) for i in range(GROUP))
            advantages = tuple(group_advantages([v.reward for v in verdicts]))
            scored.append(ScoredGroup(group, verdicts, advantages))
        learnt, _ = common.measure(lambda s=scored, r=repeat: learner.learn(s, r + 1))
        best["rollout"] = min(best["rollout"], sampled.cpu / tokens)
        best["update"] = min(best["update"], learnt.cpu / tokens)
        peak = max(peak, sampled.peak, learnt.peak)
        mx.clear_cache()
    return {**best, "peak": peak}


class Watch(Silent):
    """Reads the resident set after each step."""

    def __init__(self) -> None:
        self.resident: list[int] = []

    def step(self, metrics: Any, groups: Any) -> None:
        self.resident.append(process_bytes("VmRSS"))


def resident_slope(steps: int) -> dict[str, Any]:
    """Bytes per step by which the process grows."""
    config = Config(steps=steps)
    for key, value in TINY.items():
        set_key(config, key, value)
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run", watch)
    values = np.array(watch.resident, dtype=np.float64)
    return {"slope": slope(values[len(values) // 4 :]), "first": values[0], "last": values[-1]}


def slope(values: np.ndarray, points: int = 400) -> float:
    """The median slope between all pairs of (at most ``points``) values, per step."""
    at = np.unique(np.linspace(0, len(values) - 1, points).astype(int))
    i, j = np.triu_indices(len(at), k=1)
    return float(np.median((values[at[j]] - values[at[i]]) / (at[j] - at[i])))


def fit(lengths: Sequence[int], costs: Sequence[float]) -> tuple[float, float, list[float]]:
    """a, b of a + b x length, by least squares of relative errors, and each length's error."""
    x, y = np.array(lengths, dtype=np.float64), np.array(costs)
    matrix = np.stack([1 / y, x / y], axis=1)
    (a, b), *_ = np.linalg.lstsq(matrix, np.ones_like(y), rcond=None)
    return float(a), float(b), [float(e) for e in (a + b * x) / y - 1]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., Any] = parser.add_argument
    add("--longest", type=int, default=1024, help="tokens of the longest (default 1,024)")
    add("--repeat", type=int, default=2, help="steps of each length, best counts (default 2)")
    add("--steps", type=int, default=2000, help="tiny steps for memory, 0: none (default 2,000)")
    add("--timeout", type=float, default=1800, help="seconds for one cell (default 1,800)")
    add("--json", metavar="FILE", help="also write everything to FILE")
    add("--cell", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    args = parse()
    if args.cell:
        spec = json.loads(args.cell)
        found = cost(spec) if "length" in spec else resident_slope(spec["steps"])
        print(json.dumps(found))
        return
    facts = common.machine()
    common.print_machine(facts)
    lengths = [n for n in (64, 128, 256, 384, 512, 768, 1024, 1536, 2048) if n <= args.longest]
    rows = []
    for length in lengths:
        spec = {"length": length, "repeat": args.repeat}
        rows.append({"length": length, **common.run_cell(__file__, spec, timeout=args.timeout)})
        print(f"  {length} tokens: {rows[-1].get('error', 'done')}", flush=True)
    good = [row for row in rows if "error" not in row]
    result: dict[str, Any] = {"machine": facts, "rows": rows}
    if len(good) > 2:
        header = ["completion", "rollout us/token", "update us/token", "sum", "off", "peak MiB"]
        sums = [row["rollout"] + row["update"] for row in good]
        a, b, errors = fit([row["length"] for row in good], sums)
        lines = []
        for row, total, error in zip(good, sums, errors, strict=True):
            micro = [f"{x * 1e6:.0f}" for x in (row["rollout"], row["update"], total)]
            lines.append([str(row["length"]), *micro, f"{error:+.1%}", f"{row['peak'] / MIB:.0f}"])
        print(f"\n{common.table(header, lines)}")
        print(f"CPU time per token = {a * 1e6:.0f} us + {b * 1e9:.0f} ns x length")
        result |= {"a": a, "b": b}
    if args.steps:
        memory = common.run_cell(__file__, {"steps": args.steps}, timeout=args.timeout)
        result["memory"] = memory
        words = memory.get("error") or (
            f"{memory['slope'] / 1024:+.3f} KiB a step, {memory['first'] / MIB:.1f} MiB after the "
            f"first and {memory['last'] / MIB:.1f} MiB after the last"
        )
        print(f"resident set over {args.steps:,} steps: {words}")
    common.write_json(args.json, result)


if __name__ == "__main__":
    main()
