"""Kernels are used only once they have proved themselves; whatever goes wrong turns them off."""

from __future__ import annotations

import json
import sys
import warnings

import mlx.core as mx
import pytest

from simko_mlx.kernels import Head, head_statistics, metal, metal_cases, selfcheck
from simko_mlx.kernels.selfcheck import HeadShape, Verdict
from tests.kernels.metal_fixture import metal_backend  # noqa: F401
from tests.metal_emulator import EmulatedMetalKernel

SHAPE = HeadShape(1000, "float32")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    selfcheck._verdict.cache_clear()
    selfcheck._told.cache_clear()
    yield tmp_path / "cache" / "simko-mlx" / "metal-kernels.json"
    selfcheck._verdict.cache_clear()
    selfcheck._told.cache_clear()


@pytest.fixture
def pretend_metal(monkeypatch):
    """A machine with Metal, whose child process answers what a test wants."""
    monkeypatch.setattr(selfcheck, "has_metal", lambda: True)
    asked = []

    def answer(*code: str):
        original = selfcheck._ask

        def ask(shape):
            asked.append(shape)
            return original(shape)

        monkeypatch.setattr(selfcheck, "CHILD", "\n".join(code))
        monkeypatch.setattr(selfcheck, "_ask", ask)
        return asked

    return answer


GOOD = (
    "import json, sys",
    "json.loads(sys.argv[1])",
    "print('noise')",
    "print('" + json.dumps({"ok": True, "reason": ""}) + "')",
)


def test_without_metal_nothing_is_asked_or_written(own_cache):
    if mx.metal.is_available():
        pytest.skip("there is Metal here")
    assert selfcheck.verdict(SHAPE) == Verdict(False, "there is no Metal device")
    assert not own_cache.exists()


def test_a_good_answer_is_kept(pretend_metal, own_cache):
    asked = pretend_metal(*GOOD)
    first = selfcheck.verdict(SHAPE)
    assert first.ok and not first.cached
    selfcheck._verdict.cache_clear()  # another process
    again = selfcheck.verdict(SHAPE)
    assert again.ok and again.cached and asked == [SHAPE]
    assert list(json.loads(own_cache.read_text())) == [selfcheck.fingerprint(SHAPE)]


WRONG = ("print('" + json.dumps({"ok": False, "reason": "tail differs"}) + "')",)


@pytest.mark.parametrize(
    ("code", "reason", "kept"),
    [
        (WRONG, "tail differs", True),
        (["import os", "os.abort()"], "crashed (SIGABRT)", True),
        (["import os, signal", "os.kill(os.getpid(), signal.SIGSEGV)"], "crashed (SIGSEGV)", True),
        # What says nothing of the kernels is off for this process alone.
        (["import os, signal", "os.kill(os.getpid(), signal.SIGKILL)"], "crashed (SIGKILL)", False),
        (["raise RuntimeError('no library')"], "code 1 (RuntimeError: no library)", False),
        (["import sys", "sys.stderr.buffer.write(b'\\xff')", "sys.exit(3)"], "code 3", False),
        (["print('hello')"], "ended with code 0", False),
        (["pass"], "ended with code 0 (no word)", False),
    ],
)
def test_whatever_goes_wrong_turns_them_off(pretend_metal, own_cache, code, reason, kept):
    pretend_metal(*code)
    found = selfcheck.verdict(SHAPE)
    assert not found.ok and reason in found.reason
    assert own_cache.exists() == kept
    if kept:
        (entry,) = json.loads(own_cache.read_text()).values()
        assert entry["ok"] is False


def test_a_check_that_does_not_end_is_ended(pretend_metal, monkeypatch, own_cache):
    monkeypatch.setattr(selfcheck, "TIMEOUT", 0.5)
    pretend_metal("import time", "time.sleep(30)")
    assert "did not end within" in selfcheck.verdict(SHAPE).reason
    assert not own_cache.exists()


def test_a_program_that_can_not_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/program")
    found = selfcheck._ask(SHAPE)
    assert not found.ok and "could not be started" in found.reason and not found.final


