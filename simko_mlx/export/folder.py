"""An export as a folder, which appears whole or not at all."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from simko_mlx import checkpoint
from simko_mlx.export import peft
from simko_mlx.export.base import Base, describe_base
from simko_mlx.export.card import card_files
from simko_mlx.export.card_facts import MLX_LAYOUT
from simko_mlx.export.fused import write_fused
from simko_mlx.export.gguf import commands, find_converter, write_gguf
from simko_mlx.export.mlx_adapter import mlx_files
from simko_mlx.export.source import Source, read_source
from simko_mlx.export.tensor_files import has_names_of
from simko_mlx.hub import looks_like_id
from simko_mlx.imports import describe, import_function, raised_at
from simko_mlx.rope_settings import rope_notes
from simko_mlx.types import UserError, require

# Writes files into a folder; returns sentences that the user should read. The type is f32, f16 or
# bf16; None: the exporter's own.
Exporter = Callable[[Source, Base, Path, str | None], list[str]]


@dataclass(frozen=True)
class Request:
    """What to export, and in which form.

    ``made_from`` names the original of a quantised base; ``llama_cpp`` is a checkout of llama.cpp
    and ``python`` one with its requirements, both for gguf.
    """

    to: str
    step: int | str = "last"
    scale: float = 1.0
    dtype: str | None = None
    made_from: str | None = None
    llama_cpp: Path | None = None
    python: str | None = None


class NoConverter(Exception):
    """There is no converter to GGUF on this machine; the text is what to run."""


@dataclass(frozen=True)
class Exported:
    """``notes`` are sentences that the user should read."""

    folder: Path
    source: Source
    base: Base
    notes: list[str]

    def files(self) -> dict[str, int]:
        """Path within the folder -> bytes."""
        found = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in found}


def _write_mlx(source: Source, base: Base, folder: Path, dtype: str | None) -> list[str]:
    write(folder, mlx_files(source, dtype or "f32"))
    return rope_notes(base.path)


def _write_fused(source: Source, base: Base, folder: Path, dtype: str | None) -> list[str]:
    notes = write_fused(source, base, folder, dtype)
    if base.type in peft.OTHER_NAMES:
        notes.append(
            f"The layers of {base.type} models have other names in transformers, which can't load "
            "it; mlx-lm can."
        )
    return notes


def _write_peft(source: Source, base: Base, folder: Path, dtype: str | None) -> list[str]:
    write(folder, peft.peft_files(source, base, dtype or "f32"))
    return peft.notes(base)


EXPORTERS: dict[str, Exporter] = {"mlx": _write_mlx, "peft": _write_peft, "fused": _write_fused}


def export(run_dir: Path, out: Path, request: Request) -> Exported:
    """Exports a run's adapter to a new folder, with a model card.

    Raises:
        UserError: no such run or step, the folder is not empty, there is no space, or it can't be
            exported faithfully; nothing is left behind.
        NoConverter: gguf is wanted, and llama.cpp's converter isn't here.
    """
    source = read_source(run_dir, request.step, request.scale)
    _keep_out_of(run_dir, out)
    base = describe_base(source.config)
    if request.made_from is not None:
        base = _renamed(base, request.made_from)
    exporter = _exporter(source, base, request)
    with new_folder(out) as folder:
        notes = exporter(source, base, folder, request.dtype)
        if request.to in EXPORTERS:
            only_mlx = request.to == "fused" and not has_names_of(base, folder)
            kinds = (request.to, MLX_LAYOUT) if only_mlx else (request.to,)
            write(folder, card_files(source, base, kinds))
    # What they say of the folder is meant of where it ends up.
    return Exported(out, source, base, [note.replace(str(folder), str(out)) for note in notes])


def _renamed(base: Base, name: str) -> Base:
    """The base model by the name that the user gives it: a quantised one's original, or the
    repository of one that was trained on as a folder.

    Raises:
        UserError: it is none.
    """
    folder = Path(name).expanduser().is_dir()
    require(
        bool(name) and (folder or looks_like_id(name)),
        f"--base is {name!r}: name a repository on the Hub, OWNER/NAME, or a folder.",
    )
    if base.quantization is not None:
        return dataclasses.replace(base, made_from=name)
    require(
        not folder,
        f"--base is the folder {name!r}, but the run's base {base.name!r} is not quantised: name "
        "its repository on the Hub, OWNER/NAME, or leave --base out.",
    )
    return dataclasses.replace(base, hub_id=name, revision=None)


def _keep_out_of(run_dir: Path, out: Path) -> None:
    """Makes sure that an export isn't taken for a part of the run."""
    own = [(run_dir / name).resolve() for name in ("checkpoints", "adapters", "evaluations")]
    require(
        not any(out.resolve().is_relative_to(folder) for folder in own),
        f"{out} is where the run keeps its own files: name another folder with --out.",
    )


def _exporter(source: Source, base: Base, request: Request) -> Exporter:
    if request.to in EXPORTERS:
        return EXPORTERS[request.to]
    if request.to != "gguf":
        known = ", ".join([*EXPORTERS, "gguf"])
        message = f"--to is {request.to!r}: choose one of {known}, or package.module:function."
        require(":" in request.to, message)
        return _of_the_users(request.to)
    require(
        base.type != "nanochat",
        "llama.cpp's converter doesn't know the layers of nanochat models as mlx-lm names them: "
        "--to fused makes a model for mlx-lm.",
    )
    converter = find_converter(request.llama_cpp)
    if converter is None:
        raise NoConverter(commands(source, base, request.dtype))
    return lambda source, base, folder, dtype: write_gguf(
        source, base, folder, converter, python=request.python, dtype=dtype
    )


def _of_the_users(path: str) -> Exporter:
    function = import_function(path, "--to", with_cwd=True)

    def exporter(source: Source, base: Base, folder: Path, dtype: str | None) -> list[str]:
        # Code that isn't ours may raise anything.
        try:
            notes = function(source, base, folder, dtype)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"The exporter {path} raised {describe(error)} at {raised_at(error)}; correct it "
                "there."
            ) from error
        notes = [] if notes is None else notes
        require(
            isinstance(notes, list) and all(isinstance(note, str) for note in notes),
            f"The exporter {path} returned a {type(notes).__name__}: return a list of sentences.",
        )
        return notes

    return exporter


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Writes files, path within the folder -> content."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``out`` at the end of the block, if all went well.

    Raises:
        UserError: there is something at ``out`` already, it can't be made, or the disk is full.
    """
    named, out = out, out.resolve()
    require(out != Path.cwd(), f"{str(named)!r} is the current folder: name a new one with --out.")
    temporary = out.with_name(f".tmp-{out.name}-{os.getpid()}")
    try:
        require(
            not out.exists() or (out.is_dir() and not any(out.iterdir())),
            f"{named} is there already: name another folder with --out, or remove it first.",
        )
        temporary.mkdir(parents=True)
        yield temporary
        checkpoint.sync_folder(temporary)
        if out.exists():
            out.rmdir()
        os.rename(temporary, out)
    except OSError as error:
        reason = "there is no space left" if checkpoint.is_full(error) else error.strerror
        raise UserError(f"{named} can't be written ({reason}): name another with --out.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
