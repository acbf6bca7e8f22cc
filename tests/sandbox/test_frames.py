"""Records out of a sandbox: whole ones, and what isn't."""

from __future__ import annotations

import struct

import pytest

from simko_mlx.sandbox.frames import Malformed, first, frame, records


def raw(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


def test_records_come_back_in_order():
    messages = [{"value": 1}, {"value": "\ud800ä"}, {}]
    data = b"".join(map(frame, messages))
    assert records(data) == messages and records(bytearray(data)) == messages
    assert first(data) == (messages[0], len(frame(messages[0])))


@pytest.mark.parametrize("length", range(len(frame({"value": 1}))))
def test_an_incomplete_record_is_not_there_yet(length):
    data = frame({"value": 1})[:length]
    assert first(data) == (None, 0)
    if length:
        with pytest.raises(Malformed, match="incomplete"):
            records(frame({}) + data)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"1", b"{", b'{"a": 1} x', "ä".encode(), b"\xff", b"[" * 100_000, b"9" * 5000],
)
def test_what_is_no_object_in_json_is_refused(body):
    with pytest.raises(Malformed):
        records(raw(body))


def test_no_records():
    assert records(b"") == []
    with pytest.raises(Malformed):
        records(b"\xff" * 20)
