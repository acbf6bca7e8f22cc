from __future__ import annotations

import errno
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).parent / "fake_trainer.py"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        *([name, "--help"] for name in COMMANDS),
        *(["data", name, "--help"] for name in ("show", "check", "stats")),
    ],
)
def test_help_is_quick_because_it_imports_nothing_heavy(args, environment):
    code = (
        "import sys\n"
        "from cli.main import run\n"
        f"code = run({args!r})\n"
        "heavy = {'mlx', 'mlx.core', 'mlx_lm', 'numpy', 'rich', 'yaml'} & set(sys.modules)\n"
        "sys.exit(code or (repr(heavy) if heavy else 0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: simko-mlx" in done.stdout


def test_dry_run_tells_the_origin_of_each_key_and_loads_no_model(simko):
    done = simko(
        "train", "--dry-run", "--steps", "7", "--set", "loss.alpha=0.3",
        env={"SIMKO_MLX__OPTIM__LEARNING_RATE": "1e-4"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert re.search(r"7\s+flag --steps$", rows["steps"])
    assert re.search(r"0\.3\s+--set loss\.alpha=0\.3$", rows["loss.alpha"])
    assert rows["optim.learning_rate"].endswith("environment SIMKO_MLX__OPTIM__LEARNING_RATE")
    assert re.search(r"countdown-tiny\.yaml:\d+$", rows["model"])
    assert rows["eval.temperature"].endswith("default")
    starts = {line.index('"embedded"') for line in rows.values() if '"embedded"' in line}
    assert starts == {rows["steps"].index("7")}
    assert not CONTROL.search(done.stdout)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["trian"], "did you mean train?"),
        (["train", "--stepz", "3"], "--steps"),
        (["train", "--set", "num_generations=3"], "rollout.group_size"),
        (["train", "--set", "seed"], "key=value"),
        (["train", "-c", "nosuch"], "countdown-tiny"),
        (["train", "--resume", "nosuch"], "not a run directory"),
        (["train", "--resume", "x", "-c", "y"], "leave out --config"),
        (["eval", "nosuch"], "not a run directory"),
        (["eval", "nosuch", "--k", "1,b"], "1,8,64"),
        (["eval"], "RUN"),
        (["export", "nosuch", "--to", "mlx", "--out", "x"], "not a run directory"),
        (["export", "nosuch", "--to", "mlx", "--out", "x", "--base", "m"], "--to peft"),
        (["export", "nosuch", "--to", "peft", "--out", "x", "--llama-cpp", "m"], "--to gguf"),
        (["export", "nosuch", "--to", "peft", "--out", "x", "--python", "m"], "--check"),
        (
            ["export", "nosuch", "--to", "peft", "--out", "x", "--check", "--python", "nosuch"],
            "no such program",
        ),
        (["export", "nosuch", "--to", "gguf", "--out", "x", "--check"], "--check can't load gguf"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(simko, args, words):
    done = simko(*args)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_in_a_pipe_a_run_prints_one_plain_line_per_step(simko):
    done = simko("train", "--steps", "3", fake=True, env={"FORCE_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    assert not CONTROL.search(done.stdout)
    lines = done.stdout.splitlines()
    assert sum(bool(re.match(r"step [123]/3  reward 0.300", line)) for line in lines) == 3
    assert "step 0/3  eval full base  pass@1 18.4%  pass@8 77.0%" in lines
    assert any(line.startswith("WARNING: No learning signal") for line in lines)


def test_the_end_compares_base_trained_and_chance_and_says_what_next(simko):
    done = simko("train", "--steps", "3", fake=True)
    out = done.stdout
    assert re.search(r"^chance +5\.5 ", out, re.M)
    assert re.search(r"^base +18\.0 \[15\.0, 21\.0\]", out, re.M)
    assert re.search(r"^trained \(step 3\) +31\.0 \[28\.0, 34\.0\]", out, re.M)
    assert re.search(r"^change +\+", out, re.M)
    assert re.search(r"^strategy R +9\.0 .*15\.5 ", out, re.M)
    assert "pass@16" in out
    assert "T 1, 32 completions of at most 12 tokens for each of 3 held-out problems" in out
    for words in ("train --resume runs/countdown-tiny", "eval runs/countdown-tiny", "adapters"):
        assert words in out
    tables = out[out.index("% solved") : out.index("adapter ")].splitlines()
    assert max(map(len, tables)) <= 80


@pytest.mark.parametrize(("seed", "code"), [("97", 130), ("98", 143)])
def test_an_interrupted_run_says_how_to_go_on(simko, seed, code):
    done = simko("train", "--steps", "5", "--seed", seed, fake=True)
    assert done.returncode == code
    assert "saved at step 2" in done.stderr
    assert "simko-mlx train --resume runs/countdown-tiny" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mistake_found_by_the_trainer_is_one_sentence_too(simko):
    done = simko("train", "--seed", "99", "--steps", "5", fake=True)
    assert (done.returncode, done.stderr) == (2, "error: The model is mute.\n")


def test_a_reader_that_goes_away_ends_the_run_quietly(tmp_path, environment):
    command = f"'{sys.executable}' '{FAKE}' train --steps 5000 | head -n 1"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.stdout.startswith("recipe countdown-tiny")
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def on_a_terminal(args: list[str], cwd: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit code and everything written, of a command whose output is a terminal."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(FAKE), *args],
        cwd=cwd, env=environment, stdin=child, stdout=child, stderr=child,
    )  # fmt: skip
    os.close(child)
    seen = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError as error:  # how Linux says that the other end is closed
            assert error.errno == errno.EIO
            break
        if not part:
            break
        seen += part
    os.close(parent)
    return process.wait(timeout=60), seen.decode("utf-8", "replace")


@pytest.mark.parametrize(("seed", "code"), [("1", 0), ("97", 130), ("98", 143), ("99", 2)])
def test_the_live_view_gives_the_terminal_back(tmp_path, environment, seed, code):
    found, seen = on_a_terminal(["train", "--steps", "4", "--seed", seed], tmp_path, environment)
    assert found == code
    assert "\x1b[?25l" in seen, "the live view hides the cursor"
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l"), "and shows it again"
    assert "\x1b[31m\n" not in seen, "what a model wrote is not interpreted"
    assert "[bold]x[/bold]" in seen


@pytest.mark.parametrize(("extra", "term"), [(["--plain"], "xterm"), ([], "dumb")])
def test_a_terminal_can_have_plain_lines_too(tmp_path, environment, extra, term):
    environment["TERM"] = term
    code, seen = on_a_terminal(["train", "--steps", "2", *extra], tmp_path, environment)
    assert code == 0
    assert "step 2/2  reward" in seen
    assert "\x1b[?25l" not in seen


def test_no_color_leaves_no_colours(tmp_path, environment):
    environment["NO_COLOR"] = "1"
    _, seen = on_a_terminal(["train", "--steps", "2"], tmp_path, environment)
    codes = {int(c) for codes in re.findall(r"\x1b\[([\d;]+)m", seen) for c in codes.split(";")}
    assert not codes & {*range(30, 39), *range(40, 49), *range(90, 108)}


@pytest.mark.parametrize("args", [[], ["data"]])
def test_without_a_command_the_help_is_shown_as_it_is(simko, args):
    done = simko(*args)
    assert done.returncode == 2
    assert (done.stdout + done.stderr).startswith("Usage: simko-mlx")
    assert "error:" not in done.stderr and "lists what there is" not in done.stderr
