"""What is said of a config's problems, and that a verifier accepts the gold answers."""

from __future__ import annotations

import json

import pytest

from simko_mlx import data_report
from simko_mlx.config import Config, set_key
from simko_mlx.data_report import load_material
from simko_mlx.types import UserError
from tests.models import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = make_model(tmp_path_factory.mktemp("model"))
    (folder / "model.safetensors").unlink()  # only the tokenizer is needed
    return folder


@pytest.fixture
def material(model, tmp_path):
    def make(rows, **keys):
        file = tmp_path / "p.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = Config(model=str(model))
        defaults = {"data.source": "jsonl", "data.path": str(file), "data.heldout": 0,
                    "data.id": "id", "verifier.name": "number"}  # fmt: skip
        for key, value in {
            **defaults,
            **{k.replace("__", "."): v for k, v in keys.items()},
        }.items():
            set_key(config, key, value)
        return load_material(config)

    return make


def row(name, answer, prompt=None, **columns):
    return {"id": name, "prompt": prompt or f"{name}?", "answer": answer, **columns}


def test_every_gold_answer_is_handed_to_the_real_verifier(material):
    rows = [
        row("plain", "72"),
        row("worked", "6 times 12 is #### 72"),
        row("boxed", "so it is \\boxed{\\frac12}"),
        row("matrix", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
        row("empty box", "It is \\boxed{}"),
    ]
    seen = []
    found = data_report.check(material(rows), progress=lambda *step: seen.append(step))
    assert (found.train, found.heldout, found.duplicates) == (5, 0, 0)
    (failure,) = found.failures
    assert (failure.id, failure.split, failure.answer) == ("empty box", "train", rows[-1]["answer"])
    assert failure.detail == "the problem has no answer"
    assert ("encode", 5, 5) in seen and ("verify", 5, 5) in seen
    assert json.loads(json.dumps(found.to_json()))["failures"][0]["id"] == "empty box"


def test_a_solution_column_is_tried_where_the_answer_is_no_completion(material):
    rows = [row("1", "4", solution="2 + 2 = 4"), row("2", "4", solution="it is 5"), row("3", "4")]
    keys = {"verifier__name": "tests.rewards:shows_work"}
    found = data_report.check(material(rows, **keys))
    assert found.by_solution == 1
    assert [f.id for f in found.failures] == ["2", "3"]


def test_countdown_accepts_its_own_solutions():
    config = Config()
    config.data.size, config.data.heldout = 30, 9
    found = data_report.check(load_material(config))
    assert not found.failures and found.by_solution == found.problems == 39


def test_duplicates_and_prompts_that_are_too_long(material):
    rows = [row("1", "1"), row("2", "2", prompt="1?"), row("3", "3", prompt="word " * 60)]
    found = data_report.check(material(rows, prompt__max_length=80))
    assert found.duplicates == 0 and "1 row of" in found.notes[0]
    assert [name for name, _ in found.too_long] == ["3"]
    assert found.limit == 80 < found.longest == found.too_long[0][1] and found.shortest < 80
    kept = data_report.check(material(rows, data__deduplicate=False))
    assert kept.duplicates == 1 and kept.train == 3


def test_prompts_are_shown_as_the_model_sees_them(material):
    found = data_report.show(material([row("1", "4", "2 + 2?")]), split="train", n=5)
    (shown,) = found.shown
    assert found.problems == 1 and shown.id == "1"
    assert shown.prompt.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert shown.prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert shown.tokens > 10
    with pytest.raises(UserError, match=r"data\.heldout"):
        data_report.show(material([row("1", "4")]), split="heldout", n=1)


def test_lengths_and_counts(material):
    rows = [row(str(i), "1" * (i + 1), "a " * i + "?", kind={"level": i % 2}) for i in range(20)]
    found = data_report.stats(material(rows, data__heldout=5), by="kind.level")
    assert {split: some.count for split, some in found.prompts.items()} == {
        "train": 15, "heldout": 5
    }  # fmt: skip
    for lengths in [*found.prompts.values(), *found.answers.values()]:
        assert sum(count for _, _, count in lengths.bins) == lengths.count
        low, *_, high = lengths.percentiles.values()
        assert lengths.bins[0][0] == low <= lengths.mean <= high <= lengths.bins[-1][1]
    counts = found.columns["train"]
    assert set(counts) == {"0", "1"} and sum(counts.values()) == 15
    with pytest.raises(UserError, match="No problem has a column 'kinds'"):
        data_report.stats(material(rows), by="kinds")


def test_a_model_without_a_tokenizer(model, tmp_path):
    config = Config(model=str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load_material(config)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="can't be loaded"):
        load_material(config)
