"""Problems from files: formats, paths into rows, bad rows, ids, and what is held out."""

import json
import random
import re
import sys
from pathlib import Path

import pytest

from simko_mlx.config import DataConfig
from simko_mlx.data import load
from simko_mlx.types import UserError

FIXTURES = Path(__file__).parent / "fixtures"


def write(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def config(path, **keys):
    keys = {"source": "jsonl", "heldout": 0, **keys}
    return DataConfig(path=str(path), **keys)


def rows(count, start=0):
    return [
        {"prompt": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(start, start + count)
    ]


def one(tmp_path, row, **keys):
    (problem,) = load(config(write(tmp_path / "one.jsonl", [row]), **keys)).train
    return problem


def refusal(tmp_path, row, **keys):
    with pytest.raises(UserError) as caught:
        one(tmp_path, row, **keys)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_plain_row(tmp_path):
    row = {"prompt": "2 + 2?", "answer": "4", "level": 3}
    problem = one(tmp_path, row)
    assert problem.messages == ({"role": "user", "content": "2 + 2?"},)
    assert problem.answer == "4"
    assert problem.columns == row
    assert re.fullmatch("[0-9a-f]{16}", problem.id)


def test_messages_keep_role_and_content_only(tmp_path):
    messages = [
        {"role": "system", "content": "Be brief.", "name": "x"},
        {"role": "user", "content": "2 + 2?"},
    ]
    problem = one(tmp_path, {"prompt": messages, "answer": "4"})
    assert problem.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
    )
    assert problem.columns["prompt"] == messages


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (42, "42"),
        (42.0, "42"),
        (3.5, "3.5"),
        (-0.25, "-0.25"),
        (True, "true"),
        (False, "false"),
        (10**30, str(10**30)),
        (" 7 ", " 7 "),
    ],
)
def test_answers_become_text_as_json_writes_them(tmp_path, value, text):
    assert one(tmp_path, {"prompt": "q", "answer": value}).answer == text


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a.b.c", "deep"),
        ("list.0.x", "first"),
        ("list.-1.x", "last"),
        ("dotted.name", "literal"),
        ("a.dotted.name", "inner literal"),
    ],
)
def test_dotted_paths(tmp_path, path, found):
    row = {
        "prompt": "q",
        "a": {"b": {"c": "deep"}, "dotted.name": "inner literal"},
        "list": [{"x": "first"}, {"x": "last"}],
        "dotted.name": "literal",
    }
    assert one(tmp_path, row, answer=path).answer == found


@pytest.mark.parametrize(
    ("row", "keys", "words"),
    [
        ("{oops", {}, ["one.jsonl:1: not JSON", "bad_rows=drop"]),
        ("[1, 2]", {}, ["it is a list"]),
        ("3", {}, ["it is a number"]),
        ("[" * 100_000, {}, ["not JSON"]),
        ('{"prompt": "q", "answer": ' + "9" * 5000 + "}", {}, ["huge number"]),
        ({"question": "q", "answer": "1"}, {}, ["data.prompt is 'prompt'", "question, answer"]),
        ({"promt": "q", "answer": "1"}, {}, ["nearest is 'promt'"]),
        ({"prompt": "q", "a": {"truth": 1}}, {"answer": "a.thruth"}, ["'a' has only", "'truth'"]),
        ({"prompt": "q", "a": 1}, {"answer": "a.b"}, ["'a' is a number and has no 'b'"]),
        ({"prompt": "q", "a": [1]}, {"answer": "a.3"}, ["'a' has 1 elements"]),
        ({"prompt": "  ", "answer": "1"}, {}, ["the prompt at 'prompt' is empty"]),
        ({"prompt": None, "answer": "1"}, {}, ["the prompt at 'prompt' is null"]),
        ({"prompt": [], "answer": "1"}, {}, ["no messages"]),
        ({"prompt": ["q"], "answer": "1"}, {}, ["message 0", "role and content"]),
        ({"prompt": [{"role": "human", "content": "q"}], "answer": "1"}, {}, ["role 'human'"]),
        ({"prompt": [{"role": "user", "content": [1]}], "answer": "1"}, {}, ["a list, not text"]),
        ({"prompt": [{"role": "assistant", "content": "4"}], "answer": "1"}, {}, ["ends with"]),
        ({"prompt": "q", "answer": ""}, {}, ["the answer at 'answer' is empty"]),
        ({"prompt": "q", "answer": None}, {}, ["the answer at 'answer' is null"]),
        ('{"prompt": "q", "answer": NaN}', {}, ["the answer at 'answer' is empty"]),
        ({"prompt": "q", "answer": {"target": "1"}}, {}, ["an object with the keys target"]),
        ({"prompt": "q", "answer": ["1"]}, {}, ["answer.0"]),
        ({"prompt": "q\ud800", "answer": "1"}, {}, ["surrogate"]),
        ({"prompt": "q", "answer": "1", "id": None}, {"id": "id"}, ["the id at 'id'"]),
    ],
)
def test_bad_rows_are_refused_with_the_reason(tmp_path, row, keys, words):
    message = refusal(tmp_path, row, **keys)
    for word in words:
        assert word in message


