"""What is refused of a model's own config.json, in a sentence and at once."""

from __future__ import annotations

import json

import pytest

from simko_mlx.model_files import find_model, load_files
from simko_mlx.types import UserError
from tests.models import make_model


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000, more than 10000"),
        ({"vocab_size": 10**12}, "mlx-lm can't load the model m: Integer value"),
        (None, "is not a JSON object"),
    ],
)
def test_a_size_that_can_not_be_is_refused(tmp_path, changes, words):
    folder = make_model(tmp_path / "m")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps([] if changes is None else {**config, **changes}))
    with pytest.raises(UserError) as raised:
        load_files(find_model(str(folder)), "m")
    assert words in str(raised.value)


def test_pickles_alone_are_refused_with_what_to_do(tmp_path):
    folder = make_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickles \(\*\.bin\), are not loaded: convert the model"):
        find_model(str(folder))
