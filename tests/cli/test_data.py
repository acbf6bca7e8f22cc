"""``simko-mlx data``: what it prints, and what its exit code says."""

from __future__ import annotations

import json

import pytest

from cli import data_tables
from simko_mlx.data_report import Prompts, Shown

NUMBERS = ["--set", "verifier.name=number", "--set", "data.source=jsonl", "--set", "data.id=id",
           "--set", "data.heldout=2", "--set", "data.path=p.jsonl"]  # fmt: skip


@pytest.fixture
def problems(tmp_path):
    rows = [{"id": f"row-{i}", "prompt": f"{i} {i} > 1 :", "answer": str(i)} for i in range(9)]
    rows.append({"id": "bad\x1b[31m", "prompt": "1 2 > 3 :", "answer": "\\boxed{}"})
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_show_prints_prompts_with_their_tokens(simko):
    done = simko("data", "show", "countdown-tiny", "--n", "2", "--split", "heldout")
    assert done.returncode == 0 and not done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("1/300 heldout  countdown-") and lines[0].endswith("7 tokens")
    assert lines[3].startswith("<s> ") and lines[3].endswith(" :")
    assert max(map(len, lines)) <= 80


def test_line_breaks_are_marked_and_control_characters_are_not_sent():
    prompt = Shown("1", 9, "<|user|>a\n\nb\x1b[31m\n", "4\n2")
    lines = data_tables.show(Prompts("train", 1, (prompt,)))
    assert lines[0] == "1/1 train  1  9 tokens" and lines[1] == "answer: 4↵2"
    assert lines[3:-1] == ["<|user|>a↵", "↵", "b\ufffd[31m↵"]


def test_json_has_the_prompts_as_they_are(simko):
    told = json.loads(simko("data", "show", "--n", "1", "--json").stdout)
    assert told["shown"][0]["tokens"] == 7 and told["split"] == "train"


def test_check_accepts_the_embedded_world(simko):
    done = simko("data", "check", "--set", "data.size=40")
    assert done.returncode == 0, done.stderr
    assert "340 of 340 accepted, 340 of them by the column solution" in done.stdout
    assert not done.stderr


def test_check_lists_what_is_not_accepted(simko, problems):
    done = simko("data", "check", "countdown-tiny", *NUMBERS)
    assert done.returncode == 1, done.stderr
    assert "9 of 10 accepted" in done.stdout
    assert "bad\ufffd[31m" in done.stdout and "\x1b" not in done.stdout
    assert "why     the problem has no answer" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    told = simko("data", "check", "countdown-tiny", *NUMBERS, "--json")
    assert told.returncode == 1
    found = json.loads(told.stdout)
    assert [f["id"] for f in found["failures"]] == ["bad\x1b[31m"]
    assert (found["train"], found["heldout"]) == (8, 2)


@pytest.mark.slow
def test_stats_fit_a_terminal(simko):
    done = simko("data", "stats", "--by", "strategy")
    assert done.returncode == 0, done.stderr
    assert "prompts, train" in done.stdout and "strategy, heldout" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert json.loads(simko("data", "stats", "--json").stdout)["prompts"]["train"]["mean"] == 7.0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["data", "shwo"], "shwo"),
        (["data", "check", "nosuch"], "countdown-tiny"),
        (["data", "check", "--set", "data.sauce=x"], "the nearest is data.source"),
        (["data", "check", *NUMBERS], "There is no file p.jsonl"),
        (["data", "show", "--n", "0"], "--n"),
        (["data", "show", "--set", "data.heldout=0", "--split", "heldout"], "data.heldout"),
        (["data", "stats", "--by", "nosuch"], "numbers, target, strategy"),
        (["data", "check", "--set", "verifier.name=numbr"], "did you mean number"),
        (["data", "show", "--set", "model=nosuch/at/all"], "there is no such folder"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(simko, args, words):
    done = simko(*args)
    assert done.returncode == 2, done.stdout
    assert words in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1


def test_prompts_that_train_would_refuse_fail_the_check(simko):
    refused = simko("data", "check", "countdown-tiny", "--set", "prompt.max_length=3")
    assert refused.returncode == 1 and "too long" in refused.stdout
    dropped = simko(
        "data", "check", "--set", "prompt.max_length=3", "--set", "prompt.too_long=drop"
    )
    assert dropped.returncode == 0, dropped.stderr
