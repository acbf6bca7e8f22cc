"""A run's adapter, with its model card, into a model repository on the Hugging Face Hub.

All that is sent is made in memory from the run, and arrives as one commit or not at all: a push
can be repeated whatever became of the one before, and one that changes nothing makes no commit.
The run's folder is read at the start and neither changed nor locked.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simko_mlx.config_checks import EXPORTS
from simko_mlx.export import peft
from simko_mlx.export.base import Base, describe_base
from simko_mlx.export.card import card_files
from simko_mlx.export.hub_session import OFFLINE, Refused, Watch, bounded, told
from simko_mlx.export.mlx_adapter import mlx_files
from simko_mlx.export.peft import peft_files
from simko_mlx.export.secrets import MEASURED, require_allowed, require_no_links, require_no_secrets
from simko_mlx.export.source import Source, read_source
from simko_mlx.types import UserError, require

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

LARGE = ".safetensors"


@dataclass(frozen=True)
class PushOptions:
    """What is pushed and how. ``private`` is for a repository that the push makes; ``seconds`` is
    the longest wait for a reply."""

    kinds: tuple[str, ...] = EXPORTS
    step: int | str = "last"
    scale: float = 1.0
    private: bool = False
    create_pr: bool = False
    seconds: float = 60.0


@dataclass(frozen=True)
class Pushed:
    """What a push came to. ``url`` is that of the repository, or of the pull request; ``commit`` is
    None where nothing had changed; ``files`` were sent and ``unchanged`` ones there already."""

    url: str
    commit: str | None
    files: tuple[str, ...]
    unchanged: tuple[str, ...]


class Silent:
    """Listens to a push, and does nothing; a base to override what one cares about."""

    def files(self, repo: str, content: Content) -> None:
        """Once, before anything is sent: what will be there."""

    def sent(self, done: int, total: int, path: str) -> None:
        """Bytes of the large files that have been handed to the network."""

    def message(self, text: str) -> None:
        """A sentence that the user should read."""


def check_repo(repo: str) -> str:
    """The id of a model repository, "owner/name", or "name" alone for the token's owner.

    Raises:
        UserError: it can't be one.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    place = re.match(r"(https?://[^/]+/)?(datasets|spaces)/", repo)
    require(place is None, f"{repo} is no model repository: name it owner/name, as a new one.")
    require("://" not in repo, f"{repo} is an address: write the repository as owner/name.")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"{repo!r} can't be a repository's id: write owner/name with letters, digits, -, _ and "
            "single dots, at most 96 characters each."
        ) from error
    return repo


