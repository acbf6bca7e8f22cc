"""Examines every task of reasoning-gym: does it accept its own answers, and refuse wrong ones?

    python benchmarks/gym_tasks.py [--tasks a,b] [--seeds 3] [--size 10] [--twice] [--json out.json]

Each answer is judged as in training: through the verifier ``gym:<task>``, with an entry that has
been through JSON as on its way to a worker. For each probe the share of problems is printed in
which it gets the full reward. A task is suspicious when its own answer doesn't always, or a wrong
one does; which of the suspicious are excluded is decided by reading (some have several right
answers, or none but a yes and a no) and written into ``simko_mlx/verifiers/gym_tasks.py``.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
from collections.abc import Iterator
from typing import Any

from simko_mlx.data import gym as gym_data
from simko_mlx.verifiers import gym
from simko_mlx.verifiers.gym_tasks import EXCLUDED

# These put their answer elsewhere, because many are right.
EXAMPLES = ("possible_answer", "example_answer", "example_correct_answer")
CONSTANTS = ("0", "1", "-1", "0.0", "[]", "{}", "()", "True", "No", "None", "nan", "inf")
SECONDS = 120  # for one task


def gold_of(entry: dict[str, Any]) -> str | None:
    """The entry's own answer, as text; None if it has none."""
    if isinstance(entry["answer"], str):
        return entry["answer"]
    found = next((entry["metadata"][k] for k in EXAMPLES if entry["metadata"].get(k)), None)
    return found if found is None or isinstance(found, str) else json.dumps(found)


def equal(left: str, right: str) -> bool:
    """As text, or as numbers."""
    try:
        return abs(float(left) - float(right)) < 1e-9
    except ValueError:
        return left.strip().lower() == right.strip().lower()


def probes(entry: dict[str, Any], other: str | None, rng: random.Random) -> Iterator[tuple]:
    """(name, answer) of what is tried; of these only "gold" is sure to be right."""
    gold = gold_of(entry)
    yield "blank", " "
    yield "question", entry["question"]
    for text in ("junk", *CONSTANTS):
        if gold is None or not equal(text, gold):
            yield text, text
    if premises := entry["metadata"].get("premises"):
        yield "premise", premises[0]
    if other is not None and other != gold:
        yield "other's", other
    if gold is None:
        return
    yield "gold", gold
    letters, words = list(gold), gold.split()
    rng.shuffle(letters)
    rng.shuffle(words)
    if letters != list(gold):
        yield "letters shuffled", "".join(letters)
    if words != gold.split():
        yield "words shuffled", " ".join(words)
    yield "gold + junk", f"{gold} xyzzy plugh"
    yield "junk + gold", f"xyzzy plugh {gold}"
    if other is not None and other != gold:
        yield "gold or other's", f"{gold} or {other}"
        yield "other's or gold", f"{other} or {gold}"


def examine(task: str, seeds: int, size: int) -> dict[str, dict[str, Any]]:
    """probe -> share with full reward, mean reward, how many were tried, an example."""
    verify = gym.make(task)
    found: dict[str, list[tuple[float, bool, str]]] = {}
    for seed in range(seeds):
        data = gym.dataset(task, seed=seed, size=size)
        entries = [data[i] for i in range(size)]
        golds = [gold_of(entry) for entry in entries]
        for i, entry in enumerate(entries):
            row = json.loads(json.dumps(entry, default=str, skipkeys=True))
            rng = random.Random(f"{task} {seed} {i}")
            others = [gold for gold in golds if gold is not None and gold != golds[i]]
            other = rng.choice(others) if others else None
            for name, text in probes(row, other, rng):
                verdict = verify(f"<answer>{text}</answer>", "", row)
                found.setdefault(name, []).append((verdict.reward or 0.0, verdict.correct, text))
    return {
        name: {
            "full": sum(correct for _, correct, _ in rows) / len(rows),
            "mean": sum(reward for reward, _, _ in rows) / len(rows),
            "count": len(rows),
            "example": next((text for _, correct, text in rows if correct), "")[:200],
        }
        for name, rows in found.items()
    }


def suspicious(result: dict[str, dict[str, Any]]) -> list[str]:
    wrong = [f"{name} {row['full']:.0%}" for name, row in result.items()
             if row["full"] > 0 and name != "gold"]  # fmt: skip
    if "gold" not in result:
        return ["no gold", *wrong]
    gold = result["gold"]["full"]
    return [*([f"gold {gold:.0%}"] if gold < 1 else []), *wrong]


def main() -> None:
    parser = argparse.ArgumentParser(description="Examines every task of reasoning-gym")
    parser.add_argument("--tasks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=10)
    parser.add_argument("--twice", action="store_true", help="are the problems the same again?")
    parser.add_argument("--json")
    options = parser.parse_args()
    from reasoning_gym.factory import DATASETS

    reasons = dict(EXCLUDED)
    EXCLUDED.clear()  # the excluded ones are examined, too
    results = {}
    for task in options.tasks.split(",") if options.tasks else sorted(DATASETS):
        signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError()))
        signal.alarm(SECONDS)
        try:
            results[task] = examine(task, options.seeds, options.size)
            found = suspicious(results[task])
            if options.twice and gym_data.entries(task, 7, 30) != gym_data.entries(task, 7, 30):
                found.append("other problems each time")
            said = "; ".join(found) or "fine"
        except Exception as error:  # of a task's own code: it is what is examined
            results[task] = {}
            said = f"raised {type(error).__name__}: {error}"
        signal.alarm(0)
        mark = "excluded" if task in reasons else ""
        print(f"{task:28} {mark:8} {said}", flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as stream:
            json.dump(results, stream, indent=1)


if __name__ == "__main__":
    main()
