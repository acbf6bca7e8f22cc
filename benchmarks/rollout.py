"""Rollouts: this project's decoder and mlx-lm's ways to the same completions, side by side.

Engines:
  ours           simko_mlx.decoding.Decoder: each prompt prefilled and held once; with log-probs
  batch          mlx_lm.generate.batch_generate, each prompt given once per completion, with
                 completion_batch_size and prefill_batch_size as large as all rows
  batch-default  that with the sizes it has by itself (32 and 8)
  fan-out        mlx_lm.generate.BatchGenerator, each prompt prefilled once and its cache inserted
                 for each of its completions, with the same large sizes
  one            mlx_lm.generate.generate_step, one completion after the other; only every 16th
                 completion is run, and what it does in a second is taken for the others'

Cases: "equal", all completions as long as --mean; "ragged", geometric lengths of that mean, at most
four times as long, from the seeds given. No token ends a completion: its length is given to theirs
as max_tokens and to ours as the row's limit, so that all replay the same lengths. Models are Qwen2
with random weights in float32. Temperature 1, neither top_p nor top_k. Theirs are not asked for the
log-probs of tokens, which ours gives: batch_generate would fetch them one at a time.

Each engine is a process of its own in each round, after a warm-up of 3 tokens; the order is drawn
anew each round from a fixed seed. Rates are medians, ratios those of medians with the 95 % interval
of their bootstrap distribution over rounds. CPU seconds are the measure where a machine is shared.
BLAS gets --threads (one: threads that wait for each other spin, and that counts as CPU time). Peak
is MLX's count of bytes, less the weights.

Prompts have --prompt tokens on average, a quarter more or less. The ratios depend on it: the
shorter prompts are, the less there is to share.

What it doesn't measure: real models and texts, or how evenly real completions' lengths are spread.
decode_step.py says where a step's time goes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import common
import mlx.core as mx
import numpy as np
from common import MIB
from mlx_lm.generate import BatchGenerator, batch_generate, generate_step
from mlx_lm.models import qwen2
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_sampler

from simko_mlx.cpu_decoding import quicken
from simko_mlx.decoding import Decoder, Row, Settings, Together
from simko_mlx.model_files import to_column_major
from simko_mlx.sampling import row_hasher
from simko_mlx.shared_prompts import share_attention

ENGINES = ("ours", "batch", "fan-out", "batch-default", "one")
CASES = ("equal", "ragged")
SHAPES = {  # hidden, MLP, layers, heads, key-value heads, vocabulary
    "tiny": (128, 352, 4, 4, 2, 2_048),
    "20M": (384, 1024, 8, 6, 2, 16_384),
    "wide": (384, 1024, 8, 6, 2, 151_936),  # the vocabulary of Qwen2
}
CHUNK = 512  # of prefill
EVERY = 16  # of the completions that "one" runs


def make_model(name: str) -> Any:
    hidden, mlp, layers, heads, kv_heads, vocabulary = SHAPES[name]
    mx.random.seed(0)
    model = qwen2.Model(
        qwen2.ModelArgs(
            model_type="qwen2",
            hidden_size=hidden,
            num_hidden_layers=layers,
            intermediate_size=mlp,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            rms_norm_eps=1e-6,
            vocab_size=vocabulary,
        )
    )
    mx.eval(model.parameters())
    return model.eval()


@dataclass(frozen=True)
class Work:
    """Prompts and, for each, ``group`` completions of given lengths."""

    prompts: list[tuple[int, ...]]
    group: int
    lengths: list[int]

    @property
    def rows(self) -> list[tuple[int, ...]]:
        return [p for p in self.prompts for _ in range(self.group)]


@dataclass(frozen=True)
class Cell:
    """What one process runs: the engine on each seed's lengths."""

    engine: str
    model: str
    case: str
    seeds: list[int]
    prompts: int
    group: int
    mean: int
    prompt: int

    def work(self, seed: int) -> Work:
        rng = np.random.default_rng(seed)
        rows = self.prompts * self.group
        lengths = [self.mean] * rows
        if self.case == "ragged":
            drawn = rng.geometric(1.0 / self.mean, rows)
            lengths = np.minimum(drawn, 4 * self.mean).tolist()
        sizes = np.linspace(0.75 * self.prompt, 1.25 * self.prompt, self.prompts).astype(int)
        vocabulary = SHAPES[self.model][-1]
        prompts = [tuple(rng.integers(0, vocabulary, n).tolist()) for n in sizes]
        return Work(prompts, self.group, lengths)


