"""Runs ``check_torch.py`` in another Python, and reads what it found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simko_mlx.types import UserError, require

SCRIPT = Path(__file__).with_name("check_torch.py")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Job:
    """A model's folder, with a PEFT adapter's where there is one; ``dtype`` "float32" or "auto"."""

    model: Path
    adapter: Path | None = None
    merged: bool = False
    dtype: str = "float32"


@dataclass(frozen=True)
class Failure:
    """Why a job has no logits; ``stage`` "model" or "adapter" is what could not be loaded."""

    stage: str
    text: str


@dataclass(frozen=True)
class Answers:
    """``missing`` packages, or the ``versions`` and for each job its logits, one array (tokens,
    vocabulary) float32 a prompt, or why there are none."""

    missing: tuple[str, ...]
    versions: dict[str, str]
    results: list[list[np.ndarray] | Failure]


def ask_torch(
    jobs: Sequence[Job],
    prompts: Sequence[Sequence[int]],
    *,
    last: int,
    python: str | None = None,
    timeout: float = 3600.0,
) -> Answers:
    """What transformers and peft answer; all jobs in one process, without network.

    Args:
        jobs: what is loaded.
        prompts: token ids.
        last: tokens of each prompt, from its end, whose logits are wanted.
        python: the Python that has torch; default this one.
        timeout: seconds for all jobs.

    Raises:
        UserError: that Python can't be run, takes too long, or ends without an answer.
    """
    python = find_python(python)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # A copy: beside the script lie modules of ours with names such as peft.
        script = str(shutil.copy(SCRIPT, folder / "check_export_in_torch.py"))
        listed = []
        for i, job in enumerate(jobs):
            adapter = None if job.adapter is None else str(job.adapter.resolve())
            fields = {"adapter": adapter, "merged": job.merged, "dtype": job.dtype}
            out = str(folder / f"{i}.npz")
            listed.append({"model": str(job.model.resolve()), **fields, "out": out})
        asked = folder / "jobs.json"
        ids = [list(prompt) for prompt in prompts]
        asked.write_text(json.dumps({"ids": ids, "last": last, "jobs": listed}))
        _run([python, script, str(asked)], folder, timeout)
        answer = asked.with_name("jobs.json.result")
        require(answer.is_file(), f"{python} is no Python: it ran nothing. See --python.")
        result = json.loads(answer.read_text())
        missing = tuple(result["missing"])
        results = [_result(j["out"], result["errors"]) for j in listed] if not missing else []
    return Answers(missing, result["versions"], results)


def find_python(python: str | None) -> str:
    """The path of a Python that the user named, good in any folder; default this one."""
    named = os.path.expanduser(python or sys.executable)
    # Not the file behind a link: a virtual environment is known by the link.
    return os.path.abspath(shutil.which(named) or named)


def _result(out: str, errors: dict[str, tuple[str, str]]) -> list[np.ndarray] | Failure:
    if out in errors:
        return Failure(*errors[out])
    with np.load(out, allow_pickle=False) as arrays:
        return [arrays[name] for name in arrays.files]


def _run(command: list[str], folder: Path, timeout: float) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, **OFFLINE},
            timeout=timeout,
        )
    except OSError as error:
        raise UserError(f"{command[0]} can't be run ({error.strerror}): see --python.") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"transformers took longer than {timeout:g} s to check the export: it was stopped."
        ) from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        last = lines[-1][:300] if lines else f"exit code {done.returncode}"
        raise UserError(
            f"Checking the export with {command[0]} failed ({last}): try its torch, transformers "
            "and peft by themselves."
        )
