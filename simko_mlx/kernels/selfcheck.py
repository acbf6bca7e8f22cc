"""Do the Metal kernels compute on this machine what plain MLX computes?

Asked once per device, system, version and shape of head, in a child process, since a Metal fault
ends the process that caused it. The answer is kept in a file. Whatever goes wrong (another result,
a crash, no answer in time) only means that the portable path is used; what says nothing of the
kernels, such as a time-out on a busy machine, is not kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from simko_mlx import __version__
from simko_mlx.kernels import metal_cases
from simko_mlx.kernels.head import Head
from simko_mlx.kernels.metal import THREADS, source

CHILD = "import sys; from simko_mlx.kernels import selfcheck; selfcheck.main(sys.argv[1])"
TIMEOUT = 180.0  # seconds; compiling the kernels takes most of it
FAULTS = ("SIGABRT", "SIGBUS", "SIGILL", "SIGSEGV", "SIGTRAP")  # what a fault of Metal ends in
PACKAGES = Path(__file__).parents[2]


@dataclass(frozen=True)
class HeadShape:
    """What of a head matters to the kernels. ``dtype`` is that of its logits, e.g. "bfloat16"."""

    vocabulary: int
    dtype: str
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, head: Head, dtype: mx.Dtype) -> HeadShape:
        return cls(head.vocabulary, str(dtype).rpartition(".")[2], head.scale, head.softcap)


@dataclass(frozen=True)
class Verdict:
    """Whether the kernels are used; ``reason`` says why not, "" if they are."""

    ok: bool
    reason: str = ""
    seconds: float = 0.0
    cached: bool = False
    final: bool = True  # False: something else went wrong, and another process may try again


def has_metal() -> bool:
    """Whether MLX runs on a Metal device."""
    return mx.metal.is_available() and mx.default_device() == mx.Device(mx.gpu)


def cache_file() -> Path:
    """Where verdicts are kept; $XDG_CACHE_HOME is honoured."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "simko-mlx" / "metal-kernels.json"


def fingerprint(shape: HeadShape) -> str:
    """What a verdict holds for: device, system, versions, the kernels' text, the head's shape."""
    info = mx.device_info() if has_metal() else {}
    texts = "".join(source(name) for name in ("common", "forward", "tail"))
    parts = [
        str(info.get("device_name", platform.machine())),
        str(info.get("architecture", "")),
        platform.mac_ver()[0],
        platform.release(),
        version("mlx"),
        __version__,
        hashlib.blake2b(f"{texts}{THREADS}".encode(), digest_size=6).hexdigest(),
        json.dumps(dataclasses.asdict(shape)),
    ]
    return " | ".join(parts)


def verdict(shape: HeadShape) -> Verdict:
    """The kernels' verdict for this head: from the file, or by a child process."""
    return _verdict(shape) if has_metal() else Verdict(False, "there is no Metal device")


@cache
def _verdict(shape: HeadShape) -> Verdict:
    known = _read().get(fingerprint(shape))
    if isinstance(known, dict) and isinstance(known.get("ok"), bool):
        return Verdict(known["ok"], str(known.get("reason", "")), cached=True)
    return check(shape)


def check(shape: HeadShape) -> Verdict:
    """Asks a child process, and keeps its answer where it is one about the kernels."""
    began = time.monotonic()
    found = dataclasses.replace(_ask(shape), seconds=time.monotonic() - began)
    if found.final:
        _write(fingerprint(shape), found)
    return found


def forget() -> None:
    """Removes all verdicts: whoever needs one asks again."""
    _verdict.cache_clear()
    _told.cache_clear()
    with suppress(OSError):
        cache_file().unlink()


@cache
def _told(shape: HeadShape) -> bool:
    """Whether the kernels may be used, with one warning if not."""
    found = _verdict(shape)
    if not found.ok:
        warnings.warn(off_message(found), RuntimeWarning, stacklevel=4)
    return found.ok


def trusted(head: Head, dtype: mx.Dtype) -> bool:
    """Whether ``head_statistics`` may use the kernels for this head and this type of logits."""
    return has_metal() and _told(HeadShape.of(head, dtype))


def off_message(found: Verdict) -> str:
    return (
        f"The Metal kernels are off: {found.reason}. Plain MLX computes the same, more slowly; "
        "`simko-mlx doctor --recheck` tries them again."
    )


def _ask(shape: HeadShape) -> Verdict:
    # -P: a file in the current folder must not pass for a module; the package may lie there too.
    command = [sys.executable or "python3", "-P", "-c", CHILD]
    paths = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(
            [*command, json.dumps(dataclasses.asdict(shape))],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return Verdict(False, f"their check did not end within {TIMEOUT:.0f} seconds", final=False)
    except OSError as error:
        return Verdict(False, f"their check could not be started ({error})", final=False)
    if done.returncode < 0:
        known = {s.value: s.name for s in signal.Signals}
        name = known.get(-done.returncode, f"signal {-done.returncode}")
        return Verdict(False, f"their check crashed ({name})", final=name in FAULTS)
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        return Verdict(answer["ok"] is True, str(answer["reason"])[:300])
    except (IndexError, ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no word"])[-1][:200]
        reason = f"their check ended with code {done.returncode} ({last})"
        return Verdict(False, reason, final=False)


def _read() -> dict[str, Any]:
    try:
        kept = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _write(key: str, found: Verdict) -> None:
    _replace({**_read(), key: {"ok": found.ok, "reason": found.reason}})


def _replace(kept: dict[str, Any]) -> None:
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
        temporary.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        return  # a file that can't be kept only means that the next process asks again


def main(argument: str) -> None:
    """The child: compares, and says so in one line of JSON."""
    shape = HeadShape(**json.loads(argument))
    problem = metal_cases.first_disagreement(
        shape.vocabulary, shape.dtype, shape.scale, shape.softcap
    )
    sys.stdout.write(json.dumps({"ok": problem is None, "reason": problem or ""}) + "\n")
