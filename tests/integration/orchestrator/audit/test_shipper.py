"""The shipper: every event in every sink, over restarts, failures and broken records."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

from audit_chain import BIG, verified
from patience import PATIENCE_SECONDS
from tachikoma.config.tasks import cancel_all
from tachikoma.errors import Unavailable
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.redis import keys
from tachikoma.redis.access import connect
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode, ExecAuditLog
from tachikoma_orchestrator.audit.shipper import Shipper
from tachikoma_orchestrator.audit.sinks.file import FileSink
from tachikoma_orchestrator.audit.sinks.sink import SinkUnavailable
from tachikoma_orchestrator.audit.trail import AuditTrail, TrailBounds
from tachikoma_orchestrator.store.known import Known, share_known

Until = Callable[[Callable[[], object], str], Awaitable[None]]


class Recorder:
    """A sink of a test: it can be away, and takes as many as it is told to."""

    def __init__(self, name: str = "recorder") -> None:
        self.name = name
        #: Their numbers.
        self.taken: list[int] = []
        self.away = False
        self.most = 1000

    def send(self, given: Any) -> None:
        if self.away:
            raise SinkUnavailable("away")
        self.taken += [item.seq for item in given[: self.most]]
        if len(given) > self.most:
            raise SinkUnavailable("full", sent=self.most)

    def close(self) -> None:
        pass


@pytest.fixture
async def shipping(redis_url: str) -> Any:
    client = connect(redis_url, name="test-shipping", max_connections=16)
    yield client
    await client.aclose()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same waits, shorter."""
    for name, seconds in (
        ("BLOCK_SECONDS", 0.05),
        ("RETRY_SECONDS", 0.02),
        ("MAX_RETRY_SECONDS", 0.05),
        ("TAKE_OVER_SECONDS", 0.02),
        ("LOCK_SECONDS", 1.0),
    ):
        monkeypatch.setattr(f"tachikoma_orchestrator.audit.shipper.{name}", seconds)


async def append(trail: AuditTrail, count: int) -> None:
    for _ in range(count):
        await trail.append(AuditCode.POLICY_CHANGED, reason="x")


@asynccontextmanager
async def shipper(
    shipping: Redis, trail: AuditTrail, file: FileSink | None, *shared: Any, backlog: int = 10, closed: bool = True
) -> AsyncIterator[Shipper]:
    """A shipper that runs while a block lasts."""
    made = Shipper(shipping, trail, file, shared, backlog=backlog, closed=closed)
    task = asyncio.create_task(made.run())
    try:
        yield made
        assert not task.done(), task
    finally:
        await cancel_all([task])


async def test_every_event_gets_into_the_file_once_over_restarts(
    redis: Redis, shipping: Redis, tmp_path: Path, identity: FileSvidSource, until: Until
) -> None:
    trail, path = AuditTrail(redis), tmp_path / "audit.jsonl"
    for run in range(1, 4):
        await append(trail, 5)
        sink = FileSink(path, identity, rotate_bytes=BIG)
        async with shipper(shipping, trail, sink):
            await append(trail, 5)
            await until(lambda sink=sink, run=run: sink.seq == 10 * run, "all are written")
    report = verified(path, identity)
    # The end of each run signs for what was written.
    assert (report.findings, report.gaps, report.events, report.unsigned) == ([], [], 30, 0)


async def test_the_numbers_of_events_that_were_shipped_are_known(
    redis: Redis, shipping: Redis, tmp_path: Path, identity: FileSvidSource, until: Until
) -> None:
    """Another process may have written them; no later life of Redis may use their numbers again."""
    values = Known()
    share_known(shipping, values)
    sink = FileSink(tmp_path / "audit.jsonl", identity, rotate_bytes=BIG)
    await append(AuditTrail(redis), 5)
    async with shipper(shipping, AuditTrail(redis), sink):
        await until(lambda: sink.seq == 5, "all are written")
    assert (values.seq, values.cursor) == (5, sink.cursor)


async def test_a_shared_sink_gets_every_event_once_from_any_of_several(
    redis: Redis, shipping: Redis, until: Until
) -> None:
    trail, one, two = AuditTrail(redis), Recorder(), Recorder()
    async with shipper(shipping, trail, None, two):
        async with shipper(shipping, trail, None, one):
            await append(trail, 20)
            await until(lambda: len(one.taken) + len(two.taken) == 20, "all are taken")
        await append(trail, 20)
        await until(lambda: len(one.taken) + len(two.taken) == 40, "the other goes on")
    assert sorted(one.taken + two.taken) == list(range(1, 41))


