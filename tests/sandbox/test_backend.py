"""Who may run a sandbox, with what options: nothing is started here."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

import pytest

from simko_mlx.sandbox import backend, linux, macos
from simko_mlx.sandbox.backend import Backend, choose, reachable
from simko_mlx.sandbox.limits import Limits, rlimits
from simko_mlx.sandbox.runner import Pipes, python_command, source
from simko_mlx.types import UserError

ON = {"enabled": True, "uid": None}


@pytest.fixture
def machine(monkeypatch):
    """A machine that has everything, for a plain user on Linux; change what differs."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    monkeypatch.setattr(backend, "_own_python", lambda: ("/opt/py/bin/python3", "/opt/py"))
    monkeypatch.setattr(backend, "reachable", lambda path, uid: True)
    monkeypatch.delenv("SUDO_UID", raising=False)
    return monkeypatch


def test_a_plain_user_runs_as_itself_with_its_own_python(machine):
    assert choose(ON) == Backend("linux", "/usr/bin/bwrap", "/opt/py/bin/python3", "/opt/py", None)


@pytest.mark.parametrize("section", [None, {}, {"enabled": False}, {"enabled": 1}, {"uid": 5}])
def test_it_is_off_until_the_config_says_so(machine, section):
    with pytest.raises(UserError, match=r"verifier\.sandbox\.enabled: true"):
        choose(section)


def test_root_needs_another_user(machine):
    machine.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UserError, match=r"set verifier\.sandbox\.uid"):
        choose(ON)
    assert choose({**ON, "uid": 54321}).uid == 54321


@pytest.mark.parametrize("uid", [0, -1, 65534, 2**31, True, 1.5, "5"])
def test_root_must_not_become_root_or_nobody(machine, uid):
    machine.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UserError, match=r"verifier\.sandbox\.uid is"):
        choose({**ON, "uid": uid})


def test_root_must_not_become_somebody(machine):
    import pwd

    taken = [user for user in pwd.getpwall() if 0 < user.pw_uid < 65534]
    if not taken:
        pytest.skip("this machine has no other users")
    machine.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UserError, match=rf"is the user {taken[0].pw_name}"):
        choose({**ON, "uid": taken[0].pw_uid})


def test_others_can_not_become_another_user(machine):
    with pytest.raises(UserError, match="only root"):
        choose({**ON, "uid": 54321})
    assert choose({**ON, "uid": 1000}).uid == 1000


@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("user", [0, 1000])
def test_not_under_sudo(machine, system, user):
    machine.setattr(sys, "platform", system)
    machine.setattr(os, "geteuid", lambda: user)
    machine.setenv("SUDO_UID", "1000")
    with pytest.raises(UserError, match="sudo"):
        choose({**ON, "uid": 54321})


def test_never_as_root_on_macos(machine):
    machine.setattr(sys, "platform", "darwin")
    machine.setattr(os, "geteuid", lambda: 0)
    for uid in (None, 54321):
        with pytest.raises(UserError, match="not run as root"):
            choose({**ON, "uid": uid})


def test_no_environment_variable_changes_that(machine):
    machine.setattr(os, "geteuid", lambda: 0)
    for name in ("SIMKO_HOSTILE", "SIMKO_SANDBOX", "SIMKO_SANDBOX_UID", "SANDBOX"):
        machine.setenv(name, "1")
    with pytest.raises(UserError):
        choose(ON)


def test_where_there_is_none_the_message_says_what_to_install(machine):
    machine.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(UserError, match="apt install bubblewrap"):
        choose(ON)


def test_other_machines_and_systems_are_refused(machine):
    machine.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(UserError, match="riscv64"):
        choose(ON)
    machine.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="win32"):
        choose(ON)


def test_macos_needs_its_tool_and_a_python_of_its_own(machine):
    machine.setattr(sys, "platform", "darwin")
    assert choose(ON) == Backend(
        "darwin", "/usr/bin/sandbox-exec", "/opt/py/bin/python3", "/opt/py", None
    )
    home = os.path.realpath(Path.home())
    machine.setattr(backend, "_own_python", lambda: (f"{home}/bin/python3", home))
    with pytest.raises(UserError, match="home folder"):
        choose(ON)
    machine.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="sandbox-exec"):
        choose(ON)


def test_a_python_that_the_user_can_not_reach_gives_way_to_the_systems(machine):
    machine.setattr(backend, "reachable", lambda path, uid: path.startswith("/usr"))
    assert choose(ON).prefix == "/usr"
    machine.setattr(backend, "reachable", lambda path, uid: False)
    with pytest.raises(UserError, match="can't reach the Python"):
        choose(ON)


@pytest.mark.parametrize("prefix", ["/", os.path.realpath(Path.home())])
def test_a_folder_that_holds_more_than_a_python_is_not_shown(machine, prefix):
    machine.setattr(backend, "_own_python", lambda: (f"{prefix}/bin/python3", prefix))
    assert choose(ON).prefix == "/usr"


