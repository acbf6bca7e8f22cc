"""Problems -> groups of completions: our own decode loop over mlx-lm models and caches.

Each prompt is prefilled once and its cache fanned out to the problem's completions. Tokens are
drawn with keys of (seed, step, problem, sample, token), so a completion doesn't depend on what
else is in the batch. Knows nothing of rewards.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache, make_prompt_cache

from simko_mlx.types import LENGTH, STOP, Completion, Problem, RolloutGroup, UserError

COMPACT_AT = 0.75  # drop finished rows from the batch when at most this share is still alive

Progress = Callable[[int, int, int], None]
"""(completions done, completions wanted, tokens so far)"""


@dataclass(frozen=True)
class Sampling:
    """How a set of completions is drawn. ``step`` is a step's number, or a word like "eval"."""

    group_size: int
    max_completion_length: int
    temperature: float
    seed: int
    step: int | str
    batch_size: int
    prefill_chunk: int


@dataclass
class _Row:
    """One completion in the making."""

    problem: int
    sample: int
    hasher: Any
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    done: bool = False


def row_hasher(seed: int, step: int | str, problem_id: str, sample: int) -> Any:
    """The hash that a completion's keys derive from."""
    return hashlib.blake2b(repr((seed, step, problem_id, sample)).encode(), digest_size=8)


def token_key(hasher: Any, token: int) -> bytes:
    """8 bytes: the key that draws the token at this position of the completion."""
    keyed = hasher.copy()
    keyed.update(token.to_bytes(8, "little"))
    return keyed.digest()


def rollout(
    policy: Any,
    prompts: Sequence[tuple[Problem, tuple[int, ...]]],
    sampling: Sampling,
    progress: Progress | None = None,
) -> list[RolloutGroup]:
    """Samples ``group_size`` completions for each (problem, prompt ids), in order.

    ``policy`` has ``model``, ``tokenizer``, ``stop_tokens`` and ``ragged``. The model is left in
    evaluation mode (LoRA's dropout would otherwise stay on while sampling).

    Raises:
        Diverged: the model's probabilities are not finite.
    """
    policy.model.eval()
    rows = [
        _Row(p, g, row_hasher(sampling.seed, sampling.step, problem.id, g))
        for p, (problem, _) in enumerate(prompts)
        for g in range(sampling.group_size)
    ]
    # An empty recurrent state can't be merged with a filled one: a prompt of one token decides.
    ragged = can_decode_ragged(policy) and all(len(ids) > 1 for _, ids in prompts)
    prefilled: dict[int, list[Any]] = {}
    finished = 0
    for batch in _batches(rows, [len(ids) for _, ids in prompts], sampling.batch_size, ragged):
        wanted = {row.problem for row in batch}
        # A group may span two batches; its prompt is still prefilled only once.
        prefilled = {p: c for p, c in prefilled.items() if p in wanted}
        for p in sorted(wanted - prefilled.keys()):
            prefilled[p] = _prefill(policy.model, prompts[p][1], sampling.prefill_chunk)
        decoder = _Decoder(policy, sampling, [prompts[row.problem][1][-1] for row in batch], batch)
        for part in decoder.run(prefilled, ragged):
            if progress is not None:
                progress(finished + part, len(rows), sum(len(row.tokens) for row in rows))
        finished += len(batch)
    return _groups(policy, prompts, rows, sampling.group_size)


def _batches(
    rows: list[_Row], lengths: list[int], width: int, ragged: bool
) -> Iterator[list[_Row]]:
    """Rows in order, at most ``width`` at a time, and of one prompt length unless ``ragged``."""
    start = 0
    while start < len(rows):
        end = min(start + width, len(rows))
        if not ragged:
            first = lengths[rows[start].problem]
            different = (i for i in range(start, end) if lengths[rows[i].problem] != first)
            end = next(different, end)
        yield rows[start:end]
        start = end


def can_decode_ragged(policy: Any) -> bool:
    """Whether rows of different lengths can share a batch; tried once per policy.

    Some architectures can't take the mask that left-padded rows need, and some caches can't be
    merged. The merged batch has to reproduce the rows decoded alone.
    """
    if policy.ragged is None:
        policy.ragged = _try_ragged(policy.model)
    return policy.ragged


