"""What must never leave this machine: files off the allow-list, links, and text that looks like a
secret."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from simko_mlx.types import UserError, require

# What a card has where it was measured.
MEASURED = ("training.svg", "pass_at_k.svg", "training/evaluation.json")
# Every path that a push may write to. What isn't named here isn't sent, whoever made it.
ALLOWED = frozenset(
    {
        "README.md",
        "adapter_model.safetensors",
        "adapter_config.json",
        "mlx/adapters.safetensors",
        "mlx/adapter_config.json",
        *MEASURED,
        "training/config.yaml",
    }
)
# What of a run an export reads.
READ = (
    "config.yaml",
    "env.json",
    "metrics.jsonl",
    "evaluations",
    "evaluations/*.json",
    "checkpoints",
    "checkpoints/step-*",
    "checkpoints/step-*/*.json",
    "checkpoints/step-*/adapter*.safetensors",
)
LOOKS = {
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{16,}",
    "an API key": rb"\bsk-[A-Za-z0-9_-]{16,}",
    "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})",
    "an AWS key": rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a Slack token": rb"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY",
}
# `token: abc` and `"api_key": "abc"`, but not `max_tokens: 8` or `tokenizer: x`. Redacted values
# hold a character that no secret of one word has, or say so.
NAMED = re.compile(
    rb"(?i)(?:^|[\s\"'{,._-])(token|secret|password|passwd|api_?key|authorization)[\"']?\s*[:=]\s*"
    rb"[\"']?(?!null\b|true\b|false\b|none\b|redacted|[<*(\[{\"'])(?P<value>[^\s\"',}]{6,})"
)


def require_allowed(paths: Iterable[str]) -> None:
    """
    Raises:
        ValueError: a path is not on the allow-list: a mistake in this package.
    """
    others = sorted(set(paths) - ALLOWED)
    if others:
        raise ValueError(f"not on the allow-list of a push: {', '.join(others)}")


def require_no_links(run_dir: Path) -> None:
    """
    Raises:
        UserError: what an export reads is a symbolic link, or no regular file.
    """
    for pattern in READ:
        for path in sorted(run_dir.glob(pattern)):
            _require_own(path)


def _require_own(path: Path) -> None:
    mode = path.lstat().st_mode
    require(
        stat.S_ISREG(mode) or stat.S_ISDIR(mode),
        f"{path} is {'a symbolic link' if stat.S_ISLNK(mode) else 'no regular file'}, and could "
        "lead to what isn't part of the run: put the file itself in its place.",
    )


def require_no_secrets(content: Mapping[str, bytes], token: str | None = None) -> None:
    """Looks through all text, the headers of weights, and for ``token`` through every byte.

    Raises:
        UserError: names the file and the line, not the secret.
    """
    for path, data in content.items():
        found = _find(path, data, token)
        if found:
            position, what = found
            line = data.count(b"\n", 0, position) + 1
            raise UserError(
                f"{path}, line {line}, holds what looks like {what}: nothing was sent; take it out "
                "of the run's config.yaml (and make a new one, if it was in there by mistake)."
            )


def _find(path: str, data: bytes, token: str | None) -> tuple[int, str] | None:
    if token and (position := data.find(token.encode())) >= 0:
        return position, "your own token"
    suffix = PurePosixPath(path).suffix
    if suffix == ".safetensors":  # all text of such a file is in its header
        data = data[: 8 + int.from_bytes(data[:8], "little")]
    for what, pattern in LOOKS.items():
        if found := re.search(pattern, data):
            return found.start(), what
    if suffix in (".yaml", ".json") and (found := NAMED.search(data)):
        return found.start("value"), f"a value of {found[1].decode()!r}"
    return None
