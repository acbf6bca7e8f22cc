"""A run's config as it may be shown to others: without secrets, and without places on this machine.

What is taken out: values of keys that are called token, secret, password and the like; text that
looks like an access token or a private key, wherever it stands; the folders of paths. The rest is
as the run had it, so that the file can be trained with again.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import yaml

from simko_mlx.config import Config, leaves, set_key, to_dict

REDACTED = "REDACTED"
# Of the config's own keys, those that name a file or folder.
PATHS = (
    "model", "policy.adapter_path", "prompt.few_shot_path", "data.path", "data.eval_path",
    "data.pass_rates",
)  # fmt: skip
_SECRET_KEY = re.compile(
    r"""token|secret|passw(or)?[dt]|passphrase|authori[sz]ation|credential|cookie|bearer|signature
    | (api|private|access|account|signing|encryption|ssh|license)[_-]?key
    | (^|[_-])(pw|pwd|pass|auth|pat|pin|dsn)$""",
    re.I | re.X,
)
_COUNT_KEY = re.compile(r"tokens$", re.I)  # max_tokens: a number is no secret there
_PATH_KEY = re.compile(r"path|file|folder|dir(ectory)?$", re.I)
_SECRETS = re.compile(
    r"""-----BEGIN[ A-Z]*PRIVATE\ KEY.*?(-----END[ A-Z]*PRIVATE\ KEY[ A-Z]*-----|\Z)
    | PuTTY-User-Key-File-.*
    | \b(hf|api_org)_[A-Za-z0-9]{10,} | hf_[A-Za-z0-9]{30,}
    | \b(sk|rk|pk)-[A-Za-z0-9_-]{16,} | \b[sr]k_(live|test)_[A-Za-z0-9]{10,}
    | \bnpm_[A-Za-z0-9]{30,} | \bpypi-[A-Za-z0-9_-]{16,}
    | \b(gh[opsur]_|github_pat_)[A-Za-z0-9_]{16,}
    | \bglpat-[A-Za-z0-9_-]{16,}
    | \bxox[abprs]-[A-Za-z0-9-]{10,}
    | \b(AKIA|ASIA)[0-9A-Z]{16}\b
    | \bAIza[A-Za-z0-9_-]{30,}
    | \beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*
    | (?<=://)[^/\s@]+(?=@)
    | (?<=[Bb]earer\ )[A-Za-z0-9._~+/-]{8,}=*""",
    re.X | re.S,
)
# What only a machine would write: keys without a name, and any secret in base64.
_RANDOM = re.compile(
    r"""(?<![A-Za-z0-9])(?=[a-z]*\d)(?=\d*[a-z])[0-9a-f]{32,}(?![A-Za-z0-9])
    | (?<![A-Za-z0-9+/])(?=[^a-z]*[a-z])(?=[^A-Z]*[A-Z])(?=[^\d]*\d)[A-Za-z0-9+/]{32,}={0,2}""",
    re.X,
)
_ADDRESS_KEY = re.compile(r"(?i)([?&][\w-]*(?:token|sig|signature|key|secret|auth)=)[^&\s\"']+")
_ELSEWHERE = re.compile(r"(file:)?/|~|\.\.[/\\]|[A-Za-z]:[/\\]|\\\\")
_HOMES = re.compile(r"(?<![\w.-])/(?:home|Users)/[^/\s'\"]+")


def public_text(text: str) -> str:
    """Text without secrets, home folders written ``~``."""
    text = _SECRETS.sub(REDACTED, text)
    text = _ADDRESS_KEY.sub(rf"\1{REDACTED}", text)
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?=/|\W|$)", "~", text)
    return _HOMES.sub("~", text)


def public_config(config: Config) -> Config:
    """A copy that may be shown; ``output_dir`` and where it was pushed to are left out."""
    shown = copy.deepcopy(config)
    for key, _, value in leaves(config):
        name = key.rpartition(".")[2]
        changed = _path(value) if key in PATHS and value else _public(value, name)
        set_key(shown, key, changed)
    shown.output_dir = None
    return shown


def _path(value: str) -> str:
    shown = public_text(value)
    # A folder elsewhere says nothing to others, but may say something of the user.
    return re.split(r"[/\\]", shown)[-1] if _ELSEWHERE.match(shown) else shown


def _public(value: Any, key: str) -> Any:
    secret = bool(_SECRET_KEY.search(key))
    if isinstance(value, dict):
        return {
            public_text(k) if isinstance(k, str) else k: _public(v, key if secret else str(k))
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [_public(item, key) for item in value]
    if isinstance(value, str):
        if secret and value:
            return REDACTED
        if _PATH_KEY.search(key) or re.fullmatch(r"([A-Za-z]:|\.\.|[~/])\S*[/\\]\S+", value):
            return _path(value)
        random = "revision" not in key  # a commit is no secret
        if random and re.fullmatch(r"(?=\D*\d)[^\s.]{12,}", value) and re.search(r"(?i)key$", key):
            return REDACTED
        return _RANDOM.sub(REDACTED, public_text(value)) if random else public_text(value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return REDACTED if is_number and secret and not _COUNT_KEY.search(key) else value


def config_file(shown: Config) -> bytes:
    """The YAML file of a config that may be shown: ``simko-mlx train -c`` takes it."""
    content = to_dict(shown)
    for key in ("output_dir", "hub"):  # a repetition must not land where this run did
        content.pop(key, None)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text.encode("utf-8", "backslashreplace")


def public_json(value: Any) -> Any:
    """Plain JSON with ``public_text`` in the place of every text."""
    if isinstance(value, dict):
        return {public_text(str(k)): public_json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [public_json(item) for item in value]
    return public_text(value) if isinstance(value, str) else value
