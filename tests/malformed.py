"""Safetensors files that are malformed in one way each, beside a twin without that flaw.

The twin is what shows that the file is malformed in just that way: both are made by the same words
but for the flaw, and the twin is a file that safetensors and MLX read.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

DATA = bytes(range(1, 25))
MATRIX = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
VECTOR = {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]}
HEADER: dict[str, Any] = {"__metadata__": {"format": "mlx"}, "w.a": MATRIX, "w.b": VECTOR}


class Kind(NamedTuple):
    """``words`` are in the sentence that refuses ``bad``."""

    bad: bytes
    twin: bytes
    words: str


def pack(header: bytes | dict[str, Any], data: bytes = DATA, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def tensor(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def one(data: bytes = DATA[:8], **settings: Any) -> bytes:
    """A file of one tensor."""
    return pack({"t": tensor(**settings)}, data)


def text(before: bytes, after: bytes) -> tuple[bytes, bytes]:
    """(bad, twin) of a header in which some bytes are others."""
    raw = json.dumps(HEADER).encode()
    assert raw.count(before) == 1
    return pack(raw.replace(before, after)), pack(raw)


VALID = pack(HEADER)
RAW = json.dumps(HEADER).encode()
TWICE = b'{"t": %s, "t": %s}'
_A, _B = (json.dumps(tensor(offsets=o)).encode() for o in ((0, 8), (8, 16)))
BIG = 2**31 - 1
WRAPS = [506456969, 2, 39119, 146423, 540182017]  # 4 times their product is 8, modulo 2^64
KINDS: dict[str, Kind] = {
    "empty file": Kind(b"", VALID, "too few"),
    "shorter than the length": Kind(VALID[:7], VALID, "too few"),
    "header length 0": Kind(pack(b"", b""), pack(b"{}", b""), "0 bytes long"),
    "header over 100 MB": Kind(pack(RAW, length=100_000_001), VALID, "100 MB are the most"),
    "header length of 2^64-1": Kind(pack(RAW, length=2**64 - 1), VALID, "100 MB are the most"),
    "header beyond the end": Kind(pack(RAW, length=len(RAW) + 25), VALID, "beyond the file's end"),
    "truncated header": Kind(VALID[: len(RAW) // 2], VALID, "beyond the file's end"),
    "truncated data": Kind(VALID[:-1], VALID, "may be cut off"),
    "bytes after the data": Kind(VALID + b"\0", VALID, "belong to no tensor"),
    "not UTF-8": Kind(*text(b"w.b", b"w.\xff"), "not JSON"),
    "not JSON": Kind(pack(RAW[:-1] + b" "), VALID, "not JSON"),
    "no object": Kind(pack(b"[]", b""), pack(b"{}", b""), "begin with {"),
    "space before the header": Kind(pack(b" " + RAW), VALID, "begin with {"),
    "nested too deeply": Kind(
        pack(b'{"t":' + b"[" * 200_000 + b"]" * 200_000 + b"}", b""), pack(b"{}", b""), "deeply"
    ),
    "a tensor twice": Kind(
        pack(TWICE % (_A, _B), DATA[:16]),
        pack((TWICE % (_A, _B)).replace(b'"t"', b'"s"', 1), DATA[:16]), "there twice",
    ),
    "half a character": Kind(*text(b"w.b", rb"w.\ud800"), "half a character"),
    "NaN in the header": Kind(*text(b"[0, 16]", b"[NaN, 16]"), "NaN is no number"),
    "Infinity in the header": Kind(*text(b"[2]", b"[Infinity]"), "Infinity is no number"),
    "metadata of numbers": Kind(*text(b'"mlx"', b"1"), "__metadata__"),
    "metadata is a list": Kind(*text(b'{"format": "mlx"}', b"[]"), "__metadata__"),
    "no offsets": Kind(*text(b', "data_offsets": [16, 24]', b""), "not described"),
    "more than it should say": Kind(one(device="cuda"), one(), "not described"),
    "unknown type": Kind(one(dtype="F33"), one(), "unknown type F33"),
    "type is a number": Kind(one(dtype=32), one(), "unknown type 32"),
    "a type that MLX hasn't": Kind(
        one(dtype="F64", shape=[1]), one(dtype="I64", shape=[1]), "F64, which MLX can't load"
    ),
    "negative dimension": Kind(one(shape=[-2]), one(), "whole numbers from 0"),
    "two negative dimensions": Kind(one(shape=[-1, -2]), one(shape=[1, 2]), "whole numbers"),
    "dimension is a fraction": Kind(one(shape=[2.0]), one(), "whole numbers"),
    "dimension is true": Kind(one(shape=[True, 2]), one(shape=[1, 2]), "whole numbers"),
    "dimension is text": Kind(one(shape=["2"]), one(), "whole numbers"),
    "shape is a number": Kind(one(shape=2), one(), "whole numbers"),
    "dimension over int32": Kind(one(shape=[2**32 + 2]), one(), "whole numbers"),
    "dimension of 5000 digits": Kind(*text(b"[2]", b"[" + b"2" * 5000 + b"]"), "not JSON"),
    "shape overflows": Kind(
        one(b"", shape=[BIG, BIG, BIG, 0], offsets=[0, 0]),
        one(b"", shape=[BIG, 0], offsets=[0, 0]), "product overflows",
    ),
    "shape wraps to the right size": Kind(
        one(shape=WRAPS), one(), "product overflows"
    ),
    "too many dimensions": Kind(one(shape=[1] * 64 + [2]), one(shape=[1, 2]), "65 dimensions"),
    "shape too large for its bytes": Kind(one(shape=[3]), one(), "takes 12 bytes, but has 8"),
    "shape too small for its bytes": Kind(one(shape=[1]), one(), "takes 4 bytes, but has 8"),
    "offsets backwards": Kind(one(offsets=[8, 0]), one(), "data_offsets [8, 0]"),
    "negative offset": Kind(one(offsets=[-8, 0]), one(), "data_offsets [-8, 0]"),
    "offset is a fraction": Kind(one(offsets=[0, 8.0]), one(), "data_offsets [0, 8.0]"),
    "three offsets": Kind(one(offsets=[0, 4, 8]), one(), "data_offsets [0, 4, 8]"),
    "offsets that wrap": Kind(one(offsets=[2**64 - 8, 2**64]), one(), "data_offsets"),
    "empty tensor that wraps": Kind(
        one(b"", shape=[0], offsets=[2**64 - 64, 2**64 - 64]),
        one(b"", shape=[0], offsets=[0, 0]), "data_offsets",
    ),
    "offsets beyond the end": Kind(one(offsets=[8, 16]), one(), "ends at byte 16 of 8"),
    "overlap": Kind(*text(b"[16, 24]", b"[12, 20]"), "overlaps"),
    "the same bytes twice": Kind(
        pack({"s": tensor(), "t": tensor()}, DATA[:8]),
        pack({"s": tensor(), "t": tensor(offsets=[8, 16])}, DATA[:16]), "overlaps",
    ),
    "hole": Kind(
        one(DATA[:12], offsets=[4, 12]), one(), "belong to nothing"
    ),
    "booleans of 2": Kind(
        one(b"\1\2", dtype="BOOL", offsets=[0, 2]), one(b"\1\0", dtype="BOOL", offsets=[0, 2]),
        "neither 0 nor 1",
    ),
}  # fmt: skip
