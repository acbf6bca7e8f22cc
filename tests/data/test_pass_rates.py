"""Problems chosen by pass rates that were measured before."""

import json

import pytest

from simko_mlx.config import Config, DataConfig, set_key
from simko_mlx.config_checks import validate
from simko_mlx.data import load
from simko_mlx.types import UserError

RATES = {"0": 0.0, "1": 0.25, "2": 0.5, "3": 1.0, "elsewhere": 0.5}


def write(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


@pytest.fixture
def config(tmp_path):
    rows = [{"id": str(i), "prompt": f"{i}?", "answer": "1"} for i in range(6)]
    rates = [{"id": name, "pass_rate": rate, "samples": 4} for name, rate in RATES.items()]
    return DataConfig(
        source="jsonl", path=write(tmp_path / "p.jsonl", rows), id="id", heldout=0,
        pass_rates=write(tmp_path / "rates.jsonl", rates),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "unmeasured", "kept"),
    [
        (None, None, "keep", "012345"),
        (None, None, "drop", "0123"),
        (0.01, 0.99, "keep", "1245"),
        (0.25, 0.5, "drop", "12"),
        (0.5, None, "drop", "23"),
        (None, 0.0, "drop", "0"),
    ],
)
def test_bounds_and_what_was_not_measured(config, low, high, unmeasured, kept):
    config.min_pass_rate, config.max_pass_rate, config.unmeasured = low, high, unmeasured
    dataset = load(config)
    assert "".join(p.id for p in dataset.train) == kept
    assert dataset.pass_rates == {name: RATES[name] for name in kept if name in RATES}
    what = "kept" if unmeasured == "keep" else "left out"
    assert f"2 problems are not in {config.pass_rates}: {what}, as" in dataset.notes[-1]
    outside = 4 - len(set(kept) & set(RATES))
    assert any(f"{outside} of 4 measured" in n for n in dataset.notes) == bool(outside)


def test_held_out_problems_stay(config):
    config.heldout, config.min_pass_rate, config.unmeasured = 2, 0.9, "drop"
    everything = load(DataConfig(source="jsonl", path=config.path, id="id", heldout=2))
    if "3" in {p.id for p in everything.heldout}:
        config.min_pass_rate = 0.0
    assert [p.id for p in load(config).heldout] == [p.id for p in everything.heldout]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", {"id": "1"}, {"id": 1, "pass_rate": 0.5}, {"id": "1", "pass_rate": 1.5},
     {"id": "1", "pass_rate": True}, {"pass_rate": 0.5}, '{"id": "1", "pass_rate": NaN}'],
)  # fmt: skip
def test_lines_that_are_no_pass_rates(config, tmp_path, line):
    config.pass_rates = write(tmp_path / "r.jsonl", [{"id": "1", "pass_rate": 1}, line])
    with pytest.raises(UserError, match=r"r\.jsonl:2: write each line as"):
        load(config)


def test_rates_of_other_problems_and_too_narrow_bounds(config, tmp_path):
    config.min_pass_rate, config.max_pass_rate, config.unmeasured = 0.3, 0.4, "drop"
    with pytest.raises(UserError, match=r"from 0\.3 to 0\.4: change data\.min_pass_rate"):
        load(config)
    config.pass_rates = write(tmp_path / "r.jsonl", [{"id": "x", "pass_rate": 1}])
    with pytest.raises(UserError, match="None of the 6 problems"):
        load(config)
    config.pass_rates = str(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="simko-mlx probe CONFIG --write"):
        load(config)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"data.order": "easy-first"}, "simko-mlx probe CONFIG --write FILE"),
        ({"data.min_pass_rate": 0.1}, "simko-mlx probe CONFIG --write FILE"),
        ({"data.max_pass_rate": 1.1}, "between 0 and 1"),
        ({"data.min_pass_rate": 0.5, "data.max_pass_rate": 0.4}, "no rate lies between"),
        ({"data.source": "json", "data.path": "p", "data.subset": "a"}, "data.source=hf"),
        ({"data.source": "hf"}, "owner/name"),
        (
            {
                "data.source": "hf",
                "data.path": "a/b",
                "data.eval_path": "p",
                "data.eval_split": "test",
            },
            "keep one of them",
        ),
        ({"prompt.few_shot_answer": "solution"}, r"prompt\.few_shot is 0"),
        ({"prompt.few_shot": -1}, "at least 0"),
    ],
)
def test_keys_that_do_not_go_together(keys, words):
    config = Config()
    for key, value in keys.items():
        set_key(config, key, value)
    with pytest.raises(UserError, match=words):
        validate(config)
