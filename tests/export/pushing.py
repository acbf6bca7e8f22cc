"""A run that can be pushed, the command that does it, and all that a Hub was ever sent."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.hub_server import Hub, Request
from tests.models import make_model
from tests.runs import run, small_config

ROOT = Path(__file__).resolve().parents[2]
PATHS = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "mlx/adapter_config.json",
    "mlx/adapters.safetensors",
    "pass_at_k.svg",
    "training.svg",
    "training/config.yaml",
    "training/evaluation.json",
}


def trained_run(folder: Path) -> Path:
    """Two steps of a small Qwen2, with evaluations."""
    model = make_model(folder / "base")
    config = small_config(model=str(model), steps=2, checkpoint__every=1, eval__problems=3)
    run(config, folder / "run")
    return folder / "run"


def environment(hub: Hub, home: Path, **changes: Any) -> dict[str, str]:
    """Of the command line that talks to this Hub; ``token`` is whose it is."""
    own = {"token": changes.pop("token")} if "token" in changes else {}
    home.mkdir(exist_ok=True)
    python = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return {**kept, **python, "TERM": "xterm", **hub.environment(home, **own), **changes}


def simko(env: Mapping[str, str], *args: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "cli", *map(str, args)]
    return subprocess.run(
        words, cwd=ROOT, env=env, capture_output=True, text=True, encoding="utf-8", timeout=120
    )


def start(env: Mapping[str, str], *args: str | Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "cli", *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=ROOT, env=env, stdout=pipe, stderr=pipe)


def fingerprint(folder: Path) -> str:
    """Of a folder's names, types and contents."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = path.read_bytes() if path.is_file() else b""
        found.update(f"{path.relative_to(folder)} {mode}".encode() + b"\0" + content + b"\0")
    return found.hexdigest()


def sent(requests: list[Request]) -> bytes:
    """Every byte that came in: addresses, headers, bodies, and what is base64 in them."""
    parts = []
    for request in requests:
        parts += [request.name.encode(), json.dumps(request.headers).encode(), request.body]
        for line in request.body.splitlines():
            parts += _decoded(line)
    return b"\n".join(parts)


def _decoded(line: bytes) -> Iterator[bytes]:
    try:
        value = json.loads(line)
    except ValueError:
        return
    todo = [value]
    while todo:
        item = todo.pop()
        todo += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        if isinstance(item, str):
            yield item.encode()
            try:
                yield base64.b64decode(item, validate=True)
            except ValueError:
                continue
