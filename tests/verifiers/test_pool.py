"""Workers: what they answer, what they survive, and that they end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simko_mlx.config import VerifierConfig
from simko_mlx.types import Completion, Problem, RolloutGroup, UserError, Verdict
from simko_mlx.verifiers.pool import VerifierPool, is_conversational

REPOSITORY = Path(__file__).parents[2]

REWARDS = '''
import os, sys, time


def echo(completions, **kwargs):
    return [float(text) if text else 0.0 for text in completions]


def sleeps(completions, **kwargs):
    """Bounded: nothing here outlives a test that goes wrong."""
    for text in completions:
        if "sleep" in text:
            time.sleep(5)
    return [1.0] * len(completions)


def always_sleeps(completions):
    time.sleep(5)
    return [1.0] * len(completions)


def exits(completions):
    if any("exit" in text for text in completions):
        os._exit(3)
    return [1.0] * len(completions)


def prints(completions):
    print("to standard output", flush=True)
    os.write(1, b"\\x00\\x00\\x00\\x05noise")
    return [1.0] * len(completions)


def raises(completions):
    raise ValueError("not\\nlike this")


def calls_raising(completions):
    import json
    return json.loads("{")


def quits(completions):
    sys.exit(1)


def too_few(completions):
    return [1.0]


def nothing(completions):
    pass


def text(completions):
    return ["1"] * len(completions)


def nan(completions):
    return [float("nan")] * len(completions)


def mixed(completions):
    return [None, True, 0.5, 1]


def lengths(completions):
    return [float(len(text)) for text in completions]


def trl(prompts, completions, completion_ids, level, answer, **columns):
    assert prompts == [[{"role": "user", "content": "q"}]] * 2, prompts
    assert completions[0] == [{"role": "assistant", "content": "a"}], completions
    assert completion_ids == [[1, 2], [3]], completion_ids
    assert level == [7, 7] and answer == ["4", "4"]
    assert columns["types"] == ["algebra"] * 2
    assert "prompt" not in columns
    return [1.0, 0.0]


def mlx_lm_lora(prompts, completions, answer, types=None):
    assert prompts == ["q", "q"] and completions == ["a", "b"], (prompts, completions)
    assert answer == ["4", "4"] and types == [None, None]
    return [1.0, 0.0]


def wants_more(completions, levle):
    return [1.0] * len(completions)


def hogs(completions):
    if "hog" in completions:
        kept = [bytearray(1 << 24) for _ in range(40)]  # 640 MiB
        for part in kept:
            part[::4096] = b"x" * len(part[::4096])
    return [1.0] * len(completions)


def floods(completions):
    for _ in range(1000 if "flood" in completions else 1):
        print("x" * 999)
    return [1.0] * len(completions)


def scaled(completions, factor=1.0):
    return [factor * len(text) for text in completions]


NOT_A_FUNCTION = 3
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    (tmp_path / "needs_more.py").write_text("import no_such_package_at_all\n")
    (tmp_path / "bad_syntax.py").write_text("\ndef f(:\n")
    (tmp_path / "dies.py").write_text("import os\nos._exit(1)\n")
    # Named as modules of the library: they must not get in the way.
    (tmp_path / "json.py").write_text("raise RuntimeError('the wrong json')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # a relative one would mean this folder now
    return "my_rewards"


def group(*texts, columns=None, answer="4", ids=None):
    problem = Problem("p", ({"role": "user", "content": "q"},), answer, columns or {})
    ids = ids or [(1,)] * len(texts)
    completions = [
        Completion(tuple(i), (0.0,) * len(i), t, "stop") for t, i in zip(texts, ids, strict=True)
    ]
    return RolloutGroup(problem, (0,), tuple(completions))


def pool(name, timeout=20.0, workers=1, correct_at=1.0):
    config = VerifierConfig(name=name, correct_at=correct_at, timeout=timeout, workers=workers)
    return VerifierPool(config)


def gone(pid, seconds=15.0):
    """Whether a process ends in time; a zombie, which waits for its new parent, has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
        ).stdout.strip()
        if not state or state.startswith("Z"):
            return True
        time.sleep(0.05)
    return False