def _try_ragged(model: nn.Module) -> bool:
    prompts, last = [(1, 2, 3, 4, 5), (1, 2)], mx.array([[1], [2]])
    caches = [_prefill(model, (*prompt, 0), 512) for prompt in prompts]
    if not all(hasattr(cache, "merge") for cache in caches[0]):
        return False
    alone = [
        model(last[i : i + 1], cache=_prefill(model, (*prompt, 0), 512))
        for i, prompt in enumerate(prompts)
    ]
    merged = [type(c).merge([c, d]) for c, d in zip(*caches, strict=True)]
    try:
        together = model(last, cache=merged)
    except ValueError:  # shapes that don't broadcast
        return False
    expected = mx.concatenate(alone).astype(mx.float32)
    tolerance = 1e-3 if together.dtype == mx.float32 else 0.05
    error = float(mx.abs(together.astype(mx.float32) - expected).max())
    return error <= tolerance * float(mx.abs(expected).max())


def _groups(
    policy: Any,
    prompts: Sequence[tuple[Problem, tuple[int, ...]]],
    rows: list[_Row],
    group_size: int,
) -> list[RolloutGroup]:
    groups = []
    for p, (problem, ids) in enumerate(prompts):
        mine = rows[p * group_size : (p + 1) * group_size]
        groups.append(RolloutGroup(problem, ids, tuple(_completion(policy, r) for r in mine)))
    return groups


class Diverged(UserError):
    """The weights have gone where no probability is finite; they are not worth saving."""


def _completion(policy: Any, row: _Row) -> Completion:
    if not all(math.isfinite(logprob) for logprob in row.logprobs):
        raise Diverged(
            "The model's probabilities are not finite any more: start again with a lower "
            "optim.learning_rate (or, at the very first step, with a base in bfloat16 or float32)."
        )
    stopped = row.tokens[-1] in policy.stop_tokens
    text_ids = row.tokens[:-1] if stopped else row.tokens
    text = policy.tokenizer.decode(text_ids, clean_up_tokenization_spaces=False)
    reason = STOP if stopped else LENGTH
    return Completion(tuple(row.tokens), tuple(row.logprobs), text, reason)


def _prefill(model: nn.Module, prompt: tuple[int, ...], chunk: int) -> list[Any]:
    """The caches after all but the last token of a prompt, in chunks that bound the memory."""
    caches = make_prompt_cache(model)
    ids = mx.array(prompt[:-1], dtype=mx.int32)
    _size_caches(caches, len(prompt) - 1)
    for start in range(0, len(prompt) - 1, chunk):
        model(ids[None, start : start + chunk], cache=caches)
        mx.eval([c.state for c in caches])
    return caches


def _size_caches(caches: list[Any], tokens: int) -> None:
    """Caches grow by the planned length at once, not by 256: short answers decode 2-4x faster."""
    for cache in caches:
        if hasattr(cache, "step"):
            cache.step = max(1, tokens)


def _keep_rows(cache: Any, keep: mx.array) -> None:
    if hasattr(cache, "filter"):
        cache.filter(keep)
    elif not cache.empty():
        cache.keys, cache.values = cache.keys[keep], cache.values[keep]


