"""Models and adapters from the Hub: the real client, through the command line, against a Hub on
this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.hub_api import OTHER_TOKEN, TOKEN, sha256
from tests.hub_client import ROOT, data, environment, fetched, refused, simko, train
from tests.hub_server import Hub
from tests.malformed import pack, tensor
from tests.models import make_model

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


def test_a_model_is_downloaded_shown_pinned_and_resumed_offline(hub, files, tmp_path):
    home, run = tmp_path / "home", tmp_path / "run"
    commit = hub.repo(MODEL).history()[0].oid
    [done] = simko(hub, home, train(run, f"model={MODEL}"))
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
    resume = ["train", "--resume", str(run), "--plain", "--set"]
    [offline] = simko(hub, home, [*resume, "steps=2"], HF_HUB_OFFLINE="1")
    assert offline.returncode == 0 and len(hub.requests) == before, offline.stderr
    [online] = simko(hub, home, [*resume, "steps=3"])
    assert online.returncode == 0 and "Downloading" not in online.stderr, online.stderr
    metrics = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2, 3]


def test_revisions(hub, files, tmp_path):
    first = hub.repo(MODEL).history()[0].oid
    hub.repo(MODEL).heads["v1"] = first
    hub.add(MODEL, {"config.json": b"[]"})  # main is broken
    tag, commit, missing, at, embedded = simko(
        hub, tmp_path,
        data(f"model={MODEL}", "model_revision=v1"),
        data(f"model={MODEL}", f"model_revision={first}"),
        data(f"model={MODEL}", "model_revision=v9"), data(f"model={MODEL}@v1"),
        data("model=embedded", "model_revision=v1"),
    )  # fmt: skip
    assert tag.returncode == commit.returncode == 0, (tag.stderr, commit.stderr)
    refused(missing, MODEL, "no revision 'v9'", "model_revision")
    refused(at, "model_revision=v1", f"model={MODEL}")
    refused(embedded, "no revisions", "leave it")


@pytest.mark.slow
def test_what_the_hub_refuses_is_told_in_a_sentence(hub, files, tmp_path):
    gated, private = "someone/gated", "other/private"
    hub.add(gated, files, gated=True)
    hub.add(private, files, private=True)
    for status in (429, 500, 503):
        hub.add(f"someone/{status}", files)
        hub.fail(f"/api/models/someone/{status}", status=status, times=9)
    names = (
        gated,
        private,
        "someone/none",
        "some one/none",
        *(f"someone/{s}" for s in (429, 500, 503)),
    )
    told = simko(hub, tmp_path, *(data(f"model={name}") for name in names))
    page = f"{hub.url}/{gated}"
    refused(told[0], gated, page, "hf auth login")
    for done, name in zip(told[1:4], names[1:4], strict=True):
        refused(done, name, "no such model", "hf auth login")
    for done, words in zip(told[4:], ("wait some minutes", "500", "503"), strict=True):
        refused(done, words)
    told = simko(hub, tmp_path, data(f"model={gated}"), data(f"model={private}"), token=TOKEN)
    refused(told[0], gated, page, "hf auth login")
    refused(told[1], private, "no such model")
    assert simko(hub, tmp_path, data(f"model={private}"), token=OTHER_TOKEN)[0].returncode == 0
    refused(simko(hub, tmp_path, data(f"model={MODEL}"), token="hf_x")[0], "token", "hf auth login")


@pytest.mark.slow
def test_a_passing_failure_of_the_hub_does_not_keep_from_a_model_that_is_there(hub, tmp_path):
    line = data(f"model={MODEL}")
    assert simko(hub, tmp_path, line)[0].returncode == 0
    failures = [hub.fail(f"/api/models/{MODEL}", status=status) for status in (429, 503)]
    assert [done.returncode for done in simko(hub, tmp_path, line, line)] == [0, 0]
    assert [failure.times for failure in failures] == [0, 0]


LARGE = """
import sys
from simko_mlx.hub import progress_to
from simko_mlx.model_files import find_model
told = []
with progress_to(lambda *moment: told.append(moment)):
    print(find_model(sys.argv[1]))
