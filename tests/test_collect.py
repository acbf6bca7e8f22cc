"""A step's completions with their verdicts: what happens when the verifier fails."""

from __future__ import annotations

import pytest

from simko_mlx.collect import _check_faults
from simko_mlx.types import UserError, Verdict
from tests.verifiers.test_pool import group

FAULT = Verdict(None, False, "no sandbox", fault=True)
WRONG = Verdict(0.0, False, "timeout")
NOT_APPLICABLE = Verdict(None, False, "not applicable")


def check(*verdicts, limit=0.2):
    half = len(verdicts) // 2
    rows = [list(verdicts[:half]), list(verdicts[half:])]
    groups = [group(*(f"text {i}.{j}" for j in range(len(r)))) for i, r in enumerate(rows)]
    _check_faults(groups, dict(enumerate(rows)), "code", limit)


def test_many_faults_stop_the_run_with_examples():
    with pytest.raises(UserError) as caught:
        check(*[WRONG] * 7, FAULT, FAULT, FAULT)
    text = str(caught.value)
    assert "verifier code failed for 3 of this step's 10 completions" in text
    assert "no sandbox with 'text 1.2' of problem p" in text and "max_fault_rate (0.2)" in text


def test_few_faults_don_t_and_neither_does_what_completions_cause():
    check(*[WRONG] * 8, FAULT, FAULT)
    check(*[WRONG] * 10)
    check(*[NOT_APPLICABLE] * 10)
    check(*[FAULT] * 10, limit=1.0)
