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

import base64
import hashlib
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
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN, READ_TOKEN, OTHER_TOKEN = "hf_testwrite", "hf_testread", "hf_testother"
USERS = {TOKEN: ("me", "write"), READ_TOKEN: ("me", "read"), OTHER_TOKEN: ("other", "write")}
ORGS = {"me": ("our-lab",), "other": ()}
LFS = (".safetensors", ".gguf", ".npz", ".bin", ".png")
LFS_BYTES = 10 * 1024 * 1024
GITATTRIBUTES = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LFS).encode()
TYPES = "models|datasets|spaces"


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_lfs(path: str, size: int) -> bool:
    return path.endswith(LFS) or size > LFS_BYTES


@dataclass(frozen=True)
class Commit:
    """``files`` is the whole tree: path -> content."""

    oid: str
    parent: str | None
    title: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """``heads`` maps branches and pull requests ("refs/pr/1") to commits. ``gated`` files are
    handed out to users in ``granted`` alone."""

    id: str
    type: str = "models"
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    heads: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)  # of pull requests

    def commit(self, head: str, title: str, files: dict[str, bytes]) -> Commit:
        parent = self.heads.get(head)
        named = f"{self.id} {parent} {title} {sorted((k, sha256(v)) for k, v in files.items())}"
        made = Commit(hashlib.sha1(named.encode()).hexdigest(), parent, title, files)
        self.commits[made.oid] = made
        self.heads[head] = made.oid
        return made

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.heads.get(revision, revision))

    def history(self, head: str = "main") -> list[Commit]:
        """The commits of a branch, the last first."""
        found, oid = [], self.heads.get(head)
        while oid is not None:
            found.append(self.commits[oid])
            oid = self.commits[oid].parent
        return found


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


