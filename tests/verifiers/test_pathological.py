"""More than fifty pathological completions through the real pool: none hangs, none is right."""

import time

import pytest

from simko_mlx.config import VerifierConfig
from simko_mlx.types import Completion, Problem, RolloutGroup
from simko_mlx.verifiers.pool import VerifierPool
from tests.verifiers.pathological_cases import CASES

TIMEOUT = 4.0
GRACE = 0.5
ANSWERS = ["7", r"\frac{\sqrt{2}}{2} + x"]


def group(text: str, answer: str) -> RolloutGroup:
    problem = Problem("p", ({"role": "user", "content": "q"},), answer, {})
    return RolloutGroup(problem, (0,), (Completion((1,), (0.0,), text, "stop"),))


@pytest.mark.parametrize("name", ["number", "math"])
def test_pathological_completions(name):
    if name == "math":
        pytest.importorskip("math_verify", reason="math-verify, of the extra 'math', is missing")
    assert len(CASES) >= 50
    with VerifierPool(VerifierConfig(name=name, timeout=TIMEOUT, workers=1)) as pool:
        # The first comparison of expressions imports sympy.
        pool.verify_groups([group(r"\boxed{\sqrt{8}}", r"2\sqrt{2}")])
        pids = pool.pids
        for answer in ANSWERS:
            for case, text in CASES.items():
                start = time.monotonic()
                ((verdict,),) = pool.verify_groups([group(text, answer)])
                took = time.monotonic() - start
                assert took < TIMEOUT + GRACE, case
                assert verdict.reward == 0.0 and not verdict.correct, (case, verdict)
                assert pool.pids == pids, f"{case}: the worker had to be replaced"
        assert pool.verify_groups([group(r"\boxed{7}", "7")])[0][0].correct
