"""Import paths ``package.module:function`` of the user's own code, with errors that help."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from types import ModuleType
from typing import Any

from simko_mlx.types import UserError


def import_function(path: str, key: str, with_cwd: bool = False) -> Callable[..., Any]:
    """The function that an import path names; ``key`` is the config key that it was written in.

    ``with_cwd`` looks in the current folder first, where a script would find modules beside it
    but an installed command doesn't.

    Raises:
        UserError: it can't be imported, with the reason and the fix.
    """
    module_name, _, name = path.partition(":")
    where = f"{key} is {path!r}"
    if not module_name or not name or "/" in module_name or module_name.endswith(".py"):
        raise UserError(f"{where}: write it as package.module:function.")
    if with_cwd and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module = _import_module(module_name, where)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            close = difflib.get_close_matches(part, dir(value), n=1)
            nearest = f"; the nearest is {close[0]}" if close else ""
            file = getattr(module, "__file__", None) or module_name
            raise UserError(f"{where}: {file} has no {part!r}{nearest}.")
        value = getattr(value, part)
    if not callable(value):
        raise UserError(f"{where}: it is a {type(value).__name__}; name a function.")
    return value


def _import_module(name: str, where: str) -> ModuleType:
    try:
        with redirect_stdout(sys.stderr):  # what it prints must not get among our output
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise UserError(
                f"{where}: there is no module {missing!r} in {os.getcwd()} or in this Python "
                "environment; start from the folder that holds it, or add that to PYTHONPATH."
            ) from error
        raise UserError(
            f"{where}: it needs the module {missing!r} (imported at {raised_at(error)}), which is "
            "not installed in this Python environment; install it."
        ) from error
    # Importing runs the user's code, which may raise anything.
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{where}: importing it raised {describe(error)} at {raised_at(error)}; correct it "
            "there."
        ) from error


def describe(error: BaseException) -> str:
    """Type and text of an exception, on one line and not too long."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {text[:300]}" if text else name


def raised_at(error: BaseException, file: str | None = None) -> str:
    """file:line of the raise; with ``file``, the last line of that file on the way there first."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen importlib")
    ]
    if not frames:
        return "an unknown line"
    own = [frame for frame in frames if frame[0] == file]
    inner = "{}:{}".format(*frames[-1])
    if own and own[-1] != frames[-1]:
        return "{}:{} (raised in {})".format(*own[-1], inner)
    return inner
