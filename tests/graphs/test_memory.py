"""What the simulated evaluation of a graph says, against what MLX measures.

A forecast has the shape of a bound: the peak depends on where the CPU queue's tasks happen to end,
so the measured one lies between ``least`` and ``peak``, or close to them where operations are so
small that the queue runs empty.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map
from mlx_lm.models.cache import KVCache
from mlx_lm.tuner.utils import linear_to_lora_layers

from simko_mlx.graphs.memory import CPU, METAL, NONE_AHEAD, Peak, peak_bytes, simulate
from simko_mlx.graphs.trace import trace
from simko_mlx.kernels import head_statistics

pytestmark = pytest.mark.skipif(
    mx.default_device().type != mx.DeviceType.cpu, reason="rules and queue are the CPU's"
)


def measured(fn: Callable[..., Any], make: Callable[[], tuple[Any, ...]]) -> int:
    """Bytes that MLX takes beyond the arguments, the most of ten runs: while other work keeps this
    thread from queueing ahead, it is less. ``make`` builds the arguments, so that the function may
    use them up."""
    peaks = []
    for _ in range(10):
        args = make()
        mx.eval(args)
        mx.synchronize()
        mx.clear_cache()
        start = mx.get_active_memory()
        outputs = fn(*args)
        mx.reset_peak_memory()
        mx.eval(outputs)
        mx.synchronize()
        peaks.append(mx.get_peak_memory() - start)
        del outputs, args
    return max(peaks)


def assert_close(forecast: Peak, peak: int, tolerance: float = 0.08) -> None:
    assert forecast.least * (1 - tolerance) <= peak <= forecast.peak * (1 + tolerance)
    assert forecast.peak <= peak * 1.15


def lazy(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.zeros(shape, dtype=dtype)


def test_matrix_products_hold_what_is_read_later():
    def chain(x: mx.array, weights: list[mx.array]) -> mx.array:
        for weight in weights:
            x = x @ weight
        return x

    def make() -> tuple[Any, ...]:
        return mx.ones((600, 500)), [mx.ones((500, 500)) for _ in range(6)]

    assert_close(peak_bytes(chain, *make()), measured(chain, make))


def test_elementwise_chains_take_over_their_inputs_buffer():
    def chain(x: mx.array) -> mx.array:
        for _ in range(10):
            x = mx.exp(x) * 0.5 + 1.0
        return x

    size = 1 << 20
    forecast = peak_bytes(chain, lazy(size))
    assert 4 * size <= forecast.peak < 4 * size + 1024
    assert_close(forecast, measured(chain, lambda: (mx.ones((size,)),)), 0.01)


def test_a_transposed_slice_is_copied_before_a_product():
    def product(x: mx.array) -> mx.array:
        return x[:, ::2] @ x[:, ::2].T

    forecast = peak_bytes(product, lazy(512, 4096))
    assert "copy" in {held.op for held in forecast.largest}
    assert_close(forecast, measured(product, lambda: (mx.ones((512, 4096)),)), 0.01)


def test_views_take_nothing():
    def views(x: mx.array) -> mx.array:
        return mx.broadcast_to(x.reshape(64, 64).T[:, None, :32], (64, 1000, 32))[0, 0]

    assert peak_bytes(views, lazy(4096)).peak < 64


def test_an_argument_that_nobody_else_holds_is_reused():
    def update(x: mx.array) -> mx.array:
        x[:, 3] = 1.0
        return x

    kept = peak_bytes(update, lazy(1000, 1000))
    assert kept.peak >= 4_000_000
    assert peak_bytes(update, lazy(1000, 1000), given=(0,)).peak < 10_000


FAMILY = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3_moe": {
        "tie_word_embeddings": True,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 64,
        "head_dim": 32,
        "norm_topk_prob": True,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
    },
}


def language_model(kind: str, vocabulary: int, *, width: int = 128, quantised: bool = False) -> Any:
    module = importlib.import_module(f"mlx_lm.models.{kind}")
    settings = {
        "model_type": kind,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "intermediate_size": 2 * width,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "vocab_size": vocabulary,
    }
    model = module.Model(module.ModelArgs.from_dict({**settings, **FAMILY[kind]}))
    if quantised:
        nn.quantize(model, 64, 4)
    return model


def training_step(model: Any, shape: tuple[int, int, int], checkpoint: bool) -> Callable[..., Any]:
    """(loss, log-probs), gradients of a step with LoRA, as the learner takes it. ``shape`` is
    completions, tokens of the prompt, tokens of a completion."""
    model.freeze()
    linear_to_lora_layers(model, 2, {"rank": 4, "scale": 8.0, "dropout": 0.0})
    rows, prompt, width = shape

    def head_of(model: Any) -> Any:
        return model.lm_head if "lm_head" in model else model.model.embed_tokens

    def run(layer: Any, x: mx.array) -> mx.array:
        if not checkpoint:
            return layer(x, "causal", None)

        def inner(params: Any, x: mx.array) -> mx.array:
            layer.update(params)
            return layer(x, "causal", None)

        return mx.checkpoint(inner)(layer.trainable_parameters(), x)

    def loss(_: Any, ids: mx.array, tokens: mx.array) -> tuple[mx.array, mx.array]:
        x = model.model.embed_tokens(ids)
        for layer in model.model.layers:
            x = run(layer, x)
        hidden = model.model.norm(x)[:, prompt - 1 :].reshape(rows * width, -1)
        stats = head_statistics(
            hidden, tokens, head_of(model), mode="tail", chunk=64, backend="portable"
        )
        return stats.logprobs.mean() + stats.topk_logprobs.mean(), stats.logprobs

    def step(params: Any, ids: mx.array, tokens: mx.array) -> Any:
        model.update(params)
        return nn.value_and_grad(model, loss)(model, ids, tokens)

    return step


@pytest.mark.parametrize(
    ("kind", "vocabulary", "shape", "checkpoint", "quantised"),
    [
        ("qwen2", 2000, (4, 64, 32), False, False),
        ("qwen2", 2000, (4, 64, 32), True, False),
        ("llama", 20000, (4, 32, 64), True, False),
        pytest.param("llama", 2000, (2, 256, 64), False, True, marks=pytest.mark.slow),
        pytest.param("qwen2", 152_000, (2, 16, 8), True, False, marks=pytest.mark.slow),
        ("qwen3_moe", 2000, (4, 32, 32), True, False),
    ],
)
def test_training_steps(
    kind: str, vocabulary: int, shape: tuple[int, int, int], checkpoint: bool, quantised: bool
):
    model = language_model(kind, vocabulary, quantised=quantised)
    step = training_step(model, shape, checkpoint)
    params = model.parameters()
    mx.eval(params)
    rows, prompt, width = shape
    ids = mx.zeros((rows, prompt + width - 1), dtype=mx.int32)
    tokens = mx.zeros((rows * width,), dtype=mx.int32)
    forecast = peak_bytes(step, params, ids, tokens)
    model.update(params)
    assert_close(forecast, measured(step, lambda: (params, ids, tokens)))


def test_weights_that_two_checkpointed_calls_share():
    """Both calls' gradients are formed, and added."""

    def loss(w: mx.array, x: mx.array, y: mx.array) -> mx.array:
        def inner(w: mx.array, x: mx.array) -> mx.array:
            return mx.tanh(mx.exp(x @ w) @ w)

        return mx.checkpoint(inner)(w, x).sum() + mx.checkpoint(inner)(w, y).sum()

    def make() -> tuple[mx.array, mx.array, mx.array]:
        return mx.ones((100, 100)) * 1e-4, mx.ones((3000, 100)), mx.ones((5000, 100))

    def step(*args: mx.array) -> Any:
        return mx.value_and_grad(loss)(*args)

    args = make()
    mx.eval(args)
    # The two losses; each call's two gradients of w; those of the calls.
    assert [node.op for node in trace(step, *args).nodes].count("Add") == 1 + 2 + 1
    assert_close(peak_bytes(step, *args), measured(step, make))


