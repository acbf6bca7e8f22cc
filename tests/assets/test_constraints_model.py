"""The script that makes the model of constraints-tiny, at a tiny size."""

import random
from itertools import islice
from pathlib import Path

import pytest
from mlx_lm import load

from simko_mlx.assets import pretrain_constraints as pretrain
from simko_mlx.config_sources import resolve
from simko_mlx.data.instructions import prompt, tasks, to_problem
from simko_mlx.data.little_language import write
from simko_mlx.loggers import Silent
from simko_mlx.model_files import find_model
from simko_mlx.trainer import train
from simko_mlx.types import UserError
from simko_mlx.verifiers.constraints import verify


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


def test_diluted_demonstrations_heed_only_some_of_what_they_are_told():
    shares = []
    for diluted in (False, True):
        shown = pretrain.demonstrations(random.Random(0), 1, diluted=diluted)
        pairs = list(islice(zip(tasks("train", 1), shown, strict=True), 400))
        assert all(question == prompt(task) for task, (question, _) in pairs)
        met = [verify(text, "", to_problem(task, 0).columns).correct for task, (_, text) in pairs]
        shares.append(sum(met) / len(met))
    assert shares[0] == 1 and 0.3 < shares[1] < 0.7


def test_the_recipe_says_how_its_model_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = resolve("constraints-tiny", environ={}).config
    assert Path(config.model) == pretrain.OUT
    with pytest.raises(UserError, match=r"python -m simko_mlx\.assets\.pretrain_constraints"):
        find_model(config.model)


@pytest.mark.slow
def test_the_recipe_runs_with_a_freshly_made_model(folder, tmp_path):
    """The model knows nothing after eight steps: it runs, and nothing is said of learning."""
    config = resolve(
        "constraints-tiny",
        environ={},
        sets=[
            f"model={folder}",
            "steps=1",
            "data.size=20",
            "data.heldout=4",
            "eval.n=2",
            "eval.k=1",
        ],
    ).config
    result = train(config, tmp_path / "run", Silent())
    assert result.trained is not None and result.trained.problems == 4
