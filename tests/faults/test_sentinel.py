"""Redis behind Sentinel: whatever happens to the primary, every caller is answered, and nothing runs twice.

`make soak-sentinel` lets each fault happen ten times, and prints how long callers waited.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.redis import keys
from tachikoma.redis.access import RedisAccess, RedisSettings, connect
from tachikoma.redis.servers import Servers
from tachikoma.redis.users import ADMIN, ENROLLER, agent_user
from tachikoma.vocabulary.clock import now_ms
from tachikoma_orchestrator.agents.account_copies import AccountCopies
from tachikoma_orchestrator.agents.redis_accounts import Accounts
from tachikoma_orchestrator.agents.revocations import Revocations

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


def checked(world: SentinelWorld) -> list[str]:
    """What `tachikoma redis check` finds."""
    done = subprocess.run(
        [sys.executable, "-m", "tachikoma", "redis", "check", "--redis-url", world.url, "--output", "json",
         "--identity", str(world.identity("user")), "--passwords", str(world.redis_passwords.folder)],
        env={**os.environ, "TACHIKOMA_AUDIT_DURABLE": "false"}, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.stderr == ""
    return [f"{item['where']}: {item['what']}" for item in json.loads(done.stdout)["findings"]]


def test_redis_check_looks_at_every_server_and_every_sentinel(world: SentinelWorld) -> None:
    world.settle()
    assert checked(world) == []
    port = world.primary()
    replica = next(other for other in world.servers if other != port)
    watcher = next(iter(world.sentinels))
    with world.admin(replica) as server, world.admin(watcher) as sentinel:
        server.config_set("min-replicas-to-write", "0")
        server.execute_command("ACL", "SETUSER", "agent.agent-1", "+keys")
        sentinel.execute_command("SENTINEL", "SET", "tk", "down-after-milliseconds", "30000")
        try:
            found = checked(world)
        finally:
            server.config_set("min-replicas-to-write", "1")
            server.execute_command("ACL", "LOAD")
            sentinel.execute_command("SENTINEL", "SET", "tk", "down-after-milliseconds", "2000")
    assert len(found) == 3, found
    assert any(f":{replica}, min-replicas-to-write: is 0" in finding for finding in found)
    assert any(f":{replica}, user agent.agent-1: has in addition +keys" in finding for finding in found)
    assert any(f":{watcher}: down-after-milliseconds is 30000" in finding for finding in found)


def users_on(world: SentinelWorld, user: str) -> list[bool]:
    """Whether each server has a user."""
    found = []
    for port in world.servers:
        with world.admin(port) as server:
            found.append(server.acl_getuser(user) is not None)
    return found


async def test_an_agent_that_joined_has_its_user_on_every_server(world: SentinelWorld) -> None:
    world.settle()
    user, identity = agent_user("late"), FileSvidSource(world.identity("orchestrator"))
    settings = RedisSettings(redis_url=world.url, redis_password_file=world.redis_passwords.path(ENROLLER))
    access = RedisAccess.of(settings, identity=identity, user=ENROLLER)
    with world.admin(world.primary()) as admin:
        admin.hset(keys.JOINED, "late", "{}")
    settings = RedisSettings(redis_url=world.url, redis_password_file=world.redis_passwords.path(ADMIN))
    reader = connect(RedisAccess.of(settings, identity=identity, user=ADMIN), name="test", max_connections=2)
    revocations = Revocations(reader)
    copies = AccountCopies(reader, Servers(access, name="test"), revocations)
    enroller = connect(access, name="test", max_connections=1)
    accounts = Accounts(enroller, copies.spread)
    await accounts.create("late")
    assert users_on(world, user) == [True] * 3
    # A server that was away, and an earlier replica that is the primary now.
    for port in world.servers:
        with world.admin(port) as server:
            server.acl_deluser(user)
        another = AccountCopies(reader, Servers(access, name="test"), revocations)
        await another.spread()
        await another.close()
        assert users_on(world, user) == [True] * 3
    # Users from ACL files are the operators'.
    with world.admin(world.primary()) as server:
        server.acl_setuser("agent.by-hand", enabled=True, nopass=True)
        await copies.spread()
        assert users_on(world, "agent.by-hand").count(True) == 1
        server.acl_deluser("agent.by-hand")
    await accounts.remove("late")
    details = {"by": "x", "reason": "stolen"}
    with world.admin(world.primary()) as admin:
        admin.hset(keys.REVOKED, "late", json.dumps({"at_ms": now_ms(), "active": True, "details": details}))
    await revocations.refresh()
    await copies.spread()
    assert users_on(world, user) == [False] * 3
    for thing in (accounts, copies):
        await thing.close()
    await reader.aclose()