def test_order_is_kept_over_several_workers(module):
    groups = [group(*(str(10 * g + i) for i in range(g % 4))) for g in range(30)]
    done = []
    with pool(f"{module}:echo", workers=2) as workers:
        found = workers.verify_groups(groups, done.append)
        assert len(workers.pids) == 2
    rewards = [[verdict.reward for verdict in row] for row in found]
    assert rewards == [[10.0 * g + i for i in range(g % 4)] for g in range(30)]
    assert done == sorted(done) and done[-1] == 30


def test_built_in_verifiers():
    with pool("number") as workers:
        assert workers.verify_groups([group("it is 4", "it is 5")]) == [
            [Verdict(1.0, True, "", "4"), Verdict(0.0, False, "5, not 4", "5")]
        ]
        assert workers.verify_groups([]) == []
    with pool("exact") as workers:
        assert [v.correct for v in workers.verify_groups([group(" 4", "5")])[0]] == [True, False]


def test_any_text_passes_the_pipe(module):
    texts = ["\ud800", "\0", "a" * 1_000_000, "é" * 500_000, "\U0001f600", '"\\\n', ""]
    with pool(f"{module}:lengths") as workers:
        (verdicts,) = workers.verify_groups([group(*texts, columns={"x": "\udfff", "n": [1e300]})])
    assert [verdict.reward for verdict in verdicts] == [float(len(text)) for text in texts]


def test_none_bools_and_correct_at(module):
    with pool(f"{module}:mixed", correct_at=0.5) as workers:
        assert workers.verify_groups([group("a", "b", "c", "d")]) == [
            [
                Verdict(None, False, "not applicable"),
                Verdict(1.0, True),
                Verdict(0.5, True),
                Verdict(1.0, True),
            ]
        ]


def test_trls_convention_for_conversational_rows(module):
    columns = {"prompt": [{"role": "user", "content": "q"}], "level": 7, "type": "algebra"}
    with pool(f"{module}:trl") as workers:
        (verdicts,) = workers.verify_groups([group("a", "b", columns=columns, ids=[(1, 2), (3,)])])
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0]


def test_mlx_lm_loras_convention_for_plain_rows(module):
    with pool(f"{module}:mlx_lm_lora") as workers:
        (verdicts,) = workers.verify_groups([group("a", "b", columns={"prompt": "q"})])
    assert [verdict.correct for verdict in verdicts] == [True, False]


def test_what_counts_as_conversational():
    user = {"role": "user", "content": "q"}
    assert not is_conversational(Problem("p", (user,), "1", {"prompt": "q", "other": []}))
    assert is_conversational(Problem("p", (user,), "1", {"messages": [user]}))
    assert is_conversational(Problem("p", (user,), "1", {"data": {"messages": [user]}}))
    assert is_conversational(Problem("p", ({"role": "system", "content": "s"}, user), "1"))


def test_a_slow_completion_gets_zero_and_the_others_their_reward(module):
    with pool(f"{module}:sleeps", timeout=0.7) as workers:
        found = workers.verify_groups([group("fine", "sleep", "fine"), group("fine")])
    assert found == [
        [Verdict(1.0, True), Verdict(0.0, False, "timeout"), Verdict(1.0, True)],
        [Verdict(1.0, True)],
    ]


def test_a_completion_that_ends_the_worker_gets_zero(module):
    with pool(f"{module}:exits", workers=2) as workers:
        found = workers.verify_groups([group("fine", "exit"), group("fine", "fine")])
        assert len(workers.verify_groups([group("fine")])) == 1
    assert found[0] == [Verdict(1.0, True), Verdict(0.0, False, "crashed the verifier")]
    assert [verdict.reward for verdict in found[1]] == [1.0, 1.0]


