"""The SimKO loss against the authors' printed values and against the float64 oracle."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import simko_mlx
from simko_mlx.config import LossConfig
from simko_mlx.kernels import logit_statistics
from simko_mlx.losses import find_loss, grpo, simko, simko_loss
from simko_mlx.losses.common import forking_tokens
from simko_mlx.types import TokenBatch, UserError
from tests.oracle import Settings
from tests.oracle import simko as oracle

HERE = Path(__file__).parent
OFFICIAL = [HERE / "simko_official_small.npz"]
ALL_CASES = HERE.parents[2] / "shared" / "vectors" / "simko_official.npz"
if ALL_CASES.exists():
    OFFICIAL.append(ALL_CASES)


def official_cases():
    for path in OFFICIAL:
        names = sorted({name[:2] for name in np.load(path).files})
        yield from (pytest.param(path, name, id=f"{path.stem}-{name}") for name in names)


def run(logits, tokens, mask, advantages, correct, old, s: Settings):
    """(loss, gradient) of the public function in float32."""

    def f(z):
        return simko_loss(
            z,
            mx.array(tokens),
            mx.array(mask, dtype=mx.float32),
            mx.array(advantages, dtype=mx.float32),
            mx.array(correct),
            mx.array(old, dtype=mx.float32),
            simko_k=s.k,
            alpha=s.alpha,
            rank1_penalty=s.rank1_penalty,
            entropy_quantile=s.tau,
            clip_low=s.clip_low,
            clip_high=s.clip_high,
            temperature=s.temperature,
        )

    loss, gradient = mx.value_and_grad(f)(mx.array(logits, dtype=mx.float32))
    assert loss.dtype == mx.float32 and loss.shape == ()
    return loss.item(), np.array(gradient)


def assert_close(ours, expected):
    loss, gradient = expected
    assert ours[0] == pytest.approx(loss, rel=1e-5, abs=1e-7)
    assert np.abs(ours[1] - gradient).max() <= 1e-5 * np.abs(gradient).max()


def make_case(seed: int, *, rows=5, width=12, vocabulary=40, scale=2.0):
    """Random logits (float32 values), ragged lengths, ratios inside and outside of the clip."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(rows, width, vocabulary)) * scale).astype(np.float32)
    tokens = rng.integers(0, vocabulary, size=(rows, width))
    greedy = logits.argmax(-1)
    tokens = np.where(rng.random((rows, width)) < 0.4, greedy, tokens)
    lengths = rng.integers(1, width + 1, size=rows)
    mask = (np.arange(width)[None] < lengths[:, None]).astype(np.float32)
    z = logits.astype(np.float64)
    logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
    old = np.take_along_axis(logp, tokens[..., None], -1)[..., 0]
    old = (old + rng.normal(size=old.shape) * 0.25).astype(np.float32)
    advantages = rng.normal(size=rows).astype(np.float32)
    return logits, tokens, mask, advantages, advantages > 0, old


@pytest.mark.parametrize(("path", "name"), list(official_cases()))
def test_matches_the_authors_code(path, name):
    archive = np.load(path)
    c = {k[3:]: archive[k] for k in archive.files if k.startswith(f"{name}_")}
    assert float(c["rank1_scale"]) == 1.1 and float(c["clip"]) == 0.2
    s = Settings(k=int(c["k"]), alpha=float(c["alpha"]), tau=float(c["tau"]))
    s.temperature = float(c["temperature"])
    arrays = [c[n] for n in ("logits", "tokens", "mask", "advantages", "correct", "old_logprobs")]
    expected = float(c["loss"]), c["dlogits"]
    assert_close(run(*arrays, s), expected)
    # The oracle is checked against the authors as well, since other cases rest on it.
    mine = oracle(*arrays, s)
    assert mine[0] == pytest.approx(expected[0], rel=1e-6, abs=1e-9)
    assert np.abs(mine[1] - expected[1]).max() <= 1e-6 * np.abs(expected[1]).max()