def test_the_first_bad_row_is_named_and_the_others_counted(tmp_path):
    path = write(tmp_path / "p.jsonl", [*rows(2), "", "{", *rows(3, 2), "nope", "[]"])
    with pytest.raises(UserError, match=r"p\.jsonl:4: not JSON.*\(and 2 more bad rows\)"):
        load(config(path))
    dropped = load(config(path, bad_rows="drop"))
    assert len(dropped.train) == 5
    assert "3 of 8 rows" in dropped.notes[0] and "p.jsonl:4" in dropped.notes[0]


def test_a_wrong_key_is_told_from_bad_rows(tmp_path):
    path = write(tmp_path / "p.jsonl", rows(3))
    for mode in ("refuse", "drop"):
        with pytest.raises(
            UserError, match=r"All 3 rows .* the nearest is 'answer'.*data\.\* keys"
        ):
            load(config(path, answer="answers", bad_rows=mode))


def test_byte_order_mark_carriage_returns_and_blank_lines(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "\xc3\xa9?", "answer": "1"}\r\n\r\n  \r\n'
                     b'{"prompt": "b", "answer": "2"}')  # fmt: skip
    problems = load(config(file)).train
    assert [p.messages[0]["content"] for p in problems] == ["é?", "b"]


def test_not_utf8_names_the_line(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_bytes(b'{"prompt": "a", "answer": "1"}\n{"prompt": "\xe9", "answer": "2"}\n')
    with pytest.raises(UserError, match=r"p\.jsonl:2: byte 13 .*UTF-8"):
        load(config(file, bad_rows="drop"))


def test_missing_files_folders_and_empty_files(tmp_path):
    with pytest.raises(UserError, match=r"no file .*none\.jsonl"):
        load(config(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="is a folder"):
        load(config(tmp_path))
    with pytest.raises(UserError, match="has no rows"):
        load(config(write(tmp_path / "empty.jsonl", ["", " "])))


def test_the_format_must_be_the_one_that_was_named(tmp_path):
    with pytest.raises(UserError, match=r"set data\.source=parquet"):
        load(config(FIXTURES / "gsm8k_4_rows.parquet"))
    with pytest.raises(UserError, match=r"set data\.source=jsonl"):
        load(config(write(tmp_path / "p.jsonl", rows(1)), source="parquet"))
    with pytest.raises(UserError, match=r"is called \.jsonl: set data\.source=jsonl"):
        load(config(tmp_path / "p.jsonl", source="csv"))
    (tmp_path / "p.csv").write_text("prompt,answer\na,1\n")
    with pytest.raises(UserError, match=r"is called \.csv: set data\.source=csv"):
        load(config(tmp_path / "p.csv"))


def test_where_a_line_of_json_breaks_off(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "b"\n')
    with pytest.raises(UserError, match=r"p\.jsonl:2: not JSON, .* at column 15"):
        load(config(tmp_path / "p.jsonl"))


def test_limit_reads_no_further(tmp_path):
    path = write(tmp_path / "p.jsonl", [*rows(3), "not read"])
    assert len(load(config(path, limit=3)).train) == 3


def test_ids_are_unique(tmp_path):
    path = write(tmp_path / "p.jsonl", [{**row, "id": i % 2} for i, row in enumerate(rows(5))])
    dataset = load(config(path, id="id"))
    assert [p.id for p in dataset.train] == ["0", "1", "0#2", "1#2", "0#3"]
    assert "3 rows" in dataset.notes[0]
    twice = load(config(write(tmp_path / "t.jsonl", rows(1) * 2), deduplicate=False))
    assert twice.train[1].id == twice.train[0].id + "#2"


def test_heldout_rows_do_not_depend_on_the_order(tmp_path):
    everything = rows(50)
    shuffled = random.Random(3).sample(everything, 50)
    first = load(config(write(tmp_path / "a.jsonl", everything), heldout=10))
    second = load(config(write(tmp_path / "b.jsonl", shuffled), heldout=10))
    assert [p.id for p in first.heldout] == [p.id for p in second.heldout]
    assert len(first.heldout) == 10 and len(first.train) == 40
    assert not {p.id for p in first.train} & {p.id for p in first.heldout}
    assert [int(p.answer) for p in first.train] == sorted(int(p.answer) for p in first.train)


def test_heldout_is_pinned(tmp_path):
    """Published figures depend on the split: a change of the hash must not go unnoticed."""
    dataset = load(config(write(tmp_path / "p.jsonl", rows(20)), heldout=2))
    assert [p.answer for p in dataset.heldout] == ["11", "17"]


def test_a_heldout_prompt_never_stays_in_train(tmp_path):
    twins = [{**row, "answer": f"{row['answer']}.0"} for row in rows(30)]
    path = write(tmp_path / "p.jsonl", rows(30) * 2 + twins)
    dataset = load(config(path, heldout=5, deduplicate=False))
    prompts = [p.messages[0]["content"] for p in dataset.heldout]
    assert len(set(prompts)) == 5
    assert not set(prompts) & {p.messages[0]["content"] for p in dataset.train}
    assert len(dataset.train) == 75
    assert any("10 rows" in note and "held-out" in note for note in dataset.notes)


def test_one_row_of_each_prompt_is_kept_whatever_their_order(tmp_path):
    twins = [{**row, "answer": f"{row['answer']}.0"} for row in rows(3)]
    everything = rows(30) * 2 + twins
    dataset = load(config(write(tmp_path / "a.jsonl", everything), heldout=5))
    assert len(dataset.train) + len(dataset.heldout) == 30
    (note,) = dataset.notes
    assert "33 rows of" in note and "(3 of those prompts have answers that differ)" in note
    shuffled = random.Random(1).sample(everything, len(everything))
    again = load(config(write(tmp_path / "b.jsonl", shuffled), heldout=5))
    assert {(p.id, p.answer) for p in again.train} == {(p.id, p.answer) for p in dataset.train}
    assert [p.id for p in again.heldout] == [p.id for p in dataset.heldout]
    # The same prompts are held out as with all rows kept.
    kept = load(config(tmp_path / "a.jsonl", heldout=5, deduplicate=False))
    assert [p.messages for p in kept.heldout] == [p.messages for p in dataset.heldout]


@pytest.mark.parametrize("count", [4, 5, 100])
def test_too_many_heldout(tmp_path, count):
    path = write(tmp_path / "p.jsonl", rows(4))
    with pytest.raises(UserError, match=f"data.heldout is {count} but .*4 rows"):
        load(config(path, heldout=count))


def test_eval_path(tmp_path):
    train = write(tmp_path / "train.jsonl", rows(10))
    heldout = write(tmp_path / "test.jsonl", rows(4, start=8))
    dataset = load(config(train, eval_path=heldout, heldout=3))
    assert len(dataset.heldout) == 4 and len(dataset.train) == 8
    assert any("2 rows" in note for note in dataset.notes)
    with pytest.raises(UserError, match="nothing is left"):
        load(config(train, eval_path=train))


def test_parquet_with_nested_columns():
    pytest.importorskip("duckdb", reason="duckdb, of the extra 'data', is not installed")
    keys = {"source": "parquet", "answer": "reward_model.ground_truth"}
    dataset = load(config(FIXTURES / "gsm8k_4_rows.parquet", **keys, heldout=1))
    assert len(dataset.train) == 3 and len(dataset.heldout) == 1
    assert {p.answer for p in dataset.train + dataset.heldout} == {"180", "6", "2", "7"}
    problem = dataset.train[0]
    assert problem.messages[0]["role"] == "user"
    assert problem.columns["extra_info"]["split"] == "train"
    json.dumps(problem.columns)


def test_parquet_rows_are_named_by_number():
    pytest.importorskip("duckdb", reason="duckdb, of the extra 'data', is not installed")
    keys = {"source": "parquet", "answer": "reward_model.ground_truth.target"}
    with pytest.raises(UserError, match=r"math_4_rows\.parquet row 4: the answer .* is empty"):
        load(config(FIXTURES / "math_4_rows.parquet", **keys))
    assert len(load(config(FIXTURES / "math_4_rows.parquet", **keys, bad_rows="drop")).train) == 3
    plain = load(config(FIXTURES / "math_4_rows.parquet", **keys, prompt="prompt.0.content",
                        bad_rows="drop"))  # fmt: skip
    assert plain.train[0].messages[0]["role"] == "user"


def test_parquet_types_become_text(tmp_path):
    duckdb = pytest.importorskip("duckdb", reason="duckdb, of the extra 'data', is not installed")
    file = tmp_path / "odd [1]*.parquet"  # a name, not a pattern
    duckdb.sql(
        "SELECT 'q' AS prompt, 1.50::DECIMAL(4,2) AS answer, DATE '2024-02-03' AS day, "
        "'ab'::BLOB AS raw, '\\xFF'::BLOB AS bytes, MAP {'k': [1, 2]} AS map, 2.0::DOUBLE AS x"
    ).write_parquet(str(file))
    (problem,) = load(config(file, source="parquet")).train
    assert problem.answer == "1.50"
    assert problem.columns["day"] == "2024-02-03"
    assert problem.columns["raw"] == "ab" and problem.columns["bytes"] == "/w=="
    assert problem.columns["map"] == {"k": [1, 2]}
    json.dumps(problem.columns)


def test_broken_and_empty_parquet(tmp_path):
    duckdb = pytest.importorskip("duckdb", reason="duckdb, of the extra 'data', is not installed")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(UserError, match=r"broken\.parquet can't be read as Parquet"):
        load(config(broken, source="parquet"))
    empty = tmp_path / "empty.parquet"
    duckdb.sql("SELECT 'q' AS prompt, '1' AS answer WHERE false").write_parquet(str(empty))
    with pytest.raises(UserError, match="has no rows"):
        load(config(empty, source="parquet"))


def test_without_duckdb_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(UserError, match=r"pip install 'simko-mlx\[data\]'"):
        load(config(FIXTURES / "gsm8k_4_rows.parquet", source="parquet"))


@pytest.mark.parametrize(
    ("name", "answer", "count", "bad"),
    [
        ("gsm8k_train.parquet", "reward_model.ground_truth", 8388, 0),
        ("math_train.parquet", "reward_model.ground_truth.target", 7500, 4),
        ("math_train.parquet", "reward_model.ground_truth.solution", 7500, 0),
        ("amc23.parquet", "reward_model.ground_truth.target", 40, 0),
    ],
)
def test_whole_data_sets(shared_data, name, answer, count, bad):
    pytest.importorskip("duckdb", reason="duckdb, of the extra 'data', is not installed")
    keys = {"source": "parquet", "answer": answer, "bad_rows": "drop"}
    dataset = load(config(shared_data / name, **keys, heldout=20))
    repeated = sum(
        int(note.split()[0].replace(",", "")) for note in dataset.notes if "held-out" in note
    )
    assert len(dataset.heldout) == 20
    assert len(dataset.train) + 20 + repeated == count - bad
    assert all(p.messages[-1]["content"] and p.answer for p in dataset.train)