@pytest.mark.slow  # MLX compiles some fifty kernels
@pytest.mark.parametrize("checkpoint", [False, True])
def test_compiled_training_steps(checkpoint: bool):
    model = language_model("qwen2", 2000)
    step = training_step(model, (4, 32, 32), checkpoint)
    params = model.parameters()
    mx.eval(params)
    args = params, mx.zeros((4, 63), dtype=mx.int32), mx.zeros((128,), dtype=mx.int32)
    forecast = peak_bytes(step, *args, compiled=True)
    model.update(params)
    assert_close(forecast, measured(mx.compile(step), lambda: args))


def test_compiled_chains_are_one_operation():
    def fn(x: mx.array, y: mx.array) -> mx.array:
        out = mx.exp(x) * mx.sin(y) + (x - y.sum(0, keepdims=True)) @ mx.tanh(y * 2 + 1).T
        return mx.square(out)

    def make() -> tuple[Any, ...]:
        return mx.ones((500, 500)), mx.ones((500, 500))

    forecast = peak_bytes(fn, *make(), compiled=True)
    assert forecast.peak < 0.7 * peak_bytes(fn, *make()).peak
    assert_close(forecast, measured(mx.compile(fn), make), 0.01)


def test_half_precision_counts_each_conversion():
    def fn(x: mx.array, a: mx.array, b: mx.array) -> mx.array:
        # Two conversions of x to float32, which simplification would make one.
        return mx.stop_gradient(x @ a) + x @ b

    def make() -> tuple[Any, ...]:
        x = mx.ones((2000, 500), dtype=mx.bfloat16)
        return x, mx.ones((500, 8)), mx.ones((500, 8))

    graph = trace(fn, *make())
    assert sum(node.op == "AsType" for node in graph.nodes) == 2
    assert_close(simulate(graph), measured(fn, make), 0.02)