class Refused(Exception):
    """An answer that isn't 200."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


class Dropped(Exception):
    """The connection ends here."""


class _Handler(BaseHTTPRequestHandler):
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
            self.request_ = Request(len(hub.requests) + 1, self.command, self.path, headers)
            hub.requests.append(self.request_)
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
            if failure.times and re.search(failure.pattern, self.request_.name):
                failure.times -= 1
                return failure
        return None

    def _tell(self, moment: str) -> None:
        if self.hub.watch is not None:
            self.hub.watch(self.request_.number, moment)

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
                status, body, headers = self._act()
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
            self.request_.body += piece
            left -= len(piece)
            if self.hub.pace:
                time.sleep(len(piece) / self.hub.pace)
            if not told and (2 * len(self.request_.body) >= length or chunked):
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

    # What the Hub does

    def _act(self) -> tuple[int, Any, dict[str, str]]:
        path = unquote(urlsplit(self.path).path)
        for method, pattern, action in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split():
                done = action(self, **found.groupdict())
                return done if isinstance(done, tuple) else (200, done, {})
        raise Refused(404, f"Sorry, we can't find {path}")

    @property
    def query(self) -> dict[str, str]:
        return {key: values[-1] for key, values in parse_qs(urlsplit(self.path).query).items()}

    def _json(self) -> Any:
        return json.loads(self.request_.body)

    def _user(self) -> tuple[str | None, str]:
        given = self.request_.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not given:
            return None, "none"
        if given not in USERS:
            raise Refused(401, "Invalid credentials in Authorization header")
        return USERS[given]

    def _may_write(self, owner: str) -> bool:
        user, role = self._user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if role != "write":
            raise Refused(403, "Forbidden: you must use a write token to upload to a repository.")
        return owner == user or owner in ORGS[user]

    def _repo(self, type: str | None, id: str) -> Repo:
        """The repository, if the user may see it."""
        repo = self.hub.repos.get((type or "models", id))
        user, _ = self._user()
        owner = id.split("/")[0]
        hidden = repo is not None and repo.private
        if repo is None or (hidden and owner != user and owner not in ORGS.get(user or "", ())):
            if user is None:
                raise Refused(401, "Invalid username or password.", "RepoNotFound")
            raise Refused(404, "Repository not found", "RepoNotFound")
        return repo

    def _commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.at(revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def whoami(self) -> Any:
        user, role = self._user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        orgs = [{"name": name, "type": "org"} for name in ORGS[user]]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        return {"type": "user", "name": user, "auth": auth, "orgs": orgs}

    def create(self) -> Any:
        wanted = self._json()
        owner = wanted.get("organization") or self._user()[0]
        if not self._may_write(owner):
            raise Refused(403, f'You don\'t have the rights to create a model under "{owner}".')
        type, id = f"{wanted.get('type', 'model')}s", f"{owner}/{wanted['name']}"
        url = f"{self.hub.url}/{'' if type == 'models' else type + '/'}{id}"
        if (type, id) in self.hub.repos:
            raise Refused(409, f"You already created this {type[:-1]} repo", url=url)
        private = wanted.get("visibility") == "private" or wanted.get("private", False)
        self.hub.create(id, type, private=private)
        return {"url": url, "name": id, "id": id}

    def delete(self) -> Any:
        wanted = self._json()
        owner = wanted.get("organization") or self._user()[0]
        key = (f"{wanted.get('type') or 'model'}s", f"{owner}/{wanted['name']}")
        if not self._may_write(owner) or key not in self.hub.repos:
            raise Refused(404, "Repository not found", "RepoNotFound")
        del self.hub.repos[key]
        return {}

    def validate_yaml(self) -> Any:
        found = re.match(r"---\n(.*?)\n---", self._json()["content"], re.DOTALL)
        errors, warnings = [], []
        try:
            data = yaml.safe_load(found[1]) if found else None
        except yaml.YAMLError as error:
            data, errors = {}, [{"message": f"not YAML: {error}"}]
        if data is None:
            warnings = [{"message": "empty or missing yaml metadata in repo card"}]
        elif not isinstance(data.get("license", "other"), str):
            errors = [{"message": '"license" must be a string'}]
        return 400 if errors else 200, {"errors": errors, "warnings": warnings}, {}

    def preupload(self, type: str, id: str, rev: str) -> Any:
        files = self._commit(self._writable(type, id), rev).files
        out = []
        for wanted in self._json()["files"]:
            path, lfs = wanted["path"], is_lfs(wanted["path"], wanted["size"])
            there = files.get(path)
            oid = (
                None if there is None else (sha256 if is_lfs(path, len(there)) else git_oid)(there)
            )
            mode = "lfs" if lfs else "regular"
            out.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": out}

    def _writable(self, type: str | None, id: str) -> Repo:
        """The repository, where the user may commit, or asks to make a pull request."""
        repo = self._repo(type, id)
        if not self._may_write(id.split("/")[0]) and "create_pr" not in self.query:
            raise Refused(
                403, "You don't have write access to this repository. Open a pull request."
            )
        return repo

    def lfs_batch(self, type: str | None, id: str) -> Any:
        self._repo(type and type.rstrip("/"), id)
        self._may_write("")
        objects = []
        for wanted in self._json()["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
            if wanted["oid"] not in self.hub.objects:
                put = {"href": f"{self.hub.url}/lfs-put/{wanted['oid']}"}
                verify = {"href": f"{self.hub.url}/lfs-verify", "header": {}}
                entry["actions"] = {"upload": put, "verify": verify}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str) -> Any:
        if sha256(self.request_.body) != oid:
            raise Refused(400, "The sha256 you specified did not match what we received.")
        self.hub.objects[oid] = self.request_.body
        return {}

    def lfs_verify(self) -> Any:
        wanted = self._json()
        if len(self.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refused(404, "The object was not uploaded.")
        return {}

    def commit(self, type: str, id: str, rev: str) -> Any:
        repo = self._writable(type, id)
        base = self._commit(repo, rev)
        files, header = dict(base.files), {}
        for item in map(json.loads, self.request_.body.splitlines()):
            value = item["value"]
            if item["key"] == "header":
                header = value
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refused(400, "LFS pointer pointed to a file that does not exist.")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, f"unknown operation {item['key']}")
        if header.get("parentCommit") not in (None, base.oid):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        made, out = rev, {}
        if self.query.get("create_pr") == "1":
            number = len(repo.titles) + 1
            made = f"refs/pr/{number}"
            repo.heads[made], repo.titles[made] = base.oid, header["summary"]
            out["pullRequestUrl"] = f"{self.hub.url}/{id}/discussions/{number}"
        oid = repo.commit(made, header["summary"], files).oid
        url = f"{self.hub.url}/{id}/commit/{oid}"
        return {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": "", **out}

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
        if is_lfs(path, len(data)):
            entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 130}
        return entry

    def info(self, type: str, id: str, rev: str = "main") -> Any:
        repo = self._repo(type, id)
        commit = self._commit(repo, rev)
        siblings = []
        for path, data in sorted(commit.files.items()):
            more = {"size": len(data), "blobId": git_oid(data)}
            if is_lfs(path, len(data)):
                more["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 130}
            siblings.append({"rfilename": path, **(more if "blobs" in self.query else {})})
        found = {"_id": "0", "id": id, "modelId": id, "sha": commit.oid, "private": repo.private}
        found |= {"gated": "auto" if repo.gated else False, "disabled": False, "tags": []}
        card = commit.files.get("README.md", b"").decode()
        if head := re.match(r"---\n(.*?)\n---", card, re.DOTALL):
            found["cardData"] = yaml.safe_load(head[1])
        return {**found, "siblings": siblings}

    def tree(self, type: str, id: str, rev: str, under: str | None = None) -> Any:
        files = self._commit(self._repo(type, id), rev).files
        start = f"{under.strip('/')}/" if under and under.strip("/") else ""
        inside = {path: data for path, data in sorted(files.items()) if path.startswith(start)}
        folders = {
            str(parent)
            for path in inside
            for parent in Path(path).parents
            if str(parent) != "." and str(parent).startswith(start)
        }
        out = [{"type": "directory", "path": name, "size": 0, "oid": git_oid(name.encode())}
               for name in sorted(folders)]  # fmt: skip
        out += [self._entry(path, data) for path, data in inside.items()]
        if self.query.get("recursive", "").lower() != "true":
            out = [entry for entry in out if "/" not in entry["path"][len(start) :]]
        return out

    def paths_info(self, type: str, id: str, rev: str) -> Any:
        files = self._commit(self._repo(type, id), rev).files
        wanted = parse_qs(self.request_.body.decode())["paths"]
        return [self._entry(path, files[path]) for path in wanted if path in files]

    def resolve(self, type: str | None, id: str, rev: str, file: str) -> Any:
        repo = self._repo(type and type.rstrip("/"), id)
        user, _ = self._user()
        owner = id.split("/")[0]
        if repo.gated and user not in (owner, *repo.granted) and file != "README.md":
            status = 401 if user is None else 403
            words = f"Access to model {id} is restricted. You must have access to it to download."
            raise Refused(status, words, "GatedRepo")
        commit = self._commit(repo, rev)
        if file not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        data = commit.files[file]
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if not is_lfs(file, len(data)):
            return self._ranged(data, {**headers, "ETag": f'"{git_oid(data)}"'})
        self.hub.objects[sha256(data)] = data
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha256(data)}"'}
        return 302, b"", {**headers, "Location": f"{self.hub.elsewhere}/cdn/{sha256(data)}"}

    def cdn(self, oid: str) -> Any:
        if oid not in self.hub.objects:
            raise Refused(404, "no such object")
        return self._ranged(self.hub.objects[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _ranged(self, data: bytes, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.request_.headers.get("range", ""))
        if not found:
            return 200, data, headers
        first, last = int(found[1]), int(found[2] or len(data) - 1)
        if first >= len(data):
            raise Refused(416, "Range not satisfiable")
        part = data[first : last + 1]
        where = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        return 206, part, {**headers, "Content-Range": where}


_NAME = r"[^/]+/[^/]+"
_API = rf"/api/(?P<type>{TYPES})/(?P<id>{_NAME})"
_REV = r"(?P<rev>refs/pr/\d+|[^/]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("DELETE", r"/api/repos/delete", _Handler.delete),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"{_API}/preupload/{_REV}", _Handler.preupload),
    ("POST", rf"{_API}/commit/{_REV}", _Handler.commit),
    ("POST", rf"{_API}/paths-info/{_REV}", _Handler.paths_info),
    ("GET", rf"{_API}/tree/{_REV}(?P<under>/.*)?", _Handler.tree),
    ("GET", rf"{_API}/revision/{_REV}", _Handler.info),
    ("GET", _API, _Handler.info),
    ("POST", rf"/(?P<type>(?:datasets|spaces)/)?(?P<id>{_NAME})\.git/info/lfs/objects/batch",
     _Handler.lfs_batch),
    ("PUT", r"/lfs-put/(?P<oid>\w+)", _Handler.lfs_put),
    ("POST", r"/lfs-verify", _Handler.lfs_verify),
    ("GET HEAD", r"/cdn/(?P<oid>\w+)", _Handler.cdn),
    ("GET HEAD", rf"/(?P<type>(?:datasets|spaces)/)?(?P<id>{_NAME})/resolve/{_REV}/(?P<file>.+)",
     _Handler.resolve),
]  # fmt: skip
