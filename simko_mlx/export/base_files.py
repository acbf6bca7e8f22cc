"""The files of a base model that go with a fused one: settings, tokenizer, licence; never code."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from simko_mlx.rope_settings import overlooked
from simko_mlx.types import require

ALLOWED = (
    *("*.json", "*.txt", "*.jinja", "*.tiktoken", "tokenizer.model", "LICENSE*", "NOTICE*"),
    "*.spm",
)
# Of weights, or of what the folder no longer is.
REFUSED = ("*.index.json", "config.json", "adapter_config.json", "hf_quant_config.json")
TOKENIZER = frozenset({
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
    "merges.txt", "chat_template.jinja",
})  # fmt: skip
QUANTIZATION = ("quantization", "quantization_config")


def allowed_files(folder: Path) -> list[Path]:
    """The files of a model's folder that are copied beside its weights, in order of name.

    Not hidden ones, not code, nothing that a link would bring in from elsewhere; links to where
    ``config.json`` really is, as in the Hub's cache, are what the model consists of.

    Raises:
        UserError: a file of the tokenizer is a link to elsewhere.
    """
    # A folder of links, such as a snapshot in the Hub's cache, has its files where its config is.
    homes = [folder.resolve(), (folder / "config.json").resolve().parent]
    found = []
    for path in sorted(folder.iterdir()):
        name, real = path.name, path.resolve()
        if name.startswith(".") or not real.is_file():
            continue
        listed = any(fnmatch(name, pattern) for pattern in ALLOWED)
        refused = any(fnmatch(name, pattern) for pattern in REFUSED)
        if not listed or refused:
            continue
        inside = any(real.is_relative_to(home) for home in homes)
        require(
            inside or name not in TOKENIZER,
            f"{path} is a link to a file that is not the model's: put the file itself there, since "
            "without its tokenizer the exported model would be of no use.",
        )
        if inside:
            found.append(path)
    return found


def copy_files(source: Path, folder: Path, config: bytes) -> None:
    """Copies the allowed files; ``config.json`` last, without which the folder is no model."""
    for path in allowed_files(source):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_bytes(config)


def new_config(
    source: Path, *, dequantized: bool, dtype: str | None, text_only: bool = False
) -> bytes:
    """The base model's config.json; byte for byte, where nothing in it changes.

    Settings that mlx-lm would overlook are written where it looks, too.

    Args:
        source: the base model's folder.
        dequantized: its weights are quantised no more.
        dtype: "float32" ..., of weights that were written in another type than the base's.
        text_only: the weights of a vision tower are gone, as mlx-lm leaves them out.
    """
    content = (source / "config.json").read_bytes()
    config: dict[str, Any] = json.loads(content)
    before = json.dumps(config)
    config |= overlooked(config)
    if text_only:
        config.pop("vision_config", None)
    inner = config.get("text_config")
    for section in (config, inner if isinstance(inner, dict) else {}):
        for key in QUANTIZATION if dequantized else ():
            section.pop(key, None)
        for key in ("dtype", "torch_dtype"):
            if dtype is not None and key in section:
                section[key] = dtype
    if json.dumps(config) == before:
        return content
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"


def require_space(folder: Path, size: int) -> None:
    """Makes sure that a model of so many bytes fits on the folder's disk.

    Raises:
        UserError: it doesn't.
    """
    free = shutil.disk_usage(folder).free
    require(
        size <= free,
        f"The model takes {size / 1e9:.1f} GB and {folder} has room for {free / 1e9:.1f} GB: free "
        "some, or give another --out.",
    )
