"""Getting files from the Hugging Face Hub: what is missing, whether it fits, how far it is, and one
sentence for whatever goes wrong. The fetching itself is huggingface_hub's.
"""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simko_mlx.types import UserError, require

REPLY_SECONDS = 20.0
# Bytes that have come, bytes to come in all, the repository's id. Called from several threads.
Progress = Callable[[int, int, str], None]
_progress: Progress | None = None


@contextmanager
def progress_to(report: Progress) -> Iterator[None]:
    """Downloads within the block are told to ``report``; without one they are silent."""
    global _progress
    before, _progress = _progress, report
    try:
        yield
    finally:
        _progress = before


@dataclass(frozen=True)
class Repo:
    """A repository at a revision (None: the default branch), and what a sentence about it needs:
    ``noun`` is what it holds, ``key`` and ``revision_key`` the config keys that name it."""

    id: str
    revision: str | None = None
    noun: str = "model"
    key: str = "model"
    revision_key: str = "model_revision"

    @property
    def type(self) -> str:
        return "dataset" if self.noun == "data set" else "model"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"repo_id": self.id, "repo_type": self.type, "revision": self.revision}


def looks_like_id(name: str) -> bool:
    """Whether a name that is no path on this machine can be a repository's."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def refuse_revision(name: str, key: str, revision_key: str) -> None:
    """
    Raises:
        UserError: the name is owner/name@revision.
    """
    id, _, revision = name.partition("@")
    require(
        not revision,
        f"{key} is {name!r}: write the revision in a key of its own, {key}={id} and "
        f"{revision_key}={revision}.",
    )


def commit_of(path: Path) -> str | None:
    """The commit that a folder of the Hub's cache holds; None for any other folder."""
    from huggingface_hub.file_download import REGEX_COMMIT_HASH

    parent, name = path.parent, path.name
    in_cache = parent.name == "snapshots" and parent.parent.name.startswith("models--")
    return name if in_cache and REGEX_COMMIT_HASH.fullmatch(name) else None


def file_names(repo: Repo) -> list[str]:
    """The repository's files; where the Hub can't be reached, those that are on this machine.

    Raises:
        UserError: the Hub refuses, or has no such repository; or there is no connection and
            nothing on this machine.
    """
    with hub_errors(repo):
        found = _ask(repo, {"allow_patterns": []})  # no file must be there
        if isinstance(found, Path):
            files = (path for path in found.rglob("*") if path.is_file())
            return [path.relative_to(found).as_posix() for path in files]
        return [file.rfilename for file in found.siblings or []]


def download(repo: Repo, patterns: Sequence[str], ignored: Sequence[str] = ()) -> Path:
    """The folder of the repository's files whose names match one of the patterns (of ``fnmatch``)
    and none of the ignored ones. What is on this machine already isn't fetched again.

    Without a connection, whatever was fetched before is used, if it is whole.

    Raises:
        UserError: the Hub refuses or can't be reached, the connection broke, or the disk is too
            small (which is told before a byte is fetched).
    """
    from huggingface_hub import snapshot_download

    chosen: dict[str, Any] = {
        "allow_patterns": list(patterns),
        "ignore_patterns": list(ignored),
    }
    with hub_errors(repo):
        found = _ask(repo, chosen)
    if isinstance(found, Path):
        return found
    with hub_errors(repo, reached=True):
        needed = _missing_bytes(repo, found, chosen)
        _check_disk(repo, needed)
        report = _Report(repo.id, needed)
        call = lambda: snapshot_download(  # noqa: E731
            **repo.arguments, **chosen, tqdm_class=report.bar_class()
        )
        report.tell()
        path = Path(_stoppable(call, report.stopped))
        report.end()
        return path


def _ask(repo: Repo, chosen: dict[str, Any]) -> Any:
    """What the Hub says of the repository, with its files and their sizes; the folder on this
    machine, with the chosen files in it, where the Hub says nothing."""
    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        # Unlike snapshot_download, this doesn't try for half a minute where there is no network.
        return HfApi().repo_info(**repo.arguments, timeout=REPLY_SECONDS, files_metadata=True)
    except _failures() as error:
        if _status(error) is not None and not _is_passing(error):
            raise  # the Hub was reached, and said no
        try:
            folder = snapshot_download(**repo.arguments, **chosen, local_files_only=True)
        except errors.LocalEntryNotFoundError as missing:
            raise error from missing
        return Path(folder)


def _missing_bytes(repo: Repo, found: Any, chosen: dict[str, Any]) -> int:
    """Bytes of the chosen files that aren't in the cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import filter_repo_objects

    folder = repo_folder_name(repo_id=repo.id, repo_type=repo.type)
    blobs = Path(constants.HF_HUB_CACHE, folder, "blobs")
    files = filter_repo_objects(found.siblings or [], **chosen, key=lambda file: file.rfilename)
    return sum(
        file.size or 0
        for file in files
        if not (blobs / ((file.lfs and file.lfs.sha256) or file.blob_id or "")).is_file()
    )


def _check_disk(repo: Repo, needed: int) -> None:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    require(
        needed <= free,
        f"The {repo.noun} {repo.id} takes {size(needed)} more in {folder}, where {size(free)} are "
        "free: free some, or set HF_HOME to a folder on a larger disk.",
    )


def size(count: int) -> str:
    """1.2 GB, 340 MB, 12 kB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= 0.9995 * unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"


