"""``simko-mlx verify`` from outside."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def files(tmp_path):
    rows = [{"id": i, "prompt": f"{i}?", "answer": i} for i in range(1, 4)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "c.yaml").write_text(
        "verifier: {name: exact}\n"
        f"data: {{source: jsonl, path: {tmp_path / 'd.jsonl'}, id: id, heldout: 1}}\n"
    )
    recorded = [{"id": 1, "text": "1"}, {"id": 2, "text": "\u001b[31mred\n3"}]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in recorded))
    return str(tmp_path / "c.yaml"), str(tmp_path / "r.jsonl")


def test_a_line_for_each_and_what_they_come_to(simko, files):
    config, recorded = files
    done = simko("verify", config, "--completions", recorded)
    assert done.returncode == 0, done.stderr
    assert "1  correct  reward 1" in done.stdout and "2  wrong  reward 0" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 of 2 correct (50.0%), mean reward 0.5"
    assert "\x1b" not in done.stdout

    done = simko("verify", config, "--completions", recorded, "--wrong")
    assert "1  correct" not in done.stdout and "(1 of 2 shown)" in done.stdout


def test_json(simko, files):
    config, recorded = files
    found = json.loads(simko("verify", config, "--completions", recorded, "--json").stdout)
    assert found["summary"] == {
        "completions": 2,
        "correct": 1,
        "not_scorable": 0,
        "mean_reward": 0.5,
    }
    assert [one["correct"] for one in found["completions"]] == [True, False]
    assert found["completions"][1]["text"] == "\u001b[31mred\n3"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "verifier.options={tolerance: 1}"], "exact has no option 'tolerance'"),
        (["--set", "verifier.name=exakt"], "did you mean exact"),
        (["--completions", "/nowhere/r.jsonl"], "There is no file"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_mistakes(simko, files, more, words):
    config, recorded = files
    args = ["verify", config, "--completions", recorded, *more]
    done = simko(*args)
    assert done.returncode == 2 and words in done.stderr and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
