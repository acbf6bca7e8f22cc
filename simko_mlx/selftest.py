"""What is tried on the actual model when it is loaded: shortcuts must give what the long way gives.

A few dozen tokens, whatever the model's size. A shortcut that fails is not taken, and the reason is
told; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache

from simko_mlx.cpu_decoding import quick_step
from simko_mlx.decoding import prefill, repeat
from simko_mlx.forward import WAYS, Way, lay_out
from simko_mlx.recompute import checkpointed_layers
from simko_mlx.shared_prompts import arrange, share_attention
from simko_mlx.types import TokenBatch, UserError

if TYPE_CHECKING:
    from simko_mlx.policy import Policy

TOLERANCE = {mx.float32: 1e-3}
HALF_TOLERANCE = 0.1  # float16 and bfloat16; what the known mistakes lose is 97 %
DECODE_TOLERANCE, HALF_DECODE_TOLERANCE = 1e-3, 0.05  # of the largest logit
PROMPTS, PER_PROMPT, WIDTH = (8, 5), 2, 6  # prefixes of 7 and 4: both are padded
FAILURES = (LookupError, ValueError, TypeError, AttributeError, RuntimeError, AssertionError)
"""What models raise when they are given a cache, mask or position that they don't expect."""


@dataclass(frozen=True)
class Choice:
    """``way`` is the fastest that is exact; ``reasons`` say what is wrong with the faster ones."""

    way: Way
    reasons: dict[str, str]

    def note(self) -> str | None:
        """One sentence for the user; None where nothing is lost."""
        if self.way == "packed":
            return None
        slower = {
            "single": "each problem is trained on by itself",
            "exact": "each prompt length is trained on by itself",
            "full": "each completion is trained on with its whole prompt, which is slower and "
            "takes more memory",
        }[self.way]
        first = "packed" if self.way != "full" else "exact"
        return f"Completions can't share prompts freely in this model ({self.reasons[first]}): " + (
            f"{slower}."
        )


def choose_way(policy: Policy) -> Choice:
    """Finds the fastest exact way to train on shared prompts (see ``forward``), by comparing
    gradients with those of full rows. Leaves the policy's way as it found it.

    Raises:
        UserError: ``grad_checkpoint`` is on, and not even full rows bear it.
    """
    reasons: dict[str, str] = {}
    before = policy.way
    try:
        full = _gradient(policy, "full", packed=True, plain=True)
        for way in WAYS[:-1]:
            try:
                wanted = full if way == "packed" else _gradient(policy, "full", False, plain=True)
                problem = difference(policy, _gradient(policy, way, way == "packed"), wanted)
            except FAILURES as error:
                problem = in_words(error)
            if problem is None:
                return Choice(way, reasons)
            reasons[way] = problem
        if policy.config.grad_checkpoint:
            _require_checkpointing(policy, full)
        return Choice("full", reasons)
    finally:
        policy.way = before


