"""Where problems come from: the table of sources, generators, and the user's own function."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from simko_mlx.config import DataConfig
from simko_mlx.config_sources import resolve
from simko_mlx.data import SOURCES, Dataset, load
from simko_mlx.types import UserError

SOURCE = """
from simko_mlx.data import Dataset
from simko_mlx.types import Problem


def rows(config):
    for i in range(config.size):
        yield {"prompt": f"{i}?", "answer": i}


def problems(config):
    return [Problem(str(i), ({"role": "user", "content": f"{i}?"},), "1") for i in range(9)]


def dataset(config):
    return Dataset(problems(config), [], ["made here"])


def broken(config):
    return {}["missing"]


def wrong(config):
    return "text"


def wrong_elements(config):
    return Dataset([{"prompt": "q"}], [])


def bad_rows(config):
    return [{"prompt": "q", "answer": "1"}, {"prompt": "q"}]
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    name = f"source_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the current folder is added to it
    return name


def test_countdown_is_split_and_repeatable():
    config = DataConfig(size=30, heldout=12)
    dataset = load(config)
    assert len(dataset.train) == 30 and len(dataset.heldout) == 12
    assert dataset == load(config)
    assert not {p.id for p in dataset.train} & {p.id for p in dataset.heldout}


def test_countdown_too_large():
    with pytest.raises(UserError, match=r"data\.size"):
        load(DataConfig(size=1_000_000))


def test_rows_of_a_users_function(module):
    dataset = load(DataConfig(source=f"{module}:rows", size=20, heldout=4))
    assert len(dataset.train) == 16 and len(dataset.heldout) == 4


def test_problems_and_datasets_of_a_users_function(module):
    assert len(load(DataConfig(source=f"{module}:problems", heldout=0)).train) == 9
    dataset = load(DataConfig(source=f"{module}:dataset"))
    assert isinstance(dataset, Dataset) and dataset.notes == ["made here"]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("broken", r"raised KeyError: 'missing' at .*\.py:20"),
        ("wrong", "returned a str"),
        ("wrong_elements", "element 1 is a dict"),
        ("bad_rows", r"row 2: data\.answer"),
        ("rowz", "the nearest is rows"),
    ],
)
def test_mistakes_in_a_users_function(module, function, words):
    with pytest.raises(UserError, match=words):
        load(DataConfig(source=f"{module}:{function}", heldout=0))


def test_unknown_sources():
    with pytest.raises(UserError, match="did you mean jsonl"):
        load(DataConfig(source="jsonlines"))
    with pytest.raises(UserError, match="no module 'no_such_module'"):
        load(DataConfig(source="no_such_module:load"))
    with pytest.raises(UserError, match=r"write it as package\.module:function"):
        load(DataConfig(source="my/file.py:load"))


def test_a_new_source_is_a_function_and_an_entry(tmp_path, monkeypatch):
    (tmp_path / "squares.py").write_text(
        "from simko_mlx.data.files import collect, split\n\n"
        "def load(config):\n"
        "    rows = ((f'row {i}', {'prompt': f'{i} squared?', 'answer': i * i})\n"
        "            for i in range(config.size))\n"
        "    return split(collect(rows, 'squares', config), None, 'squares', config)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SOURCES, "squares", "squares:load")
    dataset = load(DataConfig(source="squares", size=9, heldout=2))
    assert len(dataset.train) == 7 and len(dataset.heldout) == 2
    assert {int(p.answer) for p in dataset.train + dataset.heldout} == {i * i for i in range(9)}


DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = [
    example
    for example in map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", DOCS, re.S))
    if "data" in example
]


def test_each_source_has_an_example():
    assert {e["data"]["source"] for e in EXAMPLES} == {*SOURCES, "my_problems:load"}


@pytest.mark.parametrize(
    "example",
    # test_hub.py has a Hub
    [e for e in EXAMPLES if e["data"]["source"] != "hf"],
    ids=lambda e: e["data"]["source"],
)
def test_the_documented_examples_work(example, tmp_path, monkeypatch):
    sets = [f"{key}={json.dumps(value)}" for key, value in example.items()]
    config = resolve(None, environ={}, sets=sets).config.data
    if config.source == "parquet":
        pytest.importorskip("duckdb", reason="duckdb, of the extra 'data', is not installed")
        config.heldout = 1
    rows = [
        {"id": str(i), "question": f"{i} + 1?", "prompt": f"{i} + 1?", "answer": f"{i + 1}"}
        for i in range(120)
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    rates = [json.dumps({"id": str(i), "pass_rate": 0.5}) + "\n" for i in range(120)]
    (tmp_path / "my_data").mkdir()
    files = {
        "problems.jsonl": "".join(lines[4:]),
        "test.jsonl": "".join(lines[:4]),
        "problems.json": json.dumps({"version": 1, "rows": rows}),
        "problems.csv": "question,answer\n" + "".join(f"{i}?,{i}\n" for i in range(120)),
        "my_data/train.jsonl": "".join(lines[4:]),
        "my_data/valid.jsonl": "".join(lines[:4]),
        "rates.jsonl": "".join(rates),
        "my_problems.py": re.findall(r"```python\n(.*?)```", DOCS, re.S)[0],
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    fixture = Path(__file__).parent / "fixtures" / "gsm8k_4_rows.parquet"
    (tmp_path / "gsm8k_train.parquet").write_bytes(fixture.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    dataset = load(config)
    assert dataset.train and dataset.heldout
