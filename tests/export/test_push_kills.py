"""A push that is killed, wherever it was, can be repeated."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import pytest

from tests.export.pushing import environment, fingerprint, simko, start, trained_run
from tests.hub_server import Hub

pytestmark = pytest.mark.slow
KILLS = 20


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return trained_run(tmp_path_factory.mktemp("kills"))


def kill_at(hub: Hub, env: dict[str, str], run_dir: Path, number: int, moment: str) -> int:
    """The exit code of a push that is killed at a moment of its n-th request."""
    started = threading.Event()
    process = []

    def watch(now: int, what: str) -> None:
        if (now, what) == (number, moment):
            started.wait(10)
            os.kill(process[0].pid, signal.SIGKILL)

    hub.watch = watch
    process.append(start(env, "push", run_dir, "me/x"))
    started.set()
    process[0].communicate(timeout=60)
    hub.watch = None
    return process[0].returncode


def test_a_push_killed_anywhere_and_repeated_ends_in_the_same_repository(run_dir, tmp_path):
    before = fingerprint(run_dir)
    seen: list[tuple[int, str]] = []
    with Hub() as hub:
        hub.watch = lambda number, moment: seen.append((number, moment))
        assert simko(environment(hub, tmp_path / "home"), "push", run_dir, "me/x").returncode == 0
        expected, last = hub.files("me/x"), len(hub.requests)
    assert last >= 12 and {"headers", "body", "acted"} == {moment for _, moment in seen}
    left = {"no repository": 0, "nothing": 0, "all": 0}
    for number, moment in random.Random(0).sample(seen, KILLS):
        with Hub() as hub:
            env = environment(hub, tmp_path / "home")
            assert kill_at(hub, env, run_dir, number, moment) == -signal.SIGKILL
            if ("models", "me/x") in hub.repos:
                files = hub.files("me/x")
                assert files in ({}, expected)  # all or nothing
                left["all" if files else "nothing"] += 1
            else:
                left["no repository"] += 1
            done = simko(env, "push", run_dir, "me/x")
            assert done.returncode == 0, done.stderr
            assert hub.files("me/x") == expected
            assert len(hub.repo("me/x").history()) == 2
    assert all(left.values()), left  # the moments lay before, within and after
    assert fingerprint(run_dir) == before


def test_a_push_killed_while_the_bytes_flow_is_repeated(run_dir, tmp_path):
    with Hub(pace=100_000) as hub:  # the upload takes about a second
        env = environment(hub, tmp_path / "home")
        process = start(env, "push", run_dir, "me/x")
        uploading = threading.Event()

        def watch(number: int, moment: str) -> None:
            if "PUT" in hub.names()[number - 1] and moment == "headers":
                uploading.set()

        hub.watch = watch
        assert uploading.wait(30)
        threading.Event().wait(0.1)
        process.kill()
        process.communicate()
        hub.pace = None
        upload = next(request for request in hub.requests if request.method == "PUT")
        assert len(upload.body) < int(upload.headers["content-length"])
        assert hub.objects == {} and hub.files("me/x") == {}
        assert simko(env, "push", run_dir, "me/x").returncode == 0
