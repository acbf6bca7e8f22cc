"""The shipped model: what its folder promises, and that the script that made it still works."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import generate, load
from mlx_lm.models.cache import make_prompt_cache
from safetensors import safe_open

from simko_mlx.assets import pretrain
from simko_mlx.data import countdown
from simko_mlx.verifiers.countdown import verify

FOLDER = Path(pretrain.__file__).parent / "countdown_tiny"
GOLD = "L 3 + 5 = 8 * 2 = 16"
SAMPLES = 8  # per problem
MAX_TOKENS = 11


@pytest.fixture(scope="module")
def shipped():
    return load(str(FOLDER))


def sample_texts(model, tokenizer, prompts):
    """`SAMPLES` completions of each prompt at temperature 1, decoded without the stop token."""
    rows = np.repeat(np.array([tokenizer.encode(prompt) for prompt in prompts]), SAMPLES, axis=0)
    cache, tokens = make_prompt_cache(model), mx.array(rows)
    drawn = []
    for _ in range(MAX_TOKENS):
        tokens = mx.random.categorical(model(tokens, cache=cache)[:, -1])[:, None]
        mx.eval(tokens)
        drawn.append(np.array(tokens)[:, 0])
    texts = []
    for row in np.stack(drawn, axis=1).tolist():
        stop = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
        texts.append(tokenizer.decode(row[:stop]))
    return [texts[i : i + SAMPLES] for i in range(0, len(texts), SAMPLES)]


def test_folder_is_complete_and_small():
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_500_000


def test_configuration_is_what_the_script_writes():
    assert json.loads((FOLDER / "config.json").read_text()) == pretrain.MODEL
    with safe_open(FOLDER / "model.safetensors", "numpy") as weights:
        dtypes = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    assert dtypes == {"F32"}


def test_tokenizer_round_trip(shipped):
    tokenizer = shipped[1]
    ids = tokenizer.encode("3 5 2 > 16 :")
    assert ids == [tokenizer.bos_token_id, 3, 5, 2, pretrain.TOKEN_ID[">"], 16, ids[-1]]
    assert tokenizer.decode(pretrain.encode(GOLD)) == GOLD
    assert tokenizer.decode(tokenizer.encode(GOLD), skip_special_tokens=True) == GOLD


def test_special_tokens_are_distinct(shipped):
    tokenizer = shipped[1]
    special = [
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
    ]
    assert len(set(special)) == 4 and None not in special
    assert tokenizer.eos_token == "." and tokenizer.eos_token_ids == {tokenizer.eos_token_id}


@pytest.mark.parametrize("text", ["hello 100", "３ ²", "-5", "3,", "03"])
def test_unknown_words_become_unk(shipped, text):
    tokenizer = shipped[1]
    assert tokenizer.encode(text)[1:] == [tokenizer.unk_token_id] * len(text.split())


def test_plain_generate_answers_in_the_format(shipped):
    model, tokenizer = shipped
    for problem in countdown.generate(split="heldout", size=3, seed=1):
        text = generate(model, tokenizer, problem.messages[0]["content"], max_tokens=MAX_TOKENS)
        chains = {chain.text for chain in countdown.chains(problem.columns["numbers"])}
        assert text in chains  # right arithmetic, whether or not it reaches the target


def test_shipped_pass_at_1_leaves_room_to_learn(shipped):
    model, tokenizer = shipped
    problems = countdown.generate(split="heldout", size=240, seed=4242)
    mx.random.seed(0)
    groups = sample_texts(model, tokenizer, [p.messages[0]["content"] for p in problems])
    rates: dict[str, list[float]] = {strategy: [] for strategy in countdown.STRATEGIES}
    for problem, texts in zip(problems, groups, strict=True):
        correct = [verify(text, problem.answer, problem.columns).correct for text in texts]
        rates[problem.columns["strategy"]].append(float(np.mean(correct)))
    # The strategies are equally frequent, so the mean of their means is the overall rate.
    assert 0.10 < np.mean([np.mean(rate) for rate in rates.values()]) < 0.30
    assert all(np.mean(rate) > 0.08 for rate in rates.values())


def test_pretraining_uses_train_problems_only():
    rows = pretrain.TraceSampler(noise=0.5, seed=3).batch(2000)
    for row in rows.tolist():
        assert countdown.split_of(row[1:4], row[5]) == "train"


def test_pretraining_noise_is_the_share_of_aimless_traces():
    rows = pretrain.TraceSampler(noise=0.0, seed=0).batch(500)
    assert (rows[:, 5] == rows[:, -2]).all()  # every response ends at its target
    rows = pretrain.TraceSampler(noise=1.0, seed=0).batch(2000)
    assert np.mean(rows[:, 5] == rows[:, -2]) < 0.2


def test_script_makes_a_loadable_folder(tmp_path):
    for folder in ("a", "b"):
        pretrain.main(["--out", str(tmp_path / folder), "--steps", "2", "--seed", "5"])
    model, tokenizer = load(str(tmp_path / "a"))
    assert model(mx.array([tokenizer.encode("3 5 2 > 16 :")])).shape == (1, 7, tokenizer.vocab_size)
    first, second = (mx.load(str(tmp_path / f / "model.safetensors")) for f in ("a", "b"))
    assert all(mx.array_equal(first[name], second[name]) for name in first)  # seeded
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (FOLDER / name).read_bytes()
