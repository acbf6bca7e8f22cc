"""A Hub on this machine, for tests: repositories in memory, behind the API that the client uses.

    with Hub() as hub:
        hub.add_folder("owner/name", folder)          # a repository from a folder
        hub.fail("POST .*/commit/", status=503)       # the next such request goes wrong
        subprocess.run([...], env={**os.environ, **hub.environment(home)})
        hub.files("me/name"), hub.requests            # what is there; all that was ever received

It answers as the real one does where the client notices: git's and LFS' object ids, an LFS object
that a commit names must have been uploaded, one commit is made as a whole or not at all, LFS files
are handed out by another origin, private repositories don't exist for others.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.hub_api import GITATTRIBUTES, TOKEN, Actions, Refused, Repo


@dataclass
class Request:
    """One request as it came in; ``body`` is what was read of it."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Failure:
    """What goes wrong with the requests that ``pattern`` finds in "METHOD /path?query".

    ``status`` answers with it. ``drop`` closes the connection: "before" anything of the body was
    read, in the middle of the "upload", after the "action" and without a reply, or in the middle
    of the "reply". ``hang`` doesn't answer for so many seconds (or until the server stops).
    """

    pattern: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    drop: str | None = None
    hang: float | None = None


class Hub:
    """The server. ``pace`` bounds how many bytes per second are read of a body; ``watch`` is told
    each request's moments: (number, "headers" | "body" | "acted"), "body" when half is read."""

    def __init__(self, pace: float | None = None) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by sha256
        self.requests: list[Request] = []
        self.failures: list[Failure] = []
        self.pace = pace
        self.watch: Callable[[int, str], None] | None = None
        self.lock = threading.RLock()
        self.stopping = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.daemon_threads = True
        self.server.hub = self  # type: ignore[attr-defined]
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self.elsewhere = f"http://localhost:{self.port}"  # another origin, for LFS' objects

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """What a process needs to talk to this Hub and no other, as the owner of ``token``."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": token or "",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def fail(self, pattern: str, **how: Any) -> Failure:
        """Plans a failure; see Failure."""
        self.failures.append(Failure(pattern, **how))
        return self.failures[-1]

    def create(self, repo_id: str, type: str = "models", **settings: Any) -> Repo:
        repo = Repo(repo_id, type, **settings)
        repo.commit("main", "initial commit", {".gitattributes": GITATTRIBUTES})
        self.repos[type, repo_id] = repo
        return repo

    def add(self, repo_id: str, files: dict[str, bytes], **settings: Any) -> Repo:
        """A repository with these files; one that exists gets a commit with them more."""
        key = (settings.get("type", "models"), repo_id)
        repo = self.repos[key] if key in self.repos else self.create(repo_id, **settings)
        repo.commit("main", "Upload files", {**repo.history()[0].files, **files})
        return repo

    def add_folder(self, repo_id: str, folder: Path, **settings: Any) -> Repo:
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return self.add(repo_id, files, **settings)

    def repo(self, repo_id: str, type: str = "models") -> Repo:
        return self.repos[type, repo_id]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a model repository, without .gitattributes, which the Hub itself makes."""
        commit = self.repo(repo_id).at(revision)
        assert commit is not None, f"{repo_id} has no {revision}"
        return {path: data for path, data in commit.files.items() if path != ".gitattributes"}

    def names(self) -> list[str]:
        return [request.name for request in self.requests]


class Dropped(Exception):
    """The connection ends here."""


class _Handler(Actions, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: object) -> None:
        pass

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def any_method(self) -> None:
        hub = self.hub
        with hub.lock:
            headers = {key.lower(): value for key, value in self.headers.items()}
            self.received = Request(len(hub.requests) + 1, self.command, self.path, headers)
            hub.requests.append(self.received)
            failure = self._failure()
        self._tell("headers")
        try:
            self._answer(failure or Failure(""))
        except (Dropped, ConnectionError):
            self.close_connection = True
            # At once, not when the thread is done with it.
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = any_method

    def _failure(self) -> Failure | None:
        for failure in self.hub.failures:
            if failure.times and re.search(failure.pattern, self.received.name):
                failure.times -= 1
                return failure
        return None

    def _tell(self, moment: str) -> None:
        if self.hub.watch is not None:
            self.hub.watch(self.received.number, moment)

    def _answer(self, failure: Failure) -> None:
        if failure.drop == "before":
            raise Dropped
        self._read_body(half=failure.drop == "upload")
        if failure.hang is not None:
            self.hub.stopping.wait(failure.hang)
            raise Dropped
        if failure.status is not None:
            body = {"error": f"planned {failure.status}"} if failure.body is None else failure.body
            return self._send(failure.status, body, failure.headers)
        try:
            with self.hub.lock:
                status, body, headers = self.act()
        except Refused as refused:
            headers = {"X-Error-Message": refused.message}
            headers |= {"X-Error-Code": refused.code} if refused.code else {}
            return self._send(refused.status, {"error": refused.message, **refused.more}, headers)
        self._tell("acted")
        if failure.drop == "action":
            raise Dropped
        self._send(status, body, headers, half=failure.drop == "reply")

    def _read_body(self, half: bool) -> None:
        told = False
        length = int(self.headers.get("Content-Length") or 0)
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        left = int(self.rfile.readline(), 16) if chunked else length
        while left:
            # Read in pieces, so that what a killed client sent before is recorded.
            piece = self.rfile.read1(min(left, 16384))
            if not piece:
                raise Dropped
            self.received.body += piece
            left -= len(piece)
            if self.hub.pace:
                time.sleep(len(piece) / self.hub.pace)
            if not told and (2 * len(self.received.body) >= length or chunked):
                told = True
                self._tell("body")
                if half:
                    raise Dropped
            if chunked and not left:
                self.rfile.readline()
                left = int(self.rfile.readline(), 16)
        if chunked:
            self.rfile.readline()

    def _send(self, status: int, body: Any, headers: dict[str, str], half: bool = False) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": len(data), **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            raise Dropped
