"""JSON lists, CSV tables and mlx-lm's folders: what they may look like, and what is wrong."""

import json

import pytest

from simko_mlx.config import DataConfig
from simko_mlx.data import load
from simko_mlx.types import UserError

ROWS = [{"prompt": "a?", "answer": "1"}, {"prompt": "b?", "answer": 2, "level": 3}]


def problems(file, source, **keys):
    dataset = load(DataConfig(source=source, path=str(file), **{"heldout": 0, **keys}))
    return [(p.messages[-1]["content"], p.answer) for p in dataset.train]


def written(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def refusal(file, source, **keys):
    with pytest.raises(UserError) as caught:
        problems(file, source, **keys)
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", ").")), message
    return message


# --- json -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        ROWS,
        {"data": ROWS},
        {"version": "1.0", "rows": ROWS},
        json.dumps(ROWS, indent=2),
        "\n".join(map(json.dumps, ROWS)),
        b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    ],
)
def test_json_lists(tmp_path, content):
    assert problems(written(tmp_path / "p.json", content), "json") == [("a?", "1"), ("b?", "2")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["p.json:1: not JSON", "column 1"]),
        ('[{"prompt": "a"},\n {"prompt" "b"}]', ["p.json:2: not JSON", "column 12"]),
        ("[" * 100_000, ["nested too deeply"]),
        ("7", ["neither a JSON list"]),
        ({"version": 1}, ["no lists", "version"]),
        ({"train": ROWS, "test": ROWS}, ["2 lists", "train, test"]),
        ([], ["no rows"]),
        ([ROWS[0], {"prompt": "b?"}], ["p.json element 2: data.answer is 'answer'"]),
        ([ROWS[0], 3], ["p.json element 2: it is a number"]),
        ('[{"prompt": "a", "answer": "1"}]\n[]', ["p.json:2: not JSON, extra data"]),
        ('{"prompt": "a", "answer": "1"}\n{"prompt": "b"}', ["p.json:2: data.answer"]),
        (b'["\xff"]', ["p.json:1: byte 3", "UTF-8"]),
    ],
)  # fmt: skip
def test_json_mistakes(tmp_path, content, words):
    message = refusal(written(tmp_path / "p.json", content), "json")
    for word in words:
        assert word in message


@pytest.mark.parametrize("content", [json.dumps(ROWS), json.dumps(ROWS, indent=1)])
def test_a_json_list_that_is_called_jsonl(tmp_path, content):
    assert "data.source=json," in refusal(written(tmp_path / "p.jsonl", content), "jsonl")


# --- csv ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "prompt,answer\na?,1\nb?,2\n",
        "prompt;answer\na?;1\nb?;2",
        "prompt\tanswer\na?\t1\nb?\t2\n",
        b"\xef\xbb\xbfprompt,answer\r\na?,1\r\n\r\nb?,2\r\n",
        '"prompt","answer"\n"a?","1"\n"b?","2"\n',
        'id;"a, b, c, d";prompt;answer\n1;x;a?;1\n2;y;b?;2\n',
        " prompt , answer\na?,1\nb?,2\n",
    ],
)
def test_csv_tables(tmp_path, content):
    assert problems(written(tmp_path / "p.csv", content), "csv") == [("a?", "1"), ("b?", "2")]


def test_csv_fields_may_hold_delimiters_quotes_and_line_breaks(tmp_path):
    content = 'prompt,answer\n"Say ""hi"",\nthen stop.",1\n' + f'"{"x" * 200_000}?",2\n'
    first, second = problems(written(tmp_path / "p.csv", content), "csv")
    assert first == ('Say "hi",\nthen stop.', "1")
    assert len(second[0]) == 200_001


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["no rows"]),
        ("prompt,answer\n", ["has no rows"]),
        ("prompt,answer\na?,1\nb?\nc?,3", ["p.csv:3: it has 1 fields, but the header has 2"]),
        ("prompt,answer\na?,1\nb, c?,2", ["p.csv:3: it has 3 fields"]),
        ('prompt,answer\n"two\nlines?",1\n"b?"x,2\n', ["p.csv:4: not CSV", "expected after"]),
        ('prompt,answer\na?,1\n"b?,2\nc?,3\n', ["p.csv:3: not CSV", "never closed"]),
        ("prompt,answer,answer\na?,1,1\n", ["p.csv:1", "'answer' twice"]),
        ("question,answer\na?,1\n", ["data.prompt is 'prompt'", "question, answer"]),
        ("prompt,answer\na?,\nb?,2\n", ["p.csv:2: the answer at 'answer' is empty"]),
        (b"prompt,answer\na?,1\nb\xe9?,2\n", ["p.csv:3: byte 2", "UTF-8"]),
        ('"prompt', ["p.csv:1: not CSV", "header"]),
    ],
)
def test_csv_mistakes(tmp_path, content, words):
    message = refusal(written(tmp_path / "p.csv", content), "csv")
    for word in words:
        assert word in message


