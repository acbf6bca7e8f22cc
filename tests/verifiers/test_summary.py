"""The summary verifier: each part alone, and together."""

from __future__ import annotations

import sys
import time

import pytest

from simko_mlx.types import UserError
from simko_mlx.verifiers.summary import copied, verify, words_of
from tests.verifiers.hostile import HOSTILE

SOURCE = "The bridge over the river Kwai opened in 1943, after sixteen months of hard work."
COLUMNS = {"source": SOURCE, "facts": ["1943", ["16 months", "sixteen months"], "Kwai"]}
GOOD = "In 1943, sixteen months after work began, the Kwai bridge was opened."


def test_length():
    assert verify("one two three", "", {}, words=[2, 3]).correct
    assert verify("one-two, three!", "", {}, words=[3, 3]).correct
    short = verify("one", "", {}, words=[2, 3])
    assert (short.reward, short.correct, short.detail) == (0.0, False, "1 words")
    assert not verify("", "", {}, words=[0, 3]).correct


def test_facts():
    assert verify(GOOD, "", COLUMNS, facts="facts").correct
    some = verify("KWAI, 16 Months", "", COLUMNS, facts="facts")
    assert some.reward == pytest.approx(2 / 3) and some.detail == "missing: 1943"
    whole_words = verify("119430 kwais sixteen month", "", COLUMNS, facts="facts")
    assert whole_words.reward == 0.0


def test_copied_spans():
    assert verify("the bridge over the Nile", "", COLUMNS, max_copied=4).correct
    span = verify("See: The BRIDGE over the river!", "", COLUMNS, max_copied=4)
    assert (span.reward, span.correct) == (0.0, False)
    assert span.detail == "copied: the bridge over the river"
    assert verify(SOURCE, "", {"text": SOURCE}, max_copied=99, source="text").correct
    assert not verify("", "", COLUMNS, max_copied=4).correct
    assert copied(words_of("a b"), words_of("a b c"), 3) == ""


def test_rouge():
    same = verify(GOOD, GOOD, {}, rouge="rougeL", min_rouge=0.9)
    assert (same.reward, same.correct) == (1.0, True)
    half = verify("the cat", "the cat sat down", {}, rouge="rouge1", min_rouge=0.7)
    assert half.reward == pytest.approx(2 / 3) and half.detail == "rouge1 0.667"
    assert not half.correct
    assert verify("word " * 5001, "word", {}, rouge="rougeL").reward == 0.0


def test_parts_together():
    options = {"words": [5, 20], "facts": "facts", "max_copied": 4}
    assert verify(GOOD, "", COLUMNS, **options).correct
    verdict = verify(SOURCE, "", COLUMNS, **options)
    assert verdict.reward == pytest.approx(2 / 3) and not verdict.correct
    assert verdict.detail.startswith("copied: the bridge over the river")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "nothing to check"),
        ({"words": [5]}, r"words is \[5\]"),
        ({"words": [5, 2]}, r"words is \[5, 2\]"),
        ({"words": 5}, "words is 5"),
        ({"facts": "no"}, "'no' must hold a list of facts"),
        ({"facts": "empty"}, "a fact without words"),
        ({"max_copied": 3, "source": "no"}, "needs text in the column 'no'"),
        ({"rouge": "bleu"}, "rouge is 'bleu'"),
    ],
)
def test_what_the_user_got_wrong(options, says):
    with pytest.raises(UserError, match=says):
        verify("some text", "x", {"empty": ["!"]}, **options)


def test_without_rouge_score_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UserError, match=r"pip install 'simko-mlx\[summary\]'"):
        verify("a", "a", {}, rouge="rougeL")
    assert verify("a", "a", {}, words=[1, 1]).correct


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text(name):
    options = {"words": [5, 20], "facts": "facts", "max_copied": 4, "rouge": "rougeL"}
    began = time.process_time()
    verdict = verify(HOSTILE[name], GOOD, COLUMNS, **options)
    assert not verdict.correct and 0 <= (verdict.reward or 0) < 1
    assert time.process_time() - began < 5
