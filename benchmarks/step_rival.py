"""One cell of ``step.py`` in mlx-lm-lora: a process of its own, run by that project's interpreter.

Does what ``mlx_lm_lora.train --train-mode grpo`` does between its command line and its training
loop, then runs that loop, ``train_grpo``. Prints versions and measured steps as JSON, as its last
line. ``step.py`` says what is set, and why.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from meter import Stopwatch, count_parameters, process_growth, reset_process_peak

PACKAGES = ("mlx-lm-lora", "mlx", "mlx-lm", "transformers", "numpy")


class Enough(Exception):
    """Ends the training loop, which would end by itself only after a report."""


def train(spec: dict[str, Any], folder: str) -> dict[str, Any]:
    import mlx.core as mx
    import mlx.optimizers as optim
    import numpy as np
    from mlx_lm_lora.trainer import grpo_trainer  # pyright: ignore[reportMissingImports]
    from mlx_lm_lora.utils import from_pretrained  # pyright: ignore[reportMissingImports]

    watch, before = Stopwatch(), reset_process_peak()
    np.random.seed(spec["seed"])
    lora = {"rank": spec["rank"], "scale": spec["scale"], "dropout": 0.0, "num_layers": -1}
    model, tokenizer, adapter_file = from_pretrained(
        spec["model"], new_adapter_path=folder, lora_config=lora
    )
    # An id that the model does not have: every completion goes to its full length.
    tokenizer.eos_token_ids = {spec["vocabulary"]}
    mx.random.seed(spec["seed"])
    optimizer = optim.AdamW(
        learning_rate=spec["learning_rate"],
        betas=spec["betas"],
        eps=spec["eps"],
        weight_decay=spec["weight_decay"],
        bias_correction=True,
    )

    def batches(**kwargs: Any) -> Iterator[Any]:
        source = grpo_trainer.iterate_grpo_batches(**kwargs)
        while True:
            batch = next(source)
            watch.start()
            yield batch
            watch.lap("update")
            if watch.enough(spec["warm"], spec["steps"], spec["seconds"]):
                raise Enough

    def reward(completions: list[str], **_: Any) -> list[float]:
        watch.lap("rollout")
        return [float(place % 3 == 0) for place in range(len(completions))]

    prompts = spec["prompts"]
    with contextlib.suppress(Enough):
        grpo_trainer.train_grpo(
            model=model,
            ref_model=None,
            tokenizer=tokenizer,
            optimizer=optimizer,
            train_dataset=[(ids, [], f"problem {i}", "", None) for i, ids in enumerate(prompts)],
            reward_funcs=[reward],
            args=arguments(grpo_trainer.GRPOTrainingArgs, spec, adapter_file),
            iterate_batches=batches,
            end_answer_token="",
        )
    return {
        "steps": watch.as_json(spec["warm"]),
        "process": process_growth(before),
        **count_parameters(model),
    }


def arguments(make: Any, spec: dict[str, Any], adapter_file: Any) -> Any:
    """What the command line gives its training loop, with the defaults that it has for the rest."""
    return make(
        batch_size=len(spec["prompts"]),
        iters=1 << 30,  # see Enough
        steps_per_report=1 << 30,
        steps_per_save=1 << 30,
        adapter_file=adapter_file,
        max_completion_length=spec["completion"],
        group_size=spec["group"],
        beta=0.0,
        epsilon=spec["clip"],
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
    )


def main() -> None:
    spec = json.loads(sys.argv[sys.argv.index("--cell") + 1])
    found: dict[str, Any] = {"versions": {name: version(name) for name in PACKAGES}}
    if spec["openblas"]:
        # As simko_mlx does for itself, before MLX is imported.
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    if "model" in spec:
        with tempfile.TemporaryDirectory() as folder:
            found |= train(spec, folder)
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
