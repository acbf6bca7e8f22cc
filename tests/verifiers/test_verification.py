"""Groups that are judged in the background while others are still being made."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from simko_mlx.config import VerifierConfig
from simko_mlx.types import Completion, Problem, RolloutGroup, UserError, Verdict
from simko_mlx.verifiers.pool import Verification, VerifierPool

REWARDS = """
import time


def naps(completions):
    for text in completions:
        if text.startswith("nap"):
            time.sleep(float(text.split()[1]))
    return [1.0 if text else 0.0 for text in completions]


def echo(completions):
    return [float(text) if text else 0.0 for text in completions]


def raises(completions):
    raise ValueError("not like this")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "napping_rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return "napping_rewards"


def group(*texts: str) -> RolloutGroup:
    problem = Problem("p", ({"role": "user", "content": "q"},), "4")
    return RolloutGroup(problem, (0,), tuple(Completion((1,), (0.0,), t, "stop") for t in texts))


def pool(name: str, timeout: float = 20.0, workers: int = 1) -> VerifierPool:
    return VerifierPool(VerifierConfig(name=name, timeout=timeout, workers=workers))


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def until(job: Verification, done: int, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while job.done < done and time.monotonic() < end:
        job.poll()
        time.sleep(0.01)
    assert job.done == done


def test_neither_adding_nor_asking_waits_for_the_verifier(module):
    with pool(f"{module}:naps") as workers, workers.verification() as job:
        slowest = timed(lambda: job.add(group("nap 0.5")))
        slowest = max(slowest, timed(lambda: job.add(group("a", "b"))))
        began, polls = time.perf_counter(), 0
        while job.done < 1 and time.perf_counter() - began < 10:
            slowest = max(slowest, timed(job.poll))
            polls += 1
            time.sleep(0.01)
        assert 0.45 < time.perf_counter() - began < 5
        assert polls > 5 and slowest < 0.25
        assert [[v.reward for v in row] for row in job.finish()] == [[1.0], [1.0, 1.0]]


def test_groups_are_judged_while_their_owner_is_busy(module):
    with pool(f"{module}:naps", workers=2) as workers, workers.verification() as job:
        job.add(group("nap 0.4"))
        job.add(group("nap 0.4"))
        time.sleep(0.8)  # something else
        assert timed(job.finish) < 0.3


def test_verdicts_come_in_the_order_of_addition_whoever_is_faster(module):
    done: list[int] = []
    with pool(f"{module}:naps", workers=2) as workers, workers.verification(done.append) as job:
        job.add(group("nap 0.6", ""))
        for i in range(6):
            job.add(group(*["a"] * (i % 3)))
            job.poll()
        until(job, 6)  # all but the first
        job.add(group("", "z"))
        found = job.finish()
        assert job.finish() == found  # once more
    assert [[v.reward for v in row] for row in found] == (
        [[1.0, 0.0], [], [1.0], [1.0, 1.0], [], [1.0], [1.0, 1.0], [0.0, 1.0]]
    )
    assert done == sorted(done) and done[-1] == 8


def test_what_is_added_later_is_judged_by_workers_that_had_nothing_to_do(module):
    with pool(f"{module}:echo") as workers, workers.verification() as job:
        for number in range(5):
            job.add(group(str(number)))
            until(job, number + 1)
        assert [row[0].reward for row in job.finish()] == [0.0, 1.0, 2.0, 3.0, 4.0]
    with pool(f"{module}:echo") as workers, workers.verification() as job:
        assert job.finish() == []
        job.poll()


def test_nothing_is_started_twice_and_a_pool_starts_by_itself(module):
    workers = pool(f"{module}:echo", workers=2)
    try:
        with workers.verification() as job:
            job.add(group("3"))
            pids = workers.pids
            for _ in range(20):
                job.poll()
            assert workers.pids == pids and len(pids) == 2
            assert job.finish() == [[Verdict(3.0, True)]]
    finally:
        workers.close()


def test_an_exception_ends_the_busy_workers_and_no_others(module):
    with pool(f"{module}:naps", workers=2) as workers:
        before = workers.pids
        with pytest.raises(KeyboardInterrupt), workers.verification() as job:
            job.add(group("nap 15"))
            raise KeyboardInterrupt
        assert len(workers.pids) == 1 and set(workers.pids) < set(before)
        spent = timed(lambda: workers.verify_groups([group("a"), group("b")]))
        assert spent < 8 and len(workers.pids) == 2
        # No verdict of the abandoned group comes up in a later one.
        assert workers.verify_groups([group("", "c")]) == [
            [Verdict(0.0, False), Verdict(1.0, True)]
        ]


def test_leaving_early_abandons_what_is_not_done(module):
    with pool(f"{module}:naps") as workers:
        with workers.verification() as job:
            job.add(group("nap 15"))
        assert workers.pids == []
        assert workers.verify_groups([group("a")]) == [[Verdict(1.0, True)]]


def test_a_mistake_in_the_users_function_is_told_while_others_decode(module):
    with pool(f"{module}:raises") as workers:
        with (
            pytest.raises(UserError, match="not like this"),
            workers.verification() as job,
        ):
            job.add(group("a"))
            until(job, 1)
        assert workers.pids == []


def test_an_answer_in_time_counts_however_late_it_is_looked_at(module):
    """The owner was busy for much longer than the time limit; the worker wasn't."""
    with pool(f"{module}:naps", timeout=0.6) as workers, workers.verification() as job:
        pids = workers.pids
        job.add(group("nap 0.1"))
        time.sleep(1.0)
        assert job.finish() == [[Verdict(1.0, True)]]
        assert workers.pids == pids


def test_a_deadline_that_passed_unseen_is_dealt_with_at_the_next_look(module):
    with pool(f"{module}:naps", timeout=0.4) as workers, workers.verification() as job:
        pids = workers.pids
        job.add(group("nap 15", "a"))
        time.sleep(1.0)
        assert timed(job.poll) < 0.25 and workers.pids != pids  # killed
        assert job.finish() == [[Verdict(0.0, False, "timeout"), Verdict(1.0, True)]]


def test_the_time_limit_runs_from_when_a_worker_gets_the_group(module):
    """Not from when it was added: two groups that take 0.5 s each, one worker, 0.8 s."""
    with pool(f"{module}:naps", timeout=0.8) as workers, workers.verification() as job:
        for _ in range(3):
            job.add(group("nap 0.5"))
        assert job.finish() == [[Verdict(1.0, True)]] * 3