def check_token() -> str:
    """The token that `hf auth login` saved, or that of HF_TOKEN.

    Raises:
        Refused: there is none, or the client is offline.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise Refused(OFFLINE)
    token = get_token()
    if token is None:
        raise Refused(
            "You are not logged in to the Hub: run `hf auth login` with a token that may write, or "
            "set HF_TOKEN."
        )
    return token


def retry_command(run_dir: Path, repo: str, options: PushOptions) -> str:
    """The command that does this push (again)."""
    words = ["simko-mlx", "push", str(run_dir), repo]
    usual = PushOptions()
    if options.kinds != usual.kinds:
        words += ["--to", ",".join(options.kinds)]
    if options.step != usual.step:
        words += ["--step", str(options.step)]
    if options.scale != usual.scale:
        words += ["--scale", f"{options.scale:g}"]
    if options.seconds != usual.seconds:
        words += ["--timeout", f"{options.seconds:g}"]
    words += ["--private"] if options.private else []
    words += ["--create-pr"] if options.create_pr else []
    return shlex.join(words)


@dataclass(frozen=True)
class Content:
    """All that a push sends, path -> bytes: PEFT's files at the root, MLX's under ``mlx/``, the
    card, its pictures and the config; of which step, and what to know about it."""

    files: dict[str, bytes]
    step: int
    notes: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        return {path: len(data) for path, data in self.files.items()}


def contents(source: Source, base: Base, kinds: tuple[str, ...], repo: str | None) -> Content:
    """Makes what is sent; where PEFT can't say what the adapter does, and MLX's files are wanted
    too, without PEFT's.

    Raises:
        UserError: the adapter can't be exported.
    """
    files, notes = {}, []
    if "peft" in kinds:
        try:
            files = peft_files(source, base)
            notes = peft.notes(base)
        except UserError as error:
            kinds = tuple(kind for kind in kinds if kind != "peft")
            if not kinds:
                raise
            notes = [f"Without PEFT's files: {error}"]
    if "mlx" in kinds:
        files |= {f"mlx/{name}": data for name, data in mlx_files(source).items()}
    files |= card_files(source, base, kinds, repo)
    return Content(dict(sorted(files.items())), source.step, tuple(notes))


def prepare(run_dir: Path, repo: str, options: PushOptions, token: str | None = None) -> Content:
    """What a push would send; needs no network where the base model is on this machine.

    Raises:
        UserError: it is no run or has no such step, can't be exported in this form, has links in
            the place of its files, or something that looks like a secret.
    """
    require_no_links(run_dir)
    source = read_source(run_dir, options.step, options.scale)
    found = contents(source, describe_base(source.config), options.kinds, repo)
    require_allowed(found.files)
    require_no_secrets(found.files, token)
    return found


def push(run_dir: Path, repo: str, options: PushOptions, progress: Silent | None = None) -> Pushed:
    """Sends a run's adapter and card to the Hub as one commit.

    Raises:
        UserError: the user must change something (Refused where the Hub says so); nothing was
            committed.
        HubTrouble: the network or the Hub failed; the same push can be repeated.
    """
    from huggingface_hub import HfApi

    progress = progress or Silent()
    check_repo(repo)
    token = check_token()
    api = HfApi(token=token, library_name="simko-mlx")
    if "/" not in repo:
        with bounded(options.seconds, progress.message), told(repo):
            repo = f"{api.whoami()['name']}/{repo}"
    found = prepare(run_dir, repo, options, token)
    progress.files(repo, found)
    with bounded(options.seconds, progress.message) as watch, told(repo):
        return _Push(api, repo, options, progress, watch).go(found.files, found.step)


class _Push:
    """One push, once its content is there."""

    def __init__(
        self, api: HfApi, repo: str, options: PushOptions, progress: Silent, watch: Watch
    ) -> None:
        self.api, self.repo, self.options = api, repo, options
        self.progress, self.watch = progress, watch

    def go(self, content: Mapping[str, bytes], step: int) -> Pushed:
        self._validate(content["README.md"].decode())
        self._create()
        head, there = self._remote("main")
        changed, stale = _differences(content, there)
        unchanged = tuple(path for path in content if path not in changed)
        url = f"{self.api.endpoint}/{self.repo}"
        if not changed and not stale:
            return Pushed(url, None, (), unchanged)
        scaled = "" if self.options.scale == 1 else f" at scale {self.options.scale:g}"
        message = f"Upload the adapter of step {step}{scaled} with simko-mlx"
        if self.options.create_pr and (found := self._same_pull_request(message, content)):
            return Pushed(found, None, (), tuple(content))
        operations = self._operations({path: content[path] for path in changed})
        if stale:
            self.progress.message(f"Not measured for this step, and removed: {', '.join(stale)}.")
        commit = self._commit(operations, stale, message, head)
        return Pushed(commit.pr_url or url, commit.oid, tuple(changed), unchanged)

    def _validate(self, card: str) -> None:
        """Before the repository is made: the commit would be refused."""
        from huggingface_hub import ModelCard

        try:
            ModelCard(card).validate()
        except ValueError as error:
            raise Refused(
                f"The Hub doesn't accept the model card ({_messages(error)}): correct what it "
                "comes from in the run's config.yaml, or report it as a fault of simko-mlx."
            ) from error

    def _create(self) -> None:
        private = self.options.private
        self.api.create_repo(self.repo, private=private or None, exist_ok=True)
        info = self.api.model_info(self.repo)
        if private and not info.private:
            raise Refused(
                f"{self.repo} exists and is public, which a push doesn't change: make it private "
                "in its settings on the Hub, leave out --private, or choose another name."
            )
        if info.private and not private:
            self.progress.message(f"{self.repo} is private.")

    def _remote(self, revision: str) -> tuple[str, dict[str, Any]]:
        """The commit at the head of a branch or pull request, and its files."""
        from huggingface_hub import RepoFile

        head = str(self.api.model_info(self.repo, revision=revision).sha)
        tree = self.api.list_repo_tree(self.repo, recursive=True, revision=head)
        return head, {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def _same_pull_request(self, title: str, content: Mapping[str, bytes]) -> str | None:
        """The address of an open pull request that would change the same: an interrupted push may
        have made it."""
        found = self.api.get_repo_discussions(
            self.repo, discussion_type="pull_request", discussion_status="open"
        )
        for request in found:
            if request.title == title:
                _, there = self._remote(f"refs/pr/{request.num}")
                if not any(_differences(content, there)):
                    return request.url
        return None

    def _commit(
        self, operations: list[CommitOperationAdd], stale: list[str], message: str, head: str
    ) -> Any:
        from huggingface_hub import CommitOperationDelete

        for operation in operations:
            if not operation.path_in_repo.endswith(LARGE):
                continue
            # One after the other, in this thread, so that Ctrl-C ends an upload at once.
            self.api.preupload_lfs_files(
                self.repo,
                [operation],
                create_pr=self.options.create_pr,
                free_memory=False,
            )
        return self.api.create_commit(
            self.repo,
            [*operations, *(CommitOperationDelete(path) for path in stale)],
            commit_message=message,
            create_pr=self.options.create_pr,
            parent_commit=head,
        )

    def _operations(self, content: Mapping[str, bytes]) -> list[CommitOperationAdd]:
        from huggingface_hub import CommitOperationAdd

        large = [path for path in content if path.endswith(LARGE)]
        total, before, operations = sum(len(content[path]) for path in large), 0, []
        for path, data in content.items():
            stream = _Stream(data)
            operations.append(CommitOperationAdd(path, stream))  # reads it, for its hash
            if path in large:
                stream.listen = self._listener(before, total, path)
                before += len(data)
        return operations

    def _listener(self, before: int, total: int, path: str) -> Callable[[int], None]:
        farthest = 0

        def listen(position: int) -> None:
            nonlocal farthest
            if position > farthest:  # what is sent again is no sign of life
                self.watch.alive()
            farthest = max(farthest, position)
            self.progress.sent(before + position, total, path)

        return listen


class _Stream(io.BytesIO):
    """Bytes that tell how far they have been read. (A stream also makes the client upload by HTTP,
    where waiting is bounded, rather than by Xet.)"""

    listen: Callable[[int], None] | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if self.listen is not None:
            self.listen(self.tell())
        return data


def _messages(error: ValueError) -> str:
    """What a refused card's answer says, where it is the Hub's JSON."""
    try:
        words = "; ".join(item["message"] for item in json.loads(str(error))["errors"])
    except (ValueError, KeyError, TypeError):
        words = str(error)
    return " ".join(words.split())[:300]


def _differences(
    content: Mapping[str, bytes], there: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """The files that the Hub hasn't got in this form, and the pictures and figures of an earlier
    push that would be wrong beside this one's card."""
    changed = [path for path, data in content.items() if not _same(data, there.get(path))]
    return changed, [path for path in MEASURED if path in there and path not in content]


def _same(data: bytes, there: Any) -> bool:
    """Whether the Hub has this content already, by git's object id or the hash of a large file."""
    if there is None or there.size != len(data):
        return False
    if there.lfs is not None:
        return there.lfs.sha256 == hashlib.sha256(data).hexdigest()
    return there.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