@pytest.mark.parametrize("length", [0, 250, 256])
def test_a_decode_step_and_a_prefill(length: int):
    rows = 8
    model = language_model("llama", 2000)
    params = model.parameters()
    mx.eval(params)

    def forward(params: Any, keys_values: list[mx.array], ids: mx.array) -> Any:
        model.update(params)
        caches = [KVCache() for _ in model.layers]
        for cache in caches if length else ():
            cache.keys, cache.values = keys_values.pop(0), keys_values.pop(0)
            cache.offset = length
        logits = model(ids, cache=caches)[:, -1]
        return logits.argmax(-1), [[cache.keys, cache.values] for cache in caches]

    def make() -> tuple[Any, ...]:
        held = [mx.ones((rows, 2, 256, 32)) for _ in range(4 if length else 0)]
        return params, held, mx.zeros((rows, 1 if length else 256), dtype=mx.int32)

    forecast = peak_bytes(forward, *make(), given=(1,))
    model.update(params)
    assert_close(forecast, measured(forward, make), 0.1)


def test_nothing_is_evaluated_or_allocated():
    model = language_model("llama", 50_000, width=1024)
    params = tree_map(lambda x: mx.zeros(x.shape, dtype=x.dtype), model.parameters())
    model.update(params)
    step = training_step(model, (2, 16, 16), False)
    resident = _resident()
    mx.clear_cache()
    mx.reset_peak_memory()
    start = mx.get_active_memory()
    ids, tokens = (lazy(*shape, dtype=mx.int32) for shape in ((2, 31), (32,)))
    forecast = peak_bytes(step, model.parameters(), ids, tokens)
    assert forecast.inputs > 400_000_000
    assert mx.get_peak_memory() - start < 100_000
    assert _resident() - resident < 100_000_000


def _resident() -> int:
    """Bytes of memory that the process has; 0 where there is no telling."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0


def test_random_state_and_functions_are_left_as_they_were():
    mx.random.seed(5)
    state: Any = mx.random.state
    before = state[0].tolist()
    real = mx.value_and_grad, mx.checkpoint, mx.custom_function
    peak_bytes(lambda x: nn.Dropout(0.5)(x), lazy(10))
    assert state[0].tolist() == before
    with pytest.raises(ZeroDivisionError):
        peak_bytes(lambda x: x * (1 / 0), lazy(10))
    assert (mx.value_and_grad, mx.checkpoint, mx.custom_function) == real


def test_gradients_of_its_own_are_followed_into_functions_within_functions():
    def twice(x: mx.array) -> mx.array:
        @mx.custom_function
        def double(x: mx.array) -> mx.array:
            return mx.sin(x) * 2.0

        @double.vjp
        def double_vjp(x: mx.array, cotangent: mx.array, out: mx.array) -> mx.array:
            return cotangent * mx.cos(x) + out

        out: Any = double(x)
        return out

    def fn(x: mx.array) -> Any:
        outer = mx.checkpoint(lambda x: twice(x) + x)
        return mx.value_and_grad(lambda x: outer(outer(x)).sum())(x)

    names = [node.op for node in trace(fn, lazy(100)).nodes]
    assert names.count("Cos") == 2
    assert names.count("Depends") == 2
    size = 1 << 18
    assert_close(peak_bytes(fn, lazy(size)), measured(fn, lambda: (mx.ones((size,)),)), 0.02)


def test_a_longer_queue_holds_more():
    def chain(x: mx.array) -> mx.array:
        for _ in range(200):
            x = mx.sin(x) @ x
        return x

    graph = trace(chain, lazy(100, 100))
    least, cpu = simulate(graph, NONE_AHEAD).peak, simulate(graph, CPU).peak
    assert least == 3 * 40_000
    assert least < cpu < simulate(graph, METAL).peak


def test_outputs_are_what_stays():
    forecast = peak_bytes(lambda x: [x, x + 1.0, {"a": (x * 2.0).sum()}], lazy(1000))
    assert forecast.outputs == 4000 + 4
    assert forecast.inputs == 4000
