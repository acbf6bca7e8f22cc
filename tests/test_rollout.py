"""The decode loop against the model itself, one token at a time."""

from __future__ import annotations

import copy

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache

from simko_mlx.batching import group_batch, pad
from simko_mlx.config import Config
from simko_mlx.policy import Policy, load_policy
from simko_mlx.rollout import Sampling, rollout
from simko_mlx.sampling import row_hasher, token_key
from simko_mlx.types import LENGTH, STOP, Problem
from tests.models import make_model


def problems(count: int) -> list[Problem]:
    texts = ["2 + 2 =", "How many clips did she sell?", "Weng earns $12 an hour. " * 4]
    return [
        Problem(f"p{i}", ({"role": "user", "content": f"{texts[i % 3]} {i}"},), "4")
        for i in range(count)
    ]


def make_policy(model, length: int = 24, **changes) -> Policy:
    config = Config(model=str(model))
    config.rollout.max_completion_length = length
    for key, value in changes.items():
        setattr(config.rollout, key, value)
    return load_policy(config)


def sample(policy: Policy, count=3, *, order=None, **changes):
    settings = {
        "group_size": 4,
        "max_completion_length": policy.config.rollout.max_completion_length,
        "temperature": 1.0,
        "seed": 0,
        "step": 1,
        "batch_size": 64,
        "prefill_chunk": 512,
    }
    settings.update(changes)
    prompts, _ = policy.prompts.encode_all(problems(count), None)
    if order:
        prompts = [prompts[i] for i in order]
    return rollout(policy, prompts, Sampling(**settings))


