"""Loss and gradient of one microbatch, compiled where that is exact.

Lengths are padded to few sizes (``batching.bucket``), so that a compiled step serves most batches;
it is traced again only for a new combination of sizes.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from simko_mlx.config import Config
from simko_mlx.forward import Layout, lay_out
from simko_mlx.losses import LossFn
from simko_mlx.losses.common import without_lost_tokens
from simko_mlx.policy import Policy
from simko_mlx.recompute import checkpointed_layers
from simko_mlx.selftest import FAILURES, difference, in_words, tiny_batch
from simko_mlx.types import TokenBatch

Result = tuple[tuple[mx.array, dict[str, mx.array], mx.array], Any]
"""((loss, metrics, log-probs (R, T)), gradient of what trains)"""

ARRAYS = ("tokens", "loss_mask", "advantages", "correct", "normalizer")
MEASURED = ("old_logprobs", "ref_logprobs")


def wanted(config: Config) -> bool:
    """Whether the config asks for a compiled step."""
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    return on_gpu if config.optim.compile is None else config.optim.compile


class Step:
    """``step(batch)`` is the batch's share of the loss with its gradient, not evaluated yet.

    ``compiles`` says whether it is compiled; ``problem`` why not, where it should have been: that
    is tried, unless ``trusted``.
    """

    def __init__(self, policy: Policy, config: Config, loss_fn: LossFn, *, trusted: bool = False):
        self.policy = policy
        self.config = config
        self.loss_fn = loss_fn
        # A compiled step rounds differently from the pass that measures the base's log-probs: a KL
        # penalty of nothing would no longer be exactly nothing.
        self.compiles = False
        self.problem: str | None = None
        self._compiled: dict[Any, Any] = {}
        # Prompts that can't be padded would bring a new shape with each length.
        if wanted(config) and config.loss.kl_coef == 0 and policy.way != "exact":
            self.problem = None if trusted else self._try()
            self.compiles = self.problem is None

    def __call__(self, batch: TokenBatch) -> Result:
        layout = lay_out(batch, self.policy.way, bucketed=self.compiles)
        trainable = self.policy.model.trainable_parameters()
        if not self.compiles:
            return self.gradient(trainable, layout, batch)
        fields = batch._asdict() | {"normalizer": mx.array(batch.normalizer, dtype=mx.float32)}
        names = [*ARRAYS, *(name for name in MEASURED if fields[name] is not None)]
        key = (layout.key, tuple(names), self.policy.model.training)  # dropout is traced in
        if key not in self._compiled:
            self._compiled[key] = self._compile(layout)
        arrays = {name: fields[name] for name in names}
        try:
            return self._compiled[key](trainable, layout.arrays, arrays)
        finally:
            # Tracing leaves placeholders behind.
            self.policy.model.update(trainable)

    def _try(self) -> str | None:
        """Why the step can't be compiled, as half a sentence, or None: tried on a few tokens."""
        batch, _ = tiny_batch(self.policy, self.policy.way in ("packed", "full"))
        found = []
        try:
            for self.compiles in (False, True):
                mx.random.seed(0)  # the same dropout
                _, gradient = self(batch)
                mx.eval(gradient)
                found.append(dict(tree_flatten(gradient)))
        except FAILURES as error:
            return in_words(error)
        return difference(self.policy, found[1], found[0])

    def _compile(self, layout: Layout) -> Any:
        way, rows, width, per_prompt, length = layout.key

        def traced(trainable: Any, laid_out: Any, arrays: Any) -> Result:
            same = Layout(way, rows, width, per_prompt, length, laid_out)
            batch = TokenBatch(prompts=(), **arrays)
            return self.gradient(trainable, same, batch)

        # Dropout draws from MLX's global generator.
        random: Any = [mx.random.state]
        return mx.compile(traced, inputs=random, outputs=random)

    def gradient(self, trainable: Any, layout: Layout, batch: TokenBatch) -> Result:
        """The result as a function of these parameters; looks at no value of any array."""
        return mx.value_and_grad(self._loss)(trainable, layout, batch)

    def _loss(
        self, trainable: Any, layout: Layout, batch: TokenBatch
    ) -> tuple[mx.array, dict[str, mx.array], mx.array]:
        self.policy.model.update(trainable)
        with checkpointed_layers(self.policy.model, self.config.grad_checkpoint):
            stats = self.policy.statistics_at(
                layout,
                simko_k=self.config.loss.simko_k,
                temperature=self.config.rollout.temperature,
            )
            output = self.loss_fn(stats, without_lost_tokens(stats, batch), self.config.loss)
            return output.loss, output.metrics, mx.stop_gradient(stats.logprobs)
