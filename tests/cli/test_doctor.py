"""``simko-mlx doctor``: what it prints, and what its exit code says."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from click.testing import CliRunner

from simko_mlx.kernels import selfcheck
from simko_mlx.kernels.selfcheck import Verdict
from tests.models import make_model

NO_METAL = pytest.mark.skipif(mx.metal.is_available(), reason="there is Metal here")


@NO_METAL
def test_it_tells_the_machine_and_why_the_kernels_are_off(simko):
    done = simko("doctor")
    assert done.returncode == 0 and not done.stderr
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert rows["Metal kernels"] == "off: there is no Metal device; plain MLX is used"
    assert "mlx 0." in rows["versions"] and "GiB" in rows["device"]
    assert "151,936 tokens, bfloat16" in rows["head"]
    assert max(map(len, done.stdout.splitlines())) <= 120


@NO_METAL
def test_json_is_json_and_nothing_else(simko):
    done = simko("doctor", "--json", "--model", "embedded")
    found = json.loads(done.stdout)
    assert found["head"] == {"vocabulary": 113, "dtype": "float32", "scale": 1.0, "softcap": 15.0}
    assert found["healthy"] and not found["metal"] and not found["kernels"]["ok"]


def test_a_model_that_is_none_is_one_sentence(simko):
    done = simko("doctor", "--model", "./nothing")
    assert done.returncode == 2 and "no such folder" in done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


def test_a_models_own_head(simko, tmp_path):
    model = make_model(tmp_path / "model", "gemma2", dtype=mx.bfloat16)
    done = simko("doctor", "--model", str(model))
    assert done.returncode == 0, done.stderr
    assert "bfloat16, softcap 30" in done.stdout


def test_a_model_whose_head_is_not_understood(monkeypatch):
    from cli.doctor import command

    monkeypatch.setattr("simko_mlx.policy.find_head", lambda model: "it is a secret")
    done = CliRunner().invoke(command, ["--model", "embedded"], standalone_mode=False)
    assert "(it is a secret): training holds full logits" in done.output
    assert "151,936" not in done.output


@pytest.mark.parametrize(
    ("verdict", "code", "words"),
    [
        (Verdict(True, seconds=2.0), 0, "on: they agree with plain MLX (checked now, in 2.0 s)"),
        (Verdict(True, cached=True), 0, "(checked earlier)"),
        (Verdict(False, "their check crashed (SIGABRT)"), 1, "off: their check crashed (SIGABRT)"),
    ],
)
def test_on_a_mac_it_shows_the_verdict(monkeypatch, verdict, code, words):
    from cli.doctor import command

    forgotten = []
    monkeypatch.setattr(selfcheck, "has_metal", lambda: True)
    monkeypatch.setattr(selfcheck, "verdict", lambda shape: verdict)
    monkeypatch.setattr(selfcheck, "forget", lambda: forgotten.append(1))
    done = CliRunner().invoke(command, ["--recheck"], standalone_mode=False)
    assert done.return_value == code, done.output
    assert words in done.output and len(forgotten) == 1
