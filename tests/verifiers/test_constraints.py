"""IFEval's constraints: a case on each side of each, and what a row may get wrong."""

from __future__ import annotations

import re
import sys
import time

import pytest

from simko_mlx.types import UserError
from simko_mlx.verifiers.constraints import verify
from simko_mlx.verifiers.constraints_checks import CHECKS, count_sentences
from tests.verifiers.hostile import HOSTILE

# name, kwargs, texts that meet it, texts that don't
CASES = [
    ("keywords:existence", {"keywords": ["cat", "Dog"]},
     ["Cats chase a dog"], ["A cat", "c.at dog"]),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "at least"},
     ["cat, Cat"], ["cat"]),
    ("keywords:frequency", {"keyword": "a.b", "frequency": 1, "relation": "less than"},
     ["axb"], ["a.b"]),
    ("keywords:forbidden_words", {"forbidden_words": ["art", "paint"]},
     ["a party"], ["modern ART.", "paint"]),
    ("keywords:letter_frequency", {"letter": "B", "let_frequency": 3, "let_relation": "at least"},
     ["bBb"], ["bb"]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"},
     ["One. Two.", "One! Two"], ["One, two."]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"},
     ["Dr. No has 3.5 e.g. coins.", "J. Bond it is."], ["A dog. A cat."]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2},
     ["a\n***\nb", "***a***b***"], ["a\n\nb", "a***b***c", "a*** ***b"]),
    ("length_constraints:number_words", {"num_words": 3.0, "relation": "at least"},
     ["one two three"], ["one two", "one-two !"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"},
     ["one two"], ["one two three"]),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
     ["First\n\nthen, more", 'a\n\n"Then" b'], ["then\n\nfirst", "a\n\nb\n\nthen", "a"]),
    ("detectable_content:number_placeholders", {"num_placeholders": 2},
     ["[name] lives at [address]"], ["[name]", "[a\n] [b]", "[[name]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."},
     ["Text\nP.S. more", "p. s. it"], ["PS more"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["P.P.S. hm"], ["P.S. hm"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2},
     ["* a\n* b", "- a\n  - b", "* a\n- b\n**bold**"], ["* a", "* a\n* b\n* c"]),
    ("detectable_format:constrained_response", {}, ["My answer is maybe."], ["maybe", "My answer"]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2},
     ["*a* and *b*", "*a* and **b**"], ["*a*", "* *  * *", "*a\nb* *c*"]),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
     ["Section 1\na\nSection 2\nb"], ["Section 1", "Section a Section b"]),
    ("detectable_format:json_format", {}, ['{"a": 1}', '```json\n[1]\n```'], ["{a: 1}", "see {}"]),
    ("detectable_format:title", {}, ["<<Joy>>\ntext"], ["<< >>", "<<a\nb>>", ">>a<<"]),
    ("combination:two_responses", {}, ["a\n******\nb"], ["a", "a******a", "a******b******c"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi"},
     ["say hi\nHi"], ["Sure. Say hi"]),
    ("startend:end_checker", {"end_phrase": "The end."}, ["Bye. the end.", '"The end."'],
     ["The end. Bye"]),
    ("startend:quotation", {}, ['"all of it"'], ['"some" of it', '"', '""x']),
    ("change_case:capital_word_frequency",
     {"capital_frequency": 2, "capital_relation": "at least"},
     ["NASA met ESA-X"], ["NASA met them"]),
    ("change_case:english_capital", {}, ["LOUD 1!"], ["Loud", "1"]),
    ("change_case:english_lowercase", {}, ["quiet 1!"], ["Quiet", "1"]),
    ("punctuation:no_comma", {}, ["a b"], ["a, b"]),
]  # fmt: skip
# What a row of the public data set holds: every parameter there is, most of them null.
NULLS = dict.fromkeys(key for _, kwargs, _, _ in CASES for key in kwargs)


def row(*constraints: tuple[str, dict]) -> dict:
    return {
        "instruction_id_list": [name for name, _ in constraints],
        "kwargs": [NULLS | kwargs for _, kwargs in constraints],
    }


