"""All that goes on while the primary behind Sentinels fails: callers, streams, operators, a schedule, Flower."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sentinels import SentinelWorld
from support import wait_until
from world import Job

from patience import PATIENCE_SECONDS
from tachikoma import (
    AsyncClient,
    Client,
    DueOutcome,
    ExecRequest,
    ExecState,
    FailedPrecondition,
    NotFound,
    ScheduledRun,
    Unavailable,
)
from tachikoma.client.profile import Profile
from tachikoma.redis import keys

__all__ = ["FROZEN", "SCHEDULE", "Callers", "Decisions", "Runs", "Streams", "flower_states"]

#: The agent that is stopped meanwhile, so that its orders wait.
FROZEN = "agent-2"
SCHEDULE = "often"


def insist(call: Callable[[], object]) -> bool:
    """Repeat a call while Redis is unavailable; return False if the object of the call is in another state by then."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            call()
            return True
        except Unavailable:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)
        except (FailedPrecondition, NotFound):
            return False


@dataclass
class Answer:
    """A call, by the monotonic clock."""

    began: float
    ended: float


class Callers:
    """Callers that execute one command after the other, until they are stopped."""

    def __init__(self, world: SentinelWorld, folder: Path, callers: int = 4) -> None:
        self._world, self._folder, self._callers = world, folder, callers
        self._stopped = threading.Event()
        self.jobs: list[Job] = []
        self.answers: list[Answer] = []
        self._threads: list[Future[None]] = []

    @property
    def done(self) -> int:
        """Number of answered callers."""
        return len(self.answers)

    def _call(self, caller: int) -> None:
        with Client(self._world.profile()) as client:
            number = 0
            while not self._stopped.is_set():
                job = Job.make(self._folder, f"{self._folder.name}-{caller}-{number}", lines=10)
                self.jobs.append(job)
                began = time.monotonic()
                insist(lambda job=job: job.told.append(client.execute(job.request).state))
                self.answers.append(Answer(began, time.monotonic()))
                number += 1

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Call until the end of the block, and wait until every caller is answered."""
        with ThreadPoolExecutor(self._callers) as threads:
            self._threads = [threads.submit(self._call, caller) for caller in range(self._callers)]
            try:
                yield
            finally:
                self._stopped.set()
            for thread in self._threads:
                thread.result()

    def wait_for(self, number: int) -> None:
        """Wait until some more are answered."""
        before = self.done

        def answered() -> bool:
            for thread in self._threads:
                if thread.done():
                    thread.result()
            return self.done >= before + number

        wait_until(answered, "callers are answered", 120)

    def waited_after(self, moment: float) -> float:
        """The longest time that a caller who waited at a moment was not answered after it, in seconds."""
        return max(
            (answer.ended - moment for answer in self.answers if answer.began <= moment <= answer.ended), default=0
        )


#: Writes a numbered line now and then, until a file appears, and then the last one.
_LINES = 'echo $$ >> "$0"; i=0; while [ ! -e "$1" ]; do i=$((i+1)); echo $i; sleep 0.5; done; echo end $i'


class Streams:
    """Readers of commands that write all the time."""

    def __init__(self, world: SentinelWorld, folder: Path, number: int) -> None:
        self._profile = world.profile()
        self._go = folder / "go"
        self.jobs = [self._job(folder, f"{folder.name}-stream-{name}") for name in range(number)]
        #: Output by execution, and the monotonic times at which it came.
        self._output = {job.id: b"" for job in self.jobs}
        self._came: dict[str, list[float]] = {job.id: [] for job in self.jobs}

    def _job(self, folder: Path, name: str) -> Job:
        command = ("/bin/sh", "-c", _LINES, str(folder / name), str(self._go))
        return Job(ExecRequest(id=name, agent_id="agent-1", command=command, timeout=600), folder / name)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read until the end of the block, and then to the end of each command."""
        with ThreadPoolExecutor(1) as threads:
            read: Future[None] = threads.submit(asyncio.run, self._read_all())
            try:
                wait_until(lambda: all(self._output.values()) or read.done(), "every stream has begun")
                yield
            finally:
                self._go.touch()
            read.result()

    async def _read_all(self) -> None:
        async with AsyncClient(self._profile) as client, asyncio.TaskGroup() as group:
            for job in self.jobs:
                group.create_task(self._read(client, job))

    async def _read(self, client: AsyncClient, job: Job) -> None:
        """Read one stream; go on at the same place while Redis is unavailable."""
        seq, give_up = 0, time.monotonic() + 3 * PATIENCE_SECONDS
        while not job.told:
            try:
                await client.submit(job.request)
                async for output in client.attach(job.id, after_seq=seq):
                    seq = max(seq, output.seq)
                    assert not output.missing_bytes, f"{job.id} lacks {output.missing_bytes} bytes"
                    if output.data:
                        self._output[job.id] += output.data
                        self._came[job.id].append(time.monotonic())
                    if output.result is not None:
                        job.told.append(output.result.state)
            except Unavailable:
                if time.monotonic() > give_up:
                    raise
                await asyncio.sleep(0.1)

    def silent_after(self, moment: float) -> float:
        """The longest time from a moment until a stream had its next line, in seconds."""
        return max(min((at - moment for at in came if at > moment), default=0.0) for came in self._came.values())

    def check(self) -> None:
        """Fail unless each stream brought every line once, in order, and its command ran once."""
        for job in self.jobs:
            assert (job.told, job.starts) == ([ExecState.SUCCEEDED], 1), job.id
            *lines, last = self._output[job.id].decode().splitlines()
            assert lines == [str(number) for number in range(1, len(lines) + 1)], job.id
            assert last == f"end {len(lines)}", job.id