async def test_a_sink_that_is_away_or_slow_delays_and_loses_and_doubles_nothing(
    redis: Redis, shipping: Redis, until: Until
) -> None:
    trail, sink, chance = AuditTrail(redis), Recorder(), random.Random(7)
    async with shipper(shipping, trail, None, sink, backlog=1000):
        for _ in range(30):
            sink.away, sink.most = chance.random() < 0.4, chance.choice([1, 3, 1000])
            await append(trail, chance.randrange(5))
        sink.away, sink.most = False, 1000
        latest = int(await redis.get(keys.AUDIT_SEQ))
        await until(lambda: sink.taken and sink.taken[-1] == latest, "all are taken")
    assert sink.taken == list(range(1, latest + 1))


async def test_too_many_that_wait_close_the_service_until_they_are_gone(
    redis: Redis, shipping: Redis, until: Until
) -> None:
    trail, sink = AuditTrail(redis), Recorder()
    sink.away = True
    async with shipper(shipping, trail, None, sink, backlog=10):
        await append(trail, 10)
        trail.check()
        await append(trail, 1)
        await until(lambda: trail.closed_reason, "it is noticed")
        with pytest.raises(Unavailable, match="11 audit events wait for recorder, more than the 10 allowed"):
            trail.check()
        sink.away = False
        await until(lambda: not trail.closed_reason, "it is noticed")
        trail.check()


async def test_by_choice_it_stays_open(redis: Redis, shipping: Redis, until: Until) -> None:
    trail, sink = AuditTrail(redis), Recorder()
    sink.away = True
    async with shipper(shipping, trail, None, sink, backlog=1, closed=False) as running:
        await append(trail, 5)
        await running.measure()
        trail.check()


async def test_a_chain_goes_on_over_what_is_no_event_and_shows_where_it_stood(
    redis: Redis, shipping: Redis, tmp_path: Path, identity: FileSvidSource, until: Until, capsys: Any
) -> None:
    trail, path, shared = AuditTrail(redis), tmp_path / "audit.jsonl", Recorder()
    sink = FileSink(path, identity, rotate_bytes=BIG)
    async with shipper(shipping, trail, sink, shared, backlog=1) as running:
        await append(trail, 2)
        # One was added, and of another nobody can tell what it was.
        added = (await redis.xadd(keys.AUDIT, {"x": "y"})).decode()
        await redis.incr(keys.AUDIT_SEQ)
        altered = (await redis.xadd(keys.AUDIT, {"seq": "3?", "event": "denied"})).decode()
        await until(lambda: sink.cursor == altered, "it is written")
        await until(lambda: shared.taken == [1, 2, 0, 0], "the other has it as well")
        assert sink.seq == 2
        await running.measure()
        # What could not be read counts as waiting until the next number comes, and no longer.
        assert not trail.closed_reason
        await append(trail, 2)
        await until(lambda: sink.seq == 5 and shared.taken == [1, 2, 0, 0, 4, 5], "the rest came")
        await until(lambda: not trail.closed_reason, "nothing waits")
    report = verified(path, identity)
    assert report.findings == []
    assert report.gaps == [
        f"at {added} the trail in Redis had an entry that could not be read",
        f"at {altered} the trail in Redis had an entry that could not be read",
        "events 3 to 3 were gone from Redis before they were written here",
    ]
    assert (report.events, report.unreadable, report.last_seq) == (6, 2, 5)
    # A sink that begins again knows its number also where the last it wrote has none.
    await redis.xadd(keys.AUDIT, {"x": "y"})
    again = FileSink(path, identity, rotate_bytes=BIG)
    async with shipper(shipping, trail, again):
        await until(lambda: again.cursor > sink.cursor, "it is written")
    third = FileSink(path, identity, rotate_bytes=BIG)
    assert (third.cursor, third.seq) == (again.cursor, 5)
    third.close()
    # And the log of each says so.
    assert capsys.readouterr().out.count("audit.unreadable") >= 3


async def test_a_shared_sink_whose_position_is_garbage_gets_everything_again(
    redis: Redis, shipping: Redis, until: Until
) -> None:
    trail = AuditTrail(redis)
    await append(trail, 3)
    for garbage in (b"", b"\xff"):
        sink = Recorder()
        await redis.hset(keys.AUDIT_SINKS, sink.name, garbage)
        async with shipper(shipping, trail, None, sink):
            await until(lambda sink=sink: sink.taken == [1, 2, 3], "it has all of them")


