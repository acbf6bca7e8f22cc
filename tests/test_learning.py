"""The shipped recipe learns: held-out pass@1 grows, for each strategy too, whatever the seed.

GRPO and full tuning of the same world learn as much in all, but may let one strategy fall behind:
with seed 21 GRPO ends L at 1.2 times the base, whichever way the head is computed.
"""

from __future__ import annotations

import pytest

from simko_mlx.config_sources import resolve
from tests.runs import run

pytestmark = pytest.mark.slow

FULL = ["policy.fine_tune_type=full", "optim.learning_rate=3e-4"]
CASES = {
    "simko-lora-21": (21, []),
    "simko-lora-22": (22, []),
    "simko-lora-23": (23, []),
    "grpo-lora": (21, ["loss.name=grpo"]),
    "simko-full": (21, FULL),
    "grpo-full": (21, ["loss.name=grpo", *FULL]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_recipe_learns(case, tmp_path):
    seed, sets = CASES[case]
    resolved = resolve(None, environ={}, flags={"seed": seed}, sets=sets)
    summary, _ = run(resolved.config, tmp_path / "run")
    base, trained = summary.base, summary.trained
    assert base is not None and trained is not None and base.chance is not None
    before, after = (e.pass_at_k[1].estimate for e in (base, trained))
    assert 0.10 <= before <= 0.30 and base.chance[1] < before
    assert after >= 1.4 * before
    assert set(base.groups) == {"strategy L", "strategy O", "strategy R"}
    factor = 1.2 if case.startswith("simko-lora") else 1.0
    for name, interval in base.groups.items():
        assert trained.groups[name].estimate >= factor * interval.estimate, name
    assert trained.problem_ids == base.problem_ids and base.problems == 300
    assert summary.best_step in (20, 40, 60)
