"""Data sets of the Hub: which files are which split, what is fetched, and what is told when not.

The client is the real one, in a process of its own (it reads its settings when it is imported); the
Hub is a small server on this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simko_mlx.data.hub import chosen, described
from simko_mlx.types import UserError
from tests.hub_server import Hub

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(__file__).parent / "fixtures"
ASK = """
import json, sys
from simko_mlx.config import DataConfig
from simko_mlx.data import load
from simko_mlx.types import UserError
for keys in json.load(sys.stdin):
    try:
        found = load(DataConfig(**{"source": "hf", "heldout": 0, **keys}))
        told = [sorted(p.answer for p in some) for some in (found.train, found.heldout)]
    except UserError as error:
        told = str(error)
    print(json.dumps(told))
"""


def ask(configs: list[dict], hub: Hub, cache: Path, **environment: str) -> list:
    """What ``load`` says to each of the configs: the answers of both splits, or an error."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    settings = {**hub.environment(cache, token=None), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", ASK], input=json.dumps(configs), capture_output=True, text=True,
        env={**kept, **settings, **environment}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def lines(*numbers: int) -> bytes:
    rows = [{"prompt": f"{n}?", "answer": str(n)} for n in numbers]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


REPOS = {
    "some/plain": {
        "README.md": b"# hi",
        "load.py": b"raise SystemExit",
        "train.jsonl": lines(1, 2),
        "test.jsonl": lines(3),
    },
    "some/shards": {
        "data/train-00000-of-00002.jsonl": lines(1),
        "data/train-00001-of-00002.jsonl": lines(2),
        "data/test-00000-of-00001.jsonl": lines(3),
    },
    "some/parts": {
        "main/train.csv": b"prompt,answer\n1?,1\n",
        "hard/train.json": json.dumps([{"prompt": "9?", "answer": "9"}]).encode(),
        "hard/validation.jsonl": lines(8),
    },
    "some/parquet": {
        "data/train-00000-of-00001.parquet": (FIXTURES / "gsm8k_4_rows.parquet").read_bytes()
    },
    "some/images": {"a.png": b"", "README.md": b""},
    "some/bad": {"train.jsonl": b"{\n"},
    "some/broken": {"train.jsonl": b""},
}


@pytest.fixture
def hub():
    with Hub() as found:
        for name, files in REPOS.items():
            found.add(name, files, type="datasets")
        found.add("some/gated", {"train.jsonl": lines(1)}, type="datasets", gated=True)
        yield found


def test_what_is_fetched_and_what_is_told(hub, tmp_path):
    asked = [
        {"path": "some/plain"},
        {"path": "some/plain", "eval_split": "test"},
        {"path": "some/shards", "eval_split": "test"},
        {"path": "some/parts", "subset": "main"},
        {"path": "some/parts", "subset": "hard", "eval_split": "val"},
        {"path": "some/plain", "limit": 1, "revision": "main"},
    ]
    expected = [
        [["1", "2"], []], [["1", "2"], ["3"]], [["1", "2"], ["3"]], [["1"], []], [["9"], ["8"]],
        [["1"], []],
    ]  # fmt: skip
    refused = {
        "no subset 'easy': it has hard, main": {"path": "some/parts", "subset": "easy"},
        "has the subsets hard, main: name one": {"path": "some/parts"},
        "no split 'test2': it has test, train": {"path": "some/plain", "split": "test2"},
        "no split 'validation': it has test, train": {
            "path": "some/plain", "eval_split": "validation",
        },
        "no parquet, jsonl, json or csv files": {"path": "some/images"},
        "is gated: accept its terms": {"path": "some/gated"},
        "no such data set on the Hub": {"path": "some/none"},
        "has no revision 'v9'": {"path": "some/plain", "revision": "v9"},
        "write the data set's id, owner/name": {"path": "plain"},
        "train.jsonl:1: not JSON": {"path": "some/bad"},
        "The Hub doesn't hand out the data set some/broken": {"path": "some/broken"},
    }  # fmt: skip
    hub.fail("/api/datasets/some/broken", times=9, status=500)
    found = ask([*asked, *refused.values()], hub, tmp_path)
    assert found[: len(asked)] == expected
    for told, words in zip(found[len(asked) :], refused, strict=True):
        assert isinstance(told, str) and words in told and "\n" not in told, told
    fetched = {name.rpartition("/")[2] for name in hub.names() if "/resolve/" in name}
    assert "train.jsonl" in fetched and not fetched & {"README.md", "load.py", "a.png"}


def test_parquet_of_the_hub(hub, tmp_path):
    pytest.importorskip("duckdb", reason="duckdb, of the extra 'data', is not installed")
    keys = {"path": "some/parquet", "answer": "reward_model.ground_truth"}
    assert ask([keys], hub, tmp_path) == [[["180", "2", "6", "7"], []]]


def test_without_a_connection_what_is_on_this_machine_is_used(tmp_path):
    both = {"path": "some/plain", "eval_split": "test"}
    half = {"path": "some/shards", "limit": 1}  # the second file isn't needed, nor fetched
    with Hub() as hub:
        for name, files in REPOS.items():
            hub.add(name, files, type="datasets")
        ask([both, half], hub, tmp_path)
    for settings in ({}, {"HF_HUB_OFFLINE": "1"}):
        again, shards, other = ask(
            [both, {"path": "some/shards"}, {"path": "some/parts"}], hub, tmp_path, **settings
        )
        assert again == [["1", "2"], ["3"]]
        assert "made of 2 files, but 1 are there" in shards
        assert ("HF_HUB_OFFLINE" if settings else "the Hub can't be reached") in other
        assert "\n" not in other


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["train.jsonl", "valid.jsonl", "test.jsonl"], "train test validation"),
        (["data/train-00000-of-00001-0a1b2c.parquet"], "train"),
        (["data/train_sft-00000-of-00001.parquet"], "train_sft"),
        (["main/test-00000-of-00001.parquet", "main/train-00000-of-00001.parquet"], "test train"),
        (["en/validation/part1.csv", "en/train/part1.csv"], "train validation"),
        (["gsm8k_train.parquet", "gsm8k_test.parquet"], "test train"),
        (["Train.JSONL", "dev.tsv", "evaluation.json"], "train validation test"),
        (["train/data-00000-of-00003.csv"], "train"),
        ([".hidden/train.csv", "README.md", "train.csv.gz", "dataset_infos.txt"], ""),
        (["problems.jsonl"], "None"),
    ],
)
def test_splits_by_name(names, found):
    assert sorted(str(file.split) for file in described(names)) == sorted(found.split())


def test_choosing_files():
    files = described(["problems.jsonl", "more.jsonl"])
    assert [f.path for f in chosen(files, None, "train", "o/n")] == ["more.jsonl", "problems.jsonl"]
    files = described(["train.jsonl", "train.parquet", "old/train.parquet"])
    assert [f.path for f in chosen(files, None, "train", "o/n")] == ["train.parquet"]
    assert [f.path for f in chosen(files, "old", "train", "o/n")] == ["old/train.parquet"]
    with pytest.raises(UserError, match="made of 3 files, but 1 are there"):
        chosen(described(["train-00001-of-00003.csv"]), None, "train", "o/n")
