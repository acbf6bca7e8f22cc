"""A whole step of GRPO, sampling included, here and in mlx-lm-lora 5.10.2 on the same machine.

A step is rollout (prompts -> completions), a reward that costs nothing, and update (advantages,
loss, backward, AdamW). Arms:
  grpo         this project, loss.name grpo: a group per forward and backward pass, its default
  grpo-narrow  that with optim.microbatch_size as small as the rival's: as many completions per
               forward and backward pass as there are problems
  simko        this project, loss.name simko
  mlx-lm-lora  train_grpo, the loop behind `python -m mlx_lm_lora.train --train-mode grpo`

All have the same model (Qwen2, random float32 weights, LoRA of rank 8 on every linear layer of
every block), prompts, group size, sampling (temperature 1, nothing cut off), AdamW and one update
per step without a KL term. The stop token is an id that no model draws, so every completion has its
full length. Each cell is a process of its own: it warms up for one step, which is dropped, and
measures --steps more. Arms take turns, in an order drawn anew each round; ratios are of medians,
with the 95 % interval of their bootstrap distribution over rounds.

The rival is installed from PyPI into an environment of its own, with the MLX and mlx-lm used here
where its requirements allow. What is set there, beside the sizes, and why:
  top_p 1, top_k 0    the command line can't set them and samples with 0.95 and 20, which is slower
  beta 0, no second   with beta 0 its loss never calls the reference model, but the command line
    model             loads one all the same, which would add "weights" to its peaks
  batch_size          problems per step. It is also how many completions are decoded, and how many
                      go through a forward and backward pass, at a time: all that its loop lets one
                      set, so the completions of a single problem are decoded one by one
  epsilon 0.2, AdamW  as here, with bias correction; its defaults are 1e-4 and Adam. Neither costs
                      time: the ratios of probabilities are 1 in an update of its own samples
  grad_checkpoint     off, as here
  no report           its report of a step, printed every 10 steps, is left out
  OpenBLAS            loaded as it is here (Linux; see simko_mlx). By itself it would not be, and
                      would multiply matrices many times slower: --plain-blas shows that

Not the same: here gradients are clipped to a norm of 1 and top K, entropy and clipping fractions
are measured, and log-probs are kept while sampling; there every gradient is checked to be finite.
The random numbers differ, so the tokens do. What it doesn't measure: verifying, evaluating, saving,
and how well anything learns.

Peak is MLX's count of bytes during a phase, weights included; "process" is by how much the process
grew at its largest since before it loaded the model, where the system tells.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import MIB
from meter import Stopwatch, count_parameters, process_growth, reset_process_peak
from step_setup import MODELS, SetupError, make_model, make_prompts, rival_python

ROOT = Path(__file__).resolve().parents[1]
RIVAL_SCRIPT = str(Path(__file__).with_name("step_rival.py"))
RIVAL = "mlx-lm-lora"
ARMS = ("grpo", "grpo-narrow", "simko", RIVAL)
RATIOS = ((RIVAL, "grpo"), (RIVAL, "grpo-narrow"), (RIVAL, "simko"), ("simko", "grpo"))
CASES = ("1x8x32", "2x8x64")
QUICK = {"models": ["6M-8k"], "cases": CASES[:1], "rounds": 1, "steps": 1}
MANY = 100_000  # tokens of a vocabulary, from which on a step is slow and gets half the rounds
PHASES = ("rollout", "update")
FIGURES = ("rollout", "update", "step", "cpu", "peak", "process")
SETTINGS: dict[str, Any] = {
    "rank": 8,
    "scale": 10.0,
    "learning_rate": 1e-5,
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "weight_decay": 0.0,
    "clip": 0.2,
    "seed": 0,
    "warm": 1,
}


def our_config(spec: dict[str, Any]) -> Any:
    from simko_mlx.config import Config, set_key
    from simko_mlx.config_checks import validate

    config = Config()
    values = {
        "model": spec["model"],
        "seed": spec["seed"],
        "policy.lora_parameters.rank": spec["rank"],
        "policy.lora_parameters.scale": spec["scale"],
        "rollout.problems_per_step": len(spec["prompts"]),
        "rollout.group_size": spec["group"],
        "rollout.max_completion_length": spec["completion"],
        "rollout.temperature": 1.0,
        "loss.name": spec["arm"].removesuffix("-narrow"),
        "loss.clip_low": spec["clip"],
        "loss.clip_high": spec["clip"],
        "optim.learning_rate": spec["learning_rate"],
        "optim.betas": spec["betas"],
        "optim.eps": spec["eps"],
        "optim.weight_decay": spec["weight_decay"],
        "optim.microbatch_size": len(spec["prompts"]) if spec["arm"].endswith("-narrow") else None,
    }
    for key, value in values.items():
        set_key(config, key, value)
    validate(config)
    return config


def score(groups: Sequence[Any]) -> list[Any]:
    """Every third completion of a group is right."""
    from simko_mlx.advantages import group_advantages
    from simko_mlx.types import ScoredGroup, Verdict

    scored = []
    for group in groups:
        right = [place % 3 == 0 for place in range(len(group.completions))]
        verdicts = tuple(Verdict(float(r), r) for r in right)
        advantages = tuple(group_advantages([v.reward for v in verdicts]))
        scored.append(ScoredGroup(group, verdicts, advantages))
    return scored


def run_ours(spec: dict[str, Any]) -> dict[str, Any]:
    """The child of this project: steps as the trainer makes them."""
    from simko_mlx.learner import Learner
    from simko_mlx.policy import load_policy
    from simko_mlx.rollout import Sampling, rollout
    from simko_mlx.types import Problem

    watch, before = Stopwatch(), reset_process_peak()
    config = our_config(spec)
    policy = load_policy(config)
    # An id that the model does not have: every completion goes to its full length.
    policy.stop_tokens = {spec["vocabulary"]: ""}
    learner = Learner(policy, config)
    prompts = [(Problem(str(i), (), ""), tuple(ids)) for i, ids in enumerate(spec["prompts"])]
    lengths = set()
    while not watch.enough(spec["warm"], spec["steps"], spec["seconds"]):
        number = len(watch.steps) + 1
        watch.start()
        sampling = Sampling(
            group_size=spec["group"],
            max_completion_length=spec["completion"],
            temperature=1.0,
            seed=spec["seed"],
            step=number,
            batch_size=config.rollout.batch_size,
            prefill_chunk=config.rollout.prefill_chunk,
        )
        groups = rollout(policy, prompts, sampling)
        watch.lap("rollout")
        report = learner.learn(score(groups), number)
        watch.lap("update")
        lengths |= {len(c.token_ids) for group in groups for c in group.completions}
        if report.updates != 1 or lengths != {spec["completion"]}:
            raise SystemExit(f"{report.updates} updates of completions of {lengths} tokens")
    return {
        "steps": watch.as_json(spec["warm"]),
        "process": process_growth(before),
        **count_parameters(policy.model),
    }


class Runner:
    """Runs the cells of one case."""

    def __init__(self, args: argparse.Namespace, python: str):
        self.args = args
        self.python = python
        self.openblas = bool(common.OPENBLAS) and not args.plain_blas

    def run(self, arm: str, spec: dict[str, Any]) -> dict[str, Any]:
        spec = {**spec, "arm": arm, "openblas": self.openblas}
        timeout, offline = self.args.timeout, {"HF_HUB_OFFLINE": "1"}
        if arm != RIVAL:
            return common.run_cell(__file__, spec, timeout=timeout, env=offline)
        # It must see its own packages only; the other is what its command line sets.
        env = offline | {"PYTHONPATH": "", "TOKENIZERS_PARALLELISM": "true"}
        return common.run_cell(RIVAL_SCRIPT, spec, timeout=timeout, env=env, python=self.python)

    def versions(self) -> dict[str, str]:
        found = self.run(RIVAL, {})
        if "error" in found:
            raise SystemExit(f"The rival does not run: {found['error']}")
        return found["versions"]


def figures(cell: dict[str, Any]) -> dict[str, float]:
    """The medians of one cell over its steps; its peaks, the largest."""
    steps = cell["steps"]

    def middle(name: str, phases: Sequence[str]) -> float:
        return float(np.median([sum(step[p][name] for p in phases) for step in steps]))

    out = {p: middle("wall", [p]) for p in PHASES}
    out |= {f"{p}_cpu": middle("cpu", [p]) for p in PHASES}
    out |= {f"{p}_peak": float(max(s[p]["peak"] for s in steps)) for p in PHASES}
    out |= {"step": middle("wall", PHASES), "cpu": middle("cpu", PHASES)}
    out["peak"] = max(out[f"{p}_peak"] for p in PHASES)
    out["held"] = float(max(step["rollout"]["before"] for step in steps))
    return {**out, "process": float(cell["process"])}


def run_rounds(runner: Runner, spec: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Arm -> one row of figures per round, or {"error": ...}."""
    order, shuffler = list(ARMS), random.Random(0)
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    sizes = set()
    for _ in range(rounds):
        shuffler.shuffle(order)
        for arm in order:
            cell = runner.run(arm, spec)
            if "error" in cell:
                return {"error": f"{arm}: {cell['error']}"}
            sizes.add((cell["parameters"], cell["trainable"]))
            rows[arm].append(figures(cell))
    if len(sizes) != 1:
        return {"error": f"the arms differ in (parameters, trainable): {sorted(sizes)}"}
    parameters, trainable = sizes.pop()
    return {"parameters": parameters, "trainable": trainable, "rounds": rows}


