"""Checkpoints appear whole, are checked by hash, and survive a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simko_mlx import checkpoint
from simko_mlx.types import UserError
from tests.runs import run, small_config

STATE = dict.fromkeys(sorted(checkpoint.STATE_KEYS), 1)
FILES = {"state.json": json.dumps(STATE).encode(), "adapters.safetensors": b"\x00" * 1000}


def loaded(run_dir, step=None):
    found = checkpoint.load(run_dir, step)
    assert found is not None
    return found


def test_save_and_load(tmp_path):
    assert checkpoint.load(tmp_path) is None
    for step in (0, 5, 10):
        checkpoint.save(tmp_path, step, FILES)
    folder, state = loaded(tmp_path)
    assert folder.name == "step-000010" and state == STATE
    folder, _ = loaded(tmp_path, 5)
    assert folder.name == "step-000005"
    assert {p.name for p in folder.iterdir()} == {*FILES, "manifest.json"}
    with pytest.raises(UserError, match="no checkpoint of step 7; it has: 0, 5, 10"):
        checkpoint.load(tmp_path, 7)


def test_pruning_keeps_the_newest_and_the_protected(tmp_path):
    for step in range(0, 60, 10):
        checkpoint.save(tmp_path, step, FILES)
    checkpoint.prune(tmp_path, 2, {20})
    assert checkpoint.steps(tmp_path) == [20, 40, 50]
    assert not list(tmp_path.rglob(".old-*"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


def rewrite(folder: Path, name: str, data: bytes | None) -> None:
    """Another content (or none) with a manifest that fits it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if data is None:
        (folder / name).unlink()
        del manifest[name]
    else:
        (folder / name).write_bytes(data)
        manifest[name] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: flip(f / "adapters.safetensors"), "adapters.safetensors differs"),
        (lambda f: (f / "adapters.safetensors").unlink(), "adapters.safetensors is missing"),
        (lambda f: (f / "manifest.json").unlink(), "no manifest.json"),
        (lambda f: (f / "manifest.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "manifest.json").write_text("{}"), "lists no files"),
        (lambda f: (f / "adapters.safetensors").write_bytes(b""), "adapters.safetensors differs"),
        (lambda f: to_folder(f / "adapters.safetensors"), "adapters.safetensors can't be read"),
        (lambda f: to_folder(f / "manifest.json"), "manifest.json can't be read"),
        (lambda f: rewrite(f, "state.json", b"{}"), "state.json is not one of this version"),
        (lambda f: rewrite(f, "state.json", b"["), "state.json is missing or not JSON"),
        (lambda f: rewrite(f, "state.json", None), "state.json is missing or not JSON"),
        (lambda f: to_file(f), "manifest.json can't be read"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_the_way_out(tmp_path, damage, words):
    checkpoint.save(tmp_path, 5, FILES)
    damage(checkpoint.save(tmp_path, 10, FILES))
    with pytest.raises(UserError, match=rf"step-000010 is damaged: .*{words}.*from step 5"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("failing", ["write", "fsync", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, failing, number):
    checkpoint.save(tmp_path, 5, FILES)

    def full(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    if failing == "write":
        monkeypatch.setattr(checkpoint, "_write_durably", full)
    else:
        monkeypatch.setattr(os, failing, full)
    with pytest.raises(UserError, match=r"no space to save checkpoint step-000010 .*--resume"):
        checkpoint.save(tmp_path, 10, FILES)
    monkeypatch.undo()
    assert checkpoint.steps(tmp_path) == [5] and not list(tmp_path.rglob(".tmp-*"))
    assert loaded(tmp_path)[0].name == "step-000005"


def test_other_errors_are_not_called_a_full_disk(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="I/O error"):
        checkpoint.save(tmp_path, 10, FILES)


def test_a_run_on_a_full_disk_stops_with_one_sentence_and_goes_on_later(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    config = small_config(eval__before=False, eval__after=False)
    original = checkpoint._write_durably

    def full(path, data):
        if "step-000004" in str(path) and path.name == "optimizer.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, data)

    monkeypatch.setattr(checkpoint, "_write_durably", full)
    with pytest.raises(UserError, match="There is no space to save checkpoint step-000004"):
        run(config, folder)
    assert checkpoint.steps(folder) == [0, 2] or checkpoint.steps(folder)[-1] == 2
    monkeypatch.undo()
    summary, _ = run(config, folder, resume=True)
    assert summary.step == 4
    run(config, tmp_path / "whole")
    name = "adapters/adapters.safetensors"
    assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_logs_on_a_full_disk_stop_the_run_with_one_sentence(tmp_path, monkeypatch):
    from simko_mlx.loggers import JsonlLogger

    def full(self, *args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(JsonlLogger, "_write", full)
    config = small_config(eval__before=False, eval__after=False)
    with pytest.raises(UserError, match="no space to save the run's logs"):
        run(config, tmp_path / "run")


def test_the_lock_is_exclusive_between_processes(tmp_path):
    code = (
        "import sys; from pathlib import Path; from simko_mlx import checkpoint\n"
        "with checkpoint.locked(Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    root = Path(__file__).parents[1]
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin and holder.stdout
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(UserError, match=f"in use by process {holder.pid}"),
        checkpoint.locked(tmp_path),
    ):
        pass
    holder.kill()
    holder.wait(10)
    with checkpoint.locked(tmp_path):  # the lock ended with the process
        pass


def test_atomic_replacement_never_shows_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    checkpoint.write_atomically(path, b"old")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_atomically(path, b"new content")
    assert path.read_bytes() == b"old"


def test_a_changed_data_set_is_noticed_on_resume(tmp_path):
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"{i} 2 3 > 6 :", "answer": "L"} for i in range(1, 9)]
    data.write_text("\n".join(json.dumps(r) for r in rows))
    config = small_config(
        data__source="jsonl",
        data__path=str(data),
        data__heldout=2,
        verifier__name="exact",
        steps=1,
        eval__before=False,
        eval__after=False,
    )
    run(config, tmp_path / "run")
    data.write_text("\n".join(json.dumps({**r, "answer": "R"}) for r in rows))
    config.steps = 2
    with pytest.raises(UserError, match="training problems or the tokenizer have changed"):
        run(config, tmp_path / "run", resume=True)
