"""Every family of models: gradients, decoding, the trainer and what plain mlx-lm makes of it all.

docs/models.md is the table of these numbers (``python -m tests.model_table``).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from simko_mlx.policy import load_policy
from simko_mlx.types import UserError
from tests.families import ATTENTION, FALLBACK, FAMILIES, RECURRENT, write_model
from tests.model_checks import Case, decode_gap, gradient, make_case, off_by, sample, two_steps
from tests.runs import small_config

DOCS = Path(__file__).parents[1] / "docs" / "models.md"
ALIKE = 1e-5  # of a gradient's largest entry
# On a CPU the machine's own compiler makes the kernels of a compiled step, which takes a minute for
# some families, if only the first time.
COMPILED_ALWAYS = ("qwen2",)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    @cache
    def built(name: str) -> Case:
        return make_case(tmp_path_factory.mktemp("family"), name)

    return built


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_are_shared_as_far_as_the_family_allows(case, name):
    policy = case(name).policy
    note = " ".join(policy.notes)
    if name == "gemma2":  # its attention has no place for a mask of each row
        assert policy.way == "single" and "each problem is trained on by itself" in note
    elif name in RECURRENT:
        assert policy.way == "exact" and "padding would have run through the state" in note
    else:
        assert policy.way == "packed" and not policy.notes
    assert policy.tap is not None
    assert documented()[name] == policy.way
    assert (case(name).ragged is None) == (name != "gemma2"), case(name).ragged


@pytest.mark.parametrize("name", [*FAMILIES, *FALLBACK])
def test_gradients_are_those_of_whole_rows_one_by_one(case, name):
    wanted = case(name).by_hand
    assert all(np.abs(value).max() > 0 for value in wanted.values())
    assert off_by(gradient(case(name), "full"), wanted) < ALIKE
    assert off_by(gradient(case(name)), wanted) < ALIKE
    assert off_by(gradient(case(name), grad_checkpoint=True), wanted) < ALIKE


def documented() -> dict[str, str]:
    """family -> way, as docs/models.md has them."""
    table = [x.split(" | ") for x in DOCS.read_text().splitlines() if x.startswith("| ")]
    return {cells[0].removeprefix("| "): cells[2] for cells in table}


def test_the_docs_have_every_family():
    assert documented().keys() - {"family", "---"} == {*FAMILIES, *FALLBACK}


def compiled_cases() -> list:
    rest = [name for name in [*ATTENTION, *FALLBACK] if name not in COMPILED_ALWAYS]
    return [*COMPILED_ALWAYS, *(pytest.param(name, marks=pytest.mark.slow) for name in rest)]


@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", compiled_cases())
def test_compiled_gradients_too(case, name, checkpoint):
    found = gradient(case(name), optim__compile=True, grad_checkpoint=checkpoint)
    assert off_by(found, case(name).by_hand) < ALIKE


@pytest.mark.parametrize("name", [*FAMILIES, *FALLBACK])
def test_sampled_tokens_have_the_log_probs_that_are_trained_on(case, name):
    """Prompts longer than the window, a batch that is narrower than there are rows, and prompts
    held once or by each row."""
    ways = {case(name).policy.together.shared, False}
    sampled = [sample(case(name), width, shared=way) for way in ways for width in (3, 64)]
    assert max(decode_gap(case(name), groups) for groups in sampled) < 1e-4
    tokens = [[c.token_ids for g in groups for c in g.completions] for groups in sampled]
    assert all(ids == tokens[0] for ids in tokens)
    assert len({len(ids) for ids in tokens[0]}) > 1  # so that places became free at other times


@pytest.mark.parametrize(
    "name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in FALLBACK)]
)
def test_the_trainer_changes_the_adapter_and_mlx_lm_reads_it(case, name):
    trained = two_steps(case(name), optim__compile=False)
    assert trained.changed > 1e-4
    assert len(trained.gaps) == 2 and max(trained.gaps) < 1e-4
    assert trained.reloaded < 1e-5
    assert isinstance(trained.text, str)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("recurrent_gemma", r"models\.recurrent_gemma can't be fine-tuned, nor by mlx-lm itself"),
        ("gemma3n", r"can't run with this adapter .*policy\.lora_parameters\.keys"),
    ],
)
def test_what_mlx_lm_itself_can_not_train_is_refused_with_the_reason(tmp_path, name, reason):
    model = write_model(tmp_path / "model", name)
    with pytest.raises(UserError, match=reason):
        load_policy(small_config(model=str(model)))


def test_gemma3n_loads_with_lora_on_chosen_layers(tmp_path):
    model = write_model(tmp_path / "model", "gemma3n")
    keys = ["self_attn.q_proj", "self_attn.v_proj"]
    policy = load_policy(small_config(model=str(model), policy__lora_parameters__keys=keys))
    assert policy.way == "full" and "has no attribute 'keys_and_values'" in " ".join(policy.notes)


def test_chunked_attention_is_trained_row_by_row_and_says_so(case):
    llama4 = case("llama4")
    assert llama4.policy.way == "full"
    assert llama4.ragged == "ChunkedKVCache can't be merged"
    update, decoding = llama4.policy.notes
    assert "ChunkedKVCache can't be shared between rows" in update
    assert "each completion is trained on with its whole prompt" in update
    assert "(ChunkedKVCache can't be merged): one completion at a time" in decoding