dones, totals, names = zip(*told)
assert set(names) == {sys.argv[1]} and len(set(totals)) == 1 and len(told) > 3, told
assert dones[0] == 0 and list(dones) == sorted(dones) and dones[-1] == totals[0], told
print(totals[0])
"""


@pytest.mark.slow
def test_a_connection_that_breaks_half_way_goes_on_where_it_stopped(hub, files, tmp_path):
    size = 24_000_000  # the client writes pieces of 10 MB
    large = pack({"t": tensor("U8", [size], [0, size])}, bytes(size))
    hub.add(MODEL, {"model-large.safetensors": large})
    broken = hub.fail("GET /cdn/" + sha256(large), drop="reply")
    [done] = simko(hub, tmp_path, ["plan", "--model", MODEL])  # only its settings are fetched
    assert done.returncode in (0, 1) and broken.times == 1, done.stderr
    assert "model.safetensors" not in fetched(hub)
    done = subprocess.run(
        [sys.executable, "-c", LARGE, MODEL], cwd=ROOT, capture_output=True, text=True,
        env=environment(hub, tmp_path, None), timeout=100,
    )  # fmt: skip
    assert done.returncode == 0 and broken.times == 0, done.stderr
    folder, total = done.stdout.split()
    assert int(total) == len(large) + len(files["model.safetensors"])
    assert Path(folder, "model-large.safetensors").read_bytes() == large
    ranges = [r.headers.get("range") for r in hub.requests if r.path.endswith(sha256(large))]
    assert ranges[0] is None and ranges[1] == "bytes=10485760-"


@pytest.mark.slow
def test_a_connection_that_stays_broken_is_told_and_what_came_is_kept(hub, files, tmp_path):
    hub.fail("GET /cdn/", drop="action", times=99)
    line = train(tmp_path / "run", f"model={MODEL}")
    [done] = simko(hub, tmp_path, line)
    refused(done, "connection to the Hub broke", MODEL, "again")
    assert not (tmp_path / "run").exists()
    hub.failures.clear()
    before = len(hub.requests)
    assert simko(hub, tmp_path, line)[0].returncode == 0
    again = {r.path.split("/")[-1] for r in hub.requests[before:] if "/resolve/" in r.path}
    assert again == {"model.safetensors"}


@pytest.mark.slow
def test_without_a_connection(hub, tmp_path):
    home, port, offline = (
        tmp_path / "home",
        {"HF_ENDPOINT": "http://127.0.0.1:9"},
        {"HF_HUB_OFFLINE": "1"},
    )
    line = data(f"model={MODEL}")
    for more, words in ((port, "the Hub can't be reached"), (offline, "HF_HUB_OFFLINE")):
        began = time.monotonic()
        refused(simko(hub, home, line, **more)[0], MODEL, "not on this machine", words)
        assert time.monotonic() - began < 20
    assert not hub.requests
    assert simko(hub, home, line)[0].returncode == 0  # without weights
    commit = hub.repo(MODEL).history()[0].oid
    for more in (port, offline):
        again, pinned, weights = simko(
            hub, home, line, data(f"model={MODEL}", f"model_revision={commit}"),
            train(tmp_path / "run", f"model={MODEL}"), **more,
        )  # fmt: skip
        assert again.returncode == pinned.returncode == 0, (again.stderr, pinned.stderr)
        refused(weights, MODEL, "not wholly")


def test_a_disk_too_small_is_told_before_a_byte_is_fetched(hub, files, tmp_path):
    def go(free: int) -> subprocess.CompletedProcess[str]:
        [done] = simko(hub, tmp_path / "home", data(f"model={MODEL}"), FREE=str(free))
        return done

    needed = sum(len(files[name]) for name in WANTED - {"model.safetensors"})
    done = go(needed - 1)
    refused(done, MODEL, f"{needed / 1e3:.3g} kB", "are free", "HF_HOME", str(tmp_path / "home"))
    assert not fetched(hub)
    assert go(needed).returncode == 0 and fetched(hub)
    assert go(0).returncode == 0  # nothing is missing any more


STOPPED = """
import os, signal, sys, time
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1_000_000
from simko_mlx.hub import progress_to
from simko_mlx.model_files import find_model
pieces = []
def slow(done, total, name):
    pieces.append(done)
    if done > 1_000_000:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
try:
    with progress_to(slow):
        find_model(sys.argv[1])
except KeyboardInterrupt:
    print(pieces)