@pytest.mark.parametrize(("function", "text"), [("hogs", "hog"), ("floods", "flood")])
def test_a_completion_that_takes_too_much_gets_zero(module, function, text, capfd):
    config = VerifierConfig(name=f"{module}:{function}", memory=0.3, timeout=20.0)
    with VerifierPool(config) as workers:
        found = workers.verify_groups([group("a", text, "b"), group("c")])
        assert workers.verify_groups([group("a")]) == [[Verdict(1.0, True)]]
    wrong = {"hog": "crashed the verifier", "flood": "made the verifier write too much"}[text]
    assert found[0] == [Verdict(1.0, True), Verdict(0.0, False, wrong), Verdict(1.0, True)]
    assert found[1] == [Verdict(1.0, True)]
    assert len(capfd.readouterr().err) < 1 << 18


def test_a_spare_worker_stands_by(module):
    with pool(f"{module}:exits") as workers:
        (first,) = workers.pids
        workers.verify_groups([group("fine")])
        began = time.monotonic()
        while not (workers._spare and workers._spare.ready):
            assert time.monotonic() - began < 20
            workers._wait(None)
        spare = workers._spare.process.pid
        workers.verify_groups([group("exit")])
        assert first not in workers.pids and gone(first)
        assert gone(spare)  # took over, and met the same completion
        (last,) = workers.pids
    assert gone(last) and workers._spare is None


def test_options_of_a_users_function(module):
    config = VerifierConfig(name=f"{module}:scaled", options={"factor": 3})
    with VerifierPool(config) as workers:
        assert workers.verify_groups([group("ab")]) == [[Verdict(6.0, True)]]
    config = VerifierConfig(name=f"{module}:scaled", options={"fcator": 3})
    with pytest.raises(UserError, match=r"no parameter 'fcator'.*verifier\.options"):
        VerifierPool(config).start()


def test_a_verifier_that_never_answers_is_the_machinerys_fault(module):
    with pool(f"{module}:always_sleeps", timeout=0.4) as workers:
        assert workers.verify_groups([group("a")]) == [
            [Verdict(None, False, "verifier unavailable", fault=True)]
        ]


def test_prints_do_not_disturb(module, capfd):
    with pool(f"{module}:prints") as workers:
        assert workers.verify_groups([group("a")]) == [[Verdict(1.0, True)]]
    captured = capfd.readouterr()
    assert captured.out == "" and "to standard output" in captured.err


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("raises", r"my_rewards:raises raised ValueError: not like this at .*my_rewards\.py:\d+"),
        ("calls_raising", r"at .*my_rewards\.py:\d+ \(raised in .*json"),
        ("quits", "raised SystemExit"),
        ("too_few", "returned 1 rewards for 3 completions"),
        ("nothing", "returned a NoneType"),
        ("text", "returned '1' for completion 0"),
        ("nan", "returned 'nan' for completion 0"),
        ("wants_more", "parameter 'levle'.*the nearest is level"),
    ],
)
def test_mistakes_of_a_users_function_stop_the_run(module, function, words):
    with pool(f"{module}:{function}") as workers:
        with pytest.raises(UserError, match=words) as caught:
            workers.verify_groups([group("a", "b", "c", columns={"level": 1})])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nubmer", "did you mean number"),
        ("my_rewards:ecko", "the nearest is echo"),
        ("my_rewards:NOT_A_FUNCTION", "name a function"),
        ("no_such_module_here:f", "no module 'no_such_module_here'"),
        ("needs_more:f", r"needs the module 'no_such_package_at_all' \(imported at .*:1\)"),
        ("bad_syntax:f", r"SyntaxError.*bad_syntax\.py:2"),
        ("rewards.py:f", r"write it as package\.module:function"),
        ("dies:f", "3 times in a row"),
    ],
)
def test_a_verifier_that_cannot_be_imported(module, name, words):
    with pytest.raises(UserError, match=words):
        pool(name).start()


