from pathlib import Path

import pytest


@pytest.fixture
def shared_data() -> Path:
    """The folder of whole public data sets beside the repository, where there is one."""
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the whole data sets are not beside the repository")
    return folder