"""


def test_ctrl_c_ends_a_file_with_its_next_piece(hub, tmp_path):
    large = pack({"t": tensor("U8", [12_000_000], [0, 12_000_000])}, bytes(12_000_000))
    hub.add(MODEL, {"model-large.safetensors": large})
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, MODEL], cwd=ROOT, capture_output=True, text=True,
        env=environment(hub, tmp_path, None), timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) < 12 and json.loads(done.stdout)[-1] < 4_000_000
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".incomplete")]


@pytest.mark.slow
def test_ctrl_c_ends_a_download_that_stands_still(hub, tmp_path):
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


ASK = (
    "import sys; from transformers import AutoTokenizer; AutoTokenizer.from_pretrained(sys.argv[1])"
)


@pytest.mark.slow
def test_programs_of_a_model_are_neither_run_nor_asked_about(hub, tmp_path):
    """The programs are in local folders, where nothing keeps them from being found."""
    of_model, of_tokenizer = tmp_path / "a", tmp_path / "b"
    for folder in (of_model, of_tokenizer):
        make_model(folder, "llama")
        (folder / "custom.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    change(of_model / "config.json", model_file="custom.py")
    # mlx-lm takes it for a Llama; transformers doesn't know it.
    change(of_tokenizer / "config.json", model_type="xverse")
    auto = {"AutoTokenizer": ["custom.MyTokenizer", None]}
    change(of_tokenizer / "tokenizer_config.json", tokenizer_class="MyTokenizer", auto_map=auto)
    asked = subprocess.run(
        [sys.executable, "-c", ASK, str(of_tokenizer)], input="n\n", capture_output=True, text=True
    )
    assert "Do you wish to run the custom code?" in asked.stdout  # left to itself
    for folder in (of_model, of_tokenizer):
        lines = (data(f"model={folder}"), ["plan", "--model", str(folder)],
                 train(tmp_path / "run", f"model={folder}"))  # fmt: skip
        for done in simko(hub, tmp_path, *lines):
            refused(done, "program", "never run here")
            assert "Do you wish" not in done.stdout + done.stderr
    assert not (tmp_path / "ran").exists()


def change(path: Path, **settings: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_an_auto_map_that_nothing_needs_is_no_reason_to_refuse(hub, files, tmp_path):
    config = json.loads(files["config.json"])
    config["auto_map"] = {"AutoConfig": "custom.MyConfig"}
    hub.add(MODEL, {"config.json": json.dumps(config).encode(), "custom.py": b"raise SystemExit"})
    [done] = simko(hub, tmp_path, data(f"model={MODEL}"))
    assert done.returncode == 0 and "custom.py" not in fetched(hub), done.stderr


@pytest.mark.slow
def test_adapters_of_the_hub(hub, tmp_path):
    home, base = tmp_path / "home", tmp_path / "base"
    [done] = simko(hub, home, train(base, f"model={MODEL}"))
    assert done.returncode == 0, done.stderr
    made = {path.name: path.read_bytes() for path in (base / "adapters").iterdir()}
    peft = b'{"peft_type": "LORA"}'
    hub.add("me/root", made)
    both = {f"mlx/{name}": content for name, content in made.items()}
    hub.add("me/both", {**both, "adapter_config.json": peft, "adapter_model.safetensors": b"x"})
    hub.add("me/pickle", {"adapter_config.json": peft, "adapter_model.bin": b"\x80\x04"})
    hub.add("me/none", {"README.md": b"# nothing"})

    def line(name: str, *sets: str) -> list[str]:
        run = tmp_path / name.replace("/", "-")
        return train(run, f"model={MODEL}", f"policy.adapter_path={name}", *sets)

    good = ("me/root", "me/both")
    for name, done in zip(good, simko(hub, home, *(line(name) for name in good)), strict=True):
        assert done.returncode == 0, done.stderr
        first = tmp_path / name.replace("/", "-") / "checkpoints" / "step-000000"
        assert (first / "adapters.safetensors").read_bytes() == made["adapters.safetensors"]
        config = yaml.safe_load((tmp_path / name.replace("/", "-") / "config.yaml").read_text())
        assert re.fullmatch("[0-9a-f]{40}", config["policy"]["adapter_revision"])
    assert "adapter_model.safetensors" not in fetched(hub)
    # A run that is resumed has its own adapter.
    again = ["train", "--resume", str(tmp_path / "me-root"), "--set", "steps=2", "--plain"]
    assert simko(hub, home, again, HF_HUB_OFFLINE="1")[0].returncode == 0
    bad = {
        "pickle": line("me/pickle"), "not an mlx-lm adapter": line("me/none"),
        "no such adapter": line("me/nowhere"), "adapter_revision=v1": line("me/root@v1"),
        "no such folder": line("nothing"),
        "no revision 'v9'": line("me/root", "policy.adapter_revision=v9"),
        "has no revisions": line(str(base / "adapters"), "policy.adapter_revision=v1"),
    }  # fmt: skip
    told = simko(
        hub, home, *([*args[:3], str(tmp_path / "run"), *args[4:]] for args in bad.values())
    )
    for done, words in zip(told, bad, strict=True):
        refused(done, words)
    assert "adapter_model.bin" not in fetched(hub)


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
    assert b"Fetching" not in told  # of huggingface_hub's own