def test_a_row_that_a_built_in_verifier_cannot_use():
    words = r"countdown judges.*data\.source"
    with pool("countdown") as workers, pytest.raises(UserError, match=words):
        workers.verify_groups([group("L 1 + 1 = 2")])


def test_closing_ends_the_workers_and_the_pool_starts_again(module):
    workers = pool(f"{module}:echo", workers=2)
    workers.start()
    pids = workers.pids
    workers.close()
    workers.close()
    assert all(gone(pid) for pid in pids)
    assert workers.verify_groups([group("1")])[0][0].reward == 1.0
    workers.close()


def test_a_worker_that_was_lost_while_idle_is_replaced(module):
    with pool(f"{module}:echo") as workers:
        (pid,) = workers.pids
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
        whole = workers.verify_groups([group("1", "2")])
        assert [verdict.reward for verdict in whole[0]] == [1.0, 2.0]
        assert workers.pids != [pid]


def test_an_interruption_leaves_the_pool_usable(module):
    with pool(f"{module}:sleeps") as workers:
        (pid,) = workers.pids

        def interrupt(done):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            workers.verify_groups([group("a"), group("sleep")], interrupt)
        found = workers.verify_groups([group("b")])
    assert found == [[Verdict(1.0, True)]]
    assert gone(pid)


PARENT = """
import json, sys, time
from simko_mlx.config import VerifierConfig
from simko_mlx.types import Completion, Problem, RolloutGroup
from simko_mlx.verifiers.pool import VerifierPool

pool = VerifierPool(VerifierConfig("my_rewards:" + sys.argv[1], timeout=60.0, workers=1))
pool.start()
print(json.dumps(pool.pids), flush=True)
problem = Problem("p", ({"role": "user", "content": "q"},), "1", {})
group = RolloutGroup(problem, (0,), (Completion((1,), (0.0,), "sleep", "stop"),))
try:
    print(pool.verify_groups([group]), flush=True)
except KeyboardInterrupt:
    print("interrupted", pool.verify_groups([]), flush=True)
time.sleep(20)
"""


def parent(folder, function):
    """A small process of its own session with a pool; its output; its worker's process id."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, function],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONSAFEPATH": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    (pid,) = json.loads(process.stdout.readline())
    return process, process.stdout, pid


@pytest.mark.parametrize("function", ["always_sleeps", "echo"])
def test_a_worker_ends_when_its_parent_is_killed(module, tmp_path, function):
    process, output, pid = parent(tmp_path, function)
    try:
        time.sleep(0.3)
        process.kill()
        process.wait(timeout=10)
        assert gone(pid, 4.0)  # sooner than its sleep of 5 seconds is over
    finally:
        process.kill()
        output.close()


def test_the_watching_thread_alone_ends_an_orphan(module, tmp_path):
    """As on macOS, where the kernel doesn't do it: the parent named here is not the parent."""
    code = (
        "from simko_mlx.verifiers import worker; import time; worker._end_with_parent(1 << 30); "
        "time.sleep(20)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    try:
        assert process.wait(timeout=15) == 1
    finally:
        process.kill()


def test_a_terminals_interrupt_does_not_reach_the_workers(module, tmp_path):
    process, output, pid = parent(tmp_path, "sleeps")
    try:
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
        assert output.readline().startswith("interrupted")
        assert gone(pid)  # the parent ended the call, and with it the busy worker
    finally:
        process.kill()
        process.wait(timeout=10)
        output.close()


def test_a_worker_ignores_an_interrupt(module):
    with pool(f"{module}:echo") as workers:
        (pid,) = workers.pids
        os.kill(pid, signal.SIGINT)
        time.sleep(0.3)
        assert workers.verify_groups([group("1")])[0][0].reward == 1.0
        assert workers.pids == [pid]


def test_workers_import_neither_mlx_nor_numpy():
    code = (
        "import sys, simko_mlx.verifiers.worker, simko_mlx.verifiers.number, "
        "simko_mlx.verifiers.exact, simko_mlx.verifiers.countdown\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('mlx', 'mlx_lm', 'numpy')])"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
