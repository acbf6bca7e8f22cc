"""A Hugging Face Hub of data sets on 127.0.0.1: lists files, hands them out, keeps a log."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
GATED = "some/gated"


class Hub(BaseHTTPRequestHandler):
    repos: dict[str, dict[str, bytes]]
    log: list[tuple[str, str]]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.log.append((self.command, path))
        parts = path.strip("/").split("/")
        asks_for_list = parts[0] == "api"  # /api/datasets/owner/name[/revision/main]
        repo, rest = ("/".join(parts[2:4]), parts[5:]) if asks_for_list else (
            "/".join(parts[1:3]), parts[4:]  # /datasets/owner/name/resolve/main/train.jsonl
        )  # fmt: skip
        if repo == GATED:
            return self.refuse(403, "GatedRepo")
        if repo == "some/broken":
            return self.refuse(500, "")
        if repo not in self.repos:
            return self.refuse(401, "RepoNotFound")
        if rest and rest[0] not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if asks_for_list:
            names = [{"rfilename": name} for name in self.repos[repo]]
            found = {"id": repo, "sha": COMMIT, "siblings": names}
            return self.answer(json.dumps(found).encode(), "application/json")
        content = self.repos[repo].get("/".join(rest[1:]))
        if content is None:
            return self.refuse(404, "EntryNotFound")
        return self.answer(content, "application/octet-stream")

    do_HEAD = do_GET

    def answer(self, content: bytes, kind: str, code: int = 200, error: str = "") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def refuse(self, code: int, error: str) -> None:
        self.answer(b'{"error": "no"}', "application/json", code, error)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(
    repos: dict[str, dict[str, bytes]],
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(the address, the log of requests) while the block runs."""
    log: list[tuple[str, str]] = []
    handler = type("Handler", (Hub,), {"repos": repos, "log": log})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        server.server_close()