@dataclass
class Decisions:
    """Decisions of operators and approvers, each noted when it was reported as done."""

    world: SentinelWorld
    folder: Path
    boss: Profile
    cancelled: list[Job] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    approved: list[str] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)
    _thread: Future[None] | None = None

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Decide until the end of the block."""
        stopped = threading.Event()
        with ThreadPoolExecutor(1) as threads:
            self._thread = threads.submit(self._run, stopped)
            try:
                yield
            finally:
                stopped.set()
            self._thread.result()

    @property
    def number(self) -> int:
        """The number of decisions of each kind."""
        if self._thread is not None and self._thread.done():
            self._thread.result()
        return min(map(len, (self.cancelled, self.rejected, self.approved, self.revoked)))

    def _run(self, stopped: threading.Event) -> None:
        with Client(self.world.profile()) as client, Client(self.boss) as boss:
            number = 0
            while not stopped.is_set():
                name = f"{self.folder.name}-decided-{number}"
                self._cancel(client, f"{name}-cancelled")
                self._reject(client, boss, f"{name}-rejected")
                self._approve(client, boss, f"{name}-approved")
                if insist(lambda name=name: client.revoke_user(name, "left")):
                    self.revoked.append(name)
                number += 1
                stopped.wait(0.2)

    def _cancel(self, client: Client, name: str) -> None:
        job, outcomes = Job.make(self.folder, name, agent=FROZEN), list[str]()
        insist(lambda: client.submit(job.request))
        insist(lambda: outcomes.append(client.cancel(job.id).outcome))
        if outcomes == ["CANCELLED"]:
            self.cancelled.append(job)

    def _careful(self, client: Client, name: str) -> None:
        request = ExecRequest(id=name, agent_id="agent-1", command=("/usr/bin/mkdir", str(self.folder / name)))
        insist(lambda: client.submit(request))

    def _reject(self, client: Client, boss: Client, name: str) -> None:
        self._careful(client, name)
        if insist(lambda: boss.reject(name, "not today")):
            self.rejected.append(name)

    def _approve(self, client: Client, boss: Client, name: str) -> None:
        self._careful(client, name)
        if insist(lambda: boss.approve(name, boss.approval(name).digest, "fine")):
            self.approved.append(name)

    def check(self, client: Client) -> None:
        """Fail if a decision that was reported as done was undone. The stopped agent goes on before."""
        last = Job.make(self.folder, f"{self.folder.name}-last", agent=FROZEN)
        # Orders of one caller are taken in their order, so this one is the last.
        assert client.execute(last.request).state is ExecState.SUCCEEDED
        for job in self.cancelled:
            assert (client.status(job.id).state, job.starts) == (ExecState.CANCELLED, 0), job.id
        for name in self.rejected:
            assert client.status(name).state is ExecState.REJECTED, name
            assert not (self.folder / name).exists(), name
        for name in self.approved:
            wait_until(lambda name=name: client.status(name).state.terminal, f"{name} has ended")
            ran = (self.folder / name).exists()
            found = client.status(name).state
            assert (found, ran) in ((ExecState.SUCCEEDED, True), (ExecState.EXPIRED, False)), name
        assert {user.name for user in client.users() if user.revoked} >= set(self.revoked)
        with self.world.admin(self.world.primary()) as redis:
            assert set(redis.hkeys(keys.REVOKED)) >= {f"user/{name}" for name in self.revoked}


class Runs:
    """The runs of a schedule from now on. The schedule is paused before and afterwards, so that all can be counted."""

    def __init__(self, client: Client, marks: Path) -> None:
        self._client, self._marks = client, marks
        self._earlier = {run.id for run in self._settled()}
        self._lines = self._count()
        client.resume_schedule(SCHEDULE)

    def _count(self) -> int:
        return len(self._marks.read_text().splitlines()) if self._marks.exists() else 0

    def _recorded(self) -> list[ScheduledRun]:
        return list(self._client.scheduled_runs(SCHEDULE, limit=1000))

    def _settled(self) -> list[ScheduledRun]:
        """Pause the schedule, and return its runs when none is about to be requested, and all have ended."""
        self._client.pause_schedule(SCHEDULE, "it is counted")
        wait_until(lambda: all(run.outcome is not DueOutcome.TAKEN for run in self._recorded()), "each time is decided")
        runs = [run for run in self._recorded() if run.outcome is DueOutcome.RUN]
        for run in runs:
            wait_until(lambda run=run: self._client.status(run.id).state.terminal, f"{run.id} has ended")
        return runs

    def wait_for_another(self) -> None:
        """Wait for a run that was not requested before."""
        before = {run.id for run in self._recorded()}
        wait_until(lambda: {run.id for run in self._recorded()} - before, "the schedule goes on")

    def check(self) -> None:
        """Fail unless each scheduled time has one outcome, and each run one end and at most one start."""
        runs = [run for run in self._settled() if run.id not in self._earlier]
        times = [run.due for run in self._recorded() if run.count == 1]
        assert len(set(times)) == len(times)
        statuses = [self._client.status(run.id) for run in runs]
        states = [status.state for status in statuses]
        others = [s for s in statuses if s.state not in (ExecState.SUCCEEDED, ExecState.EXPIRED)]
        assert not others, [(s.id, s.state, s.error, s.history) for s in others]
        assert self._count() - self._lines == states.count(ExecState.SUCCEEDED)


def flower_states(world: SentinelWorld) -> dict[str, str]:
    """The state of each execution in Flower."""
    login = base64.b64encode(world.flower_users.read_text().strip().encode()).decode()
    form = {
        "draw": 1, "start": 0, "length": 10_000, "search[value]": "",
        "order[0][column]": 0, "order[0][dir]": "asc", "columns[0][data]": "uuid",
    }  # fmt: skip
    asked = urllib.request.Request(
        f"{world.flower_url}/tasks/datatable", data=urllib.parse.urlencode(form).encode(),
        headers={"Authorization": f"Basic {login}"},
    )  # fmt: skip
    with urllib.request.urlopen(asked, timeout=PATIENCE_SECONDS) as answer:
        return {row["uuid"]: row["state"] for row in json.loads(answer.read())["data"]}
