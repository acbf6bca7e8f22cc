"""The authors' printed losses and gradients, through every backend of the head: with the identity
as the head's weight, hidden states are logits."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from simko_mlx.config import LossConfig
from simko_mlx.kernels import head_statistics
from simko_mlx.losses import simko
from simko_mlx.types import TokenBatch
from tests.kernels.metal_fixture import metal_backend  # noqa: F401
from tests.losses.test_simko import official_cases

WAYS = ["reference-tail", "portable-tail", "portable-recompute", "metal-tail"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("path", "name"), list(official_cases()))
def test_simko_is_the_authors_through_the_head(request, path, name, way):
    backend, mode = way.split("-")
    if backend == "metal":
        request.getfixturevalue("metal_backend")
    data = np.load(path)
    case = {key[3:]: data[key] for key in data.files if key.startswith(f"{name}_")}
    rows, width, vocabulary = case["logits"].shape
    temperature = float(case["temperature"])
    config = LossConfig(
        alpha=float(case["alpha"]),
        simko_k=int(case["k"]),
        entropy_quantile=float(case["tau"]),
        rank1_penalty=float(case["rank1_scale"]),
        clip_low=float(case["clip"]),
        clip_high=float(case["clip"]),
    )
    batch = TokenBatch(
        prompts=((0,),),
        tokens=mx.array(case["tokens"].astype(np.int32)),
        loss_mask=mx.array(case["mask"].astype(np.float32)),
        advantages=mx.array(case["advantages"].astype(np.float32)),
        correct=mx.array(case["correct"].astype(bool)),
        normalizer=float(case["mask"].sum()),
        old_logprobs=mx.array(case["old_logprobs"].astype(np.float32)),
    )

    def loss(hidden: mx.array) -> mx.array:
        stats = head_statistics(
            hidden,
            batch.tokens.reshape(-1),
            mx.eye(vocabulary),
            simko_k=config.simko_k,
            temperature=temperature,
            backend=backend,
            mode=mode,
            chunk=7,
        )
        return simko(stats.reshape(rows, width), batch, config).loss

    hidden = mx.array(case["logits"].reshape(-1, vocabulary).astype(np.float32))
    value, gradient = mx.value_and_grad(loss)(hidden)
    assert value.item() == pytest.approx(float(case["loss"]), rel=1e-5, abs=1e-7)
    wanted = case["dlogits"].reshape(-1, vocabulary)
    assert np.abs(np.array(gradient) - wanted).max() <= 1e-5 * np.abs(wanted).max()
