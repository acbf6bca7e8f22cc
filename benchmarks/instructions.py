"""What a run under instructions writes, beyond what its verifier judges: base against trained.

    python benchmarks/instructions.py RUN [RUN ...]

On each run's held-out problems, with the same random numbers before and after: the paired
difference in pass@1 from the run's own evaluations (95 % interval over problems), and of new
completions the share that is correct, the share whose every sentence belongs to the little
language (which no reward asks for), words per completion, and how many of a problem's completions
differ. Then a few completions of the first problems, the first that was drawn and not a choice.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from simko_mlx import data
from simko_mlx.config_sources import from_run
from simko_mlx.data.little_language import is_grammatical
from simko_mlx.evaluate import Evaluation
from simko_mlx.metrics import clustered_interval
from simko_mlx.policy import Policy, load_base, load_policy
from simko_mlx.rollout import Sampling, rollout
from simko_mlx.types import Problem, RolloutGroup
from simko_mlx.verifiers.constraints import verify

SAMPLES, SHOWN = 8, 10


def paired(run: Path) -> str:
    """The gain in pass@1 over the problems of the run's own first and last evaluation."""
    rows = [json.loads(p.read_text(encoding="utf-8")) for p in (run / "evaluations").glob("*.json")]
    found = {e.label: e for e in map(Evaluation.from_json, rows)}
    before, after = found["base"], found["trained"]
    assert before.problem_ids == after.problem_ids
    pairs = zip(before.counts, after.counts, strict=True)
    gain = clustered_interval([(b - a) / before.n for a, b in pairs])
    return f"pass@1 {100 * gain.estimate:+.1f} [{100 * gain.low:.1f}, {100 * gain.high:.1f}] points"


def sample(policy: Policy, problems: list[Problem], seed: int) -> list[RolloutGroup]:
    config = policy.config
    prompts, _ = policy.prompts.encode_all(problems, None)
    length = config.rollout.max_completion_length
    sampling = Sampling(SAMPLES, length, 1.0, seed, "text", config.rollout.batch_size, 512)
    return rollout(policy, prompts, sampling)


def describe(groups: list[RolloutGroup]) -> str:
    texts = [(group.problem, c.text) for group in groups for c in group.completions]
    correct = np.mean([verify(text, p.answer, p.columns).correct for p, text in texts])
    grammatical = np.mean([is_grammatical(text) for _, text in texts])
    words = np.mean([len(text.split()) for _, text in texts])
    different = np.mean([len({c.text for c in group.completions}) for group in groups])
    return (
        f"correct {100 * correct:.1f} %, grammatical {100 * grammatical:.1f} %, {words:.1f} words, "
        f"{different:.2f} of {SAMPLES} differ"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    for run in parser.parse_args().runs:
        config = from_run(run / "config.yaml")
        heldout = data.load(config.data).heldout
        print(f"{run}: {paired(run)}")
        shown = []
        for name in ("base", "trained"):
            trained = name == "trained"
            policy = load_policy(config, adapter=run / "adapters") if trained else load_base(config)
            groups = sample(policy, heldout, config.seed)
            shown.append(groups[:SHOWN])
            print(f"  {name:8} {describe(groups)}")
        for before, after in zip(*shown, strict=True):
            print(f"  {before.problem.messages[-1]['content']}")
            for group in (before, after):
                text = group.completions[0].text
                good = verify(text, "", group.problem.columns).correct
                print(f"    {'+' if good else '-'} {text!r}")


if __name__ == "__main__":
    main()
