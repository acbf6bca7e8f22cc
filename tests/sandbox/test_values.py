"""Plain data on its way out of a sandbox, and when two values are equal."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, defaultdict, namedtuple
from enum import IntEnum

import pytest

from simko_mlx.sandbox.values import DEPTH, NotPlain, decode, encode, same

Point = namedtuple("Point", "x y")


class Color(IntEnum):
    RED = 3


class Loud(str):
    def __eq__(self, other):
        return True

    __hash__ = str.__hash__

    def __str__(self):
        return "something else"

    def __getitem__(self, index):
        return "?"


def sent(value):
    return decode(json.loads(json.dumps(encode(value))))


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 2**53, -(2**70), 0.5, -0.0, 1e308, "", "a\ud800\0",
        [], [1, [2.0, (3, "x")]], (), (1,), {}, {1: 2, "1": 3, (1, 2): [None]}, set(), {1, "a"},
        frozenset({(1, 2)}), b"\x00\xff", 1j, {"t": [1]}, {"x": "y"}, [True, 1, 1.0],
        {"d": [[1, 2]]}, float("inf"), float("-inf"),
    ],
)  # fmt: skip
def test_plain_values_arrive_with_their_types(value):
    found = sent(value)
    assert type(found) is type(value) and found == value
    assert same(found, value) and same(found, value, as_json=True)


def test_subclasses_are_what_their_base_class_holds():
    assert sent(Color.RED) == 3 and type(sent(Color.RED)) is int
    assert sent(Point(1, 2)) == (1, 2) and type(sent(Point(1, 2))) is tuple
    assert sent(Counter("aab")) == {"a": 2, "b": 1}
    assert sent(OrderedDict(a=1)) == {"a": 1} and sent(defaultdict(int, a=1)) == {"a": 1}
    assert sent(Loud("real")) == "real" and type(sent(Loud("real"))) is str
    assert sent(bytearray(b"a")) == b"a"


@pytest.mark.parametrize("value", [object(), range(3), iter([]), len, Color, NotImplemented, ...])
def test_other_things_have_only_the_name_of_their_type(value):
    with pytest.raises(NotPlain, match=type(value).__name__):
        sent([value])


def test_what_holds_itself_or_is_too_deep_is_no_plain_data():
    loop: list = []
    loop.append(loop)
    deep: list = []
    for _ in range(DEPTH + 1):
        deep = [deep]
    for value in (loop, deep):
        with pytest.raises(NotPlain, match="deeper"):
            sent(value)
    assert sent(deep[0]) == deep[0]


@pytest.mark.parametrize(
    "value",
    [
        {}, {"t": 1}, {"t": [1], "s": [1]}, {"q": []}, {"s": [[1]]}, {"d": [1]}, {"d": [[1]]},
        {"d": [[[1], 2]]}, {"i": 5}, {"i": "zz"}, {"f": "x"}, {"b": "0"}, {"c": [1.0]},
        {"c": [1, 2]}, {"c": ["a", "b"]}, {"x": 1}, {"": []},
    ],
)  # fmt: skip
def test_what_encode_never_makes_is_refused(value):
    with pytest.raises(NotPlain):
        decode([value])


EQUAL = [
    (1, 1.0), (0.0, -0.0), (2**60, float(2**60)), ([1, (2,)], [1.0, (2,)]), ({1}, frozenset({1})),
    ({"a": [1]}, {"a": [1.0]}), ({1: 2}, {1.0: 2}), (1, 1 + 0j), ("ä", "ä"),
]  # fmt: skip
DIFFERENT = [
    (True, 1), (False, 0), (False, 0.0), (None, False), ([True], [1]), ({True}, {1}),
    ({True: 1}, {1: 1}), ({"a": True}, {"a": 1}), ((1, 2), [1, 2]), ("1", 1), (b"a", "a"), (1, 2),
    (float("nan"), float("nan")), ([float("nan")], [float("nan")]), ([1], [1, 1]), ({1}, [1]),
    ({}, []), ("", None), ({"a": 1}, {"a": 1, "b": 2}), ((), frozenset()),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_values(one, other):
    assert same(one, other) and same(other, one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_values(one, other):
    assert not same(one, other) and not same(other, one)


def test_one_nan_is_not_itself():
    nan = float("nan")
    assert not same(nan, nan) and not same([nan], [nan]) and not same({nan}, {nan})


def test_as_json_tuples_are_lists_and_keys_are_texts():
    assert same((1, (2,)), [1, [2]], as_json=True)
    assert same({1: (2,)}, {"1": [2]}, as_json=True)
    assert not same({True: 1}, {"1": 1}, as_json=True)
    assert not same({1}, [1], as_json=True) and not same(True, 1, as_json=True)


def test_numbers_too_long_to_print_arrive():
    assert sent(10**5000) == 10**5000 and sent(-(10**5000)) == -(10**5000)
