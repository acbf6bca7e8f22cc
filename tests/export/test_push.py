"""``simko-mlx push`` through the real client, against a Hub on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import safetensors.numpy
from huggingface_hub import ModelCard

from simko_mlx import checkpoint
from simko_mlx.export.base import describe_base
from simko_mlx.export.peft import peft_files
from simko_mlx.export.push import check_repo
from simko_mlx.export.source import read_source
from simko_mlx.types import UserError
from tests.export.pushing import (
    PATHS,
    ROOT,
    environment,
    fingerprint,
    sent,
    simko,
    start,
    trained_run,
)
from tests.hub_api import OTHER_TOKEN, READ_TOKEN, TOKEN
from tests.hub_server import Hub


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return trained_run(tmp_path_factory.mktemp("push"))


@pytest.fixture
def hub():
    with Hub() as found:
        yield found


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "home"


def last_lines(done) -> list[str]:
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-2:]


def test_a_push_is_one_commit_of_what_the_run_holds_and_a_second_changes_nothing(
    run_dir, hub, home
):
    before = fingerprint(run_dir)
    env = environment(hub, home)
    done = simko(env, "push", run_dir, "me/x")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"Pushed, 9 of 9 files new or changed: {hub.url}/me/x"
    files = hub.files("me/x")
    assert files.keys() == PATHS
    sizes = re.findall(r"^ +([\d,]+)  (\S+)$", done.stdout, re.M)
    assert {path: int(size.replace(",", "")) for size, path in sizes} == {
        path: len(data) for path, data in files.items()
    }
    commits = hub.repo("me/x").history()
    titles = ["Upload the adapter of step 2 with simko-mlx", "initial commit"]
    assert [commit.title for commit in commits] == titles
    weights = safetensors.numpy.load(files["mlx/adapters.safetensors"])
    kept = safetensors.numpy.load((run_dir / "adapters/adapters.safetensors").read_bytes())
    assert weights.keys() == kept.keys()
    assert all((weights[name] == kept[name]).all() for name in kept)
    assert ModelCard(files["README.md"].decode()).data.to_dict()["library_name"] == "peft"

    number = len(hub.requests)
    again = simko(env, "push", run_dir, "me/x")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == (
        f"Nothing has changed, and no commit was made: {hub.url}/me/x"
    )
    assert hub.repo("me/x").history() == commits
    assert not any(re.search("lfs|preupload|commit", name) for name in hub.names()[number:])
    assert fingerprint(run_dir) == before


@pytest.mark.slow
def test_only_what_changed_is_sent_and_figures_that_do_not_hold_leave(run_dir, hub, home):
    env = environment(hub, home)
    assert simko(env, "push", run_dir, "me/x").returncode == 0
    before, number = hub.files("me/x"), len(hub.requests)
    done = simko(env, "push", run_dir, "me/x", "--scale", "0.5")
    assert done.returncode == 0, done.stderr
    after = hub.files("me/x")
    # The scale is in the settings: the weights are the same, and not sent again.
    assert not any("lfs" in name for name in hub.names()[number:])
    changed = {path for path in after if before[path] != after[path]}
    assert changed == {"README.md", "adapter_config.json", "mlx/adapter_config.json"}
    assert before.keys() - after.keys() == {"pass_at_k.svg", "training/evaluation.json"}
    assert "removed: pass_at_k.svg, training/evaluation.json" in done.stderr
    alpha = [json.loads(files["adapter_config.json"])["lora_alpha"] for files in (before, after)]
    assert alpha[1] == alpha[0] / 2


@pytest.mark.slow
def test_a_pull_request_holds_what_main_does_not_and_is_made_once(run_dir, hub, home):
    hub.add("other/x", {"README.md": b"theirs"})
    words = ["push", run_dir, "other/x", "--create-pr", "--to", "peft"]
    for expected in ("Pushed, 7 of 7 files new or changed", "Nothing has changed, and no commit"):
        done = simko(environment(hub, home), *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].startswith(expected)
        assert done.stdout.splitlines()[-1].endswith("/other/x/discussions/1")
    assert hub.files("other/x") == {"README.md": b"theirs"}
    assert hub.files("other/x", "refs/pr/1").keys() == {p for p in PATHS if "mlx/" not in p}
    assert len(hub.repo("other/x").titles) == 1


@pytest.mark.slow
def test_a_name_alone_is_the_tokens_owners_and_the_token_may_be_a_saved_one(run_dir, hub, home):
    env = environment(hub, home, token=None)
    (home / "token").write_text(TOKEN)
    done = simko(env, "push", run_dir, "x", "--private", "--step", "1", "--to", "mlx")
    assert done.returncode == 0, done.stderr
    assert hub.repo("me/x").private
    assert "step 1" in hub.repo("me/x").history()[0].title
    assert {path for path in hub.files("me/x") if path.startswith("mlx/")} == {
        "mlx/adapter_config.json",
        "mlx/adapters.safetensors",
    }
    assert "adapter_model.safetensors" not in hub.files("me/x")


def test_a_dry_run_lists_what_would_be_sent_without_network_or_token(run_dir, hub, home):
    env = environment(hub, home, token=None, HF_HUB_OFFLINE="1")
    done = simko(env, "push", run_dir, "me/x", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"^ +[\d,]+  (\S+)$", done.stdout, re.M)) == PATHS
    assert hub.requests == []


@pytest.mark.slow
def test_what_peft_can_not_say_is_left_out_or_refused(run_dir, hub, home, tmp_path):
    # The embedded model's layers have other names in transformers.
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    config = (folder / "config.yaml").read_text()
    embedded = re.sub(r"(?m)^model: .*$", "model: embedded", config)
    (folder / "config.yaml").write_text(embedded)
    both = simko(environment(hub, home), "push", folder, "me/x", "--dry-run")
    assert both.returncode == 0, both.stderr
    assert "Without PEFT's files: " in both.stderr
    alone = simko(environment(hub, home), "push", folder, "me/x", "--to", "peft")
    assert alone.returncode == 2 and hub.requests == []


REFUSED = [
    ({"token": None}, (), "You are not logged in to the Hub: run `hf auth login`"),
    ({"token": "hf_unknown"}, (), "doesn't accept the token (status 401"),
    ({"token": READ_TOKEN}, (), "must use a write token"),
    ({"token": OTHER_TOKEN}, (), "doesn't let this token write to me/x (status 403"),
    ({"HF_HUB_OFFLINE": "1"}, (), "HF_HUB_OFFLINE is set"),
    ({}, ("--private",), "me/x exists and is public"),
]


def some(cases: list, plain: int) -> list:
    """The first cases in the plain suite, and the others in the slow one: each is a process."""
    slow = [pytest.param(*case, marks=pytest.mark.slow) for case in cases[plain:]]
    return [*cases[:plain], *slow]


@pytest.mark.parametrize(
    ("changes", "args", "words"), some(REFUSED, 1), ids=lambda value: str(value)[:40]
)
def test_what_the_user_must_change_is_a_sentence_with_the_command_and_exit_code_2(
    run_dir, hub, home, changes, args, words
):
    hub.add("me/x", {"own.txt": b"mine"})
    done = simko(environment(hub, home, **changes), "push", run_dir, "me/x", *args)
    assert done.returncode == 2
    sentence, command = last_lines(done)
    assert sentence.startswith("error: ") and words in sentence
    assert command == " ".join(["simko-mlx", "push", str(run_dir), "me/x", *args])
    assert hub.files("me/x") == {"own.txt": b"mine"}
    assert not any("lfs" in name for name in hub.names())


@pytest.mark.parametrize(
    ("repo", "words"),
    [
        ("datasets/me/x", "no model repository"),
        ("https://huggingface.co/me/x", "is an address"),
        ("me/x/y", "owner/name"),
        ("me/x..y", "single dots"),
        ("me/ x", "owner/name"),
        ("", "owner/name"),
    ],
)
def test_an_id_that_can_not_be_one(repo, words):
    with pytest.raises(UserError, match=re.escape(words)):
        check_repo(repo)


def test_an_id_that_can_not_be_one_is_told_before_anything_is_done(run_dir, hub, home):
    done = simko(environment(hub, home), "push", run_dir, "me/x/y")
    assert done.returncode == 2 and hub.requests == []
    assert "owner/name" in done.stderr and done.stderr.count("\n") == 1


FAILURES = [
    ("POST .*/commit/", {"status": 409}, 1, "changed by somebody else"),
    ("POST .*/commit/", {"status": 412}, 1, "changed by somebody else"),
    ("POST .*/commit/", {"status": 500}, 1, "a problem of its own (status 500"),
    ("POST .*/commit/", {"status": 403}, 2, "doesn't let this token write"),
    ("POST .*/commit/", {"status": 404}, 2, "has no me/x"),
    ("POST .*/commit/", {"status": 429, "headers": {"Retry-After": "7"}}, 1, "no more requests"),
    ("POST .*/commit/", {"drop": "upload"}, 1, "connection to the Hub failed"),
    ("POST .*/commit/", {"status": 200, "body": b"<html>"}, 1, "can't be read"),
    ("POST /api/repos/create", {"status": 503}, 1, "a problem of its own"),
    ("POST /api/repos/create", {"drop": "before"}, 1, "connection to the Hub failed"),
    ("POST /api/repos/create", {"drop": "reply"}, 1, "connection to the Hub failed"),
    ("preupload", {"status": 429, "headers": {"Retry-After": "3600"}}, 1, "wait for 3600 s"),
    ("GET /api/models/me/x/rev", {"status": 502, "body": b"<html>"}, 1, "of its own (status 502"),
    ("validate-yaml", {"status": 400, "body": {"errors": [{"message": "bad licence"}]}}, 2,
     "doesn't accept the model card (bad licence)"),
    ("GET /api/models/me/x$", {"hang": 60}, 1, "connection to the Hub failed (timed out)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "how", "code", "words"), some(FAILURES, 1), ids=lambda value: str(value)[:40]
)
def test_a_failure_is_one_sentence_and_the_same_push_succeeds_after_it(
    run_dir, hub, home, pattern, how, code, words
):
    hub.fail(pattern, **how)
    env, args = environment(hub, home), ["push", run_dir, "me/x", "--timeout", "3"]
    began = time.monotonic()
    done = simko(env, *args)
    assert time.monotonic() - began < 30
    assert done.returncode == code, done.stderr
    sentence, command = last_lines(done)
    assert sentence.startswith("error: ") and words in sentence
    assert command == f"simko-mlx push {run_dir} me/x --timeout 3"
    assert all("Retrying" not in line for line in done.stderr.splitlines())
    exists = ("models", "me/x") in hub.repos
    assert not exists or hub.files("me/x") == {}
    assert simko(env, *args).returncode == 0
    assert hub.files("me/x").keys() == PATHS
    assert len(hub.repo("me/x").history()) == 2


@pytest.mark.slow
def test_a_reply_that_was_lost_after_the_commit_makes_no_second_one(run_dir, hub, home):
    hub.fail("POST .*/commit/", drop="action")
    assert simko(environment(hub, home), "push", run_dir, "me/x").returncode == 1
    done = simko(environment(hub, home), "push", run_dir, "me/x")
    assert done.returncode == 0 and "Nothing has changed" in done.stdout
    assert len(hub.repo("me/x").history()) == 2


@pytest.mark.slow
def test_what_passes_by_itself_is_waited_for(run_dir, hub, home):
    hub.fail("preupload", status=429, headers={"Retry-After": "1"})
    hub.fail("PUT /lfs-put", drop="upload")
    hub.fail("objects/batch", status=503)
    hub.fail("GET .*/tree/", status=502, body=b"<html>")
    done = simko(environment(hub, home), "push", run_dir, "me/x")
    assert done.returncode == 0, done.stderr
    assert "The Hub asks to wait for 1 s (status 429)." in done.stderr
    assert hub.files("me/x").keys() == PATHS


@pytest.mark.slow
def test_a_hub_that_takes_an_upload_and_never_answers_is_given_up(run_dir, hub, home):
    hub.fail("PUT /lfs-put", hang=60, times=20)
    began = time.monotonic()
    done = simko(environment(hub, home), "push", run_dir, "me/x", "--timeout", "1")
    assert done.returncode == 1 and time.monotonic() - began < 30
    assert "gave no good answer for" in last_lines(done)[0]


def test_without_a_network_it_ends_at_once(run_dir, hub, home):
    env = environment(hub, home, HF_ENDPOINT="http://127.0.0.1:9")
    began = time.monotonic()
    done = simko(env, "push", run_dir, "me/x")
    assert done.returncode == 1 and time.monotonic() - began < 20
    assert "connection to the Hub failed" in last_lines(done)[0]


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_an_upload_leaves_with_the_command(run_dir, hub, home):
    hub.fail("PUT /lfs-put", hang=60)
    push = start(environment(hub, home), "push", run_dir, "me/x")
    wait_for(lambda: any("PUT /lfs-put" in name for name in hub.names()))
    os.kill(push.pid, signal.SIGINT)
    _, stderr = push.communicate(timeout=20)
    assert push.returncode == 130
    assert stderr.decode().splitlines()[-1] == f"simko-mlx push {run_dir} me/x"
    assert b"Traceback" not in stderr
    hub.failures.clear()
    assert simko(environment(hub, home), "push", run_dir, "me/x").returncode == 0


@pytest.mark.slow
def test_the_run_can_be_trained_on_while_the_network_is_slow(run_dir, hub, home):
    hub.fail("PUT /lfs-put", hang=60)
    push = start(environment(hub, home), "push", run_dir, "me/x")
    wait_for(lambda: any("PUT /lfs-put" in name for name in hub.names()))
    with checkpoint.locked(run_dir):
        pass
    push.kill()
    push.communicate()


def test_on_a_terminal_a_bar_counts_the_bytes_and_leaves_no_trace(run_dir, hub, home):
    env = {**environment(hub, home), "COLUMNS": "80", "LINES": "24"}
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        words = [sys.executable, "-m", "cli", "push", str(run_dir), "me/x"]
        os.execve(sys.executable, words, env)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal says that its program has ended
        while piece := os.read(terminal, 4096):
            shown += piece
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    # One bar, which is cleared before the last line.
    text = shown.decode()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    bars = re.findall(r"sending .*?([\d.]+)/([\d.]+) kB", text)
    assert bars and bars[-1][0] == bars[-1][1]
    assert text.rstrip().endswith(f"\x1b[2KPushed, 9 of 9 files new or changed: {hub.url}/me/x")
    assert "LFS" not in text  # the client's own bars


def wait_for(condition) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_peft_files_are_the_exports_and_the_token_is_in_headers_alone(run_dir, hub, home):
    assert simko(environment(hub, home), "push", run_dir, "me/x").returncode == 0
    source = read_source(run_dir)
    for name, data in peft_files(source, describe_base(source.config)).items():
        assert hub.files("me/x")[name] == data
    for request in hub.requests:
        request.headers.pop("authorization", None)
    assert TOKEN.encode() not in sent(hub.requests)
