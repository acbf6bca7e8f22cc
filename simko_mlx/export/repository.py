"""A model repository on the Hub, and how content gets there: as one commit or not at all."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simko_mlx.export.hub_session import Refused, Watch
from simko_mlx.export.secrets import MEASURED

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

LARGE = ".safetensors"
WEIGHTS = {"adapter_model.safetensors": "peft", "mlx/adapters.safetensors": "mlx"}


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


@dataclass(frozen=True)
class Delivery:
    """One push, once its content is there; ``private`` is for a repository that it makes."""

    api: HfApi
    repo: str
    progress: Silent
    watch: Watch
    private: bool = False
    create_pr: bool = False

    def go(self, content: Mapping[str, bytes], message: str) -> Pushed:
        """Makes the repository if need be, and a commit or pull request of what isn't there.

        Raises:
            Refused: the card is not accepted, or the repository is not as it should be.
            Exception: whatever the client raises, see ``hub_session.told``.
        """
        self._validate(content["README.md"].decode())
        self._create()
        head, there = self._remote("main")
        changed, stale = _differences(content, there)
        unchanged = tuple(path for path in content if path not in changed)
        url = f"{self.api.endpoint}/{self.repo}"
        if not changed and not stale:
            return Pushed(url, None, (), unchanged)
        if self.create_pr and (found := self._same_pull_request(message, content)):
            return Pushed(found, None, (), tuple(content))
        for path, kind in WEIGHTS.items():
            if path in there and path not in content:
                self.progress.message(
                    f"{path} is from another push and stays: `--to` with {kind} replaces it."
                )
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
        self.api.create_repo(self.repo, private=self.private or None, exist_ok=True)
        info = self.api.model_info(self.repo)
        if self.private and not info.private:
            raise Refused(
                f"{self.repo} exists and is public, which a push doesn't change: make it private "
                "in its settings on the Hub, leave out --private, or choose another name."
            )
        if info.private and not self.private:
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
            # One after the other, so that the client starts no threads, which would go on.
            self.api.preupload_lfs_files(
                self.repo,
                [operation],
                create_pr=self.create_pr,
                free_memory=False,
            )
        return self.api.create_commit(
            self.repo,
            [*operations, *(CommitOperationDelete(path) for path in stale)],
            commit_message=message,
            create_pr=self.create_pr,
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
        if data and self.listen is not None:
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
