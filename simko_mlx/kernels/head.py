"""The language model's head: hidden states -> logits, and the products that gradients need.

    raw     = (hidden @ weight.T + bias) x scale
    capped  = softcap x tanh(raw / softcap), where the model has a softcap
    logits  = capped / temperature

``weight`` is dense or quantised, a head of its own or the embedding that it is tied to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

LINEAR = (nn.Linear, nn.QuantizedLinear)
EMBEDDING = (nn.Embedding, nn.QuantizedEmbedding)


def _sech_squared(x: mx.array) -> mx.array:
    """1 - tanh(x)^2 without the cancellation."""
    e = mx.exp(-2.0 * mx.abs(x))
    return 4.0 * e / mx.square(1.0 + e)


def _capped(z: mx.array, cap: float) -> mx.array:
    # Made for each call: what is made on import, no forecast of memory can look into.
    @mx.custom_function
    def tanh(x: mx.array) -> mx.array:
        """tanh, whose own gradient 1 - tanh^2 would round to 0 where a logit meets its cap."""
        return mx.tanh(x)

    @tanh.vjp
    def tanh_vjp(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        return cotangent * _sech_squared(x)

    bounded: Any = tanh(z / cap)
    return bounded * cap


@dataclass(frozen=True)
class Head:
    """V rows of D weights with what the model does to the logits afterwards.

    ``weight`` is (V, D), or MLX's packed integers when ``scales`` is given; ``scales`` and
    ``biases`` belong to the quantisation, ``bias`` (V,) to the layer. ``softcap`` None or 0 means
    no cap; ``scale`` multiplies the logits before the cap (Cohere's ``logit_scale``, the inverse
    of Granite's ``logits_scaling``).
    """

    weight: mx.array
    bias: mx.array | None = None
    scales: mx.array | None = None
    biases: mx.array | None = None
    group_size: int = 64
    bits: int = 4
    mode: str = "affine"
    softcap: float | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, source: Any, *, softcap: float | None = None, scale: float = 1.0) -> Head:
        """The head made of a weight (V, D), or of an ``nn`` Linear or Embedding, quantised or not.

        Raises:
            TypeError: it is something else, for example a layer with a LoRA adapter.
        """
        if isinstance(source, Head):
            return source if softcap is None else replace(source, softcap=softcap)
        if isinstance(source, mx.array):
            return cls(source, softcap=softcap, scale=scale)
        if type(source) not in (*LINEAR, *EMBEDDING):
            raise TypeError(f"a head is an array, a Linear or an Embedding, not {type(source)}")
        module: Any = source
        quantised = "scales" in module
        return cls(
            module["weight"],
            bias=module.get("bias"),
            scales=module.get("scales"),
            biases=module.get("biases"),
            group_size=module.group_size if quantised else 64,
            bits=module.bits if quantised else 4,
            mode=module.mode if quantised else "affine",
            softcap=softcap,
            scale=scale,
        )

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        """D."""
        packed = self.weight.shape[1]
        return packed if self.scales is None else packed * 32 // self.bits

    @property
    def quantised(self) -> bool:
        return self.scales is not None

    def for_hidden(self, dtype: mx.Dtype) -> Head:
        """The head as MLX's type promotion sees it, promoted once and not once per chunk."""
        if self.quantised or self.weight.dtype == dtype:
            return self
        return replace(self, weight=self.weight.astype(mx.result_type(self.weight.dtype, dtype)))

    def detached(self) -> Head:
        """The head without gradients."""
        bias = None if self.bias is None else mx.stop_gradient(self.bias)
        return replace(self, weight=mx.stop_gradient(self.weight), bias=bias)

    def logit_dtype(self, dtype: mx.Dtype) -> mx.Dtype:
        """The type of the logits of hidden states of this type."""
        own = self.weight if self.scales is None else self.scales
        return mx.result_type(own.dtype, dtype)

    def sum_dtype(self, dtype: mx.Dtype) -> mx.Dtype:
        """The type that ``back`` needs its weights in, for hidden states of this type."""
        # MLX's quantised product on the CPU sums in the type of its input.
        on_cpu = mx.default_device().type == mx.DeviceType.cpu
        return mx.float32 if self.quantised and on_cpu else dtype

    def raw(self, hidden: mx.array) -> mx.array:
        """(N, D) -> (N, V), before scale, cap and temperature; as MLX's layers compute it."""
        if self.scales is not None:
            out = mx.quantized_matmul(hidden, self.weight, self.scales, self.biases, **self._form())
            return out if self.bias is None else out + self.bias
        if self.bias is not None:
            return mx.addmm(self.bias, hidden, self.weight.T)
        return hidden @ self.weight.T

    def logits(self, hidden: mx.array, temperature: float = 1.0) -> mx.array:
        """(N, D) -> (N, V) float32, differentiable in everything."""
        return self.finish(self.raw(hidden), temperature)

    def finish(self, raw: mx.array, temperature: float) -> mx.array:
        """Scale, cap and temperature in float32."""
        z = raw.astype(mx.float32)
        if self.scale != 1.0:
            z = z * self.scale
        if self.softcap:
            z = _capped(z, self.softcap)
        return z / temperature if temperature != 1.0 else z

    def slope(self, raw: mx.array) -> mx.array | None:
        """d capped / d (raw x scale), float32; None where it is 1 everywhere."""
        if not self.softcap:
            return None
        return _sech_squared(raw.astype(mx.float32) * (self.scale / self.softcap))

    def back(self, weights: mx.array) -> mx.array:
        """(N, V) -> (N, D): sums of the head's rows."""
        if self.scales is None:
            return weights @ self.weight
        form = {**self._form(), "transpose": False}
        return mx.quantized_matmul(weights, self.weight, self.scales, self.biases, **form)

    def rows(self, ids: mx.array) -> mx.array:
        """The head's rows (..., D) of these ids, float32."""
        if self.scales is None:
            return self.weight[ids].astype(mx.float32)
        scales = self.scales[ids]
        biases = None if self.biases is None else self.biases[ids]
        if (
            biases is not None
        ):  # as the product has them: else they'd be rounded to the scales' type
            scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        form = {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}
        return mx.dequantize(self.weight[ids], scales, biases, **form).astype(mx.float32)

    def _form(self) -> dict[str, Any]:
        return {
            "transpose": True,
            "group_size": self.group_size,
            "bits": self.bits,
            "mode": self.mode,
        }
