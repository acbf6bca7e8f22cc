"""What ``step.py`` needs before it measures: the rival's environment, and models of given sizes.

Import it after ``common``, which loads OpenBLAS before MLX.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import qwen2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

RIVAL = "mlx-lm-lora==5.10.2"
BACKENDS = {"mlx-cpu": "cpu", "mlx-cuda-12": "cuda12", "mlx-cuda-13": "cuda13"}
INSTALLED = "installed.json"  # written last: without it an environment is half made

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May.",
    "How many clips did she sell altogether? The answer is \\boxed{72}. 0 1 2 3 4 5 6 7 8 9 + - =",
)


@dataclass(frozen=True)
class Shape:
    """A Qwen2 with tied embeddings: vocabulary, size of the hidden states, layers."""

    vocabulary: int
    hidden: int
    layers: int


# By what they have of parameters and vocabulary. With 151,936 tokens the embedding alone is 10 M at
# a hidden size of 64, the smallest with a head of the usual 64.
MODELS = {
    "6M-8k": Shape(8_192, 256, 4),
    "24M-8k": Shape(8_192, 512, 5),
    "10M-152k": Shape(151_936, 64, 3),
    "20M-152k": Shape(151_936, 128, 4),
}


class SetupError(Exception):
    """The rival's environment can't be made: one sentence."""


def rival_python(folder: Path) -> str:
    """The interpreter of the environment in ``folder``, which is made if it isn't there.

    Raises:
        SetupError: it can't be installed here.
    """
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    mlx, mlx_lm = version("mlx"), version("mlx-lm")
    wanted = {"rival": RIVAL, "mlx": mlx, "mlx-lm": mlx_lm, "python": sys.version}
    marker = folder / INSTALLED
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == wanted:
        return str(python)
    print(f"installing {RIVAL} into {folder} ...", flush=True)
    _call([sys.executable, "-m", "venv", "--clear", str(folder)])
    here = f"mlx{_backend()}"
    try:
        _install(python, [RIVAL, f"{here}=={mlx}", f"mlx-lm=={mlx_lm}"])
    except SetupError as error:
        if "ResolutionImpossible" not in str(error):
            raise
        # Its own requirements exclude our versions; the header shows what it got instead.
        _install(python, [RIVAL, here])
    marker.write_text(json.dumps(wanted), encoding="utf-8")
    return str(python)


def _backend() -> str:
    """The extra of mlx that brings the backend installed here; on macOS it needs none."""
    for package, extra in BACKENDS.items():
        try:
            version(package)
        except PackageNotFoundError:
            continue
        return f"[{extra}]"
    return ""


def _install(python: Path, requirements: Sequence[str]) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _call([*command, *requirements])


def _call(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise SetupError(f"{RIVAL} can't be installed: {error}.") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise SetupError(
            f"{RIVAL} can't be installed (network, or another platform?): {errors[-1][:200]}"
        )


def make_tokenizer(folder: Path, vocabulary: int) -> None:
    """A byte-level BPE tokenizer that can decode every id of the vocabulary."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(TEXT, trainer)
    content: dict[str, Any] = json.loads(trained.to_str())
    words: dict[str, int] = content["model"]["vocab"]
    # No merge leads to these: they are never encoded, but the model may draw them.
    words.update({f"Ġw{i}": i for i in range(len(words), vocabulary)})
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def make_model(folder: Path, shape: Shape) -> int:
    """Writes a folder that ``mlx_lm.load`` reads, random float32 weights; returns their number."""
    folder.mkdir(parents=True)
    make_tokenizer(folder, shape.vocabulary)
    heads = max(1, shape.hidden // 64)
    config: dict[str, Any] = {
        "model_type": "qwen2",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": 4 * shape.hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    }
    mx.random.seed(0)
    model = qwen2.Model(qwen2.ModelArgs.from_dict(config))
    mx.eval(model.parameters())
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights: Any = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return sum(w.size for w in weights.values())


def make_prompts(problems: int, tokens: int, vocabulary: int) -> list[list[int]]:
    """Random prompts of about this length, each four tokens shorter than the one before, as real
    ones differ too; special tokens are left out."""
    lengths = [max(2, tokens - 4 * (i % 8)) for i in range(problems)]
    mx.random.seed(1)
    return [mx.random.randint(3, vocabulary, (n,)).tolist() for n in lengths]  # type: ignore[misc]
