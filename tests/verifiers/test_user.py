"""Async reward functions, and what doesn't apply."""

from __future__ import annotations

import pytest

from simko_mlx.config import VerifierConfig
from simko_mlx.types import Completion, Problem, RolloutGroup, UserError
from simko_mlx.verifiers.pool import VerifierPool
from simko_mlx.verifiers.user import RewardFunction

REWARDS = '''
import asyncio

locks = []


async def lengths(completions, answer, **kwargs):
    async def one(text):
        await asyncio.sleep(0.01)
        return float(len(text)) if text else None
    return await asyncio.gather(*map(one, completions))


async def same_loop(completions):
    """A lock of asyncio belongs to the loop in which it was first waited for."""
    if not locks:
        locks.append((asyncio.get_running_loop(), asyncio.Event()))
    loop, event = locks[0]
    return [float(loop is asyncio.get_running_loop())] * len(completions)


class Judge:
    async def __call__(self, completions):
        return [1.0] * len(completions)


judge = Judge()


def plain_that_waits(completions):
    return lengths(completions, None)


async def raises(completions):
    await asyncio.sleep(0)
    raise ValueError("not like this")


async def cancelled(completions):
    raise asyncio.CancelledError


async def sleeps(completions):
    if "sleep" in completions:
        await asyncio.sleep(30)
    return [1.0] * len(completions)
'''


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    name = f"async_rewards_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def rewards(path: str, *texts: str) -> list[float | None]:
    request = {
        "completions": list(texts),
        "answer": "4",
        "messages": [{"role": "user", "content": "q"}],
        "columns": {},
        "conversational": False,
    }
    return [verdict.reward for verdict in RewardFunction(path, 1.0)(request)]


@pytest.mark.parametrize("name", ["lengths", "plain_that_waits"])
def test_what_it_returns_is_waited_for(module, name):
    assert rewards(f"{module}:{name}", "ab", "", "abc") == [2.0, None, 3.0]


def test_an_object_with_an_async_call(module):
    assert rewards(f"{module}:judge", "a") == [1.0]


def test_all_calls_run_in_one_loop(module):
    function = f"{module}:same_loop"
    assert rewards(function, "a") == rewards(function, "b") == [1.0]


@pytest.mark.parametrize(
    ("name", "says"),
    [("raises", "ValueError: not like this at .*py:36"), ("cancelled", "cancelled")],
)
def test_what_it_raises_is_heard(module, name, says):
    with pytest.raises(UserError, match=says):
        rewards(f"{module}:{name}", "a")


def test_in_a_worker_with_its_deadline(module):
    texts = ("fine", "sleep")
    group = RolloutGroup(
        Problem("p", ({"role": "user", "content": "q"},), "4"),
        (0,),
        tuple(Completion((1,), (0.0,), text, "stop") for text in texts),
    )
    with VerifierPool(VerifierConfig(name=f"{module}:sleeps", timeout=0.5)) as pool:
        (fine, slow), *_ = pool.verify_groups([group])
    assert fine.correct and (slow.reward, slow.detail) == (0.0, "timeout")
