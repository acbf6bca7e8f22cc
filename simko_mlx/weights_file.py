"""A strict look at a safetensors file before anything loads it.

MLX trusts much of what a file says of itself: of dimensions it takes the low 32 bits, of a tensor
named twice the last, and it reads tensors that overlap. So the header is checked here against the
format, MLX's limits and the file's size; safetensors' own reader then gives a second opinion.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import safetensors

from simko_mlx.types import UserError

MAX_HEADER = 100_000_000  # bytes; MLX and safetensors refuse more
MAX_DIMENSIONS = 32
# What MLX loads and safetensors knows -> bytes of an element. FP8 comes as its bits, in uint8.
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "C64": 8,
}  # fmt: skip
FOREIGN = ("F64", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2", "F4")
_AGAIN = "download or convert it again"


@dataclass(frozen=True)
class Entry:
    """What a header says of a tensor; its bytes are [begin, end) after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class _Malformed(Exception):
    """What is wrong with the file, as the middle of a sentence."""


def check_safetensors(path: Path) -> dict[str, Entry]:
    """Refuses a malformed file; name -> entry of each tensor of one that is whole.

    Raises:
        UserError: one sentence that names the file, the tensor and what is wrong with it.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            entries, start = _header(file, size)
            _check_layout(entries, size - start)
            _check_booleans(file, entries, start)
        with safetensors.safe_open(path, framework="np") as reader:
            if sorted(reader.keys()) != sorted(entries):
                raise _Malformed("its header can be read in two ways")
    except OSError as error:
        raise UserError(
            f"{path} can't be read ({error.strerror or error}): correct its permissions, or "
            f"{_AGAIN}."
        ) from error
    except (_Malformed, safetensors.SafetensorError) as error:
        text = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is damaged ({text}): {_AGAIN}.") from error
    for name, entry in entries.items():
        if entry.dtype in FOREIGN:
            raise UserError(
                f"{path}: tensor {_shown(name)} is of type {entry.dtype}, which MLX can't load: "
                "convert the file to bfloat16, float16 or float32."
            )
    return entries


def strict_json(text: str) -> Any:
    """What JSON says, where it says one thing only.

    Raises:
        ValueError: no JSON, or a key twice, or NaN or Infinity, or too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file that comes from elsewhere.

    Raises:
        UserError: the file can't be read, is no JSON, or holds something else.
    """
    try:
        found = strict_json(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not a JSON object ({text}): {_AGAIN}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object: {_AGAIN}.")
    return found


def is_number(value: Any) -> bool:
    """Whether a value out of JSON is a number that float32 can hold; true and false are none."""
    return type(value) in (int, float) and abs(value) < 3e38  # false for NaN


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {_shown(name)} stands there twice")
        found[name] = value
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Entry], int]:
    """Name -> entry, and where in the file the tensors begin."""
    file.seek(0)
    if size < 8:
        raise _Malformed(f"it has {size} bytes, too few for the length of a header")
    length = int.from_bytes(file.read(8), "little")
    # MLX refuses a header of exactly 100 MB too.
    if not 2 <= length < MAX_HEADER:
        raise _Malformed(f"its header would be {length:,} bytes long; 100 MB are the most")
    if 8 + length > size:
        raise _Malformed(f"its header of {length:,} bytes goes beyond the file's end")
    raw = file.read(length)
    if not raw.startswith(b"{"):
        raise _Malformed("its header doesn't begin with {")
    try:
        header = strict_json(raw.decode("utf-8"))
    except ValueError as error:  # of UTF-8, too
        raise _Malformed(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _Malformed("its header is not a JSON object")
    # MLX writes null where there is no metadata.
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    ):
        raise _Malformed("its __metadata__ is not an object of texts")
    texts = [*header, *(metadata or {}), *(metadata or {}).values()]
    if any("\ud800" <= char <= "\udfff" for text in texts for char in text):
        raise _Malformed("its header is not JSON: half a character is written as \\ud800")
    return {name: _entry(name, value) for name, value in header.items()}, 8 + length


def _entry(name: str, value: Any) -> Entry:
    what = f"tensor {_shown(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Malformed(f"{what} is not described by dtype, shape and data_offsets alone")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not (dtype in ITEM_BYTES or dtype in FOREIGN):
        raise _Malformed(f"{what} is of the unknown type {_shown(dtype)}")
    if not isinstance(shape, list) or not all(_is_size(n, 2**31 - 1) for n in shape):
        raise _Malformed(
            f"{what} has the shape {_shown(shape)}, which must be a list of whole numbers from 0 "
            "to 2147483647"
        )
    if len(shape) > MAX_DIMENSIONS:
        raise _Malformed(f"{what} has {len(shape)} dimensions; {MAX_DIMENSIONS} are the most")
    # Strides are products of dimensions, so that a 0 among them doesn't help; numpy's are bytes.
    if math.prod(n for n in shape if n) * ITEM_BYTES.get(dtype, 8) > 2**62:
        raise _Malformed(f"{what} has the shape {_shown(shape)}, whose product overflows")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(_is_size(n, 2**63 - 1) for n in offsets)
        or offsets[0] > offsets[1]
    ):
        raise _Malformed(f"{what} has the data_offsets {_shown(offsets)}")
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _is_size(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most  # not isinstance: true is an int


def _check_layout(entries: dict[str, Entry], size: int) -> None:
    """Tensors fill the bytes after the header one after the other, with nothing left over."""
    at, before = 0, ""
    for name, entry in sorted(entries.items(), key=lambda e: (e[1].begin, e[1].end)):
        what = f"tensor {_shown(name)}"
        if entry.end > size:
            raise _Malformed(
                f"{what} ends at byte {entry.end:,} of {size:,}; the file may be cut off"
            )
        if entry.begin < at:
            raise _Malformed(f"{what} overlaps {_shown(before)}")
        if entry.begin > at:
            raise _Malformed(f"{entry.begin - at:,} bytes before {what} belong to nothing")
        needed = math.prod(entry.shape) * ITEM_BYTES.get(entry.dtype, 0)
        if entry.dtype in ITEM_BYTES and entry.end - entry.begin != needed:
            raise _Malformed(
                f"{what} of shape {_shown(list(entry.shape))} and type {entry.dtype} takes "
                f"{needed:,} bytes, but has {entry.end - entry.begin:,}"
            )
        at, before = entry.end, name
    if at != size:
        raise _Malformed(f"{size - at:,} bytes at its end belong to no tensor")


def _check_booleans(file: BinaryIO, entries: dict[str, Entry], start: int) -> None:
    """A byte that is neither 0 nor 1 is true to one operation of MLX and false to another."""
    for name, entry in entries.items():
        if entry.dtype != "BOOL":
            continue
        file.seek(start + entry.begin)
        left = entry.end - entry.begin
        while left:
            piece = file.read(min(left, 2**20))
            if not piece or piece.strip(b"\0\1"):
                raise _Malformed(f"tensor {_shown(name)} has booleans that are neither 0 nor 1")
            left -= len(piece)


def _shown(value: Any) -> str:
    """A value out of the file, short and on one line."""
    text = value if isinstance(value, str) else json.dumps(value)
    text = text.encode("ascii", "backslashreplace").decode()
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= 80 else f"{text[:80]}..."
