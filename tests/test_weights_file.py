"""Safetensors files of strangers: what is malformed is refused in a sentence before MLX sees it."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import safetensors.numpy

from simko_mlx.config import Config
from simko_mlx.model_files import find_model
from simko_mlx.policy import load_policy
from simko_mlx.types import UserError
from simko_mlx.weights_file import check_safetensors
from tests.malformed import HEADER, KINDS, VALID, WRAPS, pack
from tests.models import make_model

ROOT = Path(__file__).parents[1]


def same_in_mlx(path: Path) -> bool:
    """Whether MLX and safetensors read the same names, shapes and bytes."""
    ours, theirs = mx.load(str(path)), safetensors.numpy.load_file(path)
    assert isinstance(ours, dict)
    return ours.keys() == theirs.keys() and all(
        np.array(ours[name]).shape == theirs[name].shape
        and np.array(ours[name]).dtype == theirs[name].dtype
        and np.array(ours[name]).tobytes() == theirs[name].tobytes()
        for name in ours
    )


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        check_safetensors(path)
    return str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_each_malformed_kind_is_refused_and_its_twin_without_the_flaw_is_not(name, tmp_path):
    kind = KINDS[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(kind.twin)
    check_safetensors(path)
    assert same_in_mlx(path)
    assert kind.bad != kind.twin
    path.write_bytes(kind.bad)
    told = refusal(path)
    assert str(path) in told and kind.words in told and "\n" not in told and told.endswith(".")


def test_there_are_kinds_that_mlx_would_load(tmp_path):
    """What the check is for: MLX alone takes these, with values that aren't the file's."""
    path = tmp_path / "model.safetensors"
    for name in ("a tensor twice", "dimension over int32", "overlap", "bytes after the data"):
        path.write_bytes(KINDS[name].bad)
        assert mx.load(str(path)), name
    path.write_bytes(KINDS["shape wraps to the right size"].bad)
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict) and list(loaded["t"].shape) == WRAPS


def test_what_a_header_says(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(VALID)
    found = check_safetensors(path)
    assert {n: (e.dtype, list(e.shape), [e.begin, e.end]) for n, e in found.items()} == {
        name: tuple(entry.values()) for name, entry in HEADER.items() if name != "__metadata__"
    }


def test_files_that_mlx_and_safetensors_write_are_taken(tmp_path):
    arrays = {"a": mx.ones((2, 3), mx.bfloat16), "b": mx.zeros((0, 4)), "c": mx.array(True)}
    mx.save_safetensors(str(tmp_path / "mlx.safetensors"), arrays)  # its __metadata__ is null
    safetensors.numpy.save_file({"x": np.arange(6.0, dtype="f2")}, tmp_path / "st.safetensors")
    assert check_safetensors(tmp_path / "mlx.safetensors").keys() == arrays.keys()
    assert check_safetensors(tmp_path / "st.safetensors")["x"].shape == (6,)
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    assert "can't be read" in refusal(folder)


def test_each_malformed_kind_is_refused_as_a_model_and_as_an_adapter(qwen2, tmp_path):
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    shutil.copytree(qwen2, model)
    policy = load_policy(Config(model=str(qwen2)))
    adapter.mkdir()
    for name, content in policy.adapter_files().items():
        (adapter / name).write_bytes(content)
    config = Config(model=str(qwen2))
    config.policy.adapter_path = str(adapter)
    load_policy(config)
    find_model(str(model))
    for name, kind in KINDS.items():
        (model / "model.safetensors").write_bytes(kind.bad)
        with pytest.raises(UserError, match=r"model\.safetensors") as caught:
            find_model(str(model))
        assert kind.words in str(caught.value), name
        (adapter / "adapters.safetensors").write_bytes(kind.bad)
        with pytest.raises(UserError, match=r"adapters\.safetensors") as caught:
            load_policy(config)
        assert kind.words in str(caught.value), name


@pytest.mark.parametrize("name", ["overlap"])
def test_the_command_line_says_it_in_a_line(name, qwen2, tmp_path):
    def train(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cli", "train", "--output-dir", str(tmp_path / "run"), *args],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip

    model = shutil.copytree(qwen2, tmp_path / "model")
    (model / "model.safetensors").write_bytes(KINDS[name].bad)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapters.safetensors").write_bytes(KINDS[name].bad)
    for done in (
        train("--model", str(model)),
        train("--model", str(qwen2), "--set", f"policy.adapter_path={adapter}"),
    ):
        assert done.returncode == 2, done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ") and KINDS[name].words in last
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "run").exists()


# --- mutations ------------------------------------------------------------------------------------

BATCH = 500
MUTATE = """
import sys
from pathlib import Path
from tests.test_weights_file import mutate_and_look
first, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
for seed in range(first, first + count):
    print(seed, flush=True)
    print(mutate_and_look(seed, folder / "mutated.safetensors"), flush=True)
