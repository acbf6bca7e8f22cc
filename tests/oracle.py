"""SimKO from the paper's formulas, in float64 numpy, token by token, with the gradient written out.

Shares nothing with the package: no autodiff, exact rational quantile positions, plain softmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor

import numpy as np


@dataclass
class Settings:
    k: int = 3
    alpha: float = 0.01
    tau: float = 0.8
    rank1_penalty: float = 1.1
    clip_low: float = 0.2
    clip_high: float = 0.2
    temperature: float = 1.0


def threshold(values: list[float], tau: float) -> float:
    """The tau-quantile by linear interpolation, its position computed exactly."""
    ordered = sorted(values)
    position = Fraction(str(tau)) * (len(ordered) - 1)
    low = floor(position)
    share = float(position - low)
    if share == 0:
        return ordered[low]
    return ordered[low] + share * (ordered[low + 1] - ordered[low])


def log_softmax(row: np.ndarray) -> np.ndarray:
    """Accurate also where one token has nearly all the mass."""
    top = int(row.argmax())
    rest = np.exp(np.delete(row, top) - row[top]).sum()
    return row - row[top] - np.log1p(rest)


def one_minus(logprobs: np.ndarray, index: int) -> float:
    """1 - p of one token as the sum of the others."""
    return float(np.exp(np.delete(logprobs, index)).sum())


def simko(
    logits: np.ndarray,
    tokens: np.ndarray,
    mask: np.ndarray,
    advantages: np.ndarray,
    correct: np.ndarray,
    old_logprobs: np.ndarray,
    s: Settings,
) -> tuple[float, np.ndarray]:
    """(loss, its gradient with respect to the logits)."""
    logits = logits.astype(np.float64)
    gradient = np.zeros_like(logits)
    total, count = 0.0, float((mask > 0).sum())
    for b in range(logits.shape[0]):
        places = [t for t in range(logits.shape[1]) if mask[b, t] > 0]
        logp = {t: log_softmax(logits[b, t] / s.temperature) for t in places}
        entropy = {t: _entropy(logp[t]) for t in places}
        limit = threshold(list(entropy.values()), s.tau) if places else 0.0
        for t in places:
            y, a = int(tokens[b, t]), float(advantages[b])
            row = logp[t]
            ratio = np.exp(row[y] - float(old_logprobs[b, t]))
            weights = {y: 1.0}
            if entropy[t] > limit:
                if correct[b] and a > 0:
                    candidates = np.argsort(-row, kind="stable")[: s.k]
                    weights = {y: 1.0 - s.alpha}
                    for v in candidates:
                        weights[int(v)] = weights.get(int(v), 0.0) + s.alpha / len(candidates)
                elif not correct[b] and a < 0 and row[y] >= row.max():
                    a *= s.rank1_penalty
            low, high = 1 - s.clip_low, 1 + s.clip_high
            total += max(-a * ratio, -a * min(max(ratio, low), high))
            if (a > 0 and ratio > high) or (a < 0 and ratio < low):
                continue
            gradient[b, t] = -a * ratio * _soft_label_gradient(row, weights) / s.temperature
    return total / max(count, 1.0), gradient / max(count, 1.0)


def _entropy(row: np.ndarray) -> float:
    top = int(row.argmax())
    others = np.delete(row, top)
    return float(-(np.exp(others) * others).sum() - np.exp(row[top]) * row[top])


def _soft_label_gradient(row: np.ndarray, weights: dict[int, float]) -> np.ndarray:
    """sum_j w_j d log p_j / d z = w - p sum(w), with 1 - p formed without cancellation."""
    out = np.zeros_like(row)
    for j, weight in weights.items():
        term = -np.exp(row)
        term[j] = one_minus(row, j)
        out += weight * term
    return out