class _Decoder:
    """Decodes one batch of rows to their ends, compacting as rows finish."""

    def __init__(self, policy: Any, sampling: Sampling, last: list[int], rows: list[_Row]):
        self.model = policy.model
        self.stop = policy.stop_tokens
        self.sampling = sampling
        self.rows = rows
        self.last = last

    def run(self, prefilled: dict[int, list[Any]], ragged: bool) -> Iterator[int]:
        """Yields the number of finished rows after each token."""
        lengths = {cache[0].size() for cache in prefilled.values()}
        plain = all(type(c) is KVCache for caches in prefilled.values() for c in caches)
        if plain and len(lengths) == 1:
            yield from self._decode(self._repeat(prefilled), self.rows, self.last)
        elif ragged:
            yield from self._decode(self._merge(prefilled), self.rows, self.last)
        else:  # e.g. chunked attention: one row at a time, the same tokens
            for row, last in zip(self.rows, self.last, strict=True):
                caches = copy.deepcopy(prefilled[row.problem])
                for _ in self._decode(caches, [row], [last]):
                    pass
                yield sum(r.done for r in self.rows)

    def _repeat(self, prefilled: dict[int, list[Any]]) -> list[Any]:
        """Prompts of one length: plain caches with a row per completion, which need no mask."""
        order, index = self._places(prefilled)
        repeated = []
        for layer in zip(*(prefilled[p] for p in order), strict=True):
            cache = KVCache()
            if not layer[0].empty():
                parts = [c.keys_and_values() for c in layer]
                rows = mx.array(index)
                cache.keys = mx.concatenate([k for k, _ in parts])[rows]
                cache.values = mx.concatenate([v for _, v in parts])[rows]
                cache.offset = layer[0].offset
            repeated.append(cache)
        _size_caches(repeated, self.sampling.max_completion_length)
        return repeated

    def _merge(self, prefilled: dict[int, list[Any]]) -> list[Any]:
        """One left-padded cache per layer with a row for each completion."""
        order, index = self._places(prefilled)
        merged = []
        for layer in zip(*(prefilled[p] for p in order), strict=True):
            batch = type(layer[0]).merge(layer)
            if hasattr(batch, "filter"):
                batch.filter(mx.array(index))  # repeats rows as well as it drops them
            else:
                batch = type(layer[0]).merge([layer[i] for i in index])
            merged.append(batch)
        _size_caches(merged, self.sampling.max_completion_length)
        return merged

    def _places(self, prefilled: dict[int, list[Any]]) -> tuple[list[int], list[int]]:
        """The problems in order, and for each row the place of its problem among them."""
        order = sorted(prefilled)
        place = {p: i for i, p in enumerate(order)}
        return order, [place[row.problem] for row in self.rows]

    def _decode(self, caches: list[Any], rows: list[_Row], last: list[int]) -> Iterator[int]:
        can_filter = all(hasattr(c, "filter") or type(c) is KVCache for c in caches)
        tokens = mx.array(last, dtype=mx.int32)
        pending: tuple[mx.array, mx.array, list[_Row]] | None = None
        for position in range(self.sampling.max_completion_length):
            # One token ahead: the next step is queued before the last one's tokens are read.
            tokens, logprobs = self._step(tokens, caches, rows, position)
            mx.async_eval(tokens, logprobs)
            if pending is not None:
                self._collect(*pending)
                alive = [i for i, row in enumerate(rows) if not row.done]
                yield sum(row.done for row in self.rows)
                if not alive:
                    return
                if can_filter and len(alive) <= COMPACT_AT * len(rows):
                    keep = mx.array(alive)
                    for cache in caches:
                        _keep_rows(cache, keep)
                    tokens, logprobs = tokens[keep], logprobs[keep]
                    rows = [rows[i] for i in alive]
            pending = (tokens, logprobs, rows)
        if pending is not None:
            self._collect(*pending)
        for row in rows:
            row.done = True
        yield sum(row.done for row in self.rows)

    def _step(
        self, tokens: mx.array, caches: list[Any], rows: list[_Row], position: int
    ) -> tuple[mx.array, mx.array]:
        """Draws the next token of each row: argmax(logits / T + Gumbel noise), and its log-prob
        in float32 of softmax(logits / T)."""
        keys = b"".join(token_key(row.hasher, position) for row in rows)
        keys = mx.array(np.frombuffer(keys, dtype=np.uint32).reshape(-1, 2))
        logits = self.model(tokens[:, None], cache=caches)[:, -1].astype(mx.float32)
        if self.sampling.temperature != 1.0:
            logits = logits * (1.0 / self.sampling.temperature)
        width = logits.shape[-1]
        noise = mx.vmap(lambda key: mx.random.gumbel((width,), key=key))(keys)
        chosen = mx.argmax(logits + noise, axis=-1)
        picked = mx.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0]
        return chosen, picked - mx.logsumexp(logits, axis=-1)

    def _collect(self, tokens: mx.array, logprobs: mx.array, rows: list[_Row]) -> None:
        drawn = zip(rows, np.array(tokens).tolist(), np.array(logprobs).tolist(), strict=True)
        for row, token, logprob in drawn:
            if not row.done:
                row.tokens.append(token)
                row.logprobs.append(logprob)
                row.done = token in self.stop