class _Report:
    """Counts what comes, and tells it; makes the transfer stop when ``stopped`` is set."""

    def __init__(self, name: str, total: int):
        self.name, self.total, self.done = name, total, 0
        self.report = _progress if total else None
        self.stopped = threading.Event()
        self.lock = threading.Lock()

    def tell(self) -> None:
        if self.report is not None:
            self.report(self.done, self.total, self.name)

    def end(self) -> None:
        if self.done != self.total:
            self.done = self.total
            self.tell()

    def count(self, more: int) -> None:
        if self.stopped.is_set():
            raise _Stopped
        with self.lock:
            # What is fetched again after a broken connection isn't counted beyond the end.
            self.done = max(0, min(self.total, self.done + more))
            self.tell()

    def bar_class(self) -> type:
        """What snapshot_download takes for its progress bars: shows nothing, and counts the bytes
        that are written."""
        from huggingface_hub.utils import tqdm

        report = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **settings: Any):
                kind = str(settings.get("name"))
                self.counts = settings.get("unit") == "B" and not kind.endswith(".transfer")
                super().__init__(*args, **{**settings, "disable": True})

            def update(self, n: float | None = 1) -> None:
                if self.counts and n:
                    report.count(int(n))

        return Bar


class _Stopped(Exception):
    """Ends a transfer that nobody waits for any more."""


def _stoppable(call: Callable[[], Any], stopped: threading.Event) -> Any:
    """The call's result. An exception here, such as Ctrl-C's, ends the call's own threads with
    their next bytes, where snapshot_download itself would wait for the end of their files."""
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(call)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                stopped.set()
                with suppress(ImportError):  # its transfers don't end by what counts their bytes
                    from huggingface_hub.utils._xet import abort_xet_session

                    abort_xet_session()
            raise


# What the client raises where an answer isn't JSON of the form that it knows.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, AssertionError)


def _failures() -> tuple[type[Exception], ...]:
    """Whatever asking the Hub may raise for reasons outside of this program."""
    from huggingface_hub import errors

    # HTTPError is that of the HTTP client; which one depends on huggingface-hub's version.
    client = errors.HTTPError  # pyright: ignore[reportPrivateImportUsage]
    found = (OSError, client, *_UNREADABLE)  # errors.HFValidationError is a ValueError
    xet = getattr(errors, "XetDownloadError", None)  # newer than the oldest version we take
    return found if xet is None else (*found, xet)


def _status(error: Exception) -> int | None:
    """The HTTP status of a refusal, or None."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return 404  # no repository can have such a name
    return error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None


def _is_passing(error: Exception) -> bool:
    status = _status(error)
    return status is not None and (status == 429 or status >= 500)


@contextmanager
def hub_errors(repo: Repo, *, reached: bool = False) -> Iterator[None]:
    """Turns what huggingface_hub raises into one sentence; ``reached``: the Hub has answered once.

    Raises:
        UserError: instead of the Hub's errors and those of the network and the disk.
    """
    try:
        yield
    except _failures() as error:
        raise UserError(_sentence(repo, error, reached)) from error


def _sentence(repo: Repo, error: Exception, reached: bool) -> str:
    from huggingface_hub import constants, errors

    what, status = f"The {repo.noun} {repo.id}", _status(error)
    if isinstance(error, errors.GatedRepoError):
        kind = "datasets/" if repo.type == "dataset" else ""
        page = f"{constants.ENDPOINT}/{kind}{repo.id}"
        return f"{what} is gated: accept its terms at {page}, then run `hf auth login`."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{what} has no revision {repo.revision!r}: correct {repo.revision_key}."
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        folder = "" if repo.type == "dataset" else ", nor a folder of that name here"
        return (
            f"{repo.key} is {repo.id!r}: there is no such {repo.noun} on the Hub{folder} (a "
            "private one needs `hf auth login`)."
        )
    if status in (401, 403):
        return f"The Hub doesn't let your token read {repo.id} ({status}): run `hf auth login`."
    if status == 429:
        return (
            f"The Hub takes no more requests from here for now (429), and {repo.id} is not yet "
            "whole on this machine: wait some minutes and run the same command again."
        )
    if status is not None:
        if status == 404 and repo.revision is not None:
            return f"{what} has no revision {repo.revision!r}: correct {repo.revision_key}."
        first = str(error).strip().split("\n", 1)[0]
        return f"The Hub doesn't hand out the {repo.noun} {repo.id}: {first}; try later."
    return _sentence_without_answer(repo, error, reached)


def _sentence_without_answer(repo: Repo, error: Exception, reached: bool) -> str:
    from huggingface_hub import constants, errors

    what = f"The {repo.noun} {repo.id}"
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"The disk of {constants.HF_HUB_CACHE} is full and {repo.id} not yet whole: free some, "
            "or set HF_HOME to a folder on a larger disk."
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{what} can't be stored in {constants.HF_HUB_CACHE}: correct that folder's "
            "permissions, or set HF_HOME to another."
        )
    if isinstance(error, _UNREADABLE):
        return (
            f"{what} is not on this machine, or not wholly, and what answers instead of the Hub "
            "makes no sense: check the network (a page to log in to it?), or try later."
        )
    if reached:
        return (
            f"The connection to the Hub broke while {repo.id} was fetched: run the same command "
            "again; files that have come are not fetched again."
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"{what} is not on this machine, or not wholly, and HF_HUB_OFFLINE is set: unset it, "
            "or give the path of a downloaded copy."
        )
    return (
        f"{what} is not on this machine, or not wholly, and the Hub can't be reached: check the "
        "network, or give the path of a downloaded copy."
    )
