"""The Hub of the tests, asked by the real client: what it answers is what the Hub would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.hub_server import Hub

ROOT = Path(__file__).resolve().parents[2]
CLIENT = """
import json
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.utils import HfHubHTTPError, disable_progress_bars
disable_progress_bars()
api, found = HfApi(), {}

def operations():
    card = b"---\\nlicense: mit\\n---\\n"
    return [CommitOperationAdd("README.md", card), CommitOperationAdd("a.safetensors", b"x" * 9999)]

def error(call):
    try:
        call()
    except HfHubHTTPError as error:
        return type(error).__name__
    return "none"

found["name"] = api.whoami()["name"]
api.create_repo("me/x", private=True)
found["again"] = error(lambda: api.create_repo("me/x"))
first = api.create_commit("me/x", operations(), commit_message="first")
second = api.create_commit("me/x", operations(), commit_message="second")
found["unchanged"] = first.oid == second.oid
info = api.model_info("me/x", files_metadata=True)
found["info"] = [info.sha == first.oid, info.private, info.card_data.license]
found["siblings"] = {s.rfilename: s.size for s in info.siblings}
found["tree"] = {f.path: f.lfs is not None for f in api.list_repo_tree("me/x")}
def more():
    return [CommitOperationAdd("b/c.txt", b"1")]
found["pr"] = api.create_commit("me/x", more(), commit_message="pr", create_pr=True).pr_num
found["prs"] = [d.title for d in api.get_repo_discussions("me/x")]
found["stale"] = error(lambda: api.create_commit(
    "me/x", [CommitOperationAdd("d.txt", b"1")], commit_message="m", parent_commit="0" * 40))
snapshot = snapshot_download("me/x", revision="refs/pr/1")
found["downloaded"] = open(snapshot + "/a.safetensors", "rb").read() == b"x" * 9999
found["gated"] = error(lambda: hf_hub_download("other/gated", "config.json"))
found["hidden"] = error(lambda: api.model_info("other/private"))
found["revision"] = error(lambda: snapshot_download("me/x", revision="none"))
found["entry"] = error(lambda: hf_hub_download("me/x", "none.json"))
found["foreign"] = error(lambda: api.create_commit("other/open", more(), commit_message="m"))
api.delete_repo("me/x")
found["deleted"] = error(lambda: api.model_info("me/x"))
print(json.dumps(found))
"""


def test_the_real_client_finds_what_it_expects(tmp_path):
    with Hub() as hub:
        hub.add("other/gated", {"config.json": b"{}"}, gated=True)
        hub.add("other/private", {"config.json": b"{}"}, private=True)
        hub.add("other/open", {"config.json": b"{}"})
        done = subprocess.run(
            [sys.executable, "-c", CLIENT],
            env={**os.environ, **hub.environment(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        downloads = [request for request in hub.requests if "/cdn/" in request.path]
    assert json.loads(done.stdout) == {
        "name": "me",
        "again": "HfHubHTTPError",
        "unchanged": True,
        "info": [True, True, "mit"],
        "siblings": {".gitattributes": 219, "README.md": 21, "a.safetensors": 9999},
        "tree": {".gitattributes": False, "README.md": False, "a.safetensors": True},
        "pr": 1,
        "prs": ["pr"],
        "stale": "HfHubHTTPError",
        "downloaded": True,
        "gated": "GatedRepoError",
        "hidden": "RepositoryNotFoundError",
        "revision": "RevisionNotFoundError",
        "entry": "RemoteEntryNotFoundError",
        "foreign": "HfHubHTTPError",
        "deleted": "RepositoryNotFoundError",
    }
    # The token never leaves the Hub for the place where large files are.
    assert downloads and all("authorization" not in request.headers for request in downloads)
