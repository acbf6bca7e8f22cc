"""What must never leave this machine: files off the allow-list, links, and text that looks like a
secret."""

from __future__ import annotations

import re
import stat
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping
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
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{16,}|hf_[A-Za-z0-9]{30,}",
    "an API key": rb"\bsk-[A-Za-z0-9_-]{16,}",
    "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})",
    "an AWS key": rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a Slack token": rb"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY|PuTTY-User-Key-File",
}
# `token: abc` and `"api_key": "abc"`, but not `max_tokens: 8` or `tokenizer: x`. Redacted values
# hold a character that no secret of one word has, or say so.
NAMED = re.compile(
    rb"(?i)(?:^|[\s\"'{,._-])(token(?=\S*\s*\S*\d)|secret|password|passwd|(?:api|access)_?key"
    rb"|authorization)[\"']?\s*[:=]\s*"
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
    suffix = PurePosixPath(path).suffix
    for part in _parts(token or "", whole=suffix == ".safetensors"):
        if (position := data.find(part)) >= 0:
            return position, "your own token"
    if suffix == ".safetensors":  # all text of such a file is in its header
        data = data[: 8 + int.from_bytes(data[:8], "little")]
    for what, pattern in LOOKS.items():
        if found := re.search(pattern, data):
            return found.start(), what
    for found in re.finditer(rb"[A-Za-z0-9+/]{20,}", data):  # base64
        start = found[0][: len(found[0]) // 4 * 4]
        if any(re.search(pattern, b64decode(start)) for pattern in LOOKS.values()):
            return found.start(), "a token or key in base64"
    if suffix in (".yaml", ".json") and (found := NAMED.search(data)):
        return found.start("value"), f"a value of {found[1].decode()!r}"
    return None


def _parts(token: str, whole: bool) -> Iterator[bytes]:
    """The token, and unless it must be ``whole``, its halves' length of it, as they are and in
    base64: what is left of a token that is broken over lines."""
    text = token.encode()
    if not text or whole:
        yield from [text] if text else []
        return
    length = max(len(text) // 2, min(len(text), 12))
    for start in range(len(text) - length + 1):
        part = text[start : start + length]
        yield part
        for before in range(3):  # a letter stands at one of three places of base64's fours
            ends = slice(-(-before * 8 // 6), (before + len(part)) * 8 // 6)
            yield b64encode(bytes(before) + part)[ends]