def test_a_file_in_the_current_folder_is_no_module(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise RuntimeError('my own json')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert "my own json" not in selfcheck._ask(SHAPE).reason


def test_without_metal_now_says_nothing_of_later(pretend_metal, monkeypatch):
    pretend_metal(*GOOD)
    monkeypatch.setattr(selfcheck, "has_metal", lambda: False)
    assert not selfcheck.verdict(SHAPE).ok
    monkeypatch.setattr(selfcheck, "has_metal", lambda: True)
    assert selfcheck.verdict(SHAPE).ok


def test_another_shape_version_or_text_is_asked_about_anew(pretend_metal, monkeypatch):
    asked = pretend_metal(*GOOD)
    selfcheck.verdict(SHAPE)
    selfcheck.verdict(HeadShape(1000, "bfloat16"))
    assert len(asked) == 2
    for name, value in (("__version__", "99"), ("source", lambda name: "other text")):
        selfcheck._verdict.cache_clear()
        monkeypatch.setattr(selfcheck, name, value)
        selfcheck.verdict(SHAPE)
    assert len(asked) == 4


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"x": 3}'])
def test_a_damaged_cache_is_as_good_as_none(pretend_metal, own_cache, content):
    asked = pretend_metal(*GOOD)
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text(content)
    assert selfcheck.verdict(SHAPE).ok and len(asked) == 1
    assert selfcheck.fingerprint(SHAPE) in json.loads(own_cache.read_text())


def test_a_cache_that_can_not_be_written_is_done_without(pretend_metal, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    pretend_metal(*GOOD)
    assert selfcheck.verdict(SHAPE).ok


def test_forgetting_asks_again(pretend_metal):
    asked = pretend_metal(*GOOD)
    selfcheck.verdict(SHAPE)
    selfcheck.forget()
    selfcheck.verdict(SHAPE)
    assert len(asked) == 2


def test_a_library_user_is_warned_once_and_served_by_plain_mlx(pretend_metal):
    pretend_metal("import os", "os.abort()")
    hidden, tokens = mx.random.normal((3, 8)), mx.array([0, 1, 2])
    weight = mx.random.normal((1000, 8))
    with pytest.warns(RuntimeWarning, match=r"kernels are off.*SIGABRT.*doctor --recheck"):
        out = head_statistics(hidden, tokens, weight)
    wanted = head_statistics(hidden, tokens, weight, backend="portable")
    assert mx.array_equal(out.logprobs, wanted.logprobs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head_statistics(hidden, tokens, weight)


def test_trusted_kernels_are_what_auto_uses(pretend_metal, monkeypatch):
    pretend_metal(*GOOD)
    used = []
    monkeypatch.setattr(
        metal, "forward", lambda *args, **options: used.append(1) or portable_forward(*args)
    )
    from simko_mlx.kernels.portable import forward as portable_forward

    head_statistics(mx.ones((3, 8)), mx.array([0, 1, 2]), mx.ones((1000, 8)))
    assert used


def test_the_child_says_what_the_comparison_found(metal_backend, capsys, monkeypatch):  # noqa: F811
    """Its own code, with the kernels emulated or on Metal; all cases are in test_metal_kernels."""
    some = list(metal_cases.cases(900, "bfloat16", 0.5, None))[-3:]
    monkeypatch.setattr(metal_cases, "cases", lambda *shape: some)
    selfcheck.main(json.dumps({"vocabulary": 900, "dtype": "bfloat16", "scale": 0.5}))
    assert json.loads(capsys.readouterr().out) == {"ok": True, "reason": ""}


def test_the_child_names_the_case_that_differs(metal_backend, capsys, monkeypatch):  # noqa: F811
    if metal_backend == "metal":
        pytest.skip("kernels can't be broken on Metal itself")
    monkeypatch.setattr(
        EmulatedMetalKernel, "mutate", lambda text: text.replace("O(skipped ? 0.0f : e)", "O(e)")
    )
    selfcheck.main(json.dumps({"vocabulary": 900, "dtype": "bfloat16"}))
    answer = json.loads(capsys.readouterr().out)
    assert not answer["ok"] and "mean differs by" in answer["reason"]


def test_the_real_child_runs(own_cache):
    """Without Metal it fails as any machine's trouble would; with it, it must agree."""
    found = selfcheck.check(SHAPE)
    if mx.metal.is_available():
        assert found.ok, found.reason
    else:
        assert not found.ok and "No Metal back-end" in found.reason


def test_the_shape_is_that_of_the_logits():
    head = Head(mx.zeros((70, 4), dtype=mx.bfloat16), softcap=30.0, scale=0.5)
    assert HeadShape.of(head, mx.bfloat16) == HeadShape(70, "bfloat16", 0.5, 30.0)
