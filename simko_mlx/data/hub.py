"""Problems from a data set on the Hugging Face Hub, without the ``datasets`` package.

Which files belong to which subset and split is told from their names, as the Hub's own viewer does
where a repository says nothing else: ``data/train-00000-of-00002.parquet``, ``main/test.jsonl``,
``en/validation/part1.csv``. Only the files of the splits that are asked for are fetched, and only
files of data ever are: no code, no README.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from glob import escape
from itertools import chain
from pathlib import Path, PurePosixPath

from simko_mlx import hub
from simko_mlx.config import DataConfig
from simko_mlx.data.dataset import Dataset
from simko_mlx.data.files import FORMATS, SUFFIXES, Found, collect, read, split
from simko_mlx.types import require

WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_SHARD = re.compile(r"(?P<split>.+?)[-_.](?P<number>\d+)-of-(?P<of>\d+)(-[0-9a-f]+)?")
_ORDER = ("parquet", "jsonl", "json", "csv")  # of a split in several formats one is read


@dataclass(frozen=True)
class File:
    """A file of data in a repository, and what its name says. ``split`` is None where it says
    nothing; ``of`` is the number of files that make the split, where the name has it."""

    path: str
    subset: str
    split: str | None
    of: int | None = None

    @property
    def format(self) -> str:
        return SUFFIXES[PurePosixPath(self.path).suffix.lower()]


def load(config: DataConfig) -> Dataset:
    """The problems of ``data.split``; held out are those of ``data.eval_split`` (or of the file
    ``data.eval_path``), or a few of the others.

    Raises:
        UserError: the Hub can't be reached or has no such data set, subset or split, or rows are
            bad.
    """
    repo = config.path or ""
    require(
        hub.looks_like_id(repo),
        f"data.path is {config.path!r}: for data.source=hf write the data set's id, owner/name.",
    )
    files = described(hub.file_names(_repo(config)))
    require(
        bool(files),
        f"The data set {repo} has no parquet, jsonl, json or csv files: convert it, and use the "
        "file.",
    )
    train = _found(chosen(files, config.subset, config.split, repo), config.split, config)
    heldout: Found | None = None
    if config.eval_path is not None:
        heldout = read(config.eval_path, config, "data.eval_path")
    elif config.eval_split is not None:
        some = chosen(files, config.subset, config.eval_split, repo)
        heldout = _found(some, config.eval_split, config)
    return split(train, heldout, f"{repo} {config.split}", config)


def described(names: Iterable[str]) -> list[File]:
    """The files of data among a repository's, with their subset and split."""
    found = []
    for name in sorted(names):
        path = PurePosixPath(name)
        if path.suffix.lower() in SUFFIXES and not any(p.startswith(".") for p in path.parts):
            found.append(_describe(path))
    return found


def _describe(path: PurePosixPath) -> File:
    stem = path.name[: -len(path.suffix)]
    folders = [part for part in path.parts[:-1] if part not in WORDS and part != "data"]
    subset = "/".join(folders)
    of_folders = [WORDS[part] for part in path.parts[:-1] if part in WORDS]
    if shard := _SHARD.fullmatch(stem):
        name = canonical(shard["split"])
        known = name in WORDS.values() or not of_folders
        return File(str(path), subset, name if known else of_folders[-1], int(shard["of"]))
    words = [WORDS[word] for word in re.split(r"[-_. ]|\d+", stem.lower()) if word in WORDS]
    words = words or of_folders
    return File(str(path), subset, words[-1] if words else None)


def canonical(name: str) -> str:
    """A split's usual name: "validation" for "val", any other as it is."""
    return WORDS.get(name.lower(), name)


def chosen(files: list[File], subset: str | None, wanted: str, repo: str) -> list[File]:
    """The files of one split of one subset, in their order.

    Raises:
        UserError: there is no such subset or split, or a shard is missing; names those there are.
    """
    subsets = sorted({file.subset for file in files})
    if subset is None:
        # The files at the top, or else the only folder.
        subset = "" if "" in subsets else subsets[0]
        require(
            len(subsets) == 1 or subset == "",
            f"The data set {repo} has the subsets {', '.join(subsets)}: name one in data.subset.",
        )
    names = ", ".join(name for name in subsets if name) or "none"
    files = [file for file in files if file.subset == subset]
    require(
        bool(files), f"The data set {repo} has no subset {subset!r}: it has {names}; correct "
        "data.subset."
    )  # fmt: skip
    where = f"{repo}, subset {subset}," if subset else repo
    if all(file.split is None for file in files):  # unnamed: all of it is to train on
        files = [File(file.path, file.subset, "train", file.of) for file in files]
    splits = sorted({file.split for file in files if file.split is not None})
    files = [file for file in files if file.split == canonical(wanted)]
    require(
        bool(files),
        f"The data set {where} has no split {wanted!r}: it has {', '.join(splits)}; correct "
        "data.split or data.eval_split.",
    )
    form = min((file.format for file in files), key=_ORDER.index)
    files = [file for file in files if file.format == form]
    shards = max(file.of or 0 for file in files)
    require(
        not shards or len(files) == shards,
        f"The split {wanted} of {where} is made of {shards} files, but {len(files)} are there: "
        "wait until the data set is complete, or connect to the Hub.",
    )
    return files


def _found(files: list[File], name: str, config: DataConfig) -> Found:
    rows = chain.from_iterable(
        FORMATS[file.format](_fetched(file.path, config)) for file in files
    )  # one after the other: data.limit may need only the first
    return collect(rows, f"{config.path} {name}", config)


def _fetched(name: str, config: DataConfig) -> Path:
    return hub.download(_repo(config), [escape(name)]) / name


def _repo(config: DataConfig) -> hub.Repo:
    return hub.Repo(str(config.path), config.revision, "data set", "data.path", "data.revision")
