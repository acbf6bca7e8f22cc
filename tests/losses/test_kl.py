"""The KL penalty of the losses."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from simko_mlx.config import LossConfig
from simko_mlx.kernels import logit_statistics
from simko_mlx.losses import grpo, simko
from simko_mlx.types import TokenBatch


@pytest.mark.parametrize("loss", [grpo, simko])
def test_kl_is_the_k3_estimate_of_the_reference(loss):
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(6, 20)), rng.integers(0, 20, size=6)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = logp[np.arange(6), tokens].reshape(2, 3)
    ref = chosen + rng.normal(size=(2, 3)) * 0.5
    mask = np.array([[1.0, 1, 1], [1, 1, 0]])
    batch = TokenBatch(
        prompts=((0,),),
        tokens=mx.array(tokens.reshape(2, 3)),
        loss_mask=mx.array(mask, dtype=mx.float32),
        advantages=mx.zeros((2,)),
        correct=mx.zeros((2,)) > 0,
        normalizer=5.0,
        ref_logprobs=mx.array(ref, dtype=mx.float32),
    )
    stats = logit_statistics(mx.array(logits, dtype=mx.float32), mx.array(tokens)).reshape(2, 3)
    output = loss(stats, batch, LossConfig(kl_coef=0.3))
    d = ref - chosen
    expected = (np.exp(d) - d - 1) * mask
    assert output.metrics["kl"].item() == pytest.approx(expected.sum(), rel=1e-5)
    assert output.loss.item() == pytest.approx(0.3 * expected.sum() / 5, rel=1e-5)
    assert loss(stats, batch, LossConfig()).loss.item() == 0
