"""The policy: a base model of mlx-lm with a LoRA adapter (or all of its weights) to train.

LoRA weights and, with ``fine_tune_type: full``, all weights are float32: updates of 1e-5 would
vanish in bfloat16. The reference policy is the base model itself, with LoRA switched off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import safetensors.numpy
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.utils import get_total_parameters

from simko_mlx import selftest
from simko_mlx.adapters import find_adapter, ignored_settings, new_adapter, start_from
from simko_mlx.config import Config
from simko_mlx.cpu_decoding import quicken
from simko_mlx.decoding import Together
from simko_mlx.forward import WAYS, Layout, Way, lay_out, outputs
from simko_mlx.head_tap import HeadTap, find_head, likely_head
from simko_mlx.kernels import (
    HeadStatistics,
    chunk_tokens,
    head_statistics,
    logit_statistics,
    selfcheck,
)
from simko_mlx.model_files import (
    context_length,
    find_model,
    load_files,
    outline_files,
)
from simko_mlx.prefix import is_recurrent, prefix_caches
from simko_mlx.prompts import PromptEncoder, prompt_limit, stop_tokens
from simko_mlx.recompute import checkpointed_layers
from simko_mlx.rope_settings import rope_notes
from simko_mlx.types import TokenBatch, UserError, require


class Policy:
    """A loaded model with its tokenizer, prompts, stop tokens and trainable parameters."""

    def __init__(self, model: nn.Module, tokenizer: Any, path: Path, config: Config):
        quicken(model)
        self.model = model
        self.tokenizer = tokenizer
        self.path = path
        self.config = config
        self.prompts = PromptEncoder(tokenizer, config.prompt, config.data)
        self.stop_tokens = stop_tokens(tokenizer, path)
        self.context = context_length(path)
        self.adapter_config: dict[str, Any] = {}
        self.start: Path | None = None  # the adapter of policy.adapter_path, where it was loaded
        self.notes: list[str] = rope_notes(path)
        self.together: Together | None = None  # see try_decoding
        self.unshared: str | None = None  # why completions can't share prompts while they decode
        self.tap: HeadTap | None = None  # see tap_head; without one, logits are held in full
        self.head_problem: str | None = None
        self.head_backend = "reference"
        self.way: Way = "full"  # see forward.py; found by the self-tests
        self.head_chunk: int | None = None  # of the plan that a run goes on with

    @property
    def max_prompt_length(self) -> int | None:
        """Prompt tokens that leave room for a whole completion; None where nothing limits them."""
        return prompt_limit(self.config, self.context)

    @property
    def parameters(self) -> int:
        return int(get_total_parameters(self.model))

    @property
    def vocabulary(self) -> int:
        """Logits of the model."""
        return self._logits[0]

    @property
    def dtype(self) -> mx.Dtype:
        """Of the model's logits, before anything is made float32."""
        return self._logits[1]

    @cached_property
    def _logits(self) -> tuple[int, mx.Dtype]:
        # Never evaluated, and not kept: it would hold on to the weights of now for good.
        logits = self.model(mx.zeros((1, 1), dtype=mx.int32))
        return logits.shape[-1], logits.dtype

    @property
    def trainable(self) -> int:
        return sum(v.size for v in named_arrays(self.model.trainable_parameters()).values())

    @property
    def head_mode(self) -> str:
        """How ``head_statistics`` is called in training."""
        return "recompute" if self.tap is not None and self.tap.trains else "tail"

    @property
    def chunk(self) -> int | None:
        """Tokens that go through the head at once; None where full logits are held."""
        if self.tap is None:
            return None
        metal = self.head_backend == "metal"
        size = self.tap.head().vocabulary
        by_memory = self.head_chunk or chunk_tokens(size, mode=self.head_mode, metal=metal)
        return self.config.optim.head_chunk or by_memory

    def tap_head(self) -> None:
        """Finds the model's head, so that statistics need no logits, and what computes them.

        Raises:
            UserError: ``optim.head_backend`` asks for Metal where there is none.
        """
        wanted = self.config.optim.head_backend
        require(
            wanted != "metal" or selfcheck.has_metal(),
            "optim.head_backend is metal, but MLX runs on no Metal device here: set it to auto.",
        )
        found = find_head(self.model)
        if isinstance(found, str):
            self.head_problem = f"The head of this model can't be taken apart ({found})"
            self.notes.append(
                f"{self.head_problem}: training holds full logits, which takes more memory."
            )
            return
        self.tap = found
        self.head_backend = wanted
        if wanted == "auto":
            kernels = selfcheck.verdict(found.shape())
            self.head_backend = "metal" if kernels.ok else "portable"
            if not kernels.ok and selfcheck.has_metal():
                self.notes.append(selfcheck.off_message(kernels))

    def share_prompts(self) -> None:
        """Finds out how far completions may share their prompt's forward pass."""
        choice = selftest.choose_way(self)
        self.way = choice.way
        note = choice.note()
        self.notes += [note] if note else []

    @property
    def shares_prompts(self) -> bool:
        """Whether completions are to use one copy of their prompt's keys while they decode."""
        wanted = self.config.rollout.share_prompts
        on_cpu = mx.default_device().type == mx.DeviceType.cpu  # where its speed is known
        return on_cpu if wanted is None else wanted

    def try_decoding(self) -> None:
        """Finds out which completions may be decoded side by side."""
        different = selftest.can_decode_ragged(self.model)
        one_length = selftest.can_decode_alike(self.model)
        if self.shares_prompts:
            self.unshared = selftest.can_decode_shared(self.model)
        if self.unshared is not None and self.config.rollout.share_prompts:
            self.notes.append(
                f"rollout.share_prompts does nothing in this model ({self.unshared}): each "
                "completion holds its prompt's keys and values for itself."
            )
        shared = self.shares_prompts and self.unshared is None
        self.together = Together(different is None, one_length is None, shared)
        if different is not None and not shared:
            plain = one_length is None and all(
                type(c) is KVCache for c in make_prompt_cache(self.model)
            )
            several = "prompts of one length" if plain else "one completion"
            self.notes.append(
                f"Completions can't share decode batches freely in this model "
                f"({one_length or different}): {several} at a time, which is slower."
            )

    def statistics(
        self, batch: TokenBatch, *, simko_k: int, temperature: float, gradient: bool = True
    ) -> HeadStatistics:
        """Statistics (B, T) of the batch's completion tokens under the current weights.

        Where ``loss_mask`` is 0 nothing is computed and everything is 0. ``gradient`` False is for
        measuring, and cheaper.
        """
        layout = lay_out(batch, self.way)
        with checkpointed_layers(self.model, self.config.grad_checkpoint and gradient):
            return self.statistics_at(
                layout, simko_k=simko_k, temperature=temperature, gradient=gradient
            )

    def statistics_at(
        self, layout: Layout, *, simko_k: int, temperature: float, gradient: bool = True
    ) -> HeadStatistics:
        """The same of a batch that is laid out already; looks at no value of its arrays."""
        targets = layout.arrays["targets"]
        if self.tap is None:
            logits = outputs(self.model, self.model, layout)
            stats = logit_statistics(logits, targets, simko_k=simko_k, temperature=temperature)
            return _spread(stats, layout)
        training = self.head_mode
        stats = head_statistics(
            outputs(self.model, self.tap.hidden, layout),
            targets,
            self.tap.head(),
            simko_k=simko_k,
            temperature=temperature,
            mode=training if gradient else "nograd",
            # The same chunks with and without a gradient, for the same digits.
            chunk=self.chunk,
            backend=self.head_backend,
        )
        return _spread(stats, layout)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The base model for the length of the block: every LoRA scale is 0."""
        layers = [m for m in self.model.modules() if "lora_a" in m]
        scales = [m.scale for m in layers]
        for layer in layers:
            layer.scale = 0.0
        try:
            yield
        finally:
            for layer, scale in zip(layers, scales, strict=True):
                layer.scale = scale

    def trainable_arrays(self) -> dict[str, np.ndarray]:
        """Name -> float32 array of everything that trains, as mlx-lm names it."""
        flat = named_arrays(self.model.trainable_parameters())
        return {name: np.array(value.astype(mx.float32)) for name, value in flat.items()}

    def adapter_files(self) -> dict[str, bytes]:
        """The two files of an adapter as ``mlx_lm.load(adapter_path=...)`` reads them."""
        weights = safetensors.numpy.save(self.trainable_arrays(), metadata={"format": "mlx"})
        text = json.dumps(self.adapter_config, indent=2)
        return {"adapters.safetensors": weights, "adapter_config.json": text.encode() + b"\n"}


def _spread(stats: HeadStatistics, layout: Layout) -> HeadStatistics:
    """Statistics of the tokens with a loss -> (R, T), 0 elsewhere."""
    # Gathered, not scattered: that works for every type. The row after the last is for padding.
    index = layout.arrays["back"]
    padded = (mx.concatenate([x, mx.zeros((1, *x.shape[1:]), dtype=x.dtype)]) for x in stats)
    return HeadStatistics(*(x[index] for x in padded)).reshape(layout.rows, layout.width)


def named_arrays(tree: Any) -> dict[str, mx.array]:
    """A tree of parameters or optimizer state as dotted name -> array."""
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(tree)))


def load_policy(config: Config, *, adapter: Path | None = None) -> Policy:
    """Loads the model and makes it trainable.

    Args:
        config: model, policy, prompt and rollout sections are read.
        adapter: start from this adapter folder; default ``policy.adapter_path``.

    Raises:
        UserError: one sentence that names the path or key and the fix.
    """
    policy = _assemble(config, adapter, lazy=False)
    mx.eval(policy.model.parameters())
    policy.tap_head()
    policy.share_prompts()
    policy.try_decoding()
    return policy


def load_outline(config: Config) -> Policy:
    """The policy of a config with none of its weights in memory: to look at shapes, not to run.

    What ``load_policy`` finds out by running the model is taken for granted here.

    Raises:
        UserError: as ``load_policy``.
    """
    policy = _assemble(config, None, lazy=True)
    policy.tap = likely_head(policy.model, policy.vocabulary)
    policy.head_backend = "metal" if selfcheck.has_metal() else "portable"
    policy.way = _likely_way(policy)
    return policy


def _likely_way(policy: Policy) -> Way:
    """What the self-tests will find, as far as shapes tell."""
    caches = prefix_caches(policy.model)
    if isinstance(caches, str):
        return "full"
    if is_recurrent(caches):
        return "exact"
    call: Any = policy.model if policy.tap is None else policy.tap.hidden
    for way in WAYS[:-1]:
        batch, _ = selftest.tiny_batch(policy, way == "packed")
        try:
            outputs(policy.model, call, lay_out(batch, way, bucketed=True))
        except selftest.FAILURES:
            continue
        return way
    return "full"


def _assemble(config: Config, adapter: Path | None, *, lazy: bool) -> Policy:
    if lazy:
        model, tokenizer, path = outline_files(config.model, config.model_revision)
    else:
        path = find_model(config.model, config.model_revision)
        model, tokenizer = load_files(path, config.model)
    policy = Policy(model, tokenizer, path, config)
    if adapter is None and config.policy.adapter_path is not None:
        adapter = policy.start = find_adapter(config)
    require(
        config.policy.fine_tune_type == "lora" or not _is_quantized(model),
        "policy.fine_tune_type is full but the model is quantised: use lora, or a model that is "
        "not quantised.",
    )
    mx.random.seed(config.seed)
    _freeze(policy)
    if adapter is not None:
        policy.adapter_config = start_from(model, adapter, config)
        policy.notes += ignored_settings(policy.adapter_config, config)
    else:
        policy.adapter_config = new_adapter(model, config)
    _make_trainable(policy)
    model.eval()
    require(
        policy.trainable > 0,
        "Nothing would train: policy.lora_parameters.keys matches no layer of this model.",
    )
    _check_runs(policy)
    return policy


def load_base(config: Config) -> Policy:
    """The base model alone, to evaluate."""
    path = find_model(config.model, config.model_revision)
    model, tokenizer = load_files(path, config.model)
    policy = Policy(model, tokenizer, path, config)
    model.eval()
    policy.tap_head()
    policy.try_decoding()
    return policy


def _freeze(policy: Policy) -> None:
    try:
        policy.model.freeze()
    except AttributeError as error:  # a class of mlx-lm that isn't initialised as a Module
        name = type(policy.model).__module__
        raise UserError(f"{name} can't be fine-tuned, nor by mlx-lm itself: {error}.") from error


def _check_runs(policy: Policy) -> None:
    """Some models read the weights of layers that mlx-lm puts LoRA on."""
    try:
        policy.dtype  # noqa: B018
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"The model {policy.config.model} can't run with this adapter ({error}): choose its "
            "layers with policy.lora_parameters.keys, e.g. [self_attn.q_proj, self_attn.v_proj]."
        ) from error


def _is_quantized(model: nn.Module) -> bool:
    return any(hasattr(m, "bits") for m in model.modules())


def _make_trainable(policy: Policy) -> None:
    """Unfreezes what trains and makes it float32."""
    model = policy.model
    if policy.config.policy.fine_tune_type == "full":
        layers = policy.config.policy.num_layers
        if layers <= 0:
            model.unfreeze()
        else:
            for layer in list(model.layers or [])[-layers:]:
                layer.unfreeze()
    # What does not train keeps its type, as it has when mlx-lm loads base and adapter.
    model.update(tree_map(lambda a: a.astype(mx.float32), model.trainable_parameters()))
