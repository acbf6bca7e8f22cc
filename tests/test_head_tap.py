"""Finding a model's head: hidden states and ``Head`` must give the model's own logits back."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from simko_mlx.config import Config
from simko_mlx.head_tap import HeadTap, find_head
from simko_mlx.kernels import HeadStatistics
from simko_mlx.model_files import EMBEDDED
from simko_mlx.policy import load_policy
from simko_mlx.types import TokenBatch, UserError
from tests import families
from tests.families import config_of
from tests.models import make_model
from tests.runs import small_config

# family -> (whether the head is the embedding, scale, cap)
HEADS: dict[str, tuple[bool, float, float | None]] = {
    "llama": (False, 1.0, None),
    "mistral": (False, 1.0, None),
    "qwen2": (True, 1.0, None),
    "qwen3": (True, 1.0, None),
    "qwen3_moe": (False, 1.0, None),
    "gemma": (True, 1.0, None),
    "gemma2": (True, 1.0, 5.0),
    "gemma3_text": (False, 1.0, None),
    "cohere": (True, 0.0625, None),
    "cohere2": (True, 0.3, None),
    "granite": (True, 0.125, None),
    "minicpm": (False, 1.0, None),
    "phi": (False, 1.0, None),
    "phi3": (False, 1.0, None),
    "olmo2": (True, 1.0, None),
    "smollm3": (True, 1.0, None),
    "glm4": (False, 1.0, None),
    "starcoder2": (True, 1.0, None),
    "lfm2": (True, 1.0, None),
    "falcon_h1": (True, 0.0390625 / 5.656854249492381, None),
    "mamba": (True, 1.0, None),
}


def build(family: str, dtype: mx.Dtype = mx.float32) -> Any:
    model = families.build(config_of(family, 200))
    model.apply(lambda a: mx.random.normal(a.shape) * 0.3 if a.ndim > 1 else a)
    model.apply(lambda a: a.astype(dtype))
    return model


def found(model: Any) -> HeadTap:
    tap = find_head(model)
    assert isinstance(tap, HeadTap), tap
    return tap


@pytest.mark.parametrize("family", HEADS)
def test_the_head_of_each_family_is_found_with_what_follows_it(family):
    tied, scale, cap = HEADS[family]
    model = build(family)
    names = [name for name, _ in tree_flatten(model.parameters())]
    tap = found(model)
    assert (tap.name is None, tap.softcap) == (tied, cap)
    assert tap.scale == pytest.approx(scale, rel=1e-6)
    assert names == [name for name, _ in tree_flatten(model.parameters())]
    ids = mx.random.randint(0, 200, (2, 11))
    logits = model(ids)  # works as before
    mine = tap.head().logits(tap.hidden(ids))
    error = mx.abs(mine - logits).max().item()
    assert error <= 1e-5 * mx.abs(logits).max().item()


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "cohere", "granite"])
def test_in_half_precision_too(family, dtype):
    tap = found(build(family, dtype))
    assert (tap.scale, tap.softcap) == HEADS[family][1:]
    assert tap.dtype == dtype


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_heads(tmp_path, bits):
    for family in ("llama", "qwen2", "gemma2"):
        model, _ = load_model(make_model(tmp_path / family, family, bits=bits))
        assert found(model).head().quantised


def test_the_embedded_model_has_a_cap():
    model, _ = load_model(EMBEDDED)
    assert found(model).softcap == 15.0


class Odd(nn.Module):
    """A model that does something unforeseen with its head."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.embed_tokens = nn.Embedding(50, 8)
        self.lm_head: nn.Module = nn.Linear(8, 60 if how == "narrowed" else 50, bias=False)

    def __call__(self, ids: mx.array) -> mx.array:
        h = self.embed_tokens(ids)
        if self.how == "twice":
            return self.lm_head(h) + self.lm_head(h * 2)
        if self.how == "bent":
            return mx.sin(self.lm_head(h))
        if self.how == "shifted":
            return self.lm_head(h) + mx.arange(50)
        return self.lm_head(h)[..., :50]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("twice", "uses this head 2 times"),
        ("bent", "differ by"),
        ("shifted", "differ by"),
        ("narrowed", "0 times"),
    ],
)
def test_a_head_that_is_not_understood_is_refused_with_the_reason(how, reason):
    mx.random.seed(1)
    model = Odd(how)
    problem = find_head(model)
    assert isinstance(problem, str) and reason in problem
    assert type(model.lm_head) is nn.Linear and model(mx.array([[1, 2]])).shape == (1, 2, 50)


