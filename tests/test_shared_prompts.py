"""Completions that use one copy of their prompt's keys and values decode as they would alone."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from simko_mlx.config import Config
from simko_mlx.decoding import Decoder, Row, Settings, Together
from simko_mlx.policy import load_policy
from simko_mlx.sampling import row_hasher
from simko_mlx.selftest import can_decode_shared
from simko_mlx.shared_prompts import Layout, arrange, share_attention
from tests.families import write_model
from tests.test_decoding import PROMPTS, close, decode, drawn
from tests.test_head_tap import build

ONE_TOKEN = ((3,), (8, 9, 10), (5,))


@pytest.fixture(scope="module", params=["qwen2", "cohere", "phi3"])
def model(request):
    """Grouped heads, biases and a tied head; a parallel block; queries, keys and values in one."""
    model = build(request.param)
    assert share_attention(model)
    return model


def test_the_self_test_agrees(model):
    assert can_decode_shared(model) is None


@pytest.mark.parametrize("prompts", [PROMPTS, ONE_TOKEN, ((3, 4),) * 3])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 24])
def test_the_same_tokens_as_alone(model, width, prompts):
    alone, *_ = decode(model, 24, width=1, prompts=prompts)
    rows, watched, decoder = decode(model, 24, width=width, prompts=prompts, shared=True)
    assert drawn(rows) == drawn(alone) and close(rows, alone)
    assert max(watched.widths) == width and decoder.prefilled == {}


def test_rows_in_any_order(model):
    """Rows of a prompt need not follow each other, and a prompt may come back."""
    prompts = tuple(PROMPTS[i] for i in (0, 1, 0, 2, 1, 3, 0))
    alone, *_ = decode(model, 21, width=1, prompts=prompts)
    rows, *_ = decode(model, 21, width=6, prompts=prompts, shared=True)
    assert drawn(rows) == drawn(alone) and close(rows, alone)


def test_buffers_have_room_for_what_comes_and_no_more(model):
    _, watched, _ = decode(model, 96, width=4, shared=True)
    assert watched.held <= 2 * 20 + max(map(len, PROMPTS))  # at the end each has its own


def test_a_prompt_is_held_once(model):
    held = []
    for shared in (False, True):
        settings = Settings(width=16, prefill_chunk=512)
        prompt = tuple(range(1, 100))
        decoder = Decoder(model, (prompt,), (), settings, Together(shared=shared))
        decoder.queue([Row(0, 6, row_hasher(0, 0, "", i)) for i in range(16)])
        batch = decoder.first_batch()
        decoder.step(batch)
        arrays = [x for cache in batch.caches for x in vars(cache).values()]
        held.append(sum(x.nbytes for x in arrays if isinstance(x, mx.array)))
    assert held[1] / held[0] == pytest.approx((98 + 16 * 6) / (16 * (98 + 6)), rel=0.15)


def test_rows_by_prompt_and_back():
    rows = [7, 3, 7, 7, 5, 3]
    layout = Layout(rows, np.full(6, 4), np.zeros(6, int), np.zeros(6, int))
    assert layout.prompts == [7, 3, 5] and layout.slots == 3
    x = mx.random.normal((6, 2, 3, 4))
    grouped = layout.by_prompt(x)
    assert grouped.shape == (3, 2, 9, 4)
    assert mx.array_equal(grouped[0, :, :3], x[0]) and mx.array_equal(grouped[0, :, 3:6], x[2])
    assert mx.array_equal(grouped[1, :, 3:6], x[5]) and mx.array_equal(grouped[2, :, :3], x[4])
    assert mx.array_equal(layout.by_row(grouped), x)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "lfm2", "mamba"])
def test_other_caches_and_attentions_are_left_as_they_are(name):
    assert "another kind" in (can_decode_shared(build(name)) or "")


def test_attention_with_a_mask_is_no_place_for_shared_prompts(model):
    caches = arrange([], [], [(0, 0)], {0: [None] * len(model.layers)}, room=4, last=False)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="decoding"):
        model(mx.array([[1, 2]]), cache=caches)


@pytest.mark.parametrize(
    ("name", "setting", "shared", "told"),
    [
        ("qwen2", None, True, False),
        ("qwen2", False, False, False),
        ("qwen2", True, True, False),
        ("gemma3_text", None, False, False),
        ("gemma3_text", True, False, True),
    ],
)
def test_who_shares_and_what_is_told(tmp_path, name, setting, shared, told):
    config = Config(model=str(write_model(tmp_path / "model", name)))
    config.rollout.share_prompts = setting
    policy = load_policy(config)
    assert policy.together is not None and policy.together.shared == shared
    notes = [note for note in policy.notes if note.startswith("rollout.share_prompts does nothing")]
    assert len(notes) == told
