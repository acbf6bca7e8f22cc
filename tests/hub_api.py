"""What a Hub does with a request: repositories, commits, LFS, and who may what."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
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


class Refused(Exception):
    """An answer that isn't 200."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


class Actions:
    """Answers requests; ``hub`` has what there is, ``received`` is the request, ``command`` its
    method and ``path`` its address."""

    hub: Any
    received: Any
    command: str
    path: str

    def act(self) -> tuple[int, Any, dict[str, str]]:
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
        return json.loads(self.received.body)

    def _user(self) -> tuple[str | None, str]:
        given = self.received.headers.get("authorization", "").removeprefix("Bearer ").strip()
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
        if sha256(self.received.body) != oid:
            raise Refused(400, "The sha256 you specified did not match what we received.")
        self.hub.objects[oid] = self.received.body
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
        for item in map(json.loads, self.received.body.splitlines()):
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
        wanted = parse_qs(self.received.body.decode())["paths"]
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
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.received.headers.get("range", ""))
        if not found:
            return 200, data, headers
        first, last = int(found[1]), int(found[2] or len(data) - 1)
        if first >= len(data):
            raise Refused(416, "Range not satisfiable")
        part = data[first : last + 1]
        where = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        return 206, part, {**headers, "Content-Range": where}

    def discussions(self, type: str, id: str) -> Any:
        repo = self._repo(type, id)
        found = [
            {
                "num": number,
                "title": title,
                "author": {"name": "me"},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "status": "open",
                "repo": {"name": id, "type": type[:-1]},
                "isPullRequest": True,
            }
            for number, title in enumerate(repo.titles.values(), 1)
        ]
        return {"count": len(found), "start": 0, "discussions": found}


_NAME = r"[^/]+/[^/]+"
_API = rf"/api/(?P<type>{TYPES})/(?P<id>{_NAME})"
_REV = r"(?P<rev>refs/pr/\d+|[^/]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", Actions.whoami),
    ("POST", r"/api/repos/create", Actions.create),
    ("DELETE", r"/api/repos/delete", Actions.delete),
    ("POST", r"/api/validate-yaml", Actions.validate_yaml),
    ("POST", rf"{_API}/preupload/{_REV}", Actions.preupload),
    ("POST", rf"{_API}/commit/{_REV}", Actions.commit),
    ("POST", rf"{_API}/paths-info/{_REV}", Actions.paths_info),
    ("GET", rf"{_API}/tree/{_REV}(?P<under>/.*)?", Actions.tree),
    ("GET", rf"{_API}/revision/{_REV}", Actions.info),
    ("GET", rf"{_API}/discussions", Actions.discussions),
    ("GET", _API, Actions.info),
    ("POST", rf"/(?P<type>(?:datasets|spaces)/)?(?P<id>{_NAME})\.git/info/lfs/objects/batch",
     Actions.lfs_batch),
    ("PUT", r"/lfs-put/(?P<oid>\w+)", Actions.lfs_put),
    ("POST", r"/lfs-verify", Actions.lfs_verify),
    ("GET HEAD", r"/cdn/(?P<oid>\w+)", Actions.cdn),
    ("GET HEAD", rf"/(?P<type>(?:datasets|spaces)/)?(?P<id>{_NAME})/resolve/{_REV}/(?P<file>.+)",
     Actions.resolve),
]  # fmt: skip