def test_reachable_goes_all_the_way_down(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    file = folder / "python"
    file.write_text("")
    stranger = os.geteuid() + 12345
    for mode, yes in ((0o755, True), (0o744, False), (0o700, False)):
        file.chmod(mode)
        assert _below(file, folder, stranger) is yes
        assert reachable(str(file), file.stat().st_uid) is _all_own(file)
    file.chmod(0o755)
    folder.chmod(0o700)
    assert not reachable(str(file), stranger)
    assert not reachable(str(folder / "none"), stranger)


def _below(file: Path, folder: Path, uid: int) -> bool:
    """reachable(), with everything above the folder open."""
    for parent in folder.parents:
        if not parent.stat().st_mode & 0o1:
            found = file.stat().st_mode & 0o5 == 0o5 and folder.stat().st_mode & 0o1 == 0o1
            return found and not reachable(str(file), uid)
    return reachable(str(file), uid)


def _all_own(file: Path) -> bool:
    uid = file.stat().st_uid
    return all(
        parent.stat().st_mode & (0o100 if parent.stat().st_uid == uid else 0o1)
        for parent in file.parents
    )


def pairs(words: list[str], option: str, count: int) -> list[tuple[str, ...]]:
    places = [i for i, word in enumerate(words) if word == option]
    return [tuple(words[i + 1 : i + 1 + count]) for i in places]


def test_what_bwrap_is_asked_for():
    made = Backend("linux", "/usr/bin/bwrap", "/opt/py/bin/python3", "/opt/py", None)
    words = linux.options(made, Limits())
    assert words[:5] == ["--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
    assert {"--die-with-parent", "--new-session", "--clearenv"} <= set(words)
    assert "--share-net" not in words
    assert not [word for word in words if word.startswith(("--bind", "--dev-bind", "--cap-add"))]
    shown = {source for source, _ in pairs(words, "--ro-bind", 2)}
    system = {f"/{name}" for name in ("bin", "sbin", "lib", "lib32", "lib64")}
    assert {"/usr", "/opt/py"} <= shown <= {"/usr", "/opt/py"} | system
    assert all(source == target for source, target in pairs(words, "--ro-bind", 2))
    sized = [tuple(words[i : i + 4]) for i, word in enumerate(words) if word == "--size"]
    assert sized == [
        ("--size", str(16 << 20), "--tmpfs", "/dev/shm"),
        ("--size", str(16 << 20), "--tmpfs", "/tmp"),
    ]
    assert words.count("--tmpfs") == 2
    # Read-only only after all has been put there.
    assert words[-6:] == ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
    assert dict(pairs(words, "--setenv", 2)) == {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": "/tmp",
        "PYTHONHASHSEED": "0",
    }


def test_the_systems_python_needs_no_folder_of_its_own():
    for prefix in ("/usr", "/usr/local"):
        words = linux.options(Backend("linux", "b", f"{prefix}/bin/python3", prefix), Limits())
        assert (prefix, prefix) not in pairs(words, "--ro-bind", 2)[1:]


PROFILE = """(version 1)
(deny default)
(import "dyld-support.sb")
(allow process-exec (literal (param "PY")) (literal (param "PY_APP")))
(allow signal (target self))
(allow process-info* (target self))
(allow sysctl-read
  (sysctl-name "hw.ncpu" "hw.pagesize" "hw.memsize" "kern.osrelease"))
(allow file-read-metadata (vnode-type DIRECTORY))
(allow file-read*
  (subpath (param "PREFIX")) (subpath "/usr/lib") (subpath "/System/Library")
  (literal "/dev/null") (literal "/dev/urandom"))
(allow file-read* file-write* (subpath (param "WORK")))
(allow file-write-data (literal "/dev/null"))
(deny process-fork)
(deny network*)
(deny mach-lookup)
(deny iokit-open)
(deny ipc-posix*)
"""


def test_the_profile_of_macos():
    """A snapshot: whoever changes the profile should have to say so twice."""
    assert macos.PROFILE == PROFILE
    rules = [line for line in PROFILE.splitlines() if line.startswith("(")]
    assert rules[1] == "(deny default)"
    last_allowed = max(i for i, rule in enumerate(rules) if rule.startswith("(allow"))
    assert all(rule.startswith("(deny") for rule in rules[last_allowed + 1 :])
    assert PROFILE.count("(") == PROFILE.count(")")


def test_the_command_of_macos(tmp_path):
    app = tmp_path / "Resources" / "Python.app" / "Contents" / "MacOS" / "Python"
    app.parent.mkdir(parents=True)
    app.write_text("")
    python = str(tmp_path / "bin" / "python3")
    made = Backend("darwin", "/usr/bin/sandbox-exec", python, str(tmp_path))
    words = macos.command(made, "/w", [python, "-c", "1"])
    assert words[:3] == ["/usr/bin/sandbox-exec", "-p", PROFILE]
    assert pairs(words, "-D", 1) == [
        (f"PY={python}",), (f"PY_APP={app}",), (f"PREFIX={tmp_path}",), ("WORK=/w",),
    ]  # fmt: skip
    assert words[-3:] == [python, "-c", "1"]
    assert macos.app_of("/usr/bin/python3") == "/usr/bin/python3"


def test_limits_that_bind_on_each_system():
    on_linux = rlimits(Limits(cpu=1.5), "linux")
    assert on_linux["RLIMIT_CPU"] == (2, 3) and on_linux["RLIMIT_CORE"] == (0, 0)
    assert on_linux["RLIMIT_AS"] == (512 << 20, 512 << 20) and "RLIMIT_NPROC" in on_linux
    on_macos = rlimits(Limits(), "darwin")
    assert set(on_macos) == {"RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE"}


def test_what_runs_inside_is_python_3_8_and_needs_nothing_of_ours():
    import ast

    tree = ast.parse(source(), feature_version=(3, 8))
    found = {
        alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    }
    assert found == {"builtins", "json", "os", "resource", "struct", "sys"}
    pipes = Pipes()
    try:
        words = python_command("/usr/bin/python3", "linux", Limits(), pipes)
    finally:
        pipes.close()
    assert words[:7] == ["/usr/bin/python3", "-s", "-S", "-B", "-X", "utf8", "-c"]