def drawn_by_hand(logits: np.ndarray, key: bytes) -> int:
    """By inversion in float64: 4 bytes choose a block of 128, the other 4 a token in it."""
    first, second = (int.from_bytes(key[i : i + 4], "little") // 256 / 2**24 for i in (0, 4))
    weights = np.exp(logits.astype(np.float64) - logits.max())
    weights = np.pad(weights, (0, -len(weights) % 128)).reshape(-1, 128)
    masses = weights.sum(axis=1)
    block = int(np.searchsorted(np.cumsum(masses), first * masses.sum(), side="right"))
    inside = np.cumsum(weights[block])
    return 128 * block + int(np.searchsorted(inside, second * inside[-1], side="right"))


def by_hand(
    policy: Policy, prompt, problem_id: str, index: int, *, temperature: float, length: int
):
    """One completion without caches or batches: the whole row forward for every token."""
    tokens, logprobs = [], []
    hasher = row_hasher(0, 1, problem_id, index)
    for position in range(length):
        row = mx.array([list(prompt) + tokens])
        logits = policy.model(row)[0, -1].astype(mx.float32) / temperature
        token = drawn_by_hand(np.array(logits), token_key(hasher, position))
        z = np.array(logits).astype(np.float64)
        logprobs.append(z[token] - z.max() - np.log(np.exp(z - z.max()).sum()))
        tokens.append(token)
        if token in policy.stop_tokens:
            break
    return tokens, logprobs


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_completions_are_those_of_the_model_decoded_by_hand(family, temperature, tmp_path):
    policy = make_policy(make_model(tmp_path, family), length=12)
    groups = sample(policy, temperature=temperature)
    for group in groups:
        for index, completion in enumerate(group.completions):
            tokens, logprobs = by_hand(
                policy,
                group.prompt_ids,
                group.problem.id,
                index,
                temperature=temperature,
                length=12,
            )
            assert list(completion.token_ids) == tokens
            assert completion.logprobs == pytest.approx(logprobs, abs=2e-4)


def test_batch_composition_changes_nothing(qwen2):
    policy = make_policy(qwen2)
    whole = {g.problem.id: g for g in sample(policy, 5)}
    for changes in (
        {"batch_size": 4},
        {"batch_size": 3},
        {"batch_size": 1},
        {"order": [4, 2, 0, 1, 3]},
        {"prefill_chunk": 5},
        {"order": [1]},
    ):
        order = changes.pop("order", None)
        for group in sample(policy, 5, order=order, **changes):
            expected = whole[group.problem.id].completions
            assert [c.token_ids for c in group.completions] == [c.token_ids for c in expected]


def test_seed_step_and_sample_each_change_the_draw(qwen2):
    policy = make_policy(qwen2)
    first = sample(policy, 1)[0]
    assert len({c.token_ids for c in first.completions}) == 4
    assert sample(policy, 1)[0] == first
    for changes in ({"seed": 1}, {"step": 2}, {"step": "eval"}):
        other = sample(policy, 1, **changes)[0]
        assert other.completions[0].token_ids != first.completions[0].token_ids


def test_the_stop_token_is_kept_and_ends_the_completion(qwen2):
    policy = make_policy(qwen2, length=200)
    completions = [c for g in sample(policy, 6, group_size=8) for c in g.completions]
    stopped = [c for c in completions if c.stop_reason == STOP]
    cut = [c for c in completions if c.stop_reason == LENGTH]
    assert stopped and cut
    for c in stopped:
        assert c.token_ids[-1] in policy.stop_tokens
        assert not any(t in policy.stop_tokens for t in c.token_ids[:-1])
        assert c.text == policy.tokenizer.decode(list(c.token_ids[:-1]))
        assert "<|im_end|>" not in c.text and "<|endoftext|>" not in c.text
    for c in cut:
        assert len(c.token_ids) == 200 and c.token_ids[-1] not in policy.stop_tokens
        assert c.text == policy.tokenizer.decode(list(c.token_ids))
    assert all(len(c.token_ids) == len(c.logprobs) for c in completions)


def test_a_stop_token_in_the_last_place_still_stops(qwen2):
    policy = make_policy(qwen2, length=200)
    stopped = next(
        (g, i)
        for g in sample(policy, 6, group_size=8)
        for i, c in enumerate(g.completions)
        if c.stop_reason == STOP and len(c.token_ids) > 1
    )
    group, index = stopped
    length = len(group.completions[index].token_ids)
    place = int(group.problem.id[1:])
    again = sample(policy, 6, group_size=8, max_completion_length=length)[place].completions[index]
    assert again == group.completions[index]
    shorter = sample(policy, 6, group_size=8, max_completion_length=length - 1)[place]
    assert shorter.completions[index].stop_reason == LENGTH


def test_the_prompt_is_prefilled_once_per_problem(qwen2, monkeypatch):
    policy = make_policy(qwen2)
    sample(policy, 1)  # the model is tried once
    calls = []
    original = type(policy.model).__call__

    def counting(self, inputs, *args, **kwargs):
        calls.append(inputs.shape)
        return original(self, inputs, *args, **kwargs)

    monkeypatch.setattr(type(policy.model), "__call__", counting)
    groups = sample(policy, 3, batch_size=2)  # every group spans two batches
    prefills = [shape for shape in calls if shape[1] > 1]
    assert prefills == [(1, len(g.prompt_ids) - 1) for g in groups]


def test_the_batch_shrinks_as_completions_end(qwen2, monkeypatch):
    policy = make_policy(qwen2, length=200)
    widths = []
    original = type(policy.model).__call__

    def recording(self, inputs, *args, **kwargs):
        widths.append(inputs.shape[0])
        return original(self, inputs, *args, **kwargs)

    monkeypatch.setattr(type(policy.model), "__call__", recording)
    sample(policy, 4, group_size=8)
    assert max(widths) == 32 and widths[-1] <= 24


def test_caches_that_cannot_merge_decode_one_row_at_a_time(qwen2, monkeypatch):
    policy = make_policy(qwen2)
    expected = sample(policy, 2)

    class Unmergeable:
        """A KV cache without merge, as ChunkedKVCache is."""

        def __init__(self):
            self.inner = KVCache()

        def __getattr__(self, name):
            if name in ("merge", "filter", "step", "inner", "__deepcopy__"):
                raise AttributeError(name)
            return getattr(self.inner, name)

        def __deepcopy__(self, memo):
            out = Unmergeable()
            out.inner = copy.deepcopy(self.inner, memo)
            return out

    for module in ("decoding", "policy", "shared_prompts"):
        monkeypatch.setattr(
            f"simko_mlx.{module}.make_prompt_cache", lambda m: [Unmergeable() for _ in m.layers]
        )
    policy.try_decoding()
    assert not policy.together.ragged and any("one completion at a time" in n for n in policy.notes)
    alone = sample(policy, 2)
    for a, b in zip(expected, alone, strict=True):
        assert [c.token_ids for c in a.completions] == [c.token_ids for c in b.completions]


def test_dropout_is_off_while_sampling(qwen2):
    config = Config(model=str(qwen2))
    config.policy.lora_parameters.dropout = 0.5
    policy = load_policy(config)
    parameters = policy.model.trainable_parameters()
    policy.model.update(mx_tree(parameters))
    policy.model.train()
    first = sample(policy, 2)
    policy.model.train()
    assert sample(policy, 2) == first
    assert not policy.model.training


def mx_tree(tree):
    from mlx.utils import tree_map

    return tree_map(lambda a: mx.random.normal(a.shape) * 0.05, tree)


def test_training_sees_the_sampled_tokens_with_the_same_log_probs(qwen2):
    policy = make_policy(qwen2, temperature=0.8)
    for group in sample(policy, 3, temperature=0.8):
        batch = group_batch(group)
        stats = policy.statistics(batch, simko_k=3, temperature=0.8)
        decoded = pad([c.logprobs for c in group.completions])
        assert mx.abs((stats.logprobs - decoded) * batch.loss_mask).max().item() < 2e-5


@pytest.mark.parametrize("length", [1, 2])
def test_prompts_of_one_token_and_completions_of_one_token(qwen2, length):
    policy = make_policy(qwen2)
    prompts = [(problems(1)[0], (5,)), (problems(2)[1], (6, 7, 8))]
    settings = Sampling(3, length, 1.0, 0, 1, 16, 512)
    groups = rollout(policy, prompts, settings)
    assert [len(g.completions) for g in groups] == [3, 3]
    for group in groups:
        for index, completion in enumerate(group.completions):
            tokens, _ = by_hand(
                policy,
                group.prompt_ids,
                group.problem.id,
                index,
                temperature=1.0,
                length=length,
            )
            assert list(completion.token_ids) == tokens


def test_each_group_is_handed_over_as_soon_as_its_last_completion_has_ended(qwen2):
    policy = make_policy(qwen2, length=60)
    prompts, _ = policy.prompts.encode_all(problems(5), None)
    given, unfinished, left = {}, [], [0]

    def on_group(place, group):
        assert place not in given
        given[place] = group
        unfinished.append(left[0])

    def progress(done, total, tokens):
        left[0] = total - done
        assert total == 20 and tokens >= done

    settings = Sampling(4, 60, 1.0, 0, 1, 4, 512)
    groups = rollout(policy, prompts, settings, progress, on_group=on_group)
    assert [given[i] for i in range(5)] == groups
    assert unfinished[0] > 4  # others still decode
    assert left[0] == 0


def test_limits_on_what_is_drawn_reach_the_decoder(qwen2):
    policy = make_policy(qwen2)
    greedy = sample(policy, 2, top_k=1)
    for group in greedy:
        assert len({c.token_ids for c in group.completions}) == 1
    nucleus = sample(policy, 2, top_p=1e-6)
    assert [g.completions for g in nucleus] == [g.completions for g in greedy]
    batch = group_batch(greedy[0])
    stats = policy.statistics(batch, simko_k=1, temperature=1.0)
    decoded = pad([c.logprobs for c in greedy[0].completions])
    assert mx.abs((stats.logprobs - decoded) * batch.loss_mask).max().item() < 2e-5
