"""Redis behind Sentinel: whatever happens to the primary, every caller is answered, and nothing runs twice.

`make soak-sentinel` lets each fault happen ten times, and prints how long callers waited.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from redis.exceptions import ResponseError
from sentinels import SentinelWorld
from support import prepare, wait_until
from world import Job

from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecState, Unavailable

#: How often each fault happens. CI has one of them, once.
ROUNDS = int(os.environ.get("TACHIKOMA_TEST_FAILOVERS", "0"))
FAULTS = ["killed", "hung", "separated", "planned"] * ROUNDS if ROUNDS else ["hung"]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, debian: Path) -> Iterator[SentinelWorld]:
    with SentinelWorld(prepare(tmp_path_factory.mktemp("sentinel")), debian) as made:
        yield made


class Load:
    """Callers that execute one command after the other, until they are stopped."""

    def __init__(self, world: SentinelWorld, folder: Path, callers: int = 4) -> None:
        self._world, self._folder, self._callers = world, folder, callers
        self._stopped = threading.Event()
        self.jobs: list[Job] = []
        self.done = 0
        #: Longest time until a caller was answered, in seconds.
        self.longest_seconds = 0.0

    def _call(self, caller: int) -> None:
        with Client(self._world.profile()) as client:
            number = 0
            while not self._stopped.is_set():
                job = Job.make(self._folder, f"{self._folder.name}-{caller}-{number}", lines=10)
                self.jobs.append(job)
                began = time.monotonic()
                job.told.append(self._answer(client, job))
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
                self.done += 1
                number += 1

    @staticmethod
    def _answer(client: Client, job: Job) -> ExecState:
        """Execute a job; repeat the call while Redis is unavailable, which its id makes safe."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return client.execute(job.request).state
            except Unavailable:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.1)

    def around(self, fault: AbstractContextManager[None]) -> None:
        """Let a fault happen in the middle of the load, and wait until every caller is answered."""
        with ThreadPoolExecutor(self._callers) as threads:
            calls = [threads.submit(self._call, caller) for caller in range(self._callers)]
            try:
                self._wait_for_more()
                with fault:
                    self._wait_for_more()
                self._wait_for_more()
            finally:
                self._stopped.set()
            for call in calls:
                call.result()

    def _wait_for_more(self) -> None:
        before = self.done
        wait_until(lambda: self.done >= before + 10, "callers are answered", 120)


@pytest.mark.parametrize(("number", "fault"), list(enumerate(FAULTS)))
def test_a_failover_leaves_no_caller_without_an_answer(
    world: SentinelWorld, tmp_path: Path, number: int, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / f"{fault}-{number}"
    folder.mkdir()
    load = Load(world, folder)
    load.around(getattr(world, fault)())
    if ROUNDS:
        expired = sum(job.told == [ExecState.EXPIRED] for job in load.jobs)
        with capsys.disabled():
            print(
                f"{fault}: {len(load.jobs)} executions, {expired} expired; another primary after "
                f"{world.failover_seconds:.1f} s, longest call {load.longest_seconds:.1f} s",
                flush=True,
            )
    assert {job.id: job.starts for job in load.jobs if job.starts > 1} == {}
    # An order that was queued in a life that lost data expires, and did not run.
    for job in load.jobs:
        assert (job.told, job.starts) in (([ExecState.SUCCEEDED], 1), ([ExecState.EXPIRED], 0)), job.id
    world.settle()
    with Client(world.profile()) as client:
        for job in load.jobs:
            assert client.status(job.id).state is job.told[0]


def test_the_users_of_parts_may_do_no_more_at_a_sentinel_than_ask(world: SentinelWorld) -> None:
    port = next(iter(world.sentinels))
    with world.admin(port) as sentinel:
        for command in (("SENTINEL", "FAILOVER", "tk"), ("SENTINEL", "REMOVE", "tk"), ("ACL", "LIST")):
            answer = str(sentinel.execute_command("ACL", "DRYRUN", "default", *command))
            assert "no permissions" in answer, answer
    with pytest.raises(ResponseError), world.admin(port) as sentinel:
        sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME")
