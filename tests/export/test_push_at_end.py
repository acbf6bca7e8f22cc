"""``train`` with ``hub.repo``: it pushes at the end, and no failure of that is one of the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from simko_mlx.export import at_end
from simko_mlx.interrupts import Terminated
from tests.export.pushing import environment, simko
from tests.hub_server import Hub
from tests.runs import SMALL, Recorder, small_config

TRAIN = ["train", "--plain", "--output-dir", "run", "--steps", "1", "--set", "hub.repo=me/x"]
for _key, _value in {**SMALL, "eval.problems": 3}.items():
    if _key != "steps":
        TRAIN += ["--set", f"{_key}={_value}"]


@pytest.fixture
def hub():
    with Hub() as found:
        yield found


def train(hub: Hub, folder: Path, *args: str, **changes):
    output = ["--output-dir", str(folder / "run")]
    words = [word for word in TRAIN if word not in ("--output-dir", "run")]
    return simko(environment(hub, folder / "home", **changes), *words, *output, *args)


def test_it_pushes_after_the_last_evaluation_and_when_it_is_resumed(hub, tmp_path):
    done = train(hub, tmp_path, "--set", "hub.private=true")
    assert done.returncode == 0, done.stderr
    assert f"Pushed to {hub.url}/me/x" in done.stdout
    assert hub.repo("me/x").private
    # The evaluation of the last step is on the card.
    assert {"mlx/adapters.safetensors", "training/evaluation.json"} <= hub.files("me/x").keys()
    again = simko(environment(hub, tmp_path / "home"), "train", "--resume", tmp_path / "run")
    assert again.returncode == 0 and f"{hub.url}/me/x" in again.stdout
    done = simko(environment(hub, tmp_path / "home"), "push", tmp_path / "run", "me/x")
    assert done.returncode == 0 and "Nothing has changed" in done.stdout


@pytest.mark.slow
def test_a_failure_is_a_message_with_the_command_and_the_run_succeeds(hub, tmp_path):
    hub.fail("/commit/", status=500)
    done = train(hub, tmp_path, "--set", "hub.to=[mlx]")
    assert done.returncode == 0, done.stderr
    assert "WARNING: Warning: the run is complete, but was not pushed. The Hub has" in done.stdout
    command = f"simko-mlx push {tmp_path / 'run'} me/x --to mlx"
    assert f"To push it later: {command}\n" in done.stdout
    assert "pass@1" in done.stdout.splitlines()[-1] or "pass@1" in done.stdout
    later = simko(environment(hub, tmp_path / "home"), *command.split()[1:])
    assert later.returncode == 0, later.stderr


def test_without_a_token_that_is_said_at_the_start(hub, tmp_path):
    done = train(hub, tmp_path, token=None)
    assert done.returncode == 0, done.stderr
    start, end = done.stdout.split("step 1/1", 1)
    assert "the push to me/x at the end would fail. You are not logged in" in start
    assert "was not pushed. You are not logged in" in end
    assert hub.requests == []


def test_an_id_that_can_not_be_one_is_a_mistake_in_the_config(hub, tmp_path):
    done = train(hub, tmp_path, "--set", "hub.repo=me/x/y")
    assert done.returncode == 2
    assert "hub.repo: 'me/x/y' can't be a repository's id" in done.stderr
    assert not (tmp_path / "run").exists()


HANGING = """
import functools
from simko_mlx.export import at_end
from simko_mlx.interrupts import Terminated
at_end.PushOptions = functools.partial(at_end.PushOptions, seconds=1.0)
from cli.main import app
app()
"""


@pytest.mark.slow
def test_a_hub_that_hangs_holds_nothing_up_for_long(hub, tmp_path):
    import subprocess
    import sys

    hub.fail("repos/create", hang=120)
    done = subprocess.run(
        [sys.executable, "-c", HANGING, *TRAIN],
        cwd=tmp_path,
        env=environment(hub, tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "was not pushed. The connection to the Hub failed (timed out)" in done.stdout


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Terminated])
def test_a_push_that_is_stopped_leaves_the_run_complete(tmp_path, monkeypatch, stop):
    from simko_mlx.trainer import train

    def stopped(*_):
        raise stop

    monkeypatch.setattr(at_end, "push", stopped)
    logger = Recorder()
    config = small_config(hub__repo="me/x", eval__before=False, eval__after=False, steps=1)
    assert train(config, tmp_path / "run", logger).step == 1
    told = " ".join(str(text) for text in logger.messages)
    assert "was not pushed. The push was stopped." in told
    assert f"simko-mlx push {tmp_path / 'run'} me/x" in told


class Stops(Recorder):
    def step(self, metrics, groups):
        if groups:
            raise KeyboardInterrupt


def test_a_run_that_is_interrupted_is_not_pushed(tmp_path, monkeypatch):
    from simko_mlx.trainer import train

    called = []
    monkeypatch.setattr(at_end, "push", lambda *args: called.append(args))
    config = small_config(hub__repo="me/x", eval__before=False)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", Stops())
    assert called == []
