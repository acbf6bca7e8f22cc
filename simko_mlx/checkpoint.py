"""TrainState <-> disk, atomically.

A checkpoint is a folder ``checkpoints/step-000100`` that appears whole or not at all: it is
written under another name, made durable, then renamed. ``manifest.json`` holds a SHA-256 of every
file and decides whether the folder is valid. Its adapter files load in mlx-lm as they are.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simko_mlx.types import UserError, require

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
STATE_KEYS = {"step", "best", "evaluated", "small_seconds", "semantic", "problems", "logs"}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def step_folder(run_dir: Path, step: int) -> Path:
    return run_dir / FOLDER / f"step-{step:06d}"


def steps(run_dir: Path) -> list[int]:
    """Steps that have a checkpoint folder, in order; whether they are valid is not looked at."""
    found = []
    for path in (run_dir / FOLDER).glob("step-*"):
        number = path.name.removeprefix("step-")
        if number.isdigit():
            found.append(int(number))
    return sorted(found)


def save(run_dir: Path, step: int, files: dict[str, bytes]) -> Path:
    """Writes a checkpoint; one that is there already and valid is left as it is.

    Raises:
        UserError: there is no space; nothing that was there before is touched.
    """
    final = step_folder(run_dir, step)
    if final.exists():
        if not problem_with(final):
            return final
        shutil.rmtree(final)
    parent = final.parent
    parent.mkdir(parents=True, exist_ok=True)
    manifest = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files = {**files, MANIFEST: json.dumps(manifest, indent=2).encode() + b"\n"}
    temporary = parent / f".tmp-{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        for name, data in files.items():
            _write_durably(temporary / name, data)
        sync_folder(temporary)
        os.rename(temporary, final)
        sync_folder(parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno not in _FULL:
            raise
        size = sum(len(data) for data in files.values()) / 1e6
        raise no_space(f"checkpoint {final.name} ({size:.1f} MB)", run_dir) from error
    return final


class NoSpace(UserError):
    """The disk is full: trying to save once more would fail again."""


def no_space(what: str, run_dir: Path) -> NoSpace:
    return NoSpace(
        f"There is no space to save {what} in {run_dir}: free some and continue with "
        f"`simko-mlx train --resume {run_dir}`; earlier checkpoints are intact."
    )


def is_full(error: OSError) -> bool:
    return error.errno in _FULL


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file so that a reader sees the old or the new content, never a mixture."""
    temporary = path.with_name(f".tmp-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_durably(temporary, data)
    os.replace(temporary, path)
    sync_folder(path.parent)


def _write_durably(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def problem_with(folder: Path) -> str | None:
    """Why a checkpoint is not valid: a clause, or None where it is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except OSError as error:
        return f"its {MANIFEST} can't be read ({error.strerror})"
    except ValueError:
        return f"its {MANIFEST} is not JSON"
    if not isinstance(manifest, dict) or not manifest:
        return f"its {MANIFEST} lists no files"
    for name, expected in manifest.items():
        try:
            digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} can't be read ({error.strerror})"
        if digest != expected:
            return f"{name} differs from its manifest (SHA-256)"
    return None


def load(run_dir: Path, step: int | None = None) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint's folder and its state.json; of the newest step, or of the one asked for.

    Returns None where a run has no checkpoint yet and no step was asked for.

    Raises:
        UserError: the checkpoint is damaged, or there is none of that step.
    """
    found = steps(run_dir)
    if step is None and not found:
        return None
    step = found[-1] if step is None else step
    require(
        step in found,
        f"{run_dir} has no checkpoint of step {step}; it has: "
        f"{', '.join(map(str, found)) or 'none'}.",
    )
    folder = step_folder(run_dir, step)
    problem = problem_with(folder)
    state: Any = None
    if not problem:
        try:
            state = json.loads((folder / "state.json").read_bytes())
        except (OSError, ValueError):
            problem = "its state.json is missing or not JSON"
    if not problem and (not isinstance(state, dict) or not state.keys() >= STATE_KEYS):
        problem = "its state.json is not one of this version"
    if problem:
        earlier = [s for s in found if s < step and not problem_with(step_folder(run_dir, s))]
        fix = f"continue from step {earlier[-1]}" if earlier else "start the run again"
        raise UserError(f"Checkpoint {folder} is damaged: {problem}; remove that folder to {fix}.")
    return folder, state


def prune(run_dir: Path, keep: int, protect: set[int]) -> None:
    """Removes all but the newest ``keep`` checkpoints and the protected ones."""
    for step in steps(run_dir)[:-keep]:
        if step not in protect:
            folder = step_folder(run_dir, step)
            # Renamed first: half a folder must not look like a damaged checkpoint.
            doomed = folder.with_name(f".old-{folder.name}")
            os.rename(folder, doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def clean(run_dir: Path) -> None:
    """Removes what a killed process left behind. Only call while holding the lock."""
    for pattern in (".tmp-*", ".old-*"):
        for path in (run_dir / FOLDER).glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
    for folder in (run_dir, run_dir / "adapters", run_dir / "evaluations"):
        for path in folder.glob(".tmp-*"):
            path.unlink()


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Holds the run directory for this process; the lock ends with the process, however it ends.

    Raises:
        UserError: another process holds it.
    """
    descriptor = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 64).decode(errors="replace").strip() or "another process"
            raise UserError(
                f"{run_dir} is in use by {owner}: wait for it or stop it, or choose another "
                "output_dir."
            ) from error
        try:
            current = os.stat(run_dir / ".lock").st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            current = False
        require(current, f"{run_dir} was in use by a process that has just ended: try again.")
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