"""


def seeds() -> list[bytes]:
    """Small valid files of many forms."""
    rng = np.random.default_rng(0)
    several = {f"layers.{i}.w": rng.random((i, 3), np.float32) for i in range(4)}
    types = {t: rng.integers(0, 2, 6).astype(t) for t in ("?", "u1", "i2", "f2", "u4", "i8", "c8")}
    return [
        VALID,
        safetensors.numpy.save(several, {"format": "mlx"}),
        safetensors.numpy.save(types),
        pack(json.dumps({"t": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}).encode(),
             b"\0\0\x80?"),
    ]  # fmt: skip


SEEDS = seeds()
NUMBERS = [0, 1, -1, 2, 4, 7, 8, 16, 2**31, 2**32, 2**32 + 2, 2**62, 2**63, 2**64 - 8, 2**64, 1e308,
           1.5, True, None, "2", [], {}, float("nan"), float("inf")]  # fmt: skip


def mutated(seed: int) -> bytes:
    """A valid file with some bytes, its length or fields of its header changed."""
    rng = random.Random(seed)
    data = bytearray(rng.choice(SEEDS))
    length = int.from_bytes(data[:8], "little")
    for _ in range(rng.choice((1, 1, 2, 4))):
        how = rng.randrange(8)
        if how <= 1:  # in the header, or anywhere
            at = rng.randrange(len(data)) if how else rng.randrange(min(8 + length, len(data)))
            data[at] = rng.choice((data[at] ^ 1 << rng.randrange(8), rng.randrange(256)))
        elif how == 2:
            del data[rng.randrange(len(data)) :]
        elif how == 3:
            data += bytes(rng.randrange(1, 9))
        elif how == 4:
            data[:8] = (length + rng.randrange(-9, 10)).to_bytes(8, "little", signed=True)
        elif how == 5:  # a digit of the header becomes another
            digits = [i for i in range(8, min(8 + length, len(data))) if 48 <= data[i] < 58]
            if digits:
                data[rng.choice(digits)] = rng.randrange(48, 58)
        else:
            data = bytearray(_other_field(bytes(data), rng))
        if len(data) < 9:
            break
    return bytes(data)


def _other_field(data: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        entry = header[rng.choice(list(header))]
        key = rng.choice(list(entry))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return data
    if isinstance(entry[key], list) and entry[key] and rng.random() < 0.8:
        entry[key][rng.randrange(len(entry[key]))] = rng.choice(NUMBERS)
    elif rng.random() < 0.3:
        del entry[key]
    else:
        entry[key] = rng.choice([*NUMBERS, *("F32", "I32", "F16", "F64", "BOOL", "F8_E4M3", "Q4")])
    return pack(json.dumps(header).encode(), data[8 + length :])


def mutate_and_look(seed: int, path: Path) -> str:
    """ "refused", or "same" where MLX loads what safetensors reads."""
    path.write_bytes(mutated(seed))
    try:
        entries = check_safetensors(path)
    except UserError as error:
        told = str(error)
        one = told.endswith(".") and "\n" not in told and str(path) in told
        return "refused" if one else f"not one sentence: {told!r}"
    if any(entry.dtype.startswith("F8") for entry in entries.values()):
        # numpy hasn't the type: the bytes are compared.
        raw, start = path.read_bytes(), 8 + int.from_bytes(path.read_bytes()[:8], "little")
        loaded = mx.load(str(path))
        assert isinstance(loaded, dict)
        same = all(
            np.array(loaded[n]).tobytes() == raw[start + e.begin : start + e.end]
            for n, e in entries.items()
        )
        return "same" if same else "differs"
    return "same" if same_in_mlx(path) else "differs"


def look(first: int, count: int, folder: Path) -> list[str]:
    """What is found of each seed; a process of its own, so that a crash tells its seed."""
    found: list[str] = []
    for start in range(first, first + count, BATCH):
        done = subprocess.run(
            [sys.executable, "-c", MUTATE, str(start), str(min(BATCH, first + count - start)),
             str(folder)],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
        lines = done.stdout.splitlines()
        assert done.returncode == 0, f"at seed {lines[-1:]}: {done.returncode} {done.stderr}"
        assert lines[::2] == [str(start + i) for i in range(len(lines) // 2)]
        found += lines[1::2]
    return found


def check_mutations(first: int, count: int, folder: Path) -> None:
    found = look(first, count, folder)
    wrong = {first + i: told for i, told in enumerate(found) if told not in ("refused", "same")}
    assert not wrong and len(found) == count
    # Neither answer to everything.
    assert 0.02 < found.count("same") / count < 0.6


def test_mutated_files_are_refused_or_read_alike(tmp_path):
    check_mutations(0, 1000, tmp_path)


@pytest.mark.slow
def test_ten_thousand_mutated_files_are_refused_or_read_alike(tmp_path):
    check_mutations(0, 10_000, tmp_path)


def test_a_model_in_shards_has_each_of_them_checked(tmp_path):
    model = make_model(tmp_path / "model")
    os.rename(model / "model.safetensors", model / "model-00001-of-00002.safetensors")
    (model / "model-00002-of-00002.safetensors").write_bytes(KINDS["hole"].bad)
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors is damaged"):
        find_model(str(model))


def test_an_empty_tensor_that_numpy_can_not_hold_is_refused(tmp_path):
    shape = [2**31 - 1, 2**31 - 1, 0]  # fewer than 2**62 of them, but more bytes than that
    header = {"t": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}
    path = tmp_path / "a.safetensors"
    path.write_bytes(pack(json.dumps(header).encode(), b""))
    with pytest.raises(ValueError):
        safetensors.numpy.load_file(path)
    with pytest.raises(UserError, match="whose product overflows"):
        check_safetensors(path)
