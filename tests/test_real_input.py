"""GSM8K's own rows and a Qwen2 with chat template and tied head, from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlx_lm
import pytest

from tests.models import make_model

ROOT = Path(__file__).parents[1]
EXCERPT = Path(__file__).parent / "data" / "fixtures" / "gsm8k_4_rows.parquet"
WHOLE = ROOT.parent / "shared" / "data" / "gsm8k_train.parquet"


def simko(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("path", [EXCERPT, WHOLE], ids=["excerpt", "whole"])
def test_five_steps_on_gsm8k(path, tmp_path):
    if not path.exists():
        pytest.skip(f"{path.name} is not there (the excerpt beside this test is)")
    model, run = make_model(tmp_path / "model", max_position_embeddings=2048), tmp_path / "run"
    small = path == EXCERPT
    sets = [
        f"data.path={path}", "data.prompt=prompt", "data.answer=reward_model.ground_truth",
        f"data.heldout={1 if small else 100}", "rollout.max_completion_length=48",
        f"rollout.problems_per_step={2 if small else 8}", "eval.problems=2", "eval.n=4",
        "eval.k=1,2", "prompt.max_length=1024",
    ]  # fmt: skip
    flags = [x for item in sets for x in ("--set", item)]
    common = ["-c", "gsm8k-qwen2.5-0.5b", "--model", str(model), "--steps", "5"]
    done = simko("train", *common, "--output-dir", str(run), *flags)
    assert done.returncode == 0, done.stderr
    assert "o learning signal for 3 steps" in done.stdout + done.stderr
    assert "max_completion_length" in done.stdout + done.stderr
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in lines if "reward/mean" in r] == [1, 2, 3, 4, 5]
    tuned, tokenizer = mlx_lm.load(str(model), adapter_path=str(run / "adapters"))[:2]
    assert isinstance(mlx_lm.generate(tuned, tokenizer, "2 + 2", max_tokens=3), str)
    evaluated = simko("eval", str(run), "--n", "2", "--k", "1", "--problems", "1", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)