class Clipped(nn.Module):
    """Flat like a cap far away, and nothing like one where the logits are."""

    def __init__(self, dtype: mx.Dtype, scale: float = 1.0, clip: bool = True):
        super().__init__()
        self.scale, self.clip = scale, clip
        self.embed_tokens = nn.Embedding(50, 8)
        self.embed_tokens.weight = (mx.random.normal((50, 8)) * 2).astype(dtype)

    def __call__(self, ids: mx.array) -> mx.array:
        z = self.embed_tokens.as_linear(self.embed_tokens(ids)) * self.scale
        return mx.clip(z, -30.0, 30.0) if self.clip else z


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_clipping_is_not_taken_for_a_cap(dtype):
    mx.random.seed(0)
    assert isinstance(find_head(Clipped(dtype)), str)


def test_a_scale_that_leaves_float16s_range_at_large_logits():
    mx.random.seed(0)
    tap = found(Clipped(mx.float16, scale=4.0, clip=False))
    assert (tap.scale, tap.softcap) == (4.0, None)


def test_a_lora_layer_is_no_head_that_can_be_taken_apart():
    from mlx_lm.tuner.lora import LoRALinear

    model = Odd("plain")
    model.lm_head = LoRALinear.from_base(nn.Linear(8, 50, bias=False))
    assert isinstance(find_head(model), str)


def batch_of(rows: int = 3, width: int = 7, prompt: int = 4, vocabulary: int = 113) -> TokenBatch:
    rng = np.random.default_rng(0)
    ids = rng.integers(1, vocabulary, size=(rows, prompt + width))
    mask = np.ones((rows, width), dtype=np.float32)
    mask[1, 4:] = 0
    mask[2] = 0
    return TokenBatch(
        prompts=(tuple(map(int, ids[0, :prompt])),),
        tokens=mx.array(ids[:, prompt:].astype(np.int32)),
        loss_mask=mx.array(mask),
        advantages=mx.ones((rows,)),
        correct=mx.ones((rows,)) > 0,
        normalizer=1.0,
    )


def statistics_and_gradient(config: Config, backend: str, *, tapped: bool = True) -> Any:
    config.optim.head_backend = backend  # type: ignore[assignment]
    policy = load_policy(config)
    assert policy.tap is not None
    if not tapped:
        policy.tap = None
    batch = batch_of()

    def loss(_: nn.Module) -> tuple[mx.array, HeadStatistics]:
        stats = policy.statistics(batch, simko_k=3, temperature=0.9)
        kept = batch.loss_mask * stats.logprobs + 0.1 * stats.topk_logprobs.sum(axis=-1)
        return kept.sum(), stats

    (_, stats), gradient = nn.value_and_grad(policy.model, loss)(policy.model)
    return stats, dict(tree_flatten(gradient))


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("family", ["embedded", "qwen2", "llama", "gemma2"])
def test_the_models_gradient_is_that_of_full_logits(tmp_path, family, kind):
    """With full tuning the head trains too, and a tied one is used at both ends of the model."""
    changes: dict[str, Any] = {"policy__fine_tune_type": kind}
    if family != "embedded":
        changes["model"] = str(make_model(tmp_path / "model", family))
    stats, gradient = statistics_and_gradient(small_config(**changes), "auto")
    full, wanted = statistics_and_gradient(small_config(**changes), "auto", tapped=False)
    assert gradient.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = mx.abs(value).max().item()
        assert mx.abs(gradient[name] - value).max().item() <= 1e-5 * scale + 1e-9, name
    for name in stats._fields:
        mine, other = (np.array(getattr(x, name)).astype(np.float64) for x in (stats, full))
        assert np.abs(mine - other).max() < 2e-5, name
    hidden_places = np.array(batch_of().loss_mask) == 0
    assert not np.array(stats.logprobs)[hidden_places].any()


def test_a_model_whose_head_is_not_understood_trains_on_full_logits(monkeypatch):
    monkeypatch.setattr("simko_mlx.policy.find_head", lambda model: "it is a secret")
    policy = load_policy(small_config())
    assert policy.tap is None
    assert any("can't be taken apart (it is a secret)" in note for note in policy.notes)
    stats = policy.statistics(batch_of(), simko_k=3, temperature=1.0)
    assert mx.isfinite(stats.logprobs).all().item()


def test_asking_for_metal_where_there_is_none_is_a_mistake():
    if mx.metal.is_available():
        pytest.skip("there is Metal here")
    config = small_config(optim__head_backend="metal")
    with pytest.raises(UserError, match=r"optim\.head_backend is metal.*set it to auto"):
        load_policy(config)
