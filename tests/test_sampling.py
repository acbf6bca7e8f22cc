"""Drawing by inversion: the right distribution, the right log-probs, keys that matter."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from simko_mlx.sampling import BLOCK, draw, row_hasher, token_key, uniforms

DRAWS = 200_000
ALMOST_ONE = 1.0 - 2.0**-24


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z.astype(np.float64) - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def frequencies(z: np.ndarray, draws: int = DRAWS, **limits) -> np.ndarray:
    """How often each token of one row of logits is drawn."""
    rng = np.random.default_rng(1)
    found = np.zeros(len(z), dtype=np.int64)
    for _ in range(draws // 10_000):
        random = (rng.integers(0, 2**24, size=(10_000, 2)) * 2.0**-24).astype(np.float32)
        rows = mx.broadcast_to(mx.array(z.astype(np.float32)), (10_000, len(z)))
        tokens, _ = draw(rows, mx.array(random), **limits)
        found += np.bincount(np.array(tokens), minlength=len(z))
    return found


def is_distribution(found: np.ndarray, p: np.ndarray) -> bool:
    """Chi-square with rare tokens put together, some 6 sigmas wide."""
    expected = p * found.sum()
    common = expected >= 10
    if (~common).any() and expected[~common].sum() > 0:
        observed = np.append(found[common], found[~common].sum())
        expected = np.append(expected[common], expected[~common].sum())
    else:
        observed, expected = found[common], expected[common]
    statistic = ((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    freedom = max(1, len(expected) - 1)
    return statistic < freedom + 6 * np.sqrt(2 * freedom) + 10


def logits(kind: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    if kind == "few":
        return np.array([0.0, 1.0, -1.0, 2.0, 0.5])
    if kind == "one block":
        return rng.normal(size=BLOCK)
    if kind == "one over":  # a last block of a single token, which has mass
        return np.append(rng.normal(size=BLOCK), 3.0)
    if kind == "blocks":  # several masses per block, the last one partly filled
        z = rng.normal(size=300) - 4.0
        z[[5, 100, 127, 128, 200, 256, 299]] = [1.0, 2.0, 1.5, 2.2, 0.5, 1.2, 1.8]
        return z
    if kind == "ties":
        return np.zeros(130)
    z = np.full(260, -30.0)  # peaked
    z[131] = 0.0
    z[7] = -8.0
    return z


@pytest.mark.parametrize("kind", ["few", "one block", "one over", "blocks", "ties", "peaked"])
def test_tokens_are_drawn_from_the_softmax(kind):
    z = logits(kind)
    assert is_distribution(frequencies(z), softmax(z))


def test_the_check_of_distributions_can_fail():
    p = softmax(logits("blocks"))
    wrong = np.roll(p, 1)
    assert not is_distribution(np.random.default_rng(0).multinomial(DRAWS, wrong), p)
    slightly = p.copy()
    slightly[[128, 299]] += [0.01, -0.01]
    assert not is_distribution(np.random.default_rng(0).multinomial(DRAWS, slightly), p)


EXTREMES = [(a, b) for a in (0.0, 0.5, ALMOST_ONE) for b in (0.0, 0.5, ALMOST_ONE)]


@pytest.mark.parametrize("vocabulary", [3, 128, 129, 300])
def test_a_token_without_probability_is_never_drawn_not_even_at_the_ends(vocabulary):
    random = mx.array(np.array(EXTREMES, dtype=np.float32))
    for place in (0, 1, vocabulary // 2, vocabulary - 1):
        z = np.full((len(EXTREMES), vocabulary), -np.inf, dtype=np.float32)
        z[:, place] = 5.0
        tokens, logprobs = draw(mx.array(z), random)
        assert tokens.tolist() == [place] * len(EXTREMES)
        assert logprobs.tolist() == [0.0] * len(EXTREMES)
    z = np.full((len(EXTREMES), vocabulary), -np.inf, dtype=np.float32)
    z[:, 1], z[:, vocabulary - 2] = 0.0, -3.0
    tokens, _ = draw(mx.array(z), random)
    assert set(tokens.tolist()) == {1, vocabulary - 2}


def test_the_ends_give_the_first_and_the_last_token():
    z = mx.zeros((2, 300))
    tokens, _ = draw(z, mx.array([[0.0, 0.0], [ALMOST_ONE, ALMOST_ONE]]))
    assert tokens.tolist() == [0, 299]


def test_impossible_tokens_among_many():
    z = logits("blocks")
    z[128:256] = -np.inf  # a whole block
    z[::3] = -np.inf
    found = frequencies(z, 50_000)
    assert not found[np.isneginf(z)].any()
    assert is_distribution(found, softmax(z))


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("vocabulary", [5, 128, 1000])
def test_log_probs_are_those_of_float64(scale, vocabulary):
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(200, vocabulary)) * scale + 50.0).astype(np.float32)
    random = mx.array(rng.random((200, 2)).astype(np.float32) * np.float32(0.999))
    tokens, logprobs = draw(mx.array(z), random)
    wanted = np.log(softmax(z))[np.arange(200), np.array(tokens)]
    assert logprobs.dtype == mx.float32
    assert np.array(logprobs) == pytest.approx(wanted, abs=2e-6 * max(1.0, scale))


def test_a_row_without_numbers_has_no_log_prob_and_leaves_the_others_alone():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(5, 130)).astype(np.float32)
    random = mx.array(rng.random((5, 2)).astype(np.float32))
    tokens, logprobs = draw(mx.array(z), random)
    z[1], z[3, 129] = np.nan, np.nan
    for limits in ({}, {"top_p": 0.9}, {"top_k": 4}):
        sick, lost = draw(mx.array(z), random, **limits)
        assert np.isnan(np.array(lost)).tolist() == [False, True, False, True, False]
        assert all(0 <= token < 130 for token in sick.tolist())
        if not limits:
            well = [0, 2, 4]
            assert np.array(sick)[well].tolist() == np.array(tokens)[well].tolist()
            assert np.array(lost)[well].tolist() == np.array(logprobs)[well].tolist()


def nucleus(z: np.ndarray, top_p: float, top_k: int) -> np.ndarray:
    """Which tokens may be drawn: the smallest set with at least top_p, then the first top_k."""
    p = softmax(z)
    order = np.argsort(-p)
    before = np.concatenate([[0.0], np.cumsum(p[order])[:-1]])
    kept = np.zeros(len(z), dtype=bool)
    chosen = order[before < top_p]
    kept[chosen[:top_k] if top_k else chosen] = True
    return kept


@pytest.mark.parametrize(
    ("top_p", "top_k"), [(0.5, 0), (0.9, 0), (1e-6, 0), (1.0, 1), (1.0, 5), (0.9, 3), (0.2, 50)]
)
def test_top_p_and_top_k_restrict_what_is_drawn_but_not_the_log_probs(top_p, top_k):
    z = logits("blocks")
    kept = nucleus(z, top_p, top_k)
    restricted = np.where(kept, softmax(z), 0.0)
    found = frequencies(z, 10_000, top_p=top_p, top_k=top_k)
    assert not found[~kept].any()
    assert is_distribution(found, restricted / restricted.sum())
    rows = mx.broadcast_to(mx.array(z.astype(np.float32)), (50, len(z)))
    random = mx.array(np.random.default_rng(0).random((50, 2)).astype(np.float32))
    tokens, logprobs = draw(rows, random, top_p=top_p, top_k=top_k)
    assert np.array(logprobs) == pytest.approx(np.log(softmax(z))[np.array(tokens)], abs=1e-5)


def test_limits_that_limit_nothing_change_nothing():
    z = mx.array(np.random.default_rng(0).normal(size=(50, 200)).astype(np.float32))
    random = mx.array(np.random.default_rng(1).random((50, 2)).astype(np.float32))
    plain = draw(z, random)[0].tolist()
    for limits in ({"top_p": 1.0}, {"top_k": 0}, {"top_k": 200}, {"top_k": 10_000}):
        assert draw(z, random, **limits)[0].tolist() == plain


def key(seed=0, step: int | str = 1, problem="p", sample=0, token=0) -> bytes:
    return token_key(row_hasher(seed, step, problem, sample), token)


def test_every_part_of_the_key_matters():
    changed = [
        {},
        {"seed": 1},
        {"step": 2},
        {"step": "1"},
        {"step": "eval"},
        {"problem": "q"},
        {"sample": 1},
        {"token": 1},
        {"token": 256},
    ]
    keys = [key(**changes) for changes in changed]
    assert len(set(keys)) == len(keys) and all(len(k) == 8 for k in keys)
    numbers = np.array(uniforms(keys))
    assert len({tuple(row) for row in numbers.tolist()}) == len(keys)
    assert keys == [key(**changes) for changes in changed]
    hasher = row_hasher(0, 1, "p", 0)
    assert [token_key(hasher, i) for i in (3, 0)] == [key(token=3), key()]  # order is no matter


def test_uniforms_are_multiples_of_two_to_the_minus_24_below_one():
    ends = np.array(uniforms([b"\x00" * 8, b"\xff" * 8, b"\xff\x00\x00\x00" + b"\x00\x01\x00\x00"]))
    assert ends.tolist() == [[0.0, 0.0], [ALMOST_ONE, ALMOST_ONE], [0.0, 2.0**-24]]
    hasher = row_hasher(0, 1, "p", 0)
    some = uniforms(token_key(hasher, i) for i in range(20_000))
    assert some.dtype == mx.float32 and some.shape == (20_000, 2)
    values = np.array(some)
    assert values.min() >= 0 and values.max() < 1
    for column in values.T:
        counts = np.histogram(column, bins=50, range=(0, 1))[0]
        assert is_distribution(counts, np.full(50, 0.02))
    assert abs(np.corrcoef(values.T)[0, 1]) < 0.03
