"""What of a config may be shown to others: no secret in an odd key or form, no folder."""

from __future__ import annotations

import base64

import pytest

from simko_mlx.config import Config
from simko_mlx.export.public import config_file, public_config
from simko_mlx.export.secrets import require_no_secrets
from simko_mlx.types import UserError

RANDOM = "9f8e7d6c5b4a3928" * 2
TOKEN = "hf" + "_aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567"
KEY = "-----BEGIN OPENSSH " + "PRIVATE KEY-----\nYWJjZGVm\nCANARYLINE\n-----END OPENSSH "
KEY += "PRIVATE KEY-----\n"
IN_BASE64 = base64.b64encode(TOKEN.encode()).decode()


def shown(**changes) -> bytes:
    config = Config()
    for key, value in changes.items():
        part, _, name = key.partition("__")
        setattr(getattr(config, part), name, value)
    return config_file(public_config(config))


@pytest.mark.parametrize(
    "key",
    [
        "pw",
        "pwd",
        "pass",
        "db_pass",
        "auth",
        "api-key",
        "x-api-key",
        "PRIVATE-KEY",
        "accessKey",
        "OPENAI_KEY",
        "cookie",
        "bearer",
        "dsn",
        "passwort",
        "refreshToken",
        "client_secret",
        "pat",
        "hf",
        "key",
        "url0",
    ],
)
def test_values_of_odd_keys_are_hidden(key):
    assert RANDOM.encode() not in shown(verifier__options={key: RANDOM, "n": [{key: [RANDOM]}]})


def test_a_key_without_any_shape_is_hidden_where_its_name_says_so():
    options = {"pass": "hunter", "pin": 4711, "openai_key": "abcdefgh12345"}
    for value in (b"hunter", b"4711", b"abcdefgh12345"):
        assert value not in shown(verifier__options=options)


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        KEY.replace("\n", "\\n"),
        KEY[:-20],
        KEY.replace("OPENSSH PRIVATE KEY", "PGP PRIVATE KEY BLOCK"),
        "PuTTY-User-" + "Key-File-2: ssh-rsa\nPrivate-Lines: 1\nCANARYLINE\n",
        "https://CANARYLINE@host/x",
        "https://host/x?X-Amz-Signature=CANARYLINE&b=1",
        "npm" + "_CANARYLINE" + "a1B2" * 7,
        "sk" + "_live_CANARYLINE1",
    ],
)
def test_keys_in_prompts_are_hidden_to_their_end(text):
    assert b"CANARYLINE" not in shown(prompt__system=f"Answer. {text}")


@pytest.mark.parametrize("text", [f"x_{TOKEN}", f"x{TOKEN}", IN_BASE64])
def test_a_token_in_disguise_is_hidden(text):
    assert text.encode() not in shown(prompt__system=text)


def test_base64_of_a_secret_is_found():
    for secret in (TOKEN, KEY):
        text = base64.b64encode(secret.encode())
        with pytest.raises(UserError, match=r"README\.md, line 2, .* a token or key in base64"):
            require_no_secrets({"README.md": b"a\n" + text})


@pytest.mark.parametrize("before", ["", "x", "xy"])
def test_the_own_token_is_found_in_pieces_and_in_base64(before):
    for text in (
        f"{TOKEN[:18]}\n  {TOKEN[18:]}",
        base64.b64encode(f"{before}{TOKEN} etc.".encode()).decode(),
    ):
        with pytest.raises(UserError, match="your own token"):
            require_no_secrets({"README.md": text.encode()}, TOKEN)
    require_no_secrets({"README.md": TOKEN[5:20].encode()}, TOKEN)


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("/home/alice/project/x.jsonl", "x.jsonl"),
        ("~/project/x.jsonl", "x.jsonl"),
        ("../project/x.jsonl", "x.jsonl"),
        ("C:\\Users\\alice\\project\\x.jsonl", "x.jsonl"),
        ("/srv/project/x.jsonl", "x.jsonl"),
        ("data/x.jsonl", "data/x.jsonl"),
    ],
)
def test_folders_are_hidden_but_those_of_a_relative_path(path, left):
    text = shown(data__path=path, verifier__options={"where": path, "data_file": [path]})
    assert b"project" not in text and b"alice" not in text
    assert text.count(f" {left}\n".encode()) == 3


def test_what_is_no_secret_is_shown():
    options = {"answer_key": "gold", "pass_rate": 0.5, "passes": 3, "max_tokens": 512, "tag": "/t"}
    commit = "0123456789abcdef" * 2 + "01234567"
    text = shown(verifier__options=options, data__revision=commit, prompt__system="End with: 42.")
    for value in ("gold", "0.5", ": 3", "512", "tag: /t", commit, "End with: 42."):
        assert value.encode() in text
