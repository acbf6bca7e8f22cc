"""How well and how fast the verifier "math" judges: the MATH problems' reference solutions, answers
rewritten by rule, near misses, and pathological completions.

    python benchmarks/verifiers.py math_train.parquet

The parquet file has one problem a row, with its reference solution in the column ``solution`` or in
``reward_model.ground_truth.solution``; the answer is the solution's last box. The rules are those
of tests/verifiers/math_cases.py, taken in turn over answers drawn at random; --seed draws others.

Acceptance, rewritings and near misses run in this process, one after the other, after a first
comparison has imported sympy; times are of one call each. Pathological completions go through the
pool, one at a time, with --timeout seconds each; their times include the pipe.

What it doesn't measure: completions of a real model, whose mistakes aren't made by rule.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import common

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simko_mlx.config import VerifierConfig
from simko_mlx.types import Completion, Problem, RolloutGroup, UserError
from simko_mlx.verifiers.math import verify
from simko_mlx.verifiers.numbers import boxed
from simko_mlx.verifiers.pool import VerifierPool
from tests.verifiers.math_cases import NEAR_MISSES, REWRITINGS, cases
from tests.verifiers.pathological_cases import CASES

SOLUTION_COLUMNS = ("solution", "reward_model.ground_truth.solution")
WARM_UP = (r"\boxed{\sqrt{8}}", r"2\sqrt{2}")
WRONG_FOR = ("7", r"\frac{\sqrt{2}}{2} + x")  # answers that no pathological completion has
SHOWN = 20


class Judged(NamedTuple):
    name: str
    answer: str
    given: str
    correct: bool
    seconds: float


def solutions_of(path: str) -> list[str]:
    import duckdb

    for column in SOLUTION_COLUMNS:
        try:
            rows = duckdb.execute(f"SELECT {column} FROM read_parquet(?)", [path]).fetchall()
        except duckdb.BinderException:
            continue
        return [row[0] for row in rows]
    raise UserError(f"{path} has none of the columns {', '.join(SOLUTION_COLUMNS)}.")


def judge(items: Iterable[tuple[str, str, str]], completion: str = "{}") -> list[Judged]:
    """``items``: (name, answer, given)."""
    judged = []
    for name, answer, given in items:
        text = completion.replace("{}", given)
        start = time.perf_counter()
        correct = verify(text, answer, {}).correct
        judged.append(Judged(name, answer, given, correct, time.perf_counter() - start))
    return judged


def times(seconds: Sequence[float]) -> list[str]:
    """Median, 95th percentile and largest, in milliseconds."""
    ordered = sorted(1e3 * s for s in seconds)
    figures = (statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))], ordered[-1])
    return [f"{figure:.2f}" for figure in figures]


def summary(kind: str, judged: Sequence[Judged], want: bool) -> list[str]:
    right = sum(one.correct == want for one in judged)
    return [
        kind,
        "accepted" if want else "refused",
        f"{right} of {len(judged)}",
        f"{100 * right / len(judged):.2f} %",
        *times([one.seconds for one in judged]),
    ]


def print_failures(kind: str, judged: Sequence[Judged], want: bool) -> None:
    wrong = [one for one in judged if one.correct != want]
    print(f"\n{kind}: {len(wrong)} judged wrongly")
    for one in wrong[:SHOWN]:
        print(f"  {one.name}: {one.answer!r} / {one.given[-100:]!r}")


def print_rules(kind: str, judged: Sequence[Judged], want: bool) -> None:
    count = Counter(one.name for one in judged)
    right = Counter(one.name for one in judged if one.correct == want)
    rows = [[name, str(right[name]), str(n)] for name, n in sorted(count.items())]
    print(f"\n{common.table([kind, 'right', 'of'], rows)}")


def pathological(name: str, timeout: float) -> list[str]:
    """One row: how many calls, the wrongly rewarded, the workers lost, times."""
    seconds, rewarded, lost = [], 0, 0
    with VerifierPool(VerifierConfig(name=name, timeout=timeout, workers=1)) as pool:
        pool.verify_groups([group(*WARM_UP)])
        for answer in WRONG_FOR:
            for text in CASES.values():
                pids, start = pool.pids, time.perf_counter()
                ((verdict,),) = pool.verify_groups([group(text, answer)])
                seconds.append(time.perf_counter() - start)
                rewarded += verdict.reward != 0.0
                lost += pool.pids != pids
    return [name, str(len(seconds)), str(rewarded), str(lost), *times(seconds)]


def group(text: str, answer: str) -> RolloutGroup:
    problem = Problem("p", ({"role": "user", "content": ""},), answer, {})
    return RolloutGroup(problem, (0,), (Completion((1,), (0.0,), text, "stop"),))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parquet", help="the MATH problems")
    parser.add_argument("--count", type=int, default=500, help="rewritings, and near misses")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=4.0)
    parser.add_argument("--json", help="write everything that was judged to this file")
    args = parser.parse_args()

    common.print_machine(common.machine())
    print(f"math-verify {version('math-verify')}, sympy {version('sympy')}, seed {args.seed}\n")
    solutions = solutions_of(args.parquet)
    golds = [gold for gold in map(boxed, solutions) if gold and gold.strip()]
    judge([("warm up", WARM_UP[1], WARM_UP[0])])
    parts: list[tuple[str, list[Judged], bool]] = [
        ("reference solutions", judge(("MATH", boxed(s) or "", s) for s in solutions), True)
    ]
    for kind, rules, want in (
        ("rewritings", REWRITINGS, True),
        ("near misses", NEAR_MISSES, False),
    ):
        found = cases(rules, golds, args.count, args.seed)
        parts.append((kind, judge(found, r"so it is $\boxed{{}}$."), want))

    header = ["", "", "", "share", "p50 ms", "p95 ms", "max ms"]
    print(common.table(header, [summary(*part) for part in parts], left=2))
    for part in parts:
        print_failures(*part)
    for part in parts[1:]:
        print_rules(*part)
    header = ["pathological", "calls", "rewarded", "workers lost", "p50 ms", "p95 ms", "max ms"]
    rows = [pathological(name, args.timeout) for name in ("math", "number")]
    print(f"\n{common.table(header, rows)}")
    content: dict[str, Any] = {kind: [one._asdict() for one in judged] for kind, judged, _ in parts}
    common.write_json(args.json, content)


if __name__ == "__main__":
    main()
