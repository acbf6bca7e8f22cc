"""The script that makes the model of constraints-tiny, at a tiny size."""

import random
from itertools import islice

import pytest
from mlx_lm import load

from simko_mlx.assets import pretrain_constraints as pretrain
from simko_mlx.config_sources import resolve
from simko_mlx.data.instructions import prompt, tasks
from simko_mlx.data.little_language import write
from simko_mlx.model_files import find_model
from simko_mlx.types import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "constraints-tiny"
    pretrain.main(["--out", str(out), "--steps", "8", "--batch-size", "4"])
    return out


def test_every_text_and_prompt_survives_the_tokenizer(folder):
    _, tokenizer = load(str(folder))
    rng = random.Random(1)
    for task in islice(tasks("train", 5), 500):
        for text in (prompt(task), write(task, rng)):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text


def test_prompts_are_laid_out_as_in_pretraining(folder):
    _, tokenizer = load(str(folder))
    batches = pretrain.Batches(pretrain.make_tokenizer(), 0, diluted=False)
    ids, given = batches.row()
    question = next(tasks("train", 0))
    messages = [{"role": "user", "content": prompt(question)}]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True) == ids[:given]
    assert ids[-1] == tokenizer.eos_token_id


def test_only_responses_are_learned_and_rows_are_padded_on_the_right():
    batches = pretrain.Batches(pretrain.make_tokenizer(), 0, diluted=True)
    tokens, weights = batches.next(4)
    assert tokens.shape == weights.shape and tokens.shape[0] == 4
    for row, weight in zip(tokens.tolist(), weights.tolist(), strict=True):
        learned = [token for token, w in zip(row, weight, strict=True) if w]
        assert learned[-1] == batches.eos and row[0] == batches.bos and not weight[0]
        assert set(row[row.index(batches.eos) + 1 :]) <= {batches.pad}


def test_diluted_demonstrations_heed_some_of_the_prompt():
    clean, diluted = (
        [
            write(task, random.Random(0)) == text
            for (_, text), task in zip(
                islice(pretrain.demonstrations(random.Random(0), 1, diluted=d), 200),
                tasks("train", 1),
                strict=False,
            )
        ]
        for d in (False, True)
    )
    assert len(clean) == len(diluted) == 200
