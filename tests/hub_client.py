"""Command lines run with the real client of the Hub, against one on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.hub_server import Hub
from tests.runs import SMALL

ROOT = Path(__file__).parents[1]


def environment(hub: Hub, home: Path, token: str | None) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return {**kept, **hub.environment(home, token), "PYTHONPATH": str(ROOT)}


SEVERAL = """
import contextlib, io, json, os, shutil, sys
from cli.main import run
if "FREE" in os.environ:
    real = shutil.disk_usage
    shutil.disk_usage = lambda path: real(path)._replace(free=int(os.environ["FREE"]))
for args in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(args)
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


def simko(hub: Hub, home: Path, *lines: list[str], token: str | None = None, **more: str):
    """What each command line comes to: one process runs them all, one after the other."""
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL], cwd=ROOT, capture_output=True, text=True, timeout=200,
        input=json.dumps(lines), env={**environment(hub, home, token), **more},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(lines), done.stderr
    return [subprocess.CompletedProcess(line, *one) for line, one in zip(lines, found, strict=True)]


def data(*sets: str) -> list[str]:
    """The command that needs a model's tokenizer alone."""
    return ["data", "show", "countdown-tiny", *(part for one in sets for part in ("--set", one))]


def train(run: Path, *sets: str) -> list[str]:
    values = {**SMALL, "steps": 1, "data.size": 20, "eval.before": False, "eval.after": False}
    values |= {"eval.every": 0, "rollout.problems_per_step": 2, "rollout.group_size": 2}
    settings = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    told = [part for one in (*settings, *sets) for part in ("--set", one)]
    return ["train", "--plain", "--output-dir", str(run), *told]


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, (done.stdout, done.stderr)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and last.endswith(".") and "Traceback" not in done.stderr
    assert all(word in last for word in words), last


def fetched(hub: Hub) -> set[str]:
    return {
        name.split("/resolve/", 1)[1].split("/", 1)[1]
        for name in hub.names()
        if "/resolve/" in name
    }