@pytest.mark.parametrize(("name", "kwargs", "good", "bad"), CASES)
def test_each_constraint_on_both_sides(name, kwargs, good, bad):
    for text in good:
        assert verify(text, "", row((name, kwargs))).correct, text
    for text in [*bad, "", " \n"]:
        verdict = verify(text, "", row((name, kwargs)))
        assert (verdict.reward, verdict.correct, verdict.detail) == (0.0, False, f"failed: {name}")


def test_every_constraint_has_a_case():
    assert {name for name, *_ in CASES} | {"language:response_language"} == set(CHECKS)
    assert len(CHECKS) == 25


def test_the_reward_is_the_share_that_is_met():
    columns = row(
        ("punctuation:no_comma", {}),
        ("change_case:english_lowercase", {}),
        ("length_constraints:number_words", {"num_words": 2, "relation": "at least"}),
        ("startend:quotation", {}),
    )
    verdict = verify("Two words", "", columns)
    assert verdict.reward == 0.5 and not verdict.correct
    assert verdict.detail == "failed: change_case:english_lowercase, startend:quotation"
    assert verify("Two words", "", columns, all_or_nothing=True).reward == 0.0
    right = verify('"two words"', "", columns, all_or_nothing=True)
    assert (right.reward, right.correct, right.detail) == (1.0, True, "")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({}, "needs the column instruction_id_list"),
        ({"instruction_id_list": []}, "needs the column instruction_id_list"),
        ({"instruction_id_list": ["a"], "kwargs": [{}, {}]}, "one mapping for each"),
        ({"instruction_id_list": ["a"], "kwargs": "{}"}, "one mapping for each"),
        (row(("length_constraints:number_word", {})), "nearest is length_constraints:number_words"),
        (row(("keyword:existance", {})), "nearest is keywords:existence"),
        (row(("keywords:existence", {"keywords": "cat"})), "a list of texts as keywords"),
        (row(("startend:end_checker", {})), "startend:end_checker needs a text as end_phrase"),
        (
            row(("length_constraints:number_words", {"num_words": True, "relation": "at least"})),
            "a number as num_words",
        ),
        (
            row(("length_constraints:number_words", {"num_words": 3, "relation": "over"})),
            "relation 'over'",
        ),
    ],
)
def test_what_a_row_gets_wrong_is_said(columns, says):
    with pytest.raises(UserError, match=re.escape(says)):
        verify("some text", "", columns)


def test_constraints_without_parameters_need_no_kwargs():
    assert verify("a b", "", {"instruction_id_list": ["punctuation:no_comma"]}).correct


def test_a_language_is_asked_of_langdetect():
    pytest.importorskip("langdetect", reason="langdetect isn't installed")
    columns = row(("language:response_language", {"language": "de"}))
    assert verify("Das ist ein ganz gewöhnlicher deutscher Satz.", "", columns).correct
    assert not verify("This is a perfectly ordinary English sentence.", "", columns).correct
    assert not verify("12345", "", columns).correct
    assert not verify("\ud800" * 100, "", columns).correct


def test_without_langdetect_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(UserError, match=r"pip install 'simko-mlx\[constraints\]'"):
        verify("text", "", row(("language:response_language", {"language": "de"})))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("no end", 1),
        ("One. Two? Three!", 3),
        ("Wait... what?!", 2),
        ("He said \u201cgo.\u201d Then he went.", 2),
        ("Mr. and Mrs. Smith paid 3.50 to J. Doe.", 1),
        ("See v1.2.3 at a.b.com. Done.", 2),
        ("So do I. And you?", 2),
        ("これは文です。次の文です。", 2),
    ],
)
def test_sentences(text, count):
    assert count_sentences(text) == count


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text(name):
    columns = row(*((name, kwargs) for name, kwargs, _, _ in CASES))
    began = time.process_time()
    verdict = verify(HOSTILE[name], "", columns)
    assert not verdict.correct and 0 <= (verdict.reward or 0) < 1
    assert time.process_time() - began < 5