def summarise(rows: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """The ratios of medians, with intervals."""
    out: list[dict[str, Any]] = []
    for above, below in RATIOS:
        for name in FIGURES:
            mine, theirs = ([[row[name]] for row in rows[arm]] for arm in (above, below))
            if not all(map(all, theirs)):
                continue  # the system doesn't tell
            median, low, high = common.ratio_interval(mine, theirs)
            row = {"of": above, "to": below, "figure": name}
            out.append(row | {"median": median, "low": low, "high": high})
    return out


def show(
    rows: dict[str, list[dict[str, float]]], ratios: Sequence[dict[str, Any]], tokens: int
) -> str:
    lines = []
    for arm in ARMS:
        m = {name: float(np.median([row[name] for row in rows[arm]])) for name in rows[arm][0]}
        seconds = [f"{m[p]:.3f} ({m[f'{p}_cpu']:.3f})" for p in PHASES]
        seconds.append(f"{m['step']:.3f} ({m['cpu']:.3f})")
        rates = [f"{tokens / m[name]:,.0f}" for name in ("rollout", "step")]
        names = ("rollout_peak", "update_peak", "held", "process")
        lines.append([arm, *seconds, *rates, *(f"{m[name] / MIB:.0f}" for name in names)])
    header = ["median of a step", "rollout s (CPU)", "update s (CPU)", "both s (CPU)"]
    header += ["rollout tok/s", "tok/s", "rollout MiB", "update MiB", "held MiB", "process MiB"]
    first = common.table(header, lines)
    lines = []
    for above, below in RATIOS:
        mine = {row["figure"]: row for row in ratios if (row["of"], row["to"]) == (above, below)}
        cells = [
            f"{mine[n]['median']:.2f} [{mine[n]['low']:.2f}, {mine[n]['high']:.2f}]"
            if n in mine
            else "-"
            for n in FIGURES
        ]
        lines.append([f"{above} / {below}", *cells])
    titles = {"cpu": "step, CPU", "step": "step, wall"}
    return f"{first}\n\n" + common.table(
        ["ratio [95 %]", *(titles.get(n, n) for n in FIGURES)], lines
    )


def run_model(runner: Runner, name: str, folder: Path) -> list[dict[str, Any]]:
    """All cases of one model."""
    args, shape, out = runner.args, MODELS[name], []
    parameters = make_model(folder, shape)
    rounds = args.rounds if shape.vocabulary < MANY else -(-args.rounds // 2)
    for case in args.cases:
        problems, group, completion = map(int, case.split("x"))
        spec = SETTINGS | {
            "model": str(folder),
            "vocabulary": shape.vocabulary,
            "prompts": make_prompts(problems, args.prompt, shape.vocabulary),
            "group": group,
            "completion": completion,
            "steps": args.steps,
            "seconds": args.seconds,
        }
        found = run_rounds(runner, spec, rounds)
        row: dict[str, Any] = {"name": name, "case": case, "base_parameters": parameters, **found}
        print(
            f"{name}: {parameters / 1e6:.1f} M parameters, V = {shape.vocabulary:,}, hidden "
            f"{shape.hidden}, {shape.layers} layers; {problems} x {group} completions of "
            f"{completion} tokens"
        )
        if "error" in found:
            print(f"{found['error']}\n", flush=True)
        else:
            row["ratios"] = summarise(found["rounds"])
            print(f"LoRA trains {found['trainable']:,}; weights {4 * parameters / MIB:.0f} MiB")
            print(show(found["rounds"], row["ratios"], problems * group * completion), flush=True)
            print()
        out.append(row)
    return out


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., Any] = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=list(MODELS))
    add("--cases", nargs="+", default=CASES, metavar="PxGxT", help=f"default {' '.join(CASES)}")
    add("--prompt", type=int, default=64, help="tokens of the longest prompt (default 64)")
    more = "processes of each arm, half as many with the large vocabulary (default 6)"
    add("--rounds", type=int, default=6, help=more)
    add("--steps", type=int, default=2, help="timed steps per process (default 2)")
    add("--seconds", type=float, default=20.0, help="no further step after these (default 20)")
    add("--timeout", type=float, default=1200.0, help="seconds per process (default 1200)")
    add("--plain-blas", action="store_true", help="the rival without OpenBLAS")
    add("--quick", action="store_true", help="the smallest case once, to see that it works")
    add("--env", type=Path, metavar="FOLDER", help="the rival's environment (default in build/)")
    add("--json", metavar="FILE", help="also write everything to FILE")
    add("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.quick:
        vars(args).update(QUICK)
    for case in args.cases:
        parts = case.split("x")
        if len(parts) != 3 or not all(p.isdecimal() and int(p) > 0 for p in parts):
            parser.error(f"{case!r} is not problems x group x tokens, such as 2x8x64")
        if int(parts[1]) < 2:
            parser.error("a group has at least 2 completions")
    if min(args.prompt - 1, args.rounds, args.steps) < 1:
        parser.error("rounds and steps are at least 1, the prompt at least 2")
    return args


def main() -> None:
    args = parse()
    if args.cell is not None:
        print(json.dumps(run_ours(json.loads(args.cell))))
        return
    facts = common.machine() | {"load": os.getloadavg()}
    common.print_machine(facts)
    print("load      {:.1f}, {:.1f}, {:.1f} (1, 5, 15 minutes)".format(*facts["load"]))
    folder = args.env or ROOT / "build" / "rivals" / "mlx-lm-lora-5.10.2"
    try:
        runner = Runner(args, rival_python(folder))
    except SetupError as error:
        raise SystemExit(str(error)) from error
    versions = runner.versions()
    print("rival     " + ", ".join(f"{name} {number}" for name, number in versions.items()), end="")
    print(f", OpenBLAS {'yes' if runner.openblas else 'no'}\n", flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as models:
        for name in args.models:
            rows += run_model(runner, name, Path(models) / name)
    settings = SETTINGS | {"prompt": args.prompt, "rounds": args.rounds, "steps": args.steps}
    content = {"machine": facts, "rival": versions, "openblas": runner.openblas}
    common.write_json(args.json, {**content, "settings": settings, "cases": rows})
    if any("error" in row for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
