"""Whatever is stored at a key that the orchestrator reads, its readers raise no unexpected error.

The background parts of the process end with an unexpected error, and with them the process.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import RedisError

from admissions import AGENT, ALICE, Stand, peer
from tachikoma.errors import TachikomaError
from tachikoma.redis import keys
from tachikoma.redis.access import connect
from tachikoma.redis.commands import Redis
from tachikoma.redis.names import NAMES, Kind, Part
from tachikoma_orchestrator.agents.labels import Labels
from tachikoma_orchestrator.agents.users import Users
from tachikoma_orchestrator.audit.findings import Findings
from tachikoma_orchestrator.audit.trail import TrailBounds
from tachikoma_orchestrator.batches.store import BatchStore
from tachikoma_orchestrator.executions.collector import Collector
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.follower import Follower
from tachikoma_orchestrator.executions.reaper import Reaper, Retention
from tachikoma_orchestrator.executions.restoration import OpenIndex, Restoration
from tachikoma_orchestrator.executions.revocation import ExecutionsOfMembers
from tachikoma_orchestrator.executions.waiters import AwaitedOrder, Completions
from tachikoma_orchestrator.executions.waiting_callers import WaitingCallers
from tachikoma_orchestrator.processes.taken_messages import TakenMessages
from tachikoma_orchestrator.schedules.store import ScheduleStore
from tachikoma_orchestrator.store.known import known
from tachikoma_orchestrator.store.lives import Lives
from tachikoma_orchestrator.store.subscriber import Subscriber

pytestmark = pytest.mark.long

EXEC = "job-7"
KEYS = (
    keys.execution(EXEC), keys.claim(AGENT, EXEC), keys.output(AGENT, EXEC), keys.result(AGENT, EXEC),
    keys.parked(EXEC), keys.info(AGENT), keys.queue(AGENT), keys.AUDIT, keys.AUDIT_SEQ, keys.AUDIT_SINKS, keys.AGENTS,
    keys.ONLINE, keys.DRAINING, keys.REVOKED, keys.INDEX, keys.agent_index(AGENT), keys.OPEN, keys.APPROVALS,
    keys.OUTPUTS, keys.JOINED, keys.cancel(AGENT, EXEC), keys.read(AGENT, EXEC), keys.enrolment(AGENT),
    *keys.scope(f"agent:{AGENT}"), keys.LIFE, keys.orders(AGENT),
    keys.requester_queue(AGENT, str(ALICE), keys.QUEUE_LANES),
)  # fmt: skip
#: Keys of which each part reads one or two fields; each has a test of what else they may contain.
FURTHER_KEYS = (
    keys.LABELS, keys.LABELS_CHANGES, keys.USERS, keys.BATCHES, keys.BATCHES_OPEN, *keys.batch(EXEC), keys.SCHEDULES,
    keys.schedule(EXEC), keys.schedule_order(EXEC), keys.schedule_runs(EXEC), keys.SUBMITTERS, keys.SUBMIT, keys.BATCH,
    keys.unacked(EXEC)[0],
)  # fmt: skip
#: Names whose values only these tests change, since the readers there are not made here: the file below `tests`.
ELSEWHERE = {
    "agent.<id>:input:<exec>": "integration/worker/sessions/test_mailbox.py",
    "agent.<id>:session:<exec>": "integration/worker/sessions/test_mailbox.py",
    "orch:recorder:<exec>": "integration/orchestrator/recordings/test_recorder.py",
    "orch:audit:lock:<sink>": "integration/orchestrator/audit/test_shipper.py",
    "orch:batch:<batch>:driver": "integration/orchestrator/batches/test_driver.py",
    # Only kombu reads these. An error reply is a broken connection for it.
    "orch:unacked:<run>:index": "integration/shared/redis/test_celery_broker.py",
    "orch:unacked:<run>:mutex": "integration/shared/redis/test_celery_broker.py",
}
#: Parts that keep values in Redis for themselves or for applications.
OTHERS = {Part.APPLICATION, Part.BEAT, Part.FLOWER}

NUMBERS = st.sampled_from([b"0", b"-1", b"1e309", b"9" * 400, b"nan", b"\xff", b"", b"x", b"18446744073709551616"])
JSON = st.sampled_from(
    [b"{}", b"[]", b"null", b'{"seen_ms":1}', b"[" * 100_000, b'{"result":{"receipt":5}}', b'"\\ud800"']
)
TEXTS = st.one_of(NUMBERS, JSON, st.binary(max_size=40))
FIELDS = st.one_of(
    st.sampled_from(
        [b"state", b"history", b"agent", b"admitted_ms", b"deadline_ms", b"approvers", b"request", b"settled_ms",
         b"scopes", b"receipt", b"exit_code", b"seq", b"event", b"d", AGENT.encode(), EXEC.encode()]
    ),
    st.binary(min_size=1, max_size=10),
)  # fmt: skip
STATES = st.sampled_from([b"QUEUED", b"STARTED", b"SUCCEEDED", b"PENDING_APPROVAL", b"LOST", b"NOTHING"])
COMMANDS = st.one_of(
    st.tuples(st.just("SET"), TEXTS),
    st.tuples(st.just("RPUSH"), TEXTS),
    st.tuples(st.just("SADD"), TEXTS),
    st.tuples(st.just("ZADD"), st.sampled_from(["0", "-inf", "inf", "1e300", "1.5"]), st.one_of(TEXTS, st.just(EXEC))),
    st.tuples(st.just("HSET"), FIELDS, st.one_of(TEXTS, STATES)),
    st.tuples(st.just("XADD"), st.just("*"), FIELDS, TEXTS),
)
#: A value of every type.
WRONG: tuple[tuple[str, ...], ...] = (
    ("SET", "x"), ("RPUSH", "x"), ("SADD", "x"), ("ZADD", "1", "x"), ("HSET", "x", "x"), ("XADD", "*", "x", "x"),
)  # fmt: skip
#: Most seconds for all readers together, also on a busy machine: none waits for anything.
MAX_SECONDS = 60


class Readers:
    """Every part that reads, with an execution, a parked one and a caller that waits for both."""

    def __init__(self, stand: Stand) -> None:
        self.stand, redis = stand, stand.redis
        findings = Findings(redis, stand.trail)
        self.completions = Completions()
        self.evidence = Evidence(redis, findings, stand.identity, stand.registry.revocations)
        self.collector = Collector(
            redis, stand.ledger, self.completions, stand.registry, stand.identity, self.evidence, findings
        )
        self.reaper = Reaper(
            redis, stand.ledger, stand.registry, self.collector, lease=timedelta(0), interval=timedelta(hours=1),
            retention=Retention(stand.trail, TrailBounds(timedelta(hours=1), 1000, closed=True)),
            executions=ExecutionsOfMembers(redis, stand.ledger, stand.identity),
        )  # fmt: skip
        self.callers = WaitingCallers(redis, stand.ledger, self.completions, self.collector, stand.registry)
        self.labels = Labels(redis, stand.identity)
        self.users = Users(redis, stand.registry.revocations)
        self.batches = BatchStore(redis, retention=timedelta(hours=1))
        self.schedules = ScheduleStore(redis, retention=timedelta(hours=1))
        self.lives = Lives(redis, stand.identity, known(redis), "a test")
        self.index = OpenIndex(redis, stand.ledger, None)
        self.restoration = Restoration(redis, stand.identity, self.lives, stand.admitter.shown, self.collector.fold)
        self.taken = TakenMessages(redis)

    async def follow(self) -> None:
        follower = Follower(self.stand.redis, Subscriber(self.stand.redis), AGENT, EXEC, 0)
        async for _ in follower.replay():
            pass

    async def restore_index(self) -> None:
        self.index.note_damage()
        await self.index.restore_if_needed()

    async def show(self) -> None:
        record = await self.stand.ledger.record(EXEC)
        if record is not None:
            await self.evidence.final_state(record)
            await self.evidence.status(record)

    async def read_all(self) -> None:
        """Let every part read once, in time."""
        waiting, approvals = self.completions.expect(EXEC), self.completions.approvals.expect("parked")
        async with asyncio.timeout(MAX_SECONDS):
            with waiting, approvals:
                self.completions.note_order(EXEC, AwaitedOrder(AGENT, ""))
                for read in self.in_background:
                    with suppress(RedisError):
                        await read()
                for read in self.for_callers:
                    with suppress(RedisError, TachikomaError):
                        await read()

    @property
    def in_background(self) -> list[Callable[[], Awaitable[object]]]:
        """What runs without a caller: an unexpected error ends the process."""
        return [
            self.reaper.sweep, self.reaper._trim, self.callers.check, self.stand.registry.discover,
            self.stand.registry.revocations.refresh, self.labels.refresh, self.batches.open_batches, self.lives.look,
            self.restore_index, lambda: self.restoration.restore(AGENT, EXEC),
            lambda: self.restoration._restore_all(AGENT), self.taken.look, lambda: self.taken.put_back(EXEC),
        ]  # fmt: skip

    @property
    def for_callers(self) -> list[Callable[[], Awaitable[object]]]:
        """What runs for a caller, who gets the error."""
        stand = self.stand
        return [
            self.show, self.follow, stand.registry.describe,
            lambda: stand.ledger.newest("", ended=True, before=None, limit=10),
            lambda: stand.ledger.newest(AGENT, ended=True, before=None, limit=10),
            lambda: stand.ledger.readiness(AGENT, keys.queue(AGENT)),
            lambda: stand.approvals.pending(peer(), everybody=True),
            lambda: stand.approvals.describe(EXEC, peer()),
            lambda: stand.trail.read(after="", limit=10), lambda: stand.trail.read(after="0-0", limit=10),
            lambda: stand.admit("true"), self.users.describe, lambda: self.batches.newest(10),
            lambda: self.batches.status(EXEC), lambda: self.batches.results(EXEC), lambda: self.batches.not_ended(EXEC),
            self.schedules.names, lambda: self.schedules.state(EXEC), lambda: self.schedules.runs(EXEC, limit=10),
        ]  # fmt: skip


async def prepare(redis: Redis, folder: Path) -> Readers:
    await redis.flushall()
    stand = await Stand.make(redis, folder)
    await stand.heard(queues=keys.QUEUE_LANES)
    await stand.admit("true", id=EXEC)
    await stand.admit("printf", "x", id="parked")
    return Readers(stand)


def example(pattern: str) -> str:
    """A key of a name."""
    for variable, value in (("<id>", AGENT), ("<agent>", AGENT), ("<scope>", f"agent:{AGENT}")):
        pattern = pattern.replace(variable, value)
    return re.sub(r"<(exec|batch|schedule|run)>", EXEC, pattern)


def test_every_name_with_a_value_is_in_the_matrix_or_has_a_test_elsewhere() -> None:
    lanes = {keys.queue_lane(AGENT, lane) for lane in range(keys.QUEUE_LANES)}
    assert lanes & set(KEYS)
    tried = {*KEYS, *FURTHER_KEYS, example("agent.<id>:queue:<lane>")}
    for name in NAMES:
        if set(name.kinds) == {Kind.CHANNEL} or name.owner in OTHERS or name.pattern.startswith("celery-task-meta-app"):
            continue
        if name.pattern in ELSEWHERE:
            assert (Path(__file__).parents[2] / ELSEWHERE[name.pattern]).is_file()
            continue
        assert example(name.pattern) in tried, name.pattern


@pytest.mark.parametrize("key", KEYS)
@given(commands=st.lists(COMMANDS, min_size=1, max_size=3))
@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
async def test_no_value_ends_a_reader(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory, key: str, commands: list[tuple[Any, ...]]
) -> None:
    redis = connect(redis_url, name="test")
    readers = await prepare(redis, tmp_path_factory.mktemp("readers"))
    await redis.delete(key)
    for command, *values in commands:
        try:
            await redis.execute_command(command, key, *values)
        except RedisError:
            # The key has another type by now.
            continue
    await readers.read_all()
    await redis.aclose()


@pytest.mark.parametrize("key", [*KEYS, *FURTHER_KEYS])
async def test_a_value_of_another_type_ends_no_reader(redis: Redis, tmp_path: Path, key: str) -> None:
    for command, *values in WRONG:
        folder = tmp_path / command
        folder.mkdir()
        readers = await prepare(redis, folder)
        await redis.delete(key)
        await redis.execute_command(command, key, *values)
        await readers.read_all()


@pytest.mark.parametrize("field", ["approvers", "request", "settled_ms", "exit_code"])
async def test_one_broken_record_hides_no_other_that_waits_for_an_approval(
    redis: Redis, tmp_path: Path, field: str
) -> None:
    stand = await Stand.make(redis, tmp_path)
    good, bad = await stand.admit("printf", "a"), await stand.admit("printf", "b")
    await redis.hset(keys.execution(bad), field, "[" * 10_000)
    for everybody in (True, False):
        assert [status.id for status in await stand.approvals.pending(peer(), everybody=everybody)] == [good]
