"""What an export answers in transformers and peft: a script that another Python runs.

``python check_torch.py JOBS.json`` reads ``{"ids": [[...], ...], "last": n, "jobs": [job, ...]}``,
each job ``{"model": folder, "adapter": folder or null, "merged": bool, "dtype": "float32" | "auto",
"out": file}``, and writes a ``.npz`` per job with the float32 logits (tokens, vocabulary) of the
last n tokens of each prompt, and ``{"missing": [...], "versions": {...}, "errors": {out: [stage,
text]}}`` as JOBS.json.result. It imports nothing of this project, and loads neither pickles nor
code.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from typing import Any

NEEDED = ("torch", "transformers", "peft")
# What loading a model that a library doesn't know, or that doesn't fit, raises.
ERRORS = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError),
    AssertionError,
)


class Refused(ValueError):
    """A folder that is not loaded."""


def load_model(job: dict[str, Any]) -> Any:
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    dtype = torch.float32 if job["dtype"] == "float32" else "auto"
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        job["model"],
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    # transformers only warns, and goes on with random weights.
    for key in ("missing_keys", "mismatched_keys"):
        if info.get(key):
            names = sorted(str(name) for name in info[key])
            raise Refused(f"{key.replace('_', ' ')}: {', '.join(names[:3])}")
    return model.eval()


def put_adapter(model: Any, job: dict[str, Any]) -> Any:
    peft = importlib.import_module("peft")
    if not os.path.isfile(os.path.join(job["adapter"], "adapter_model.safetensors")):
        raise Refused("there is no adapter_model.safetensors, and pickles are not loaded")
    model = peft.PeftModel.from_pretrained(model, job["adapter"], local_files_only=True)
    return (model.merge_and_unload() if job.get("merged") else model).eval()


def answers(model: Any, ids: list[list[int]], last: int) -> list[Any]:
    torch = importlib.import_module("torch")
    found = []
    with torch.no_grad():
        for prompt in ids:
            logits = model(torch.tensor([prompt])).logits[0, -last:]
            found.append(logits.float().numpy())
    return found


def run(job: dict[str, Any], ids: list[list[int]], last: int) -> tuple[str, str] | None:
    """Does one job; where it failed ("model" or "adapter"), and what was said."""
    numpy = importlib.import_module("numpy")
    stage = "model"
    try:
        model = load_model(job)
        if job["adapter"] is not None:
            stage = "adapter"
            model = put_adapter(model, job)
        numpy.savez(job["out"], *answers(model, ids, last))
    except Refused as refused:
        return stage, str(refused)
    except ERRORS as error:
        return stage, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        asked = json.load(file)
    result: dict[str, Any] = {"versions": {}, "errors": {}}
    result["missing"] = [n for n in NEEDED if importlib.util.find_spec(n) is None]
    if not result["missing"]:
        for name in NEEDED:
            result["versions"][name] = importlib.import_module(name).__version__
        for job in asked["jobs"]:
            failed = run(job, asked["ids"], asked["last"])
            if failed:
                result["errors"][job["out"]] = failed
    with open(path + ".result", "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(sys.argv[1])
