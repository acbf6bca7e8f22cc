"""One push to the real Hub, for who has a token and asks for it:

    SIMKO_HUB_TEST=1 pytest -m hub tests/export/test_real_hub.py

It makes a private repository under the token's owner, pushes twice, loads the adapter back and
deletes the repository.
"""

from __future__ import annotations

import os
import uuid

import pytest
import safetensors.numpy
from huggingface_hub import HfApi, get_token, snapshot_download

from simko_mlx.export.push import PushOptions, push
from tests.export.pushing import PATHS, trained_run

pytestmark = [
    pytest.mark.hub,
    pytest.mark.skipif(
        os.environ.get("SIMKO_HUB_TEST") != "1",
        reason="talks to the real Hub: set SIMKO_HUB_TEST=1 (and be logged in) to run it",
    ),
    pytest.mark.skipif(get_token() is None, reason="no token: run `hf auth login`"),
]


def test_the_real_hub_takes_a_push_once(tmp_path):
    run_dir = trained_run(tmp_path)
    api = HfApi()
    repo = f"{api.whoami()['name']}/simko-mlx-test-{uuid.uuid4().hex[:8]}"
    options = PushOptions(private=True)
    try:
        first = push(run_dir, repo, options)
        assert first.commit is not None and set(first.files) == PATHS
        assert push(run_dir, repo, options).commit is None
        assert api.model_info(repo).private
        folder = snapshot_download(repo, local_dir=tmp_path / "back")
        back = safetensors.numpy.load_file(f"{folder}/mlx/adapters.safetensors")
        kept = safetensors.numpy.load_file(run_dir / "adapters/adapters.safetensors")
        assert all((back[name] == kept[name]).all() for name in kept)
    finally:
        api.delete_repo(repo, missing_ok=True)
