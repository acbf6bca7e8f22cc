"""Recorded completions are judged as a run would judge them."""

from __future__ import annotations

import json

import pytest

from simko_mlx.config import Config, DataConfig, VerifierConfig
from simko_mlx.loggers import JsonlLogger
from simko_mlx.recorded import judge
from simko_mlx.types import ScoredGroup, StepMetrics, UserError, Verdict
from tests.verifiers.test_pool import group

PROBLEMS = [{"id": name, "prompt": f"{name}?", "answer": str(i)} for i, name in enumerate("abcd")]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    data = DataConfig(source="jsonl", path=str(path), heldout=1, id="id")
    return Config(data=data, verifier=VerifierConfig(name="number"))


def write(tmp_path, *rows):
    path = tmp_path / "recorded.jsonl"
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return path


def test_rows_of_all_kinds(config, tmp_path):
    path = write(
        tmp_path,
        {"id": "b", "text": "it is 1"},
        "",
        {"problem": "c", "completions": ["2", "3", "\ud800\u0000"]},
        {"completion": [{"role": "assistant", "content": "so 9"}], "answer": 9, "prompt": "p"},
    )
    judged, _ = judge(config, path)
    assert [one.problem.id for one in judged] == ["b", "c", "c", "c", f"{path}:4"]
    assert [one.verdict.correct for one in judged] == [True, True, False, False, True]
    assert [one.where.rpartition(":")[2] for one in judged] == ["1", "3", "3", "3", "4"]


def test_what_a_run_logged(config, tmp_path):
    log = JsonlLogger(tmp_path)
    scored = group("1", "2", answer="1")
    verdicts = (Verdict(1.0, True), Verdict(0.0, False, "no"))
    log.step(StepMetrics(1, {}), [ScoredGroup(scored, verdicts, (1.0, -1.0))])
    log.close()
    rows = (tmp_path / "rollouts.jsonl").read_text().replace('"problem": "p"', '"problem": "b"')
    judged, _ = judge(config, write(tmp_path, rows.strip()))
    assert [one.verdict.correct for one in judged] == [True, False]
    assert [one.problem.id for one in judged] == ["b", "b"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"id": "z", "text": "1"}, "no problem of the data has the id 'z'"),
        ({"text": "1"}, "it names no problem, and it has no answer of its own"),
        ({"id": "a"}, "there is no completion.*has id"),
        ({"id": "a", "text": 1}, "'text' is neither text nor"),
        ({"id": "a", "completions": []}, "'completions' is neither text nor"),
        ([1], "no object"),
        ("{", "not JSON"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(config, tmp_path, row, words):
    with pytest.raises(UserError, match=words) as caught:
        judge(config, write(tmp_path, {"id": "a", "text": "0"}, row))
    assert "recorded.jsonl:2: " in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_empty(config, tmp_path):
    with pytest.raises(UserError, match="no file"):
        judge(config, tmp_path / "no.jsonl")
    with pytest.raises(UserError, match="has no rows"):
        judge(config, write(tmp_path))
