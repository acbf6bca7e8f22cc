"""The Python with torch, transformers and peft that exports are compared in.

torch and mlx are in no environment together here: this one, ``.venv-torch`` beside the repository's
``.venv``, is made once, when the first slow test asks for it. ``SIMKO_TORCH_PYTHON`` names an
existing Python instead.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-torch"
STAMP = FOLDER / ".simko-stamp"  # written last
TORCH = "torch==2.13.0"
PACKAGES = [
    TORCH,
    f"transformers=={version('transformers')}",
    "peft==0.21.2",
    "safetensors",
    "numpy",
]
# PyPI's wheel for Linux brings gigabytes of CUDA. The other index is asked for torch alone, and not
# patiently: where it can't be reached, pip would wait for it at every package.
CPU_INDEX = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
QUICK = ["--retries", "1", "--timeout", "15", "--no-deps"]


def torch_python() -> str:
    """Path of that Python; skips the test where it can't be made."""
    named = os.environ.get("SIMKO_TORCH_PYTHON")
    if named:
        return named
    with open(ROOT / ".venv-torch.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers may ask at once
        wanted = "\n".join([sys.version, *PACKAGES])
        python = FOLDER / "bin" / "python"
        if not (STAMP.is_file() and STAMP.read_text() == wanted and python.exists()):
            _make(python)
            STAMP.write_text(wanted)
    return str(python)


def _make(python: Path) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    linux = sys.platform == "linux"
    try:
        _run([sys.executable, "-m", "venv", str(FOLDER)])
        if linux:
            _run([*pip, *QUICK, *CPU_INDEX, TORCH])
        _run([*pip, *PACKAGES])
    except (OSError, subprocess.SubprocessError) as error:
        text = getattr(error, "stderr", None) or str(error)
        last = [line for line in text.splitlines() if line.strip()][-1:]
        shutil.rmtree(FOLDER, ignore_errors=True)
        pytest.skip(f"no torch to compare with: {' '.join(last)[:300]}")


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
