"""What a run of constraints-tiny writes, beyond its score: base against trained.

    python benchmarks/instructions.py RUN

Of new completions to the run's held-out problems, drawn with the same random numbers before and
after: the share that is correct, the share whose every sentence belongs to the little language
(which no reward asks for), words per completion, how many of a problem's completions differ, and
how many meet each kind of constraint where it is asked for. Then the first completion of the first
problems, whatever it is: + correct, - not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from simko_mlx import data
from simko_mlx.config_sources import from_run
from simko_mlx.data.instructions import KINDS
from simko_mlx.data.little_language import is_grammatical
from simko_mlx.policy import Policy, load_base, load_policy
from simko_mlx.rollout import Sampling, rollout
from simko_mlx.types import Problem, RolloutGroup
from simko_mlx.verifiers.constraints import verify

SAMPLES, SHOWN = 8, 12


def sample(policy: Policy, problems: list[Problem]) -> list[RolloutGroup]:
    config = policy.config
    prompts, _ = policy.prompts.encode_all(problems, policy.max_prompt_length)
    length, rows = config.rollout.max_completion_length, config.rollout.batch_size
    return rollout(policy, prompts, Sampling(SAMPLES, length, 1.0, config.seed, "text", rows, 512))


def is_correct(text: str, problem: Problem) -> bool:
    return verify(text, problem.answer, problem.columns).correct


def overall(groups: list[RolloutGroup]) -> str:
    texts = [(group.problem, c.text) for group in groups for c in group.completions]
    correct = np.mean([is_correct(text, problem) for problem, text in texts])
    grammatical = np.mean([is_grammatical(text) for _, text in texts])
    words = np.mean([len(text.split()) for _, text in texts])
    different = np.mean([len({c.text for c in group.completions}) for group in groups])
    return (
        f"correct {100 * correct:.1f} %, grammatical {100 * grammatical:.1f} %, {words:.1f} words, "
        f"{different:.2f} of {SAMPLES} differ"
    )


def by_kind(groups: list[RolloutGroup]) -> dict[str, float]:
    """The share of completions in % that meet a kind of constraint, and that name the animal."""
    met: dict[str, list[bool]] = {"animal": [], **{kind: [] for kind in KINDS}}
    for group in groups:
        columns = group.problem.columns
        asked = [part.partition("=")[0] for part in group.problem.id.split("-")[1:]]
        checks = list(zip(columns["instruction_id_list"], columns["kwargs"], strict=True))
        kinds = ["animal"]  # of each check; two checks make an exact number
        for kind in asked:
            kinds += [kind] * (2 if kind in ("words", "sentences") else 1)
        for kind in dict.fromkeys(kinds):
            mine = [check for check, k in zip(checks, kinds, strict=True) if k == kind]
            row = {"instruction_id_list": [i for i, _ in mine], "kwargs": [k for _, k in mine]}
            met[kind] += [verify(c.text, "", row).correct for c in group.completions]
    return {kind: 100 * float(np.mean(values)) for kind, values in met.items() if values}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    config = from_run(run / "config.yaml")
    heldout = data.load(config.data).heldout
    base = sample(load_base(config), heldout)
    trained = sample(load_policy(config, adapter=run / "adapters"), heldout)
    print(f"base     {overall(base)}\ntrained  {overall(trained)}\n")
    shares = by_kind(base), by_kind(trained)
    for kind, share in shares[0].items():
        print(f"{kind:10} {share:5.1f} -> {shares[1][kind]:5.1f} %")
    for before, after in zip(base[:SHOWN], trained[:SHOWN], strict=True):
        print(f"\n{before.problem.messages[-1]['content']}")
        for name, group in (("base", before), ("trained", after)):
            text = group.completions[0].text
            print(f"  {name:8} {'+' if is_correct(text, group.problem) else '-'} {text!r}")


if __name__ == "__main__":
    main()
