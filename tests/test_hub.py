"""Models and adapters from the Hub: the real client, through the command line, against a Hub on
this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hub_server import OTHER_TOKEN, TOKEN, Hub
from tests.models import make_model
from tests.runs import SMALL

ROOT = Path(__file__).parents[1]
MODEL = "someone/tiny"
CANARIES = {
    "modeling_tiny.py": b"raise SystemExit('run')", "pytorch_model.bin": b"\x80\x04",
    "original/params.json": b"{}", "onnx/model.safetensors": b"", "logo.png": b"png",
}  # fmt: skip
WANTED = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", "README.md", "LICENSE",
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """Those of a small model's repository."""
    folder = make_model(tmp_path_factory.mktemp("model"))
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**found, "README.md": b"---\nlicense: mit\n---\n# Tiny", "LICENSE": b"MIT", **CANARIES}


@pytest.fixture
def hub(files):
    with Hub() as found:
        found.add(MODEL, files)
        yield found


def environment(hub: Hub, home: Path, token: str | None) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return {**kept, **hub.environment(home, token), "PYTHONPATH": str(ROOT)}


def simko(
    hub: Hub, home: Path, *args: str, token: str | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """One command line."""
    return subprocess.run(
        [sys.executable, "-m", "cli", *args], cwd=ROOT, capture_output=True, text=True,
        env={**environment(hub, home, token), **more}, timeout=100,
    )  # fmt: skip


def data(hub: Hub, home: Path, *sets: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The command that needs a model's tokenizer alone."""
    settings = [part for one in sets for part in ("--set", one)]
    return simko(hub, home, "data", "show", "countdown-tiny", *settings, **more)


def train(hub: Hub, home: Path, run: Path, *sets: str, **more: str):
    values = {**SMALL, "steps": 1, "data.size": 20, "eval.before": False, "eval.after": False}
    settings = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    told = [part for one in (*settings, *sets) for part in ("--set", one)]
    return simko(hub, home, "train", "--plain", "--output-dir", str(run), *told, **more)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, (done.stdout, done.stderr)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and last.endswith(".") and "Traceback" not in done.stderr
    assert all(word in last for word in words), last


def fetched(hub: Hub) -> set[str]:
    return {
        name.split("/resolve/", 1)[1].split("/", 1)[1]
        for name in hub.names()
        if "/resolve/" in name
    }


def test_a_model_is_downloaded_shown_pinned_and_resumed_offline(hub, files, tmp_path):
    home, run = tmp_path / "home", tmp_path / "run"
    commit = hub.repo(MODEL).history()[0].oid
    done = train(hub, home, run, f"model={MODEL}")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"Downloading {MODEL}: ") and lines[0].endswith("kB.")
    assert lines[1].startswith(f"Downloaded {MODEL}: ")
    assert fetched(hub) == WANTED
    assert json.loads((run / "env.json").read_text())["model_commit"] == commit
    assert f"model_revision: {commit}" in (run / "config.yaml").read_text()
    # The branch moves on to a broken model: the run does not.
    hub.add(MODEL, {"config.json": b"{}"})
    before = len(hub.requests)
    resume = ["train", "--resume", str(run), "--set", "steps=2", "--plain"]
    offline = simko(hub, home, *resume, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0 and len(hub.requests) == before, offline.stderr
    online = simko(hub, home, *resume[:3], "--set", "steps=3", "--plain")
    assert online.returncode == 0 and "Downloading" not in online.stderr, online.stderr
    metrics = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2, 3]


def test_revisions(hub, files, tmp_path):
    first = hub.repo(MODEL).history()[0].oid
    hub.repo(MODEL).heads["v1"] = first
    hub.add(MODEL, {"config.json": b"[]"})  # main is broken
    for revision in ("v1", first):
        done = data(hub, tmp_path, f"model={MODEL}", f"model_revision={revision}")
        assert done.returncode == 0, done.stderr
    missing = data(hub, tmp_path, f"model={MODEL}", "model_revision=v9")
    refused(missing, MODEL, "no revision 'v9'", "model_revision")
    at = data(hub, tmp_path, f"model={MODEL}@v1")
    refused(at, "model_revision=v1", f"model={MODEL}")
    refused(data(hub, tmp_path, "model=embedded", "model_revision=v1"), "no revisions", "leave it")


def test_what_the_hub_refuses_is_told_in_a_sentence(hub, files, tmp_path):
    gated, private = "someone/gated", "other/private"
    hub.add(gated, files, gated=True)
    hub.add(private, files, private=True)
    page = f"{hub.url}/{gated}"
    refused(data(hub, tmp_path, f"model={gated}"), gated, page, "hf auth login")
    refused(data(hub, tmp_path, f"model={gated}", token=TOKEN), gated, page, "hf auth login")
    refused(data(hub, tmp_path, f"model={private}", token=TOKEN), "no such model", "hf auth login")
    assert data(hub, tmp_path, f"model={private}", token=OTHER_TOKEN).returncode == 0
    refused(data(hub, tmp_path, f"model={MODEL}", token="hf_wrong"), "token", "hf auth login")
    refused(data(hub, tmp_path, "model=someone/none"), "someone/none", "no such model")
    refused(data(hub, tmp_path, "model=some one/none"), "no such model")
    for status, words in ((429, "wait some minutes"), (500, "try later"), (503, "try later")):
        hub.fail(f"/api/models/{MODEL}", status=status)
        refused(data(hub, tmp_path, f"model={MODEL}"), MODEL, words, str(status))


def test_a_passing_failure_of_the_hub_does_not_keep_from_a_model_that_is_there(hub, tmp_path):
    assert data(hub, tmp_path, f"model={MODEL}").returncode == 0
    for status in (429, 503):
        failure = hub.fail(f"/api/models/{MODEL}", status=status)
        assert data(hub, tmp_path, f"model={MODEL}").returncode == 0 and failure.times == 0


def test_a_connection_that_breaks_half_way_goes_on_where_it_stopped(hub, files, tmp_path):
    broken = hub.fail("GET /cdn/", drop="reply")
    done = simko(hub, tmp_path, "plan", "--model", MODEL)  # only its settings are fetched
    assert done.returncode in (0, 1) and broken.times == 1, done.stderr
    assert "model.safetensors" not in fetched(hub)
    done = train(hub, tmp_path, tmp_path / "run", f"model={MODEL}")
    assert done.returncode == 0 and broken.times == 0, done.stderr
    ranges = [r.headers.get("range") for r in hub.requests if r.name.startswith("GET /cdn/")]
    size = len(files["model.safetensors"])
    assert ranges == [None, f"bytes={size // 2}-"]


def test_a_connection_that_stays_broken_is_told_and_what_came_is_kept(hub, files, tmp_path):
    hub.fail("GET /cdn/", drop="action", times=99)
    done = train(hub, tmp_path, tmp_path / "run", f"model={MODEL}")
    refused(done, "connection to the Hub broke", MODEL, "again")
    assert not (tmp_path / "run").exists()
    hub.failures.clear()
    before = len(hub.requests)
    assert train(hub, tmp_path, tmp_path / "run", f"model={MODEL}").returncode == 0
    again = {r.path.split("/", 5)[-1] for r in hub.requests[before:] if "/resolve/" in r.path}
    assert again == {"model.safetensors"}


def test_without_a_connection(hub, files, tmp_path):
    home, port = tmp_path / "home", {"HF_ENDPOINT": "http://127.0.0.1:9"}
    for more, words in ((port, "the Hub can't be reached"), ({"HF_HUB_OFFLINE": "1"}, "OFFLINE")):
        began = time.monotonic()
        refused(data(hub, home, f"model={MODEL}", **more), MODEL, "not on this machine", words)
        assert time.monotonic() - began < 20
    assert not hub.requests
    assert data(hub, home, f"model={MODEL}").returncode == 0  # without weights
    for more in (port, {"HF_HUB_OFFLINE": "1"}):
        assert data(hub, home, f"model={MODEL}", **more).returncode == 0
        done = train(hub, home, tmp_path / "run", f"model={MODEL}", **more)
        refused(done, MODEL, "not wholly")
    commit = hub.repo(MODEL).history()[0].oid
    pinned = data(hub, home, f"model={MODEL}", f"model_revision={commit}", HF_HUB_OFFLINE="1")
    assert pinned.returncode == 0, pinned.stderr


FULL = """
import shutil, sys
real = shutil.disk_usage
shutil.disk_usage = lambda path: real(path)._replace(free=int(sys.argv[1]))
from cli.main import run
sys.exit(run(sys.argv[2:]))
"""


def test_a_disk_too_small_is_told_before_a_byte_is_fetched(hub, files, tmp_path):
    def go(free: int) -> subprocess.CompletedProcess[str]:
        args = ["train", "--model", MODEL, "--set", "eval.every=-1", "--dry-run"]
        args = ["data", "show", "countdown-tiny", "--set", f"model={MODEL}"]
        return subprocess.run(
            [sys.executable, "-c", FULL, str(free), *args], cwd=ROOT, capture_output=True,
            text=True, env=environment(hub, tmp_path / "home", None), timeout=100,
        )  # fmt: skip

    needed = sum(len(files[name]) for name in WANTED - {"model.safetensors"})
    done = go(needed - 1)
    refused(done, MODEL, f"{needed / 1e3:.3g} kB", "are free", "HF_HOME", str(tmp_path / "home"))
    assert not fetched(hub)
    assert go(needed).returncode == 0 and fetched(hub)
    assert go(0).returncode == 0  # nothing is missing any more


def test_ctrl_c_ends_a_download_at_once(hub, tmp_path):
    hub.fail("GET /cdn/", hang=60)
    args = [sys.executable, "-m", "cli", "train", "--model", MODEL, "--output-dir",
            str(tmp_path / "run")]  # fmt: skip
    process = subprocess.Popen(
        args, cwd=ROOT, env=environment(hub, tmp_path, None), stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while not any("/cdn/" in name for name in hub.names()):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, told = process.communicate(timeout=60)
    # A transfer that stands still ends with the client's own patience, 10 seconds.
    assert process.returncode == 130 and time.monotonic() - began < 30, told
    assert "Traceback" not in told


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_programs_of_a_model_are_neither_run_nor_asked_about(where, hub, files, tmp_path):
    """The programs are in a local folder, where nothing keeps them from being found."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in WANTED:
        (folder / name).write_bytes(files[name])
    (folder / "custom.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    settings = json.loads((folder / where).read_text())
    if where == "config.json":
        settings["model_file"] = "custom.py"
    else:
        settings |= {"tokenizer_class": "MyTokenizer"}
        settings["auto_map"] = {"AutoTokenizer": ["custom.MyTokenizer", None]}
    (folder / where).write_text(json.dumps(settings))
    for args in (("data", "show", "countdown-tiny", "--set", f"model={folder}"),
                 ("plan", "--model", str(folder)),
                 ("train", "--model", str(folder), "--output-dir", str(tmp_path / "run"))):  # fmt: skip
        began = time.monotonic()
        refused(simko(hub, tmp_path, *args), "program", "never run here")
        assert time.monotonic() - began < 14  # transformers would wait 15 s for an answer
    assert not (tmp_path / "ran").exists()


def test_an_auto_map_that_nothing_needs_is_no_reason_to_refuse(hub, files, tmp_path):
    config = json.loads(files["config.json"])
    config["auto_map"] = {"AutoConfig": "custom.MyConfig"}
    hub.add(MODEL, {"config.json": json.dumps(config).encode()})
    done = data(hub, tmp_path, f"model={MODEL}")
    assert done.returncode == 0 and "custom.py" not in fetched(hub), done.stderr


def test_adapters_of_the_hub(hub, files, tmp_path):
    home, base = tmp_path / "home", tmp_path / "base"
    assert train(hub, home, base, f"model={MODEL}", "steps=1").returncode == 0
    made = {p.name: p.read_bytes() for p in (base / "adapters").iterdir() if p.suffix != ".tmp"}
    peft = b'{"peft_type": "LORA"}'
    hub.add("me/root", made)
    both = {f"mlx/{name}": content for name, content in made.items()}
    hub.add("me/both", {**both, "adapter_config.json": peft, "adapter_model.safetensors": b"x"})
    hub.add("me/pickle", {"adapter_config.json": peft, "adapter_model.bin": b"\x80\x04"})
    hub.add("me/none", {"README.md": b"# nothing"})
    for name in ("me/root", "me/both"):
        before = len(hub.requests)
        run = tmp_path / name.replace("/", "-")
        keys = [f"model={MODEL}", f"policy.adapter_path={name}", "policy.adapter_revision=main"]
        done = train(hub, home, run, *keys)
        assert done.returncode == 0, done.stderr
        asked = [r.path for r in hub.requests[before:] if f"{name}/resolve" in r.path]
        assert not any(path.endswith(("adapter_model.safetensors", ".bin")) for path in asked)
        first = run / "checkpoints" / "step-000000" / "adapters.safetensors"
        assert first.read_bytes() == made["adapters.safetensors"]
        # A run that is resumed has its own adapter.
        again = ["train", "--resume", str(run), "--set", "steps=2", "--plain"]
        assert simko(hub, home, *again, HF_HUB_OFFLINE="1").returncode == 0
    for name, words in (("me/pickle", "pickle"), ("me/none", "not an mlx-lm adapter"),
                        ("me/nowhere", "no such adapter"), ("me/root@v1", "adapter_revision=v1"),
                        ("nothing", "no such folder")):  # fmt: skip
        keys = [f"model={MODEL}", f"policy.adapter_path={name}"]
        refused(train(hub, home, tmp_path / "run", *keys), words)
    keys = [f"policy.adapter_path={base / 'adapters'}", "policy.adapter_revision=v1"]
    refused(train(hub, home, tmp_path / "run", f"model={MODEL}", *keys), "has no revisions")
    keys = [f"model={MODEL}", "policy.adapter_path=me/root", "policy.adapter_revision=v9"]
    refused(train(hub, home, tmp_path / "run", *keys), "no revision 'v9'", "adapter_revision")


def test_the_bar_on_a_terminal(hub, tmp_path):
    """What a terminal gets: the name, and nothing that stays but the last line."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "data", "show", "countdown-tiny", "--set", f"model={MODEL}"],
        cwd=ROOT, env={**environment(hub, tmp_path, None), "TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.DEVNULL, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    told = b""
    try:
        while piece := os.read(leader, 65536):
            told += piece
    except OSError:  # the other side has closed
        pass
    os.close(leader)
    assert process.wait(60) == 0, told
    assert MODEL.encode() in told and b"kB" in told and b"Downloaded" in told
    assert shutil.which("true") is None or b"Fetching" not in told  # of huggingface_hub's own