def in_words(error: Exception) -> str:
    """An exception as half a sentence."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def _require_checkpointing(policy: Policy, wanted: dict[str, mx.array]) -> None:
    try:
        problem = difference(policy, _gradient(policy, "full", packed=True), wanted)
    except FAILURES as error:
        problem = in_words(error)
    if problem is not None:
        raise UserError(
            f"grad_checkpoint doesn't work with this model ({problem}): leave it out, or set a "
            "smaller optim.microbatch_size instead."
        )


def _gradient(
    policy: Policy, way: Way, packed: bool, *, plain: bool = False
) -> dict[str, mx.array]:
    """``plain``: without checkpointing, whatever the config says."""
    policy.way = way
    batch, weights = tiny_batch(policy, packed)
    saving = policy.config.grad_checkpoint and not plain

    # Padded where the way pads, which needs positions that are arrays.
    layout = lay_out(batch, way, bucketed=way in ("packed", "single"))

    def loss(_: nn.Module) -> mx.array:
        with checkpointed_layers(policy.model, saving):
            stats = policy.statistics_at(layout, simko_k=1, temperature=1.0)
        return (weights * stats.logprobs).sum()

    _, gradient = nn.value_and_grad(policy.model, loss)(policy.model)
    flat = dict(tree_flatten(gradient))
    mx.eval(flat)
    return flat


def tiny_batch(policy: Policy, packed: bool) -> tuple[TokenBatch, mx.array]:
    """Two prompts (one, unless ``packed``) with two completions each, and weights of their
    tokens."""
    rng = np.random.default_rng(0)
    vocabulary = policy.vocabulary
    lengths = PROMPTS if packed else PROMPTS[:1]
    rows = PER_PROMPT * len(lengths)

    def draw(*shape: int) -> np.ndarray:
        return rng.integers(0, vocabulary, size=shape)

    mask = np.ones((rows, WIDTH), dtype=np.float32)
    mask[::2, -2:] = 0.0
    batch = TokenBatch(
        prompts=tuple(tuple(map(int, draw(length))) for length in lengths),
        tokens=mx.array(draw(rows, WIDTH).astype(np.int32)),
        loss_mask=mx.array(mask),
        advantages=mx.array(np.resize([1.0, -0.7], rows).astype(np.float32)),
        correct=mx.arange(rows) % 2 == 0,
        normalizer=1.0,
    )
    return batch, mx.array(rng.normal(size=(rows, WIDTH)).astype(np.float32) * mask)


def difference(policy: Policy, found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """What is wrong with a gradient (name -> array), or None."""
    names = sorted(wanted)

    def norm(parts: Iterable[mx.array]) -> float:
        squares = [mx.square(part.astype(mx.float32)).sum() for part in parts]
        return float(mx.sqrt(mx.stack(squares).sum()))

    size = norm(wanted[name] for name in names)
    error = norm(found[name] - wanted[name] for name in names) / max(size, 1e-30)
    if error <= TOLERANCE.get(policy.dtype, HALF_TOLERANCE):  # False for NaN
        return None
    return f"the gradient is {error:.1%} off"


def can_decode_ragged(model: Any) -> str | None:
    """Why rows of different lengths can't share a decode batch, as half a sentence; or None.

    Some architectures can't take the mask that left-padded rows need, and some caches can't be
    merged. The merged batch has to reproduce the rows decoded alone.
    """
    prompts = [(1, 2, 3, 4, 5, 0), (1, 2, 0)]
    caches = [prefill(model, prompt, 512) for prompt in prompts]
    if not all(hasattr(cache, "merge") for cache in caches[0]):
        return f"{type(caches[0][0]).__name__} can't be merged"
    try:
        merged = [type(c).merge([c, d]) for c, d in zip(*caches, strict=True)]
        return _unlike_alone(model, prompts, merged)
    except FAILURES as error:  # shapes that don't broadcast, mostly
        return in_words(error)


def can_decode_alike(model: Any) -> str | None:
    """Why rows that continue prompts of one length can't share a batch of plain caches; or None, as
    for models that have other caches."""
    prompts = [(1, 2, 3, 4, 5, 0), (5, 4, 3, 2, 1, 0)]
    caches = [prefill(model, prompt, 512) for prompt in prompts]
    if not all(type(cache) is KVCache for cache in caches[0]):
        return None
    try:
        both = [repeat(layer, mx.array([0, 1])) for layer in zip(*caches, strict=True)]
        return _unlike_alone(model, prompts, both)
    except FAILURES as error:
        return in_words(error)


def _unlike_alone(model: Any, prompts: list[tuple[int, ...]], caches: list[Any]) -> str | None:
    """What is wrong with the logits of a batch of two, by those of each row alone."""
    together = model(mx.array([[1], [2]]), cache=caches)
    return _off(together, [_after(model, (*p[:-1], i + 1)) for i, p in enumerate(prompts)])


def can_decode_shared(model: Any) -> str | None:
    """Why rows can't use one copy of their prompt's keys and values, as half a sentence; or None.

    Two rows of one prompt and one of another decode a token each; one leaves and one joins; then
    none will join any more, and each gets its prompt to itself.
    """
    if not share_attention(model):
        return "it has caches or an attention of another kind"
    long, short = (1, 2, 3, 4, 5), (6, 7)
    prefilled = {i: prefill(model, (*p, 0), 512) for i, p in enumerate((long, short))}
    batches = [  # rows to keep, prompts that join, the batch's texts
        ([], [0, 0, 1], [(*long, 1), (*long, 2), (*short, 3)]),
        ([1, 2], [1], [(*long, 2, 4), (*short, 3, 5), (*short, 6)]),
        ([0, 2], [], [(*long, 2, 4, 7), (*short, 6, 8)]),
    ]
    caches: list[Any] = []
    try:
        for i, (keep, joining, texts) in enumerate(batches):
            new = [(prompt, (len(long), len(short))[prompt]) for prompt in joining]
            caches = arrange(caches, keep, new, prefilled, room=3 - i, last=i == 2)
            with quick_step():
                together = model(mx.array([[text[-1]] for text in texts]), cache=caches)
            problem = _off(together, [_after(model, text) for text in texts])
            if problem is not None:
                return problem
    except FAILURES as error:
        return in_words(error)
    return None


def _after(model: Any, text: tuple[int, ...]) -> mx.array:
    """The logits (1, 1, V) after a text, decoded by itself."""
    return model(mx.array([[text[-1]]]), cache=prefill(model, text, 512))


def _off(together: mx.array, alone: list[mx.array]) -> str | None:
    """What is wrong with the logits of a batch, by those of each row alone."""
    exact = alone[0].dtype == mx.float32
    together, expected = (x.astype(mx.float32) for x in (together, mx.concatenate(alone)))
    error, scale = (float(mx.abs(x).max()) for x in (together - expected, expected))
    if error <= (DECODE_TOLERANCE if exact else HALF_DECODE_TOLERANCE) * scale:  # False for NaN
        return None
    return f"its logits are {error / scale:.1%} off"
