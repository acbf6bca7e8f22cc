"""A push to a Hub, or something before it, that answers as none does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from simko_mlx.export.hub_session import HubTrouble, bounded
from tests.export.pushing import environment, simko, trained_run
from tests.hub_server import Hub


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return trained_run(tmp_path_factory.mktemp("answers"))


@pytest.fixture
def hub():
    with Hub() as found:
        yield found


@pytest.mark.parametrize(
    ("body", "request_"), [(b"[]", "preupload"), (b"null", "repos/create"), (b"3", "tree/")]
)
def test_an_answer_of_another_form_is_a_sentence(run_dir, hub, tmp_path, body, request_):
    hub.fail(request_, times=100, status=200, body=body)
    done = simko(environment(hub, tmp_path / "home"), "push", run_dir, "me/x")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: The Hub's answer can't be read (" in done.stderr
    assert done.stderr.endswith(f"simko-mlx push {run_dir} me/x\n")


def test_an_answer_that_drips_is_not_waited_for():
    heard = []
    with bounded(0.1, heard.append) as watch:
        over = threading.Event()
        with pytest.raises(HubTrouble, match="gave no good answer for"):
            watch.over(lambda: over.wait(60))
        with pytest.raises(HubTrouble, match="stopped"):  # no further request
            watch.before(None)
        over.set()


def test_a_token_of_odd_characters_is_told(run_dir, hub, tmp_path):
    done = simko(environment(hub, tmp_path / "home", token="hf_\u00e9"), "push", run_dir, "me/x")
    assert done.returncode == 2 and hub.requests == []
    assert "The token of the Hub holds characters that none has" in done.stderr
