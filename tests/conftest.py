from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # BLAS threads of several workers only wait for each other
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import simko_mlx  # noqa: F401  before mlx.core, so that OpenBLAS is found first


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory) -> Path:
    """A small random Qwen2 with a chat template and a tied head."""
    from tests.models import make_model

    return make_model(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture
def shared_data() -> Path:
    """The folder of whole public data sets beside the repository, where there is one."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the whole data sets are not beside the repository")
    return folder
