"""Chat templates, BOS, dates, stop tokens and prompts that are too long."""

from __future__ import annotations

import json

import pytest
from mlx_lm.utils import load_tokenizer

from simko_mlx.config import PromptConfig
from simko_mlx.prompts import PromptEncoder, stop_tokens
from simko_mlx.types import Problem, UserError
from tests.models import make_model

DATED = (
    "{{- 'Today is ' + strftime_now('%d %b %Y') + '.\n' }}"
    "{%- for message in messages %}{{- message.content }}{%- endfor %}"
)
LLAMA_DATED = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}"
    "{%- endif %}{{- date_string + '\n' }}"
    "{%- for message in messages %}{{- message.content }}{%- endfor %}"
)


def problem(text: str = "What is 2 + 2?") -> Problem:
    return Problem("p", ({"role": "user", "content": text},), "4")


def decoded(tokenizer, config: PromptConfig, item: Problem | None = None) -> str:
    return tokenizer.decode(list(PromptEncoder(tokenizer, config).encode(item or problem())))


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return load_tokenizer(make_model(tmp_path_factory.mktemp("chat")))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return load_tokenizer(make_model(tmp_path_factory.mktemp("plain"), chat=False))


def test_the_chat_template_is_applied_with_thinking_off_by_default(chat):
    text = decoded(chat, PromptConfig())
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n" in text
    assert text.endswith("<think>\n\n</think>\n\n")
    assert decoded(chat, PromptConfig(thinking=True)).endswith("<|im_start|>assistant\n")


def test_template_and_system_message(chat):
    config = PromptConfig(template="{prompt}\nAnswer in \\boxed{}.", system="Be brief.")
    text = decoded(chat, config)
    assert "system\nBe brief.<|im_end|>" in text
    assert "What is 2 + 2?\nAnswer in \\boxed{}.<|im_end|>" in text
    with pytest.raises(UserError, match=r"prompt\.template"):
        PromptEncoder(chat, PromptConfig(template="Answer!"))


def test_without_a_chat_template_the_text_is_the_prompt(plain, chat):
    assert decoded(plain, PromptConfig()) == "What is 2 + 2?"
    assert decoded(chat, PromptConfig(chat="never")) == "What is 2 + 2?"
    assert decoded(plain, PromptConfig(system="S")) == "S\n\nWhat is 2 + 2?"
    with pytest.raises(UserError, match="no chat template"):
        PromptEncoder(plain, PromptConfig(chat="always"))


def test_todays_date_is_the_pinned_one(chat, monkeypatch):
    monkeypatch.setattr(chat._tokenizer, "chat_template", DATED)
    text = decoded(chat, PromptConfig(date="2025-02-03"))
    assert text.startswith("Today is 03 Feb 2025.")
    monkeypatch.setattr(
        chat._tokenizer, "chat_template", LLAMA_DATED.replace("{{- bos_token }}", "")
    )
    assert decoded(chat, PromptConfig(date="2025-02-03")).startswith("03 Feb 2025")
    with pytest.raises(UserError, match=r"prompt\.date"):
        PromptEncoder(chat, PromptConfig(date="3.2.2025"))


@pytest.mark.parametrize("template", [None, LLAMA_DATED])
def test_there_is_never_a_double_bos(template, tmp_path):
    model = make_model(tmp_path, chat=False, bos="<s>")
    # As Llama's tokenizers: BOS is added to every text.
    path = tmp_path / "tokenizer.json"
    raw = json.loads(path.read_text())
    bos = next(t["id"] for t in raw["added_tokens"] if t["content"] == "<s>")
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [bos], "tokens": ["<s>"]}},
    }
    path.write_text(json.dumps(raw))
    if template:
        settings = tmp_path / "tokenizer_config.json"
        settings.write_text(
            json.dumps({**json.loads(settings.read_text()), "chat_template": template})
        )
    tokenizer = load_tokenizer(model)
    encoder = PromptEncoder(tokenizer, PromptConfig(date="2025-01-01"))
    for text in ("What?", "<s>What?"):
        ids = encoder.encode(problem(text))
        assert ids[0] == bos
        if not template:
            assert ids[1] != bos


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{- raise_exception('System role not supported') }}", "System role not supported"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages + 1 }}", "can only concatenate"),
    ],
)
def test_a_template_that_rejects_the_messages_is_reported(chat, monkeypatch, template, words):
    monkeypatch.setattr(chat._tokenizer, "chat_template", template)
    with pytest.raises(UserError, match=words):
        decoded(chat, PromptConfig())


def test_long_prompts_are_refused_or_dropped_with_a_count(chat):
    items = [
        Problem(f"p{n}", ({"role": "user", "content": "a b " * n},), "x") for n in (1, 200, 300)
    ]
    encoder = PromptEncoder(chat, PromptConfig())
    with pytest.raises(UserError, match=r"problem p200 has \d+ tokens .*\(2 of 3"):
        encoder.encode_all(items, 100)
    kept, dropped = PromptEncoder(chat, PromptConfig(too_long="drop")).encode_all(items, 100)
    assert [p.id for p, _ in kept] == ["p1"] and dropped == 2
    everything, none = encoder.encode_all(items, None)
    assert len(everything) == 3 and none == 0
    exact = len(everything[1][1])
    assert PromptEncoder(chat, PromptConfig(too_long="drop")).encode_all(items, exact)[1] == 1


def test_the_stop_set_is_a_union(tmp_path):
    model = make_model(tmp_path)
    tokenizer = load_tokenizer(model)
    # tokenizer: <|im_end|> (2); generation_config: 2 and 0.
    assert stop_tokens(tokenizer, model) == {0: "<|endoftext|>", 2: "<|im_end|>"}
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "eos_token_id": [7]}))
    assert set(stop_tokens(tokenizer, model)) == {0, 2, 7}
    (model / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    (model / "generation_config.json").unlink()
    tokenizer.eos_token_ids = []
    with pytest.raises(UserError, match="no stop token"):
        stop_tokens(tokenizer, model)


@pytest.fixture
def shots(tmp_path):
    path = tmp_path / "shots.jsonl"
    path.write_text(
        '{"prompt": "1 + 1?", "answer": "2"}\n{"prompt": "What is 2 + 2?", "answer": "4"}\n'
        '{"prompt": "3 + 3?", "answer": "6"}\n'
    )
    return PromptConfig(
        few_shot=2, few_shot_path=str(path), template="Q: {prompt}", system="Be brief."
    )


def test_examples_are_turns_in_a_chat(chat, shots):
    own = Problem("p", ({"role": "system", "content": "Own."}, *problem().messages), "4")
    text = decoded(chat, shots, own)
    roles = [part.split("\n")[0] for part in text.split("<|im_start|>")[1:]]
    assert roles == ["system", "system", "user", "assistant", "user", "assistant", "user",
                     "assistant"]  # fmt: skip
    assert "user\nQ: 1 + 1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>" in text
    assert "Q: 3 + 3?<|im_end|>\n<|im_start|>assistant\n6<|im_end|>" in text
    assert text.count("Q: What is 2 + 2?") == 1 and "assistant\n4" not in text


def test_examples_are_blocks_of_text_without_a_chat_template(plain, shots):
    text = decoded(plain, shots)
    assert text == "Be brief.\n\nQ: 1 + 1?\n\n2\n\nQ: 3 + 3?\n\n6\n\nQ: What is 2 + 2?"
    assert decoded(plain, shots, problem("5?")).endswith("Q: What is 2 + 2?\n\n4\n\nQ: 5?")