async def test_garbage_beside_the_trail_neither_ends_the_shipper_nor_lets_anything_through(
    redis: Redis, shipping: Redis, tmp_path: Path, identity: FileSvidSource, until: Until
) -> None:
    trail, path, shared = AuditTrail(redis), tmp_path / "audit.jsonl", Recorder()
    sink = FileSink(path, identity, rotate_bytes=BIG)
    number = 0
    async with shipper(shipping, trail, sink, shared):
        for key, make, mend in (
            (keys.AUDIT_SEQ, ("set", "seven"), True),
            (keys.AUDIT_SEQ, ("lpush", "seven"), True),
            (keys.AUDIT_SINKS, ("set", "x"), False),
        ):
            await append(trail, 1)
            number += 1
            await until(lambda number=number: sink.seq == number and shared.taken[-1:] == [number], "it is taken")
            await redis.delete(key)
            name, value = make
            await getattr(redis, name)(key, value)
            await until(lambda: "is unknown" in trail.closed_reason, "it is noticed")
            with pytest.raises(Unavailable, match="is unknown"):
                trail.check()
            await trail.trim(0, TrailBounds(timedelta(0), 0, closed=True))
            await redis.delete(key)
            if mend:
                await redis.set(key, number)
            await until(lambda: not trail.closed_reason, "it is well again")
    assert verified(path, identity).findings == []


async def test_a_trail_that_is_none_is_neither_read_nor_trimmed_and_goes_on_when_it_is_one(
    redis: Redis, shipping: Redis, tmp_path: Path, identity: FileSvidSource, until: Until, capsys: Any
) -> None:
    trail, sink = AuditTrail(redis), FileSink(tmp_path / "audit.jsonl", identity, rotate_bytes=BIG)
    await redis.set(keys.AUDIT, "no stream")
    said = ""

    def told() -> bool:
        nonlocal said
        said += capsys.readouterr().out
        return "audit.file_delayed" in said and "WRONGTYPE" in said

    async with shipper(shipping, trail, sink):
        await until(told, "it is said")
        await trail.trim(0, TrailBounds(timedelta(0), 0, closed=False))
        with pytest.raises(ResponseError):
            await append(trail, 1)
        await redis.delete(keys.AUDIT)
        await append(trail, 1)
        await until(lambda: sink.seq == 2, "it goes on; the number that could not be used is gone")


class SlowFile(FileSink):
    """Files whose writes wait until a test lets them go on."""

    def __init__(self, *args: Any, **values: Any) -> None:
        super().__init__(*args, **values)
        self.writing, self.go_on = threading.Event(), threading.Event()

    def send(self, events: Sequence[ExecAuditLog]) -> None:
        self.writing.set()
        self.go_on.wait(PATIENCE_SECONDS)
        super().send(events)


async def test_a_stop_during_a_write_waits_for_it_and_signs_for_it(
    redis: Redis, shipping: Redis, tmp_path: Path, identity: FileSvidSource, until: Until
) -> None:
    trail, path = AuditTrail(redis), tmp_path / "audit.jsonl"
    await append(trail, 5)
    sink = SlowFile(path, identity, rotate_bytes=BIG)
    task = asyncio.create_task(Shipper(shipping, trail, sink, (), backlog=10, closed=True).run())
    await until(sink.writing.is_set, "it writes")
    # Cancelled several times, as a process does whose parts take long.
    for _ in range(3):
        task.cancel()
        # Time in which it could end, which it must not.
        await asyncio.sleep(0.02)
    assert not task.done()
    sink.go_on.set()
    await cancel_all([task])
    report = verified(path, identity)
    assert (report.findings, report.events, report.unsigned) == ([], 5, 0)
    again = FileSink(path, identity, rotate_bytes=BIG)
    async with shipper(shipping, trail, again):
        await append(trail, 5)
        await until(lambda: again.seq == 10, "the rest is written")
    report = verified(path, identity)
    assert (report.findings, report.gaps, report.events) == ([], [], 10)


async def test_a_shared_sink_that_is_stopped_during_a_write_gets_nothing_twice(
    redis: Redis, shipping: Redis, until: Until
) -> None:
    trail = AuditTrail(redis)
    writing, go_on = threading.Event(), threading.Event()

    class Slow(Recorder):
        def send(self, given: Any) -> None:
            writing.set()
            go_on.wait(PATIENCE_SECONDS)
            super().send(given)

    sink = Slow()
    await append(trail, 5)
    task = asyncio.create_task(Shipper(shipping, trail, None, (sink,), backlog=10, closed=True).run())
    await until(writing.is_set, "it writes")
    task.cancel()
    # Time in which it could leave its write, which it must not.
    await asyncio.sleep(0.05)
    go_on.set()
    await cancel_all([task])
    async with shipper(shipping, trail, None, sink):
        await append(trail, 5)
        await until(lambda: len(sink.taken) >= 10, "the rest is taken")
    assert sink.taken == list(range(1, 11))


async def test_a_part_that_fails_ends_the_shipper_with_its_reason(redis: Redis, shipping: Redis) -> None:
    class Broken(Recorder):
        def send(self, given: Any) -> None:
            raise ValueError("broken")

    trail = AuditTrail(redis)
    await append(trail, 1)
    with pytest.raises(ValueError, match="broken"):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await Shipper(shipping, trail, None, (Broken(),), backlog=10, closed=True).run()
