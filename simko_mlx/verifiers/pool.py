"""Runs a verifier in worker processes that are killed when they take too long.

The unit of a call is one whole group, with ``timeout`` seconds for each of its completions. When
a worker doesn't answer in time, or dies, it is replaced and the group's completions are tried
again one at a time, with ``timeout`` seconds each. One that fails again is judged by a control
check, the same verifier on an empty completion: if that works the completion is at fault and gets
reward 0, or a policy would learn to escape a penalty; if it fails as well the machinery is at
fault and the verdict has no reward.

One thread, no multiprocessing, no fork of a process that holds a GPU: workers are fresh
interpreters that import neither mlx nor numpy unless the user's function does.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from simko_mlx.config import VerifierConfig
from simko_mlx.types import Problem, RolloutGroup, UserError, Verdict
from simko_mlx.verifiers import parts_of
from simko_mlx.verifiers.process import WorkerDied, WorkerProcess

TIMEOUT = "timeout"
CRASH = "crashed the verifier"
FLOOD = "made the verifier write too much"
MOST_OUTPUT = 1 << 16  # bytes that a worker may write to standard output and error per call
UNAVAILABLE = Verdict(None, False, "verifier unavailable", fault=True)
START_SECONDS = 120.0  # importing the user's function may import a lot
START_ATTEMPTS = 3


@dataclass(frozen=True)
class _Unit:
    """One call of the verifier: a whole group, or one of its completions, or the control check
    for one that failed for the reason ``failed``."""

    group: int
    only: int | None = None
    failed: str = ""


class Verification:
    """Groups that are being judged, in the background of whatever their owner does between calls
    of ``poll``: what is left to do, and what came of the rest."""

    def __init__(self, pool: VerifierPool, on_done: Callable[[int], None] | None):
        self.groups: list[RolloutGroup] = []
        self.verdicts: list[list[Verdict | None]] = []
        self.units: deque[_Unit] = deque()
        self.done = 0
        self.on_done = on_done
        self._pool = pool

    def add(self, group: RolloutGroup) -> None:
        """Hands over one more group."""
        self.groups.append(group)
        self.verdicts.append([None] * len(group.completions))
        if group.completions:
            self.units.append(_Unit(len(self.groups) - 1))
        else:
            self.done += 1
        self.poll()

    def poll(self) -> None:
        """Hears what workers have to say and gives them what there is to do, without waiting."""
        if self.done < len(self.groups):
            self._pool.advance(self, wait=False)

    def finish(self) -> list[list[Verdict]]:
        """Waits for the verdicts of all groups, in the order in which they were added."""
        while self.done < len(self.groups):
            self._pool.advance(self, wait=True)
        return [[verdict for verdict in row if verdict is not None] for row in self.verdicts]

    def texts(self, unit: _Unit) -> list[str]:
        if unit.failed:
            return [""]
        texts = [completion.text for completion in self.groups[unit.group].completions]
        return texts if unit.only is None else [texts[unit.only]]

    def fill(self, unit: _Unit, verdicts: list[Verdict]) -> None:
        row = self.verdicts[unit.group]
        row[slice(None) if unit.only is None else slice(unit.only, unit.only + 1)] = verdicts
        if None not in row:
            self.done += 1
            if self.on_done is not None:
                self.on_done(self.done)

    def failed(self, unit: _Unit, reason: str) -> None:
        """The worker was too slow with this unit, or died of it."""
        if unit.failed:
            self.fill(unit, [UNAVAILABLE])
        elif unit.only is None:
            count = len(self.groups[unit.group].completions)
            self.units.extendleft(_Unit(unit.group, i) for i in reversed(range(count)))
        else:
            self.units.appendleft(_Unit(unit.group, unit.only, failed=reason))

    def answered(self, unit: _Unit, verdicts: list[Verdict]) -> None:
        self.fill(unit, [Verdict(0.0, False, unit.failed)] if unit.failed else verdicts)


@dataclass
class _Worker:
    """A process, and what it is doing: starting, idle, or busy with a unit."""

    process: WorkerProcess
    deadline: float
    ready: bool = False
    wants_ids: bool = False
    unit: _Unit | None = field(default=None)
    written: int = 0  # bytes to standard output and error since the call began


class VerifierPool:
    """Judges groups of completions with one verifier, or several together.

    A spare worker stands by, so that one that is killed is replaced at once.

    An exception on the way, Ctrl-C included, leaves the pool usable: workers that were busy are
    killed, and the next call starts others. Not for use from several threads at once.

    Args:
        config: which verifiers, and how many workers with what limits.

    Raises:
        UserError: there is no such verifier, or it has no such option.
    """

    def __init__(self, config: VerifierConfig):
        parts = parts_of(config)
        self.name = " + ".join(part.name for part in parts)
        self.timeout = config.timeout
        self.size = config.workers
        self._spare: _Worker | None = None
        self._settings = {
            "memory": int(config.memory * 1e9),
            "parts": [asdict(part) for part in parts],
            "correct_at": config.correct_at,
            "sandbox": asdict(config.sandbox),
        }
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def __enter__(self) -> VerifierPool:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers]

    def start(self) -> None:
        """Starts the workers and waits until each has imported the verifier.

        Raises:
            UserError: there is no such verifier, or it can't be imported.
        """
        self._replenish()
        while not all(worker.ready for worker in self._workers):
            self._wait(None)
            self._replenish()
        self._replenish()

    def verify_groups(
        self, groups: Sequence[RolloutGroup], on_done: Callable[[int], None] | None = None
    ) -> list[list[Verdict]]:
        """A verdict for every completion of every group, in order.

        Args:
            on_done: called with the number of groups finished so far, each time that grows.

        Raises:
            UserError: the user's function raised or returned something else than rewards, or
                workers can't be started.
        """
        with self.verification(on_done) as job:
            for group in groups:
                job.add(group)
            return job.finish()

    @contextmanager
    def verification(self, on_done: Callable[[int], None] | None = None) -> Iterator[Verification]:
        """For groups that come one after the other, as ``verify_groups`` judges them; one at a
        time. Workers that are still busy at the end of the block are killed."""
        self._drop_lost()
        try:
            yield Verification(self, on_done)
        finally:
            for worker in [worker for worker in self._workers if worker.unit is not None]:
                self._discard(worker)

    def advance(self, job: Verification, *, wait: bool) -> None:
        """One round of a verification: starts workers, gives them units, hears what they say."""
        self._replenish()
        self._assign(job)
        self._wait(job, wait)

    def close(self) -> None:
        """Ends the workers. The pool may be started again."""
        for worker in self._all():
            self._discard(worker)

    def _all(self) -> list[_Worker]:
        return [*self._workers, *([] if self._spare is None else [self._spare])]

    def _discard(self, worker: _Worker) -> None:
        if worker is self._spare:
            self._spare = None
        else:
            self._workers.remove(worker)
        worker.process.kill()
        _show(worker.process.output_left()[: max(0, MOST_OUTPUT - worker.written)])

    def _drop_lost(self) -> None:
        """Idle workers may have ended since the last call, through no completion's fault: where
        the kernel ends them with their parent, it does so with the thread that started them."""
        for worker in [worker for worker in self._all() if worker.ready]:
            try:
                worker.process.receive()
            except WorkerDied:
                self._discard(worker)

    def _replenish(self) -> None:
        while len(self._workers) < self.size:
            worker, self._spare = self._spare or self._started(), None
            self._workers.append(worker)
        if self._spare is None and all(worker.ready for worker in self._workers):
            self._spare = self._started()

    def _started(self) -> _Worker:
        if self._failed_starts >= START_ATTEMPTS:
            self._failed_starts = 0  # so that the pool may be tried again
            self.close()
            raise UserError(
                f"The worker process of the verifier {self.name} ended {START_ATTEMPTS} times in a "
                "row before it was ready: what it wrote to standard error, above, says why; "
                "correct that first."
            )
        try:
            process = WorkerProcess(self._settings)
        except OSError as error:
            self.close()
            raise UserError(
                f"A worker process for the verifier {self.name} can't be started "
                f"({error.strerror or error}): close other programs or lower verifier.workers."
            ) from error
        return _Worker(process, time.monotonic() + START_SECONDS)

    def _assign(self, job: Verification) -> None:
        for worker in self._workers:
            if not job.units:
                return
            if worker.ready and worker.unit is None:
                unit = job.units.popleft()
                texts = job.texts(unit)
                seconds = self.timeout * len(texts)
                worker.unit, worker.written = unit, 0
                worker.process.send(_request(job.groups[unit.group], unit, texts, worker, seconds))
                worker.deadline = time.monotonic() + seconds

    def _wait(self, job: Verification | None, wait: bool = True) -> None:
        """Sleeps (unless ``wait`` is False) until a worker has something to say or a deadline has
        passed; deals with both."""
        with selectors.DefaultSelector() as selector:
            for worker in self._all():
                process = worker.process
                selector.register(process.replies, selectors.EVENT_READ, worker)
                if process.output is not None:
                    selector.register(process.output, selectors.EVENT_READ, worker)
                if process.sending:
                    selector.register(process.requests, selectors.EVENT_WRITE, worker)
            occupied = [w for w in self._all() if w.unit is not None or not w.ready]
            until = min((worker.deadline for worker in occupied), default=0.0)
            events = selector.select(max(0.0, until - time.monotonic()) if wait else 0.0)
        heard = set()
        for key, event in events:
            worker: _Worker = key.data
            if worker not in self._all():  # discarded by the event before
                continue
            try:
                if key.fd == worker.process.output:
                    self._printed(worker, job)
                    continue
                heard.add(id(worker))
                if event & selectors.EVENT_WRITE:
                    worker.process.flush()
                elif (message := worker.process.receive()) is not None:
                    self._heard(worker, message, job)
            except WorkerDied:
                self._lost(worker, CRASH, job)
        # What has arrived was read first: after a pause of this process (Ctrl-Z, a laptop's lid)
        # every deadline has passed, and the answers are there.
        now = time.monotonic()
        for worker in occupied:
            if worker in self._all() and id(worker) not in heard and worker.deadline <= now:
                self._lost(worker, TIMEOUT, job)

    def _printed(self, worker: _Worker, job: Verification | None) -> None:
        """Passes on what a worker writes, within bounds."""
        data = worker.process.read_output()
        _show(data[: max(0, MOST_OUTPUT - worker.written)])
        worker.written += len(data)
        if worker.ready and worker.unit is not None and worker.written > MOST_OUTPUT:
            self._lost(worker, FLOOD, job)

    def _heard(self, worker: _Worker, message: dict[str, Any], job: Verification | None) -> None:
        if "error" in message:
            self.close()
            raise UserError(message["error"])
        if not worker.ready:
            worker.ready, worker.wants_ids = True, message["wants_ids"]
            self._failed_starts = 0
            return
        unit, worker.unit = worker.unit, None
        if job is not None and unit is not None:
            job.answered(unit, [Verdict(*parts) for parts in message["verdicts"]])

    def _lost(self, worker: _Worker, reason: str, job: Verification | None) -> None:
        self._discard(worker)
        if not worker.ready:
            self._failed_starts += 1
            if reason == TIMEOUT:
                raise UserError(
                    f"The verifier {self.name} wasn't imported within {START_SECONDS:.0f} s: move "
                    "slow work out of its module's top level."
                )
        elif job is not None and worker.unit is not None:
            job.failed(worker.unit, reason)


def _show(data: bytes) -> None:
    with contextlib.suppress(OSError):  # standard error is closed
        os.write(2, data)


def _request(
    group: RolloutGroup, unit: _Unit, texts: list[str], worker: _Worker, seconds: float
) -> dict[str, Any]:
    problem = group.problem
    request = {
        "completions": texts,
        "answer": problem.answer,
        "messages": list(problem.messages),
        "columns": dict(problem.columns),
        "conversational": is_conversational(problem),
        "seconds": seconds,
    }
    if worker.wants_ids:
        chosen = group.completions if unit.only is None else group.completions[unit.only :][:1]
        ids = [list(completion.token_ids) for completion in chosen]
        request["completion_ids"] = [[]] if unit.failed else ids
    return request


def is_conversational(problem: Problem) -> bool:
    """Whether the row holds its prompt as a list of messages, anywhere among its columns, or the
    prompt can't be told as one string."""
    messages = problem.messages
    if len(messages) != 1 or messages[0].get("role") != "user":
        return True
    wanted = [(m.get("role"), m.get("content")) for m in messages]

    def holds(value: Any) -> bool:
        if isinstance(value, dict):
            return any(holds(item) for item in value.values())
        if not isinstance(value, (list, tuple)) or not all(isinstance(m, dict) for m in value):
            return False
        return [(m.get("role"), m.get("content")) for m in value] == wanted

    return any(holds(value) for value in problem.columns.values())
