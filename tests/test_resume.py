"""A run that is killed again and again ends with the same adapter as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from simko_mlx import checkpoint
from tests.kill_at import KEYS
from tests.runs import metrics

ROOT = Path(__file__).parents[1]
KILLS = 20


def launch(
    folder: Path, moment: int | str, number: str, resume: bool
) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.kill_at", str(folder), str(moment), number]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "resume" if resume else "start"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, int]:
    """The run that nothing interrupts, and the number of moments it has."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = launch(folder, 0, "SIGKILL", False)
    assert done.returncode == 0, done.stderr
    return folder, int(done.stdout)


def same(a: Path, b: Path) -> None:
    final = KEYS["steps"]
    for name in ("adapters.safetensors", "optimizer.safetensors"):
        one, two = (checkpoint.step_folder(f, final) / name for f in (a, b))
        assert one.read_bytes() == two.read_bytes(), name
    adapters = [(f / "adapters" / "adapters.safetensors").read_bytes() for f in (a, b)]
    assert adapters[0] == adapters[1]
    assert (a / "rollouts.jsonl").read_bytes() == (b / "rollouts.jsonl").read_bytes()
    trained = [[r for r in metrics(f) if "reward/mean" in r] for f in (a, b)]
    assert trained[0] == trained[1]
    assert not list(b.rglob(".tmp-*")) and not list(b.rglob(".old-*"))


@pytest.mark.slow
def test_twenty_interruptions_at_random_moments(whole, tmp_path):
    reference, moments = whole
    rng = random.Random(20)
    kills = inside = lives = 0
    folder, resume, signals = tmp_path / "run-0", False, []
    while kills < KILLS:
        number = rng.choice(["SIGKILL", "SIGKILL", "SIGINT", "SIGTERM"])
        moment = rng.randrange(1, moments // 3)
        in_save = f"save-{rng.randrange(1, 20)}"
        done = launch(folder, in_save if rng.random() < 0.4 else moment, number, resume)
        if done.returncode == 0:  # it got to its end before its moment came
            same(reference, folder)
            lives += 1
            folder, resume = tmp_path / f"run-{lives}", False
            continue
        expected = {"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143}[number]
        assert done.returncode == expected, done.stderr
        kills += 1
        signals.append(number)
        inside += "inside a save" in done.stderr
        resume = (folder / "config.yaml").exists()
        if not resume:
            for path in folder.glob(".*"):  # killed before there was a run
                assert path.name in (".lock", ".tmp-config.yaml")
    done = launch(folder, 0, "SIGKILL", resume)
    assert done.returncode == 0, done.stderr
    same(reference, folder)
    assert {"SIGKILL", "SIGINT"} <= set(signals)
    assert inside >= 3, "too few interruptions fell inside a save: change the seed"


@pytest.mark.slow
def test_the_first_save_dies_at_each_of_its_parts(whole, tmp_path):
    folder = tmp_path / "run"
    for moment in range(1, 14, 4):
        resume = (folder / "config.yaml").exists()
        done = launch(folder, f"save-{moment}", "SIGKILL", resume)
        assert done.returncode == -9 and "inside a save" in done.stderr
    done = launch(folder, 0, "SIGKILL", True)
    assert done.returncode == 0, done.stderr
    same(whole[0], folder)


def test_sigint_saves_the_last_finished_step(whole, tmp_path):
    _, moments = whole
    folder = tmp_path / "run"
    done = launch(folder, moments // 2, "SIGINT", False)
    assert done.returncode == 130
    rows = [r for r in metrics(folder) if "reward/mean" in r]
    assert checkpoint.steps(folder)[-1] == len(rows)
    state = json.loads((checkpoint.step_folder(folder, len(rows)) / "state.json").read_text())
    assert state["step"] == len(rows)