# --- engines: (model, work) -> the number of tokens of each completion ----------------------------


def make_decoder(model: Any, work: Work) -> tuple[Decoder, list[Row]]:
    rows = [
        Row(i // work.group, length, row_hasher(0, 0, str(i // work.group), i % work.group))
        for i, length in enumerate(work.lengths)
    ]
    settings = Settings(width=len(rows), prefill_chunk=CHUNK)
    to_column_major(model)
    quicken(model)
    shared = share_attention(model)
    return Decoder(model, work.prompts, (), settings, Together(shared=shared)), rows


def ours(model: Any, work: Work) -> list[int]:
    decoder, rows = make_decoder(model, work)
    for _ in decoder.run(rows, lambda row: None):
        pass
    return [len(row.logprobs) for row in rows]


class NoTokenizer:
    """What batch_generate asks of a tokenizer, with nothing that ends a text."""

    eos_token_ids: tuple[int, ...] = ()

    def decode(self, ids: Sequence[int]) -> str:
        return ""


def sizes_for(work: Work) -> dict[str, Any]:
    rows = len(work.lengths)
    return {"completion_batch_size": rows, "prefill_batch_size": rows}


def batch(model: Any, work: Work, *, default: bool = False) -> list[int]:
    answer = batch_generate(
        model,
        NoTokenizer(),
        [list(prompt) for prompt in work.rows],
        max_tokens=work.lengths,
        sampler=make_sampler(temp=1.0),
        return_token_ids=True,
        **({} if default else sizes_for(work)),
    )
    return [len(ids) for ids in answer.token_ids or []]


def fan_out(model: Any, work: Work) -> list[int]:
    generator = BatchGenerator(model, sampler=make_sampler(temp=1.0), **sizes_for(work))
    filled = {}
    for prompt in work.prompts:
        filled[prompt] = caches = make_prompt_cache(model)
        model(mx.array([prompt[:-1]]), cache=caches)
        mx.eval([c.state for c in caches])
    uids = generator.insert(
        [[prompt[-1]] for prompt in work.rows],
        work.lengths,
        caches=[filled[prompt] for prompt in work.rows],
        all_tokens=[list(prompt[:-1]) for prompt in work.rows],
    )
    tokens: dict[int, list[int]] = {uid: [] for uid in uids}
    while responses := generator.next_generated():
        for response in responses:
            tokens[response.uid].append(response.token)
    generator.close()
    return [len(tokens[uid]) for uid in uids]


def one(model: Any, work: Work) -> list[int]:
    sampler = make_sampler(temp=1.0)
    return [
        sum(1 for _ in generate_step(mx.array(prompt), model, max_tokens=n, sampler=sampler))
        for prompt, n in list(zip(work.rows, work.lengths, strict=True))[::EVERY]
    ]


RUN: dict[str, Callable[[Any, Work], list[int]]] = {
    "ours": ours,
    "batch": batch,
    "batch-default": lambda model, work: batch(model, work, default=True),
    "fan-out": fan_out,
    "one": one,
}


def run_here(cell: Cell) -> dict[str, Any]:
    """The child: one round of one engine, on every seed."""
    model, run = make_model(cell.model), RUN[cell.engine]
    first = cell.work(cell.seeds[0])
    run(model, Work(first.prompts, cell.group, [3] * len(first.lengths)))
    found = []
    for seed in cell.seeds:
        work = cell.work(seed)
        mx.clear_cache()
        took, got = common.measure(lambda work=work: run(model, work))
        if got != (work.lengths[::EVERY] if cell.engine == "one" else work.lengths):
            raise RuntimeError(f"{cell.engine} gave completions of other lengths")
        tokens = sum(got)
        rates = {"cpu": tokens / took.cpu, "wall": tokens / took.wall}
        found.append({**rates, "tokens": tokens, "peak": took.peak - took.before})
    return {"seeds": found}


# --- tables ---------------------------------------------------------------------------------------


def cell_of(args: argparse.Namespace, engine: str, model: str, case: str) -> Cell:
    seeds = args.seeds if case == "ragged" else args.seeds[:1]
    return Cell(engine, model, case, seeds, args.prompts, args.group, args.mean, args.prompt)


def run_table(args: argparse.Namespace, model: str, case: str) -> dict[str, Any]:
    """Rounds of every engine; {engine: {"rounds": ..., or "error": ...}}."""
    shuffle = random.Random(0)
    found: dict[str, Any] = {engine: {"rounds": []} for engine in args.engines}
    for _ in range(args.rounds):
        for engine in shuffle.sample(args.engines, len(args.engines)):
            if "error" not in found[engine]:
                spec = asdict(cell_of(args, engine, model, case))
                got = common.run_cell(__file__, spec, timeout=args.timeout, env=args.env)
                if "error" in got:
                    found[engine]["error"] = got["error"]
                else:
                    found[engine]["rounds"].append(got["seeds"])
    ran = {e: f["rounds"] for e, f in found.items() if "error" not in f}
    rates = {
        e: {unit: [[s[unit] for s in seeds] for seeds in rounds] for unit in ("cpu", "wall")}
        for e, rounds in ran.items()
    }
    for engine in ran:
        f = found[engine]
        f |= {unit: float(np.median(rates[engine][unit])) for unit in ("cpu", "wall")}
        f["peak"] = max(s["peak"] for seeds in ran[engine] for s in seeds)
        if engine != "ours" and "ours" in ran:
            f["ours_to_this"] = common.ratio_interval(rates["ours"]["cpu"], rates[engine]["cpu"])
            per_seed = (np.median(rates[e]["cpu"], axis=0) for e in ("ours", engine))
            f["ours_to_this_by_seed"] = np.divide(*per_seed).tolist()
    return found


def show(found: dict[str, Any]) -> str:
    header = ["engine", "tokens/CPU s", "tokens/wall s", "peak MiB", "ours/this", "95 %", "by seed"]
    lines, notes = [], []
    for engine, f in found.items():
        if "error" in f:
            notes.append(f"{engine}: {f['error']}")
            continue
        line = [engine, f"{f['cpu']:.0f}", f"{f['wall']:.0f}", f"{f['peak'] / MIB:.0f}"]
        if "ours_to_this" in f:
            ratio, low, high = f["ours_to_this"]
            line += [f"{ratio:.2f}", f"{low:.2f} to {high:.2f}"]
            line.append(" ".join(f"{r:.2f}" for r in f["ours_to_this_by_seed"]))
        lines.append(line + ["-"] * (len(header) - len(line)))
    return "\n".join([common.table(header, lines), *notes])


def run_tables(args: argparse.Namespace) -> list[dict[str, Any]]:
    everything = []
    for model in args.models:
        for case in args.cases:
            found = run_table(args, model, case)
            print(f"{model}, {args.prompts} x {args.group}, {case}, mean {args.mean}")
            print(show(found) + "\n", flush=True)
            everything.append({"model": model, "case": case, "engines": found})
    return everything


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=SHAPES, default=["20M", "wide"])
    add("--cases", nargs="+", choices=CASES, default=list(CASES))
    add("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    add("--prompts", type=int, default=8, metavar="P")
    add("--group", type=int, default=8, metavar="G", help="completions of each prompt (default 8)")
    add("--prompt", type=int, default=128, help="tokens of a prompt, on average (default 128)")
    add("--mean", type=int, default=64, help="tokens of a completion, on average (default 64)")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of ragged lengths (1 2 3)")
    add("--rounds", type=int, default=5, help="processes of each engine (default 5)")
    add("--threads", type=int, default=1, help="of OpenBLAS; 0 leaves it to itself (default 1)")
    add("--timeout", type=float, default=1800.0, help="seconds per process (default 1800)")
    add("--quick", action="store_true", help="one round of the tiny model on short completions")
    add("--json", metavar="FILE", help="also write everything to FILE")
    add("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.quick:
        args.models, args.rounds, args.mean, args.seeds = ["tiny"], 1, 8, [1]
    if min(args.prompts, args.group, args.prompt - 3, args.mean - 1, args.rounds) < 1:
        parser.error("sizes and counts must be at least 1, --mean 2 and --prompt 4")
    args.env = {"OPENBLAS_NUM_THREADS": str(args.threads)} if args.threads else {}
    return args


def main() -> None:
    args = parse()
    if args.cell is not None:
        print(json.dumps(run_here(Cell(**json.loads(args.cell)))))
        return
    facts = common.machine() | {"load": os.getloadavg()}
    common.print_machine(facts)
    print(f"load      {' '.join(f'{x:.1f}' for x in facts['load'])}, BLAS threads {args.threads}\n")
    rows = run_tables(args)
    facts["load_after"] = os.getloadavg()
    print(f"load      {' '.join(f'{x:.1f}' for x in facts['load_after'])} at the end")
    common.write_json(args.json, {"machine": facts, "rows": rows})


if __name__ == "__main__":
    main()
