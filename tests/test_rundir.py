"""Which folder a run may use, and what a start that fails leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simko_mlx import rundir
from simko_mlx.types import UserError
from tests.runs import run, small_config

ROOT = Path(__file__).parents[1]


def test_a_folder_that_holds_something_else_is_not_touched(tmp_path):
    folder = tmp_path / "foreign"
    (folder / "adapters").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("precious")
    with pytest.raises(UserError, match=r"is not empty \(it holds adapters, metrics.jsonl\)"):
        run(small_config(), folder)
    assert (folder / "metrics.jsonl").read_text() == "precious"
    assert sorted(p.name for p in folder.iterdir()) == ["adapters", "metrics.jsonl"]


def test_an_empty_folder_and_the_rest_of_a_killed_start_will_do(tmp_path):
    for name in ("empty", "killed"):
        (tmp_path / name).mkdir()
    (tmp_path / "killed" / ".lock").write_text("process 1\n")
    (tmp_path / "killed" / ".tmp-config.yaml").write_text("half")
    for name in ("empty", "killed"):
        summary, _ = run(small_config(steps=1, eval__before=False), tmp_path / name)
        assert summary.step == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"optim__lr_schedule": {"name": "nosuch"}},
        {"prompt__max_length": 1},
        {"loss__name": "nosuch"},
        {"verifier__name": "number", "data__source": "tests.test_rundir:no_numbers"},
        {"verifier__name": "countdown", "data__source": "tests.test_rundir:no_numbers"},
        {"model": "no-such-model"},
        {"data__size": 2},
    ],
    ids=lambda c: ",".join(c),
)
def test_a_start_that_fails_leaves_no_folder(tmp_path, changes):
    config = small_config(**changes)
    if changes.get("verifier__name") == "number":
        run(config, tmp_path / "run")  # text answers can be judged by `number`
        return
    with pytest.raises(UserError):
        run(config, tmp_path / "runs" / "run")
    assert not (tmp_path / "runs").exists()


def no_numbers(config):
    return [{"prompt": f"{i} 2 3 > 6 :", "answer": "L"} for i in range(1, 30)]


def test_only_one_of_two_starts_gets_the_folder(tmp_path):
    folder = tmp_path / "run"
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.runs import run, small_config\nfrom simko_mlx.types import UserError\n"
        "try:\n    run(small_config(), Path(sys.argv[1]))\n"
        "except UserError as error:\n    print(error); sys.exit(2)\n"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [p.communicate(timeout=120)[0] for p in both]
    assert sorted(p.returncode for p in both) == [0, 2]
    (refusal,) = [o for o, p in zip(outputs, both, strict=True) if p.returncode == 2]
    assert "in use by process" in refusal or "already holds a run" in refusal


def test_failure_after_the_claim_keeps_what_was_written(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ZeroDivisionError), rundir.claimed(folder, resume=False):
        (folder / "config.yaml").write_text("seed: 1\n")
        raise ZeroDivisionError
    assert (folder / "config.yaml").exists()


@pytest.mark.parametrize(
    "closed",
    [
        pytest.param((0,), marks=pytest.mark.slow),
        pytest.param((1,), marks=pytest.mark.slow),
        (0, 1, 2),
    ],
)
def test_closed_standard_files_break_nothing(tmp_path, closed):
    flags = ["eval.before=false", "eval.after=false", "eval.every=0", "data.heldout=0"]
    sets = [x for item in flags for x in ("--set", item)]
    command = [sys.executable, "-m", "cli", "train", "--steps", "1", *sets]
    script = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in closed)
    done = subprocess.run(
        ["sh", "-c", f'"$@" {script}', "sh", *command, "--output-dir", str(tmp_path / "run")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "adapters" / "adapters.safetensors").exists()
