"""The folder of a run: where it is made, who may use it, what its checkpoint belongs to."""

from __future__ import annotations

import dataclasses
import datetime
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlx.core as mx

from simko_mlx import OPENBLAS, __version__, checkpoint, hub
from simko_mlx.config import Config, semantic
from simko_mlx.config_sources import from_run
from simko_mlx.types import UserError, require


def new_run_dir(output_dir: str | None, recipe: str) -> Path:
    """Where a run will live; the folder is made when training starts."""
    if output_dir is not None:
        return Path(output_dir).expanduser()
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = Path("runs") / f"{recipe or 'run'}-{stamp}"
    return path if not path.exists() else path.with_name(f"{path.name}-{time.time_ns() % 1000}")


@contextmanager
def claimed(run_dir: Path, *, resume: bool) -> Iterator[None]:
    """Holds the folder of a run for this process: an existing one to resume, else a new one.

    A start needs a folder that is missing or empty, and leaves none behind when it comes to
    nothing before ``config.yaml`` was written.

    Raises:
        UserError: it is no run, or already one, or not empty, or in use by another process.
    """
    if resume:
        is_run = (run_dir / "config.yaml").is_file()
        require(is_run, f"{run_dir} is not a run directory: it has no config.yaml.")
        with checkpoint.locked(run_dir):
            yield
        return
    if run_dir.is_dir():
        _require_empty(run_dir)
    made = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    _make_folder(run_dir)
    with checkpoint.locked(run_dir):
        try:
            _require_empty(run_dir)
            yield
        finally:
            if {path.name for path in run_dir.iterdir()} <= {".lock"}:
                (run_dir / ".lock").unlink()
                with suppress(OSError):  # a parent that others use by now is not empty
                    for path in made:
                        path.rmdir()


def _require_empty(run_dir: Path) -> None:
    require(
        not (run_dir / "config.yaml").exists(),
        f"{run_dir} already holds a run: continue it with `simko-mlx train --resume {run_dir}`, or "
        "choose another output_dir.",
    )
    ours = (".lock", ".tmp-config.yaml")  # of a start that was killed
    others = sorted(path.name for path in run_dir.iterdir() if path.name not in ours)
    require(
        not others,
        f"output_dir {run_dir} is not empty (it holds {', '.join(others[:3])}) and no run: choose "
        "another.",
    )


def _make_folder(run_dir: Path) -> None:
    require(
        run_dir.is_dir() or not run_dir.exists(),
        f"output_dir {run_dir} is a file: choose another name.",
    )
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if checkpoint.is_full(error):
            raise
        raise UserError(
            f"output_dir {run_dir} can't be made ({error.strerror}): choose another."
        ) from error


def saved_state(config: Config, run_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint, after making sure that it belongs to this configuration.

    Raises:
        UserError: semantic keys differ, or the checkpoint is damaged.
    """
    checkpoint.clean(run_dir)
    saved = checkpoint.load(run_dir)
    before = saved[1]["semantic"] if saved else semantic(from_run(run_dir / "config.yaml"))
    now = semantic(config)
    changed = [
        f"{key}: {before.get(key)!r} -> {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    require(
        not changed,
        f"{run_dir} can't be resumed with other settings ({'; '.join(changed)}): leave them as "
        "they were, or start a new run.",
    )
    return saved


def pin(config: Config, model: Path, adapter: Path | None) -> None:
    """Writes the commits that a run uses into its config: a branch of the Hub's may move on, and a
    run that is resumed, evaluated or made again is to have the same model and the same start."""
    config.model_revision = hub.commit_of(model) or config.model_revision
    if adapter is not None:
        commit = hub.commit_of(adapter) or hub.commit_of(adapter.parent)  # it may lie in mlx/
        revision = commit or config.policy.adapter_revision
        config.policy = dataclasses.replace(config.policy, adapter_revision=revision)


def environment(model: Path | None = None) -> dict[str, Any]:
    """What a run was made with: versions, platform, device; of a model's folder in the Hub's cache
    the commit that it holds."""
    commit = None if model is None else hub.commit_of(model)
    versions = {}
    for name in ("mlx", "mlx-lm", "numpy", "transformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "simko-mlx": __version__,
        **versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(mx.default_device()),
        "device_info": {k: str(v) for k, v in mx.device_info().items()},
        "openblas": OPENBLAS,
        **({} if commit is None else {"model_commit": commit}),
    }