def test_bad_csv_rows_can_be_left_out(tmp_path):
    file = written(tmp_path / "p.csv", 'prompt,answer\na?,1\nb?\n"c?"x,3\nd?,4\n')
    assert problems(file, "csv", bad_rows="drop") == [("a?", "1"), ("d?", "4")]


def test_the_held_out_file_may_have_another_format(tmp_path):
    train = written(tmp_path / "train.csv", "prompt,answer\na?,1\nb?,2\n")
    for name, content in (("t.json", [ROWS[0]]), ("t.jsonl", json.dumps(ROWS[0]))):
        config = DataConfig(
            source="csv", path=str(train), eval_path=str(written(tmp_path / name, content))
        )
        dataset = load(config)
        assert [p.answer for p in dataset.heldout] == ["1"]
        assert [p.answer for p in dataset.train] == ["2"]


# --- mlx-lm ---------------------------------------------------------------------------------------


def folder(tmp_path, **files):
    for name, rows in files.items():
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        written(tmp_path / f"{name}.jsonl", text)
    return tmp_path


def message(role, content):
    return {"role": role, "content": content}


CHAT = [message("system", "Be brief."), message("user", "a?"), message("assistant", "1")]


@pytest.mark.parametrize(
    ("row", "keys"),
    [
        ({"messages": CHAT}, {}),
        ({"messages": CHAT[:2], "answer": "1"}, {}),
        ({"messages": CHAT, "gold": "1"}, {"answer": "gold"}),
        ({"prompt": "a?", "completion": "1"}, {}),
        ({"prompt": "a?", "completion": "so 1", "answer": "1"}, {}),
        ({"prompt": "a?", "answer": 1}, {}),
        ({"text": "a?", "gold": "1"}, {"answer": "gold"}),
        ({"q": "a?", "completion": "1"}, {"prompt": "q"}),
    ],
)
def test_mlx_lm_rows(tmp_path, row, keys):
    assert problems(folder(tmp_path, train=[row]), "mlx-lm", **keys) == [("a?", "1")]


def test_the_last_answer_of_a_conversation_is_the_gold_one(tmp_path):
    talk = [*CHAT, message("user", "and b?"), message("assistant", "2")]
    config = DataConfig(
        source="mlx-lm", path=str(folder(tmp_path, train=[{"messages": talk}])), heldout=0
    )
    (problem,) = load(config).train
    assert problem.answer == "2" and list(problem.messages) == talk[:-1]
    assert problem.columns["messages"] == talk


@pytest.mark.parametrize(
    ("names", "held_out"), [(("valid", "test"), "v?"), (("test",), "t?"), (("valid",), "v?")]
)
def test_valid_is_held_out_before_test(tmp_path, names, held_out):
    files = {name: [{"prompt": f"{name[0]}?", "completion": "1"}] for name in names}
    train = [{"prompt": "a?", "completion": "1"}, {"prompt": held_out, "completion": "1"}]
    dataset = load(DataConfig(source="mlx-lm", path=str(folder(tmp_path, train=train, **files))))
    assert [p.messages[0]["content"] for p in dataset.heldout] == [held_out]
    assert [p.messages[0]["content"] for p in dataset.train] == ["a?"]
    assert "1 row" in dataset.notes[-1]


def test_without_either_some_of_train_are_held_out(tmp_path):
    rows = [{"prompt": f"{i}?", "completion": "1"} for i in range(9)]
    path = str(folder(tmp_path, train=rows))
    dataset = load(DataConfig(source="mlx-lm", path=path, heldout=3))
    assert len(dataset.train) == 6 and len(dataset.heldout) == 3


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a? 1"}, "name the column that holds it in data.answer"),
        ({"messages": CHAT[:2]}, "don't end with the assistant's"),
        ({"messages": []}, "don't end with"),
        ({"messages": CHAT[2:]}, "has no messages"),
        ({"messages": [*CHAT, CHAT[2]]}, "is the assistant's; a prompt ends with the user's"),
        ({"messages": "a?"}, "don't end with"),
        ({"prompt": "a?", "completion": [message("assistant", "1")]}, "answer.0"),
        ("[3]", "it is a list"),
        ("{", "not JSON"),
    ],
)
def test_mlx_lm_mistakes(tmp_path, row, words):
    found = refusal(folder(tmp_path, train=[row]), "mlx-lm")
    assert "train.jsonl:1" in found and words in found


def test_what_is_no_mlx_lm_folder(tmp_path):
    assert "name a folder with train.jsonl" in refusal(tmp_path / "none", "mlx-lm")
    folder(tmp_path, test=[{"prompt": "a?", "completion": "1"}])
    assert "has no train.jsonl (it has test.jsonl)" in refusal(tmp_path, "mlx-lm")
