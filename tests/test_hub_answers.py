"""Downloads where something answers that makes no sense as the Hub."""

from __future__ import annotations

import pytest

from tests.hub_client import data, refused, simko
from tests.hub_server import Hub
from tests.models import make_model

MODEL = "someone/tiny"


@pytest.fixture
def hub(tmp_path):
    folder = make_model(tmp_path / "model")
    with Hub() as found:
        found.add_folder(MODEL, folder)
        yield found


@pytest.mark.slow
def test_answers_that_make_no_sense_are_a_sentence_and_the_cache_is_used(hub, tmp_path):
    look = data(f"model={MODEL}")
    html = {"status": 200, "headers": {"Content-Type": "text/html"}}
    for body in (b"<html>Log in", b"[]", b"null"):
        hub.fail("GET /api/models/", body=body, **html)
    for done in simko(hub, tmp_path / "home", look, look, look):
        refused(done, MODEL, "what answers instead of the Hub makes no sense")
    [done] = simko(hub, tmp_path / "home", look)
    assert done.returncode == 0, done.stderr
    hub.fail("GET /api/models/", body=b"<html>Log in", **html)
    [done] = simko(hub, tmp_path / "home", look)
    assert done.returncode == 0 and not hub.failures[-1].times, done.stderr


def test_a_404_without_a_code_is_told_as_the_revision(hub, tmp_path):
    [done] = simko(hub, tmp_path / "home", data(f"model={MODEL}", "model_revision=../../etc"))
    refused(done, "has no revision '../../etc': correct model_revision")
