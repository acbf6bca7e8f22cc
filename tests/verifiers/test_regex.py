"""The regex verifier, and that the pool ends a pattern that backtracks."""

from __future__ import annotations

import time

import pytest

from simko_mlx.config import VerifierConfig
from simko_mlx.types import Completion, Problem, RolloutGroup, UserError
from simko_mlx.verifiers.pool import VerifierPool
from simko_mlx.verifiers.regex import verify
from tests.verifiers.hostile import HOSTILE


@pytest.mark.parametrize(
    ("text", "options", "taken"),
    [
        ("2024-05-01", {"pattern": r"\d{4}-\d\d-\d\d"}, "2024-05-01"),
        (" 2024-05-01\n", {"pattern": r"\d{4}-\d\d-\d\d"}, "2024-05-01"),
        ("on 2024-05-01.", {"pattern": r"\d{4}-\d\d-\d\d"}, None),
        ("on 2024-05-01.", {"pattern": r"\d{4}-\d\d-\d\d", "search": True}, "2024-05-01"),
        ("YES", {"pattern": "(?i)yes|no"}, "YES"),
        ("abc", {"column": "p"}, "abc"),
        ("abd", {"column": "p"}, None),
    ],
)
def test_matching(text, options, taken):
    verdict = verify(text, "", {"p": "ab?c"}, **options)
    assert verdict.correct == (taken is not None) and verdict.taken == taken
    assert verdict.reward == float(verdict.correct)
    assert bool(verdict.detail) != verdict.correct


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "needs one of two options"),
        ({"pattern": "a", "column": "p"}, "needs one of two options"),
        ({"column": "q"}, "no text in the column 'q'"),
        ({"pattern": "a("}, "is no regular expression .*position 1"),
        ({"column": "p"}, r"'\[' in the column 'p' is no regular expression"),
    ],
)
def test_what_is_no_pattern(options, says):
    with pytest.raises(UserError, match=says):
        verify("a", "", {"p": "["}, **options)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text(name):
    assert not verify(HOSTILE[name], "", {}, pattern=r"\d{4}-\d\d-\d\d").correct
    assert not verify(HOSTILE[name], "", {}, pattern=r"\d{4}-\d\d-\d\d", search=True).correct


def test_a_pattern_that_backtracks_is_ended_by_the_deadline():
    texts = ("a" * 60 + "!", "aaa")
    group = RolloutGroup(
        Problem("p", ({"role": "user", "content": "q"},), "-"),
        (0,),
        tuple(Completion((1,), (0.0,), text, "stop") for text in texts),
    )
    config = VerifierConfig(name="regex", options={"pattern": "(a+)+"}, timeout=0.5)
    began = time.monotonic()
    with VerifierPool(config) as pool:
        (slow, fine), *_ = pool.verify_groups([group])
    assert (slow.reward, slow.fault) == (0.0, False) and "timeout" in slow.detail
    assert fine.correct
    assert time.monotonic() - began < 30
