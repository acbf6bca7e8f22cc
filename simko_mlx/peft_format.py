"""Names and layouts of LoRA weights in mlx-lm and in PEFT.

mlx-lm keeps ``X.lora_a`` (in, r) and ``X.lora_b`` (r, out), and adds to a layer's output
``scale * x @ lora_a @ lora_b``. PEFT keeps ``base_model.model.X.lora_A.weight`` (r, in) and
``.lora_B.weight`` (out, r), and adds ``lora_alpha / r * B A x``; of an embedding it keeps
``lora_embedding_A`` (r, vocabulary) and ``lora_embedding_B`` (dims, r). So both matrices are
transposed, and ``lora_alpha = scale * r``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

PREFIX = "base_model.model."
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embeddings")
_LEAVES = {
    False: {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"},
    True: {"lora_a": "lora_embedding_A", "lora_b": "lora_embedding_B"},
}


def is_embedding(module: str) -> bool:
    """Whether a module's dotted name is that of a token embedding."""
    return module.rpartition(".")[2] in EMBEDDINGS


def adapted_modules(weights: Mapping[str, np.ndarray]) -> list[str]:
    """The dotted names of the modules that an mlx-lm adapter changes, in order of name."""
    return sorted({name.rpartition(".")[0] for name in weights if name.endswith(".lora_a")})


def to_peft(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An mlx-lm adapter's matrices (two dimensions each) under PEFT's names, transposed."""
    tensors = {}
    for name, value in weights.items():
        module, _, leaf = name.rpartition(".")
        tensors[f"{PREFIX}{module}.{_LEAVES[is_embedding(module)][leaf]}"] = value.T
    return tensors


def from_peft(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of ``to_peft``.

    Raises:
        KeyError: a tensor is no LoRA matrix; the name is its argument.
    """
    weights = {}
    for name, value in tensors.items():
        for leaf, theirs in (pair for leaves in _LEAVES.values() for pair in leaves.items()):
            if name.startswith(PREFIX) and name.endswith("." + theirs):
                module = name.removeprefix(PREFIX).removesuffix("." + theirs)
                weights[f"{module}.{leaf}"] = value.T
                break
        else:
            raise KeyError(name)
    return weights
