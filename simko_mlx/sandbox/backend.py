"""Which sandbox this machine has, for whom it runs, and why not otherwise."""

from __future__ import annotations

import os
import platform
import pwd
import shutil
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simko_mlx.sandbox import seccomp
from simko_mlx.types import require

BWRAP_FOLDERS = "/usr/bin:/bin:/usr/local/bin"
SANDBOX_EXEC = "/usr/bin/sandbox-exec"
SYSTEM_PYTHON = "/usr/bin/python3"
NOBODY = 65534


@dataclass(frozen=True)
class Backend:
    """``uid``: the user to become first, where we are root; None: stay who we are. ``prefix``:
    the folder that Python needs besides the system's own."""

    platform: str  # as sys.platform: linux | darwin
    launcher: str
    python: str
    prefix: str
    uid: int | None = None


def choose(sandbox: Mapping[str, Any] | None) -> Backend:
    """The sandbox for the config section ``verifier.sandbox``.

    Raises:
        UserError: it isn't enabled, there is none, or it would run as root.
    """
    settings = sandbox or {}
    require(
        settings.get("enabled") is True,
        "The verifier code runs programs that a model wrote: set verifier.sandbox.enabled: true to "
        "allow that, in the sandbox that docs/sandbox.md describes.",
    )
    uid = settings.get("uid")
    require(
        "SUDO_UID" not in os.environ,
        "Programs that a model wrote are not run under sudo: start simko-mlx as yourself.",
    )
    if sys.platform == "darwin":
        return _macos(uid)
    require(
        sys.platform == "linux",
        f"There is no sandbox for programs on {sys.platform}: use macOS or Linux for the verifier "
        "code.",
    )
    return _linux(uid)


def _linux(uid: int | None) -> Backend:
    _check_user(uid)
    machine = platform.machine()
    require(
        machine in seccomp.ARCHITECTURES,
        f"The sandbox has no list of system calls for {machine}: use x86_64 or aarch64 for "
        "verifier code.",
    )
    launcher = shutil.which("bwrap", path=BWRAP_FOLDERS)
    require(
        launcher is not None,
        "The sandbox needs bubblewrap: install it (apt install bubblewrap, or dnf install "
        "bubblewrap).",
    )
    python, prefix = _interpreter(os.geteuid() if uid is None else uid)
    return Backend("linux", str(launcher), python, prefix, uid)


def _check_user(uid: int | None) -> None:
    if os.geteuid() != 0:
        require(
            uid is None or uid == os.geteuid(),
            f"verifier.sandbox.uid is {uid}, but only root can become another user: leave it out.",
        )
        return
    require(
        uid is not None,
        "As root, programs that a model wrote run as another user only: set verifier.sandbox.uid "
        "to a user id that nothing else uses (such as 54321), or start simko-mlx as a plain user.",
    )
    assert uid is not None
    whole = isinstance(uid, int) and not isinstance(uid, bool)
    require(
        whole and 0 < uid < 2**31 and uid != NOBODY,
        f"verifier.sandbox.uid is {uid}: give a user id that nothing else uses, such as 54321 (not "
        "0, and not 65534, which much else runs as).",
    )
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return
    require(
        False,
        f"verifier.sandbox.uid {uid} is the user {name}: give an id that nothing else uses, such "
        "as 54321.",
    )


def _macos(uid: int | None) -> Backend:
    require(
        os.geteuid() != 0,
        "On macOS programs that a model wrote are not run as root: start simko-mlx as yourself.",
    )
    require(
        uid is None or uid == os.geteuid(),
        f"verifier.sandbox.uid is {uid}, which is for root on Linux: leave it out.",
    )
    require(
        os.access(SANDBOX_EXEC, os.X_OK),
        f"The sandbox needs {SANDBOX_EXEC}, which this macOS lacks: use Linux for verifier code.",
    )
    python, prefix = _own_python()
    require(
        _is_narrow(prefix),
        f"The Python of {prefix} can't be shown to a sandbox without your home folder: install "
        "Python in a folder of its own (python.org, Homebrew, uv or pyenv do).",
    )
    return Backend("darwin", SANDBOX_EXEC, python, prefix)


def _own_python() -> tuple[str, str]:
    """The interpreter behind any virtual environment, and its folder."""
    executable = getattr(sys, "_base_executable", None) or sys.executable
    return os.path.realpath(executable), os.path.realpath(sys.base_prefix)


def _interpreter(uid: int) -> tuple[str, str]:
    """Ours, or where the sandbox's user can't reach that, the system's."""
    python, prefix = _own_python()
    if (
        _is_narrow(prefix)
        and _inside(python, prefix)
        and all(reachable(path, uid) for path in (python, prefix))
    ):
        return python, prefix
    system = os.path.realpath(SYSTEM_PYTHON)
    require(
        os.access(system, os.X_OK) and reachable(system, uid),
        f"The user {uid} of the sandbox can't reach the Python in {prefix}, and there is no "
        f"{SYSTEM_PYTHON} to take instead: install one (apt install python3).",
    )
    return system, "/usr"


def _is_narrow(prefix: str) -> bool:
    """Whether it holds a Python rather than somebody's files."""
    home = os.path.expanduser("~")  # stays "~" for a user without one
    return prefix != "/" and not _inside(os.path.realpath(home), prefix)


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def reachable(path: str, uid: int) -> bool:
    """Whether that user may read the file or enter the folder, all the way down from the root.
    Groups and access lists are not looked at."""
    for place in (Path(path), *Path(path).parents):
        try:
            found = place.stat()
        except OSError:
            return False
        folder = stat.S_ISDIR(found.st_mode)
        mode = found.st_mode >> 6 if found.st_uid == uid else found.st_mode
        needed = 0o1 if folder else 0o5
        if mode & needed != needed:
            return False
    return True