VARIANTS = {
    "defaults": Settings(),
    "large-alpha": Settings(alpha=0.5, k=5),
    "all-of-alpha": Settings(alpha=1.0, k=2),
    "penalty": Settings(rank1_penalty=2.5, tau=0.3),
    "no-penalty-for-rank-1": Settings(rank1_penalty=0.0),
    "asymmetric-clip": Settings(clip_low=0.1, clip_high=0.35),
    "tight-clip": Settings(clip_low=0.01, clip_high=0.02),
    "no-clip": Settings(clip_low=1.0, clip_high=1e9),
    "hot": Settings(temperature=1.7, alpha=0.2),
    "cold": Settings(temperature=0.4, alpha=0.2),
    "tau-0": Settings(tau=0.0, alpha=0.3),
    "tau-1": Settings(tau=1.0, alpha=0.3, rank1_penalty=3.0),
    "k-1": Settings(k=1, alpha=0.3),
    "k-is-vocabulary": Settings(k=40, alpha=0.3),
    "k-beyond-vocabulary": Settings(k=64, alpha=0.3),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("labels", ["agree", "conflict", "random", "some-zero"])
def test_matches_the_oracle(variant, seed, labels):
    logits, tokens, mask, advantages, correct, old = make_case(seed)
    rng = np.random.default_rng(seed + 100)
    if labels == "conflict":  # correct with A < 0, wrong with A > 0
        correct = ~correct
    elif labels == "random":
        correct = rng.random(len(correct)) < 0.5
    elif labels == "some-zero":
        advantages = np.where(np.arange(len(correct)) % 2 == 0, 0, advantages).astype(np.float32)
    case = (logits, tokens, mask, advantages, correct, old)
    assert_close(run(*case, VARIANTS[variant]), oracle(*case, VARIANTS[variant]))


def test_confident_tokens_keep_their_relative_precision():
    """Gradients per row, where the sampled token has all but 1e-7 of the mass."""
    vocabulary, tops = 50, [0.5, 0.99, 0.999, 1 - 1e-5, 1 - 1e-7]
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(1, len(tops), vocabulary))
    noise[..., 0] = -np.inf
    for t, p in enumerate(tops):
        rest = np.exp(noise[0, t, 1:]).sum()
        noise[0, t, 0] = np.log(p / (1 - p) * rest)
    logits = noise.astype(np.float32)
    tokens, mask = np.zeros((1, len(tops)), dtype=int), np.ones((1, len(tops)))
    old = np.array([[float(np.log(p)) for p in tops]])
    for correct, advantage in ((True, 1.0), (False, -1.0)):
        s = Settings(alpha=0.1, tau=0.5)
        case = (logits, tokens, mask, np.array([advantage]), np.array([correct]), old)
        loss, gradient = run(*case, s)
        expected_loss, expected = oracle(*case, s)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        for t in range(len(tops)):
            error = np.abs(gradient[0, t] - expected[0, t]).max()
            assert error <= 1e-5 * np.abs(expected[0, t]).max(), tops[t]


def test_several_updates_follow_the_oracle():
    """Five plain gradient steps on the logits with fixed old log-probs: ratios leave the clip."""
    logits, tokens, mask, advantages, correct, old = make_case(11)
    s = Settings(alpha=0.1, tau=0.5)
    ours, theirs = logits.copy(), logits.astype(np.float64)
    clipped = 0.0
    for _ in range(5):
        _, gradient = run(ours, tokens, mask, advantages, correct, old, s)
        ours = ours - 40.0 * gradient
        _, expected = oracle(theirs, tokens, mask, advantages, correct, old, s)
        clipped = max(clipped, (np.abs(expected).sum(-1)[mask > 0] == 0).mean())
        theirs = theirs - 40.0 * expected
    assert clipped > 0.05
    assert np.abs(ours - theirs).max() < 1e-3
    assert np.abs(theirs - logits).max() > 0.1


def statistics_and_batch(seed: int):
    logits, tokens, mask, advantages, correct, old = make_case(seed)
    batch = TokenBatch(
        prompts=((0,),),
        tokens=mx.array(tokens),
        loss_mask=mx.array(mask),
        advantages=mx.array(advantages),
        correct=mx.array(correct),
        normalizer=float(mask.sum()),
        old_logprobs=mx.array(old),
    )
    return mx.array(logits), batch


@pytest.mark.parametrize("seed", range(3))
def test_alpha_0_and_penalty_1_is_grpo_exactly(seed):
    logits, batch = statistics_and_batch(seed)
    config = LossConfig(alpha=0.0, rank1_penalty=1.0)

    def value(loss):
        def f(z):
            rows, width, _ = z.shape
            stats = logit_statistics(z.reshape(rows * width, -1), batch.tokens.reshape(-1))
            return loss(stats.reshape(rows, width), batch, config).loss

        return mx.value_and_grad(f)(logits)

    ours, plain = value(simko), value(grpo)
    assert ours[0].item() == plain[0].item()
    assert np.array_equal(np.array(ours[1]), np.array(plain[1]))
    assert np.abs(np.array(plain[1])).max() > 0


def test_microbatches_with_one_normalizer_add_up():
    logits, tokens, mask, advantages, correct, old = make_case(5)
    s = Settings(alpha=0.2)
    whole, _ = run(logits, tokens, mask, advantages, correct, old, s)
    count = mask.sum()
    parts = 0.0
    for b in range(len(tokens)):
        one = [x[b : b + 1] for x in (logits, tokens, mask, advantages, correct, old)]
        loss, _ = run(*one, s)
        parts += loss * mask[b].sum() / count
    assert parts == pytest.approx(whole, rel=1e-5)


