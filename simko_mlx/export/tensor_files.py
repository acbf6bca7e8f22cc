"""A model's safetensors files written anew, with one tensor in memory at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from simko_mlx.export.base import Base

SHARD_BYTES = 5 * 10**9  # as transformers and mlx-lm cut them
CHUNK = 1 << 24
INDEX = "model.safetensors.index.json"
FLOATS: dict[str, mx.Dtype] = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
NAMES = {dtype: name for name, dtype in FLOATS.items()}
_PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U32": np.uint32, "U8": np.uint8}


@dataclass(frozen=True)
class Stored:
    """One tensor in a safetensors file, from byte ``start`` to ``end``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Its bytes as they are, piece by piece."""
        with open(self.file, "rb") as file:
            file.seek(self.start)
            left = self.end - self.start
            while left:
                chunk = file.read(min(left, CHUNK))
                left -= len(chunk)
                yield chunk

    def array(self) -> mx.array:
        """The whole tensor; of a type in ``FLOATS``, or of 8 or 32 bits without a sign."""
        values = np.frombuffer(b"".join(self.chunks()), _PLAIN[self.dtype]).reshape(self.shape)
        array = mx.array(values)
        return array.view(mx.bfloat16) if self.dtype == "BF16" else array


def has_names_of(base: Base, folder: Path) -> bool:
    """Whether a fused model has the tensors of its base's own files, by name: mlx-lm's layout of
    some families has others, which transformers doesn't know."""
    own = {name for name in base.tensors if not name.endswith((".scales", ".biases"))}
    files = sorted(folder.glob("*.safetensors"))
    found = {tensor.name for file in files for tensor in read_header(file)[1]}
    return found - {"lm_head.weight"} == own - {"lm_head.weight"}  # a tied head may have a copy


@dataclass(frozen=True)
class Written:
    """One tensor to write; ``chunks`` makes its bytes when their turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    chunks: Callable[[], Iterator[bytes | memoryview]]


def read_header(path: Path) -> tuple[dict[str, str], list[Stored]]:
    """The metadata and the tensors, in their order, of a safetensors file that was checked."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    found = []
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        found.append(
            Stored(name, entry["dtype"], shape, path, 8 + length + start, 8 + length + end)
        )
    return metadata, sorted(found, key=lambda tensor: tensor.start)


def to_bytes(array: mx.array) -> memoryview:
    """The bytes of an array as safetensors keeps them."""
    plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return np.ascontiguousarray(plain).data


def cut(tensors: Sequence[Written]) -> dict[str, list[Written]]:
    """File name -> its tensors, in files of at most ``SHARD_BYTES`` (or of one tensor)."""
    shards: list[list[Written]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.size > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    count = len(shards)
    return {f"model-{i:05}-of-{count:05}.safetensors": s for i, s in enumerate(shards, 1)}


def write_files(
    folder: Path, shards: Mapping[str, Sequence[Written]], metadata: Mapping[str, str]
) -> None:
    """Writes the files, each tensor as it is made."""
    for name, tensors in shards.items():
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        start = 0
        for tensor in tensors:
            offsets = [start, start + tensor.size]
            header[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": offsets,
            }
            start += tensor.size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # data starts at a multiple of 8, as the format advises
        with open(folder / name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for tensor in tensors:
                for chunk in tensor.chunks():
                    file.write(chunk)


def write_index(
    folder: Path, shards: Mapping[str, Sequence[Written]], metadata: Mapping[str, Any]
) -> None:
    """Writes which file has which tensor, with ``metadata`` brought up to date."""
    where = {tensor.name: name for name, tensors in shards.items() for tensor in tensors}
    total = sum(tensor.size for tensors in shards.values() for tensor in tensors)
    index = {
        "metadata": {**metadata, "total_size": total},
        "weight_map": dict(sorted(where.items())),
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
