"""The json verifier: what is read, what fits, what equals the answer."""

from __future__ import annotations

import sys

import pytest

from simko_mlx.types import UserError
from simko_mlx.verifiers import json as verifier
from simko_mlx.verifiers.json import last_block, same, verify
from tests.verifiers.hostile import HOSTILE

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ('{"name": "Ada", "age": 36}', None),
        ('Here:\n```json\n{"name": "Ada", "age": 36}\n```\nDone.', None),
        ('```\n{"name": "Ada", "age": 36}\n```', None),
        ('```json {"name": "Ada", "age": 36}```', None),
        ('```json\n{}\n```\nbetter:\n```json\n{"name": "Ada", "age": 36}\n```', None),
        ('```json\n{"name": "Ada", "age": 36}\n```\n```json\n{}\n```', "schema"),
        ('Here: {"name": "Ada", "age": 36}', "not JSON"),
        ('{"name": "Ada"}', "schema: 'age' is a required property"),
        ('{"name": "Ada", "age": -1}', "schema"),
        ('{"name": "Ada", "age": "36"}', "schema"),
        ('{"name": "Ada", "age": NaN}', "not JSON: NaN"),
        ("{'name': 'Ada', 'age': 36}", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 10_000, "not JSON"),
    ],
)
def test_against_a_schema(text, detail):
    for options, columns in (({"schema": PERSON}, {}), ({"column": "s"}, {"s": PERSON})):
        verdict = verify(text, "", columns, **options)
        assert verdict.correct == (detail is None) and verdict.reward == float(verdict.correct)
        assert verdict.detail.startswith(detail or "")


def test_a_schema_as_text_and_with_the_nulls_of_a_table():
    assert verify("3", "", {"s": '{"type": "integer"}'}, column="s").correct
    columns = {"s": {"type": "integer", "items": None, "enum": None}}
    assert verify("3", "", columns, column="s").correct


@pytest.mark.parametrize(
    ("text", "answer", "equal"),
    [
        ('{"b": [1, 2.0], "a": null}', '{"a": null, "b": [1.0, 2]}', True),
        ("1", "true", False),
        ("0", "false", False),
        ("true", "true", True),
        ("[1, 2]", "[2, 1]", False),
        ('"x"', '"x"', True),
        ('{"a": 1, "b": 2}', '{"a": 1}', False),
    ],
)
def test_the_value_may_have_to_equal_the_answer(text, answer, equal):
    verdict = verify(text, answer, {}, compare=True)
    assert (verdict.correct, verdict.taken) == (equal, text)
    assert verify(text, answer, {}).correct


@pytest.mark.parametrize(
    ("options", "answer", "says"),
    [
        ({"schema": {"type": "no such type"}}, "", "The schema of the verifier json is none"),
        ({"schema": PERSON, "column": "s"}, "", "leave one out"),
        ({"column": "missing"}, "", "no JSON Schema"),
        ({"column": "s"}, "", "The column 's' isn't JSON"),
        ({"compare": True}, "forty-two", "The row's answer isn't JSON"),
    ],
)
def test_what_the_user_got_wrong(options, answer, says):
    with pytest.raises(UserError, match=says):
        verify("{}", answer, {"s": "{"}, **options)


def test_a_pattern_that_is_none_and_numbers_out_of_range():
    with pytest.raises(UserError, match="is not a 'regex'"):
        verify('"x"', "", {}, schema={"type": "string", "pattern": "("})
    assert not verify("1e308", "", {}, schema={"multipleOf": 1e-308}).correct


def test_nothing_is_fetched_for_a_reference():
    schema = {"$ref": "http://127.0.0.1:9/schema.json"}
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9"):
        verify("{}", "", {}, schema=schema)


def test_without_jsonschema_the_extra_is_named(monkeypatch):
    verifier._validator.cache_clear()
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(UserError, match=r"pip install 'simko-mlx\[json\]'"):
        verify("{}", "", {}, schema=PERSON)
    assert verify("{}", "{}", {}, compare=True).correct


def test_blocks_and_equality_of_deep_values():
    assert last_block("a ```x\n1\n``` b ```2") == "1"
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RecursionError):
        same(deep, deep)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text(name):
    for text in (HOSTILE[name], f"```json\n{HOSTILE[name]}\n```", f'"{HOSTILE[name]}"'):
        verdict = verify(text, "[]", {}, schema=PERSON, compare=True)
        assert (verdict.reward, verdict.correct) == (0.0, False)
        assert 0 < len(verdict.detail) < 300
