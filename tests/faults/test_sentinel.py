"""Redis behind Sentinel: whatever happens to the primary, every caller is answered, and nothing reported is undone.

`make soak-sentinel` lets each fault happen ten times in the middle of 200 executions, and prints a table of times.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from policies import BOSS, write_policy
from redis.exceptions import ResponseError
from sentinel_load import FROZEN, SCHEDULE, Callers, Decisions, Runs, Streams, flower_states
from sentinels import SentinelWorld
from support import wait_until

from tachikoma import Client, ExecState
from tachikoma.client.profile import Profile
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
#: Executions around each fault, streams beside them, and seconds for which a hung primary hangs.
EXECUTIONS, STREAMS, HANG_SECONDS = (200, 20, 25.0) if ROUNDS else (30, 4, 0.0)
#: Longest time in which a caller is answered after another primary was named; only measured with rounds.
MOST_SECONDS = 15.0
#: What Flower calls the ends that executions may have here.
SHOWN = {ExecState.SUCCEEDED: "SUCCESS", ExecState.EXPIRED: "FAILURE"}

pytestmark = pytest.mark.timeout(400)


@dataclass
class Stage:
    """The world, an approver of it, and the file to which each run of the schedule appends a line."""

    world: SentinelWorld
    boss: Profile
    marks: Path


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, debian: Path) -> Iterator[Stage]:
    data = tmp_path_factory.mktemp("sentinel")
    marks = data / "marks"
    write_policy(data)
    request = {"command": ["/bin/sh", "-c", f"echo run >> {marks}"], "timeout": "30s"}
    often = {"name": SCHEDULE, "every": "1s", "agentId": "agent-1", "request": request}
    (data / "schedules.yaml").write_text(json.dumps({"schedules": [often]}))
    with SentinelWorld(data, debian, agents=2, schedules=str(data / "schedules.yaml"), flower="127.0.0.1:0") as world:
        yield Stage(world, world.issue(BOSS), marks)


@pytest.fixture(scope="module")
def world(stage: Stage) -> SentinelWorld:
    return stage.world


@pytest.mark.parametrize(("number", "fault"), list(enumerate(FAULTS)))
def test_a_failover_leaves_no_caller_without_an_answer_and_undoes_nothing(
    stage: Stage, tmp_path: Path, number: int, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    world, folder = stage.world, tmp_path / f"{fault}-{number}"
    folder.mkdir()
    callers, streams = Callers(world, folder), Streams(world, folder, STREAMS)
    decisions = Decisions(world, folder, stage.boss)
    world.hang_seconds = HANG_SECONDS
    with Client(world.profile()) as client:
        runs = Runs(client, stage.marks)
        with ExitStack() as stack:
            for going_on in (frozen(world), streams.reading(), decisions.deciding(), callers.calling()):
                stack.enter_context(going_on)
            callers.wait_for(EXECUTIONS // 3)
            runs.wait_for_another()
            before = decisions.number
            with getattr(world, fault)():
                callers.wait_for(EXECUTIONS // 3)
                wait_until(lambda: decisions.number > before, "decisions are taken")
            callers.wait_for(EXECUTIONS - callers.done)
            runs.wait_for_another()
        world.settle()
        if ROUNDS:
            with capsys.disabled():
                print(row(world, fault, callers, streams, decisions), flush=True)
        check(world, client, callers)
        streams.check()
        decisions.check(client)
        runs.check()
    if ROUNDS:
        assert max(callers.waited_after(world.named_at), streams.silent_after(world.named_at)) < MOST_SECONDS


@contextmanager
def frozen(world: SentinelWorld) -> Iterator[None]:
    """Stop an agent, so that its orders wait. Its registration stays, so that orders are accepted."""
    process = psutil.Process(world.agents[FROZEN].pid)
    process.suspend()
    try:
        with world.admin(world.primary()) as redis:
            assert redis.persist(keys.info(FROZEN))
            redis.execute_command("WAIT", 2, 0)
        yield
    finally:
        process.resume()


def row(world: SentinelWorld, fault: str, callers: Callers, streams: Streams, decisions: Decisions) -> str:
    """A row of the table of times."""
    expired = sum(job.told == [ExecState.EXPIRED] for job in callers.jobs)
    return (
        f"{fault}: {len(callers.jobs)} executions, {expired} expired; {len(streams.jobs)} streams; "
        f"{decisions.number} decisions of each kind; another primary after {world.failover_seconds:.1f} s, "
        f"then callers waited {callers.waited_after(world.named_at):.1f} s "
        f"and streams {streams.silent_after(world.named_at):.1f} s"
    )


def check(world: SentinelWorld, client: Client, callers: Callers) -> None:
    """Fail unless each execution has one end and at most one start, and Flower shows it."""
    assert {job.id: job.starts for job in callers.jobs if job.starts > 1} == {}
    # An order that was queued in a life that lost data expires, and did not run.
    for job in callers.jobs:
        assert (job.told, job.starts) in (([ExecState.SUCCEEDED], 1), ([ExecState.EXPIRED], 0)), job.id
        assert client.status(job.id).state is job.told[0]
    wanted = {job.id: SHOWN[job.told[0]] for job in callers.jobs}
    wait_until(lambda: wanted.items() <= flower_states(world).items(), "Flower shows every end")


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
