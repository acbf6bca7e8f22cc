"""Several verifiers that judge together."""

from __future__ import annotations

import pytest

from simko_mlx.config import VerifierConfig
from simko_mlx.types import UserError, Verdict
from simko_mlx.verifiers import Part, combined, parts_of
from simko_mlx.verifiers.pool import VerifierPool
from tests.verifiers.test_pool import group

NO = Verdict(None, False, "not applicable")


def part(weight=1.0, decides=True, name="v"):
    return Part(name, {}, weight, decides)


@pytest.mark.parametrize(
    ("verdicts", "reward", "correct"),
    [
        ([(part(), Verdict(1.0, True))], 1.0, True),
        ([(part(2.0), Verdict(1.0, True))], 2.0, True),
        ([(part(), Verdict(1.0, True)), (part(0.5), Verdict(0.0, False))], 1.0, False),
        ([(part(), Verdict(1.0, True)), (part(0.5, False), Verdict(0.0, False))], 1.0, True),
        ([(part(), Verdict(0.0, False)), (part(0.5, False), Verdict(1.0, True))], 0.5, False),
        ([(part(), NO), (part(0.5), Verdict(1.0, True))], 0.5, True),
        ([(part(), NO), (part(0.5, False), Verdict(1.0, True))], 0.5, False),
        ([(part(), NO), (part(), NO)], None, False),
        ([(part(), Verdict(1.0, True)), (part(), Verdict(None, False, fault=True))], None, False),
        ([(part(), Verdict(1.0, True)), (part(-1.0, False), Verdict(0.25, False))], 0.75, True),
    ],
)
def test_the_sum_of_what_applies(verdicts, reward, correct):
    found = combined(verdicts)
    assert (found.reward, found.correct) == (reward, correct)
    assert found.fault == any(v.fault for _, v in verdicts)


def test_reasons_and_what_was_taken():
    first, second = Verdict(0.0, False, "too long"), Verdict(1.0, True, "fine", "42")
    found = combined([(part(name="a"), first), (part(name="b"), second)])
    assert found.detail == "a: too long; b: fine" and found.taken == "42"


def test_in_the_pool():
    entries = [{"name": "number"}, {"name": "exact", "weight": 0.25, "decides": False}]
    with VerifierPool(VerifierConfig(combine=entries)) as pool:
        ((both, one, none),) = pool.verify_groups([group("4", "it is 4", "5")])
        assert pool.name == "number + exact"
    assert (both.reward, both.correct) == (1.25, True)
    assert (one.reward, one.correct) == (1.0, True)
    assert (none.reward, none.correct) == (0.0, False)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (VerifierConfig(options={"tolerance": 1}, name="exact"), "exact has no option 'tolerance'"),
        (VerifierConfig(combine=[]), "combine is empty"),
        (VerifierConfig(combine=[{"nmae": "exact"}]), "combine.0 has no key 'nmae'.*name"),
        (VerifierConfig(combine=[{"weight": 1}]), "combine.0 has no name"),
        (VerifierConfig(combine=[{"name": "exakt"}]), "did you mean exact"),
        (VerifierConfig(combine=[{"name": "exact", "weight": "much"}]), "give a number"),
        (VerifierConfig(combine=[{"name": "exact", "decides": 1}]), "true or false"),
        (VerifierConfig(combine=[{"name": "exact", "options": [1]}]), "give a mapping"),
        (VerifierConfig(combine=[{"name": "exact", "decides": False}]), "no entry that decides"),
        (VerifierConfig(combine=[{"name": "exact"}], options={"a": 1}), "its own options"),
    ],
)
def test_what_is_malformed_is_told(config, words):
    with pytest.raises(UserError, match=words) as caught:
        parts_of(config)
    assert "\n" not in str(caught.value)
