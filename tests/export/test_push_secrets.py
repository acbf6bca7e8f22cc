"""What a push never sends: other files of the run, what links lead to, and secrets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from simko_mlx.export.secrets import ALLOWED, require_allowed, require_no_secrets
from simko_mlx.types import UserError
from tests.export.pushing import PATHS, environment, sent, simko, trained_run
from tests.hub_api import TOKEN
from tests.hub_server import Hub

PLACES = (
    ".env",
    "id_rsa",
    "key.pem",
    "README.md",
    "notes.txt",
    ".git/config",
    ".cache/huggingface/token",
    "adapters/adapter.pem",
    "adapters/README.md",
    "adapters/tokenizer.json",
    "adapters/.env",
    "checkpoints/.env",
    "checkpoints/step-000001/extra.txt",
    "checkpoints/step-000002/extra.safetensors",
    "checkpoints/step-000002/.hidden",
    "evaluations/notes.txt",
    "evaluations/.env",
    "mlx/adapters.safetensors",
    "training/config.yaml",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return trained_run(tmp_path_factory.mktemp("secrets"))


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def hub():
    with Hub() as found:
        yield found


def test_nothing_else_of_the_run_is_ever_sent(run_dir, hub, tmp_path):
    for number, name in enumerate(PLACES):
        path = run_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"CANARY-{number} {name}\n")
    secret = tmp_path / "secret.txt"
    secret.write_text("CANARY-outside\n")
    for name in ("secret.txt", "adapters/link.txt", "checkpoints/step-000002/link.txt"):
        (run_dir / name).symlink_to(secret)
    with open(run_dir / "rollouts.jsonl", "a") as file:
        file.write('{"text": "CANARY-rollout"}\n')
    done = simko(environment(hub, tmp_path / "home"), "push", run_dir, "me/x")
    assert done.returncode == 0, done.stderr
    assert hub.files("me/x").keys() == PATHS
    everything = sent(hub.requests)
    assert b"CANARY" not in everything
    # It would be found: what was sent is there, out of the base64 of commits as well.
    assert b"rlvr" in everything and hub.files("me/x")["training.svg"] in everything
    assert str(tmp_path).encode() not in everything


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "evaluations/step-2.json",
        "checkpoints/step-000002/adapters.safetensors",
        pytest.param("metrics.jsonl", marks=pytest.mark.slow),
        pytest.param("evaluations", marks=pytest.mark.slow),
        pytest.param("checkpoints/step-000002", marks=pytest.mark.slow),
    ],
)
def test_a_link_in_the_place_of_the_runs_own_file_is_refused(run_dir, hub, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    (run_dir / name).rename(elsewhere)
    (run_dir / name).symlink_to(elsewhere)
    done = simko(environment(hub, tmp_path / "home"), "push", run_dir, "me/x")
    assert done.returncode == 2 and hub.requests == []
    assert f"{run_dir / name} is a symbolic link" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_token_in_use_is_found_wherever_it_is(run_dir, hub, tmp_path):
    config = (run_dir / "config.yaml").read_text()
    assert "  system: null" in config
    (run_dir / "config.yaml").write_text(
        config.replace("  system: null", f"  system: Say {TOKEN} first.")
    )
    done = simko(environment(hub, tmp_path / "home"), "push", run_dir, "me/x")
    assert done.returncode == 2 and hub.requests == []
    assert "holds what looks like your own token: nothing was sent" in done.stderr
    assert TOKEN not in done.stderr and done.stderr.count("\n") == 1


# In pieces, so that this file itself isn't taken for one that gives secrets away.
HOSTILE = [
    ("hf" + "_" + "a1B2" * 8, "a Hugging Face token"),
    ("sk" + "-proj-" + "a1B2" * 8, "an API key"),
    ("gh" + "p_" + "a1B2" * 9, "a GitHub token"),
    ("github" + "_pat_" + "a1B2" * 9, "a GitHub token"),
    ("AK" + "IA" + "ABCD" * 4, "an AWS key"),
    ("xo" + "xb-" + "1234567890-ab", "a Slack token"),
    ("-----BEGIN " + "RSA PRIVATE KEY-----", "a private key"),
    ("-----BEGIN " + "PRIVATE KEY-----", "a private key"),
    ("-----BEGIN " + "OPENSSH PRIVATE KEY-----", "a private key"),
    ("api_key" + ": kj3n4kj5", "a value of 'api_key'"),
    ("  access" + "_token: kj3n4kj5", "a value of 'token'"),
    ('{"pass' + 'word": "kj3n4kj5"}', "a value of 'password'"),
]


@pytest.mark.parametrize(("text", "what"), HOSTILE)
def test_what_looks_like_a_secret_is_told_by_file_and_line(text, what):
    content = {"README.md": b"fine", "training/config.yaml": f"a: 1\nb: 2\n{text}\n".encode()}
    with pytest.raises(UserError) as raised:
        require_no_secrets(content)
    assert f"training/config.yaml, line 3, holds what looks like {what}" in str(raised.value)
    assert text not in str(raised.value)


def test_a_secret_in_the_header_of_weights_is_found_and_random_weights_are_none():
    secret = HOSTILE[0][0]
    header = json.dumps({"__metadata__": {"note": secret}}).encode()
    data = len(header).to_bytes(8, "little") + header
    with pytest.raises(UserError):
        require_no_secrets({"adapter_model.safetensors": data})
    require_no_secrets({"adapter_model.safetensors": (2).to_bytes(8, "little") + b"{}" + data})


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens: 123456789",
        "microbatch_tokens: 40960000",
        "tokenizer: something-long",
        "token: null",
        "password: REDACTED",
        "api_key: <redacted>",
        "secret: ''",
        "an sk-learn pipeline, and hf_hub_download(...)",
    ],
)
def test_ordinary_settings_are_no_secrets(text):
    require_no_secrets({"training/config.yaml": text.encode()})


def test_a_path_off_the_list_can_not_be_sent():
    assert ALLOWED == PATHS
    for path in ("../x", "mlx/../.env", "/README.md", "readme.md", ".env", "mlx/model.py"):
        with pytest.raises(ValueError):
            require_allowed({"README.md": b"", path: b""})