def test_padding_is_never_read():
    logits, tokens, mask, advantages, correct, old = make_case(6)
    s = Settings()
    loss, gradient = run(logits, tokens, mask, advantages, correct, old, s)
    dirty, dirty_old = logits.copy(), old.copy()
    dirty[mask == 0] = 1e4
    dirty_old[mask == 0] = -1e4
    again, gradient_again = run(dirty, tokens, mask, advantages, correct, dirty_old, s)
    assert again == loss
    assert np.array_equal(gradient[mask > 0], gradient_again[mask > 0])
    assert np.all(gradient_again[mask == 0] == 0)


def test_a_batch_as_wide_as_it_is_tall_keeps_correctness_per_completion():
    case = make_case(8, rows=6, width=6)
    s = Settings(alpha=0.5, tau=0.2)
    assert_close(run(*case, s), oracle(*case, s))


def test_an_all_masked_batch_is_zero():
    logits, tokens, mask, advantages, correct, old = make_case(2)
    loss, gradient = run(logits, tokens, mask * 0, advantages, correct, old, Settings())
    assert loss == 0 and np.all(gradient == 0)


def test_masked_vocabulary_entries_carry_no_gradient():
    logits, tokens, mask, advantages, correct, old = make_case(4)
    allowed = np.zeros(logits.shape[-1], dtype=bool)
    allowed[:2] = True  # fewer finite logits than K
    logits[..., ~allowed] = -np.inf
    loss, gradient = run(logits, tokens % 2, mask, advantages, correct, old, Settings(alpha=0.4))
    assert np.isfinite(loss) and np.all(np.isfinite(gradient))
    assert np.all(gradient[..., ~allowed] == 0) and np.abs(gradient).max() > 0


@pytest.mark.parametrize(
    ("entropies", "tau", "expected"),
    [
        # 0.8 x (6 - 1) = 4 exactly: the fifth value is the threshold and is excluded.
        ([1, 2, 3, 4, 5, 6], 0.8, [0, 0, 0, 0, 0, 1]),
        ([6, 5, 4, 3, 2, 1], 0.8, [1, 0, 0, 0, 0, 0]),
        ([1, 2, 3, 4, 5], 0.8, [0, 0, 0, 0, 1]),
        ([1, 2, 3, 4, 5, 6, 7, 8], 0.8, [0, 0, 0, 0, 0, 0, 1, 1]),
        ([0.3, 0.3, 0.3, 0.3], 0.8, [0, 0, 0, 0]),  # strictly above: equal values never fork
        ([0.1, 0.7, 0.7, 0.7], 0.5, [0, 0, 0, 0]),
        ([2.0], 0.8, [0]),
        ([1, 2, 3], 0.0, [0, 1, 1]),
        ([1, 2, 3], 1.0, [0, 0, 0]),
    ],
)
def test_forking_tokens_lie_strictly_above_the_interpolated_quantile(entropies, tau, expected):
    values = np.array([[*entropies, 99.0, 99.0]], dtype=np.float32)  # padding has high entropy
    mask = np.array([[1.0] * len(entropies) + [0.0, 0.0]], dtype=np.float32)
    found = forking_tokens(mx.array(values), mx.array(mask), tau)
    assert np.array(found)[0].tolist() == [bool(x) for x in expected] + [False, False]


def test_forking_positions_are_exact_for_every_length():
    for tau in (0.8, 0.9, 0.5, 0.7, 0.1):
        for n in range(1, 300):
            values = np.arange(n, dtype=np.float32)[None]
            found = forking_tokens(mx.array(values), mx.ones((1, n)), tau)
            # Values are their own ranks: those above tau (n - 1), in exact arithmetic.
            limit = Fraction(str(tau)) * (n - 1)
            assert int(found.sum().item()) == sum(i > limit for i in range(n)), (tau, n)


def test_conflicts_are_counted():
    logits, batch = statistics_and_batch(3)
    batch = batch._replace(correct=mx.logical_not(batch.correct))
    rows, width, _ = logits.shape
    stats = logit_statistics(logits.reshape(rows * width, -1), batch.tokens.reshape(-1))
    metrics = simko(stats.reshape(rows, width), batch, LossConfig()).metrics
    assert metrics["conflict"].item() == batch.loss_mask.sum().item()
    assert metrics["smoothed"].item() == metrics["sharpened"].item() == 0
    assert metrics["forking"].item() > 0


def test_shapes_are_checked():
    logits, tokens, mask, advantages, correct, old = map(mx.array, make_case(0))
    with pytest.raises(ValueError, match="correct has shape"):
        simko_loss(logits, tokens, mask, advantages, correct[:2], old)


def test_it_is_public():
    assert simko_mlx.simko_loss is simko_loss


def test_losses_are_found_by_name_and_by_import_path():
    assert find_loss("simko") is simko
    assert find_loss("simko_mlx.losses.grpo:grpo") is grpo
    for name in ("dapo", "no_such_module:f", "simko_mlx.losses:no_such"):
        with pytest.raises(UserError, match=r"loss\.name"):
            find_loss(name)
