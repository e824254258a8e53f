"""Output that Redis has lost is sent again from the spools, on a real Redis."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from output_frames import KEY, MIB, stream
from patience import PATIENCE_SECONDS
from tachikoma.redis import keys
from tachikoma.redis.commands import Entry, Redis
from tachikoma.streams.frames import FIELD, STDERR, STDOUT
from tachikoma_worker.output import sent as module
from tachikoma_worker.output.output_log import OutputLog
from tachikoma_worker.output.records import Facts
from tachikoma_worker.output.sent import SentOutput
from tachikoma_worker.output.spool import Spool, host_boot

AGENT, JOB = "web-1", "job-7"
LOG_BYTES = 20_000


class Scene:
    """The spool, the log and the sent output of one execution."""

    def __init__(self, redis: Redis, folder: Path, job: str = JOB, *, waits: bool = False) -> None:
        self.redis, self.folder, self.job = redis, folder, job
        (folder / "spool").mkdir(exist_ok=True)
        facts = Facts(
            host=host_boot(), order_sha256="ab" * 32, executable="/bin/true", started_ms=1, began_ns=1, timeout=60,
            kill_grace=1, log_bytes=LOG_BYTES, waits=waits,
        )  # fmt: skip
        self.spool = Spool.create(folder / "spool", job, facts, max_bytes=MIB)
        self.log = OutputLog(redis, AGENT, job, log_bytes=LOG_BYTES, excerpt_bytes=100, waits=waits)
        self.sent = self.open()
        self.sent.track(job, self.log)

    def open(self) -> SentOutput:
        return SentOutput(AGENT, self.folder / "spool", self.folder / "sent", retention_seconds=1000)

    def write(self, kind: int, data: bytes) -> None:
        reading, writing = os.pipe()
        os.write(writing, data)
        self.spool.take(kind, reading)
        os.close(reading)
        os.close(writing)

    async def send(self) -> None:
        await self.log.append(self.spool.chunks(MIB))
        self.spool.done()

    async def forget(self, kept: int) -> list[Entry]:
        """Let Redis go back to the first entries of the log, and return all that it had."""
        entries = await self.redis.xrange(KEY)
        await self.redis.delete(KEY)
        for name, fields in entries[:kept]:
            await self.redis.xadd(KEY, {**fields}, id=name)
        return entries


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("finished", [False, True])
async def test_the_log_is_as_before_after_any_loss(redis: Redis, tmp_path: Path, seed: int, finished: bool) -> None:
    chance = random.Random(seed)
    scene = Scene(redis, tmp_path)
    for _ in range(chance.choice((3, 60))):
        scene.write(chance.choice((STDOUT, STDERR)), chance.randbytes(chance.randrange(1, 2000)))
        await scene.send()
    if finished:
        scene.sent.finish(JOB, scene.spool)
        assert scene.sent.retained == 1
    else:
        # Read, but not sent yet: the pump does that.
        scene.write(STDOUT, b"later")
    length = len(await redis.xrange(KEY))
    entries = await scene.forget(chance.randrange(length))
    await scene.sent.restore(redis)
    assert await redis.xrange(KEY) == entries
    if finished:
        assert 900 < await redis.ttl(KEY) <= 1000
    else:
        await scene.send()
        assert (await stream(redis))[-1].data == b"later"


async def test_nothing_is_sent_twice(redis: Redis, tmp_path: Path) -> None:
    scene = Scene(redis, tmp_path)
    scene.write(STDOUT, b"a")
    await scene.send()
    listener = redis.pubsub()
    await listener.subscribe(KEY)
    await listener.get_message(timeout=PATIENCE_SECONDS)
    await scene.sent.restore(redis)
    await redis.publish(KEY, b"end")
    message = await listener.get_message(timeout=PATIENCE_SECONDS)
    assert message is not None
    assert message["data"] == b"end"
    await listener.aclose()


async def test_the_next_worker_sends_it_as_well(redis: Redis, tmp_path: Path) -> None:
    scene = Scene(redis, tmp_path)
    scene.write(STDOUT, b"a")
    scene.write(STDERR, b"b")
    await scene.send()
    scene.sent.finish(JOB, scene.spool)
    entries = await scene.forget(1)
    await scene.open().restore(redis)
    assert await redis.xrange(KEY) == entries


async def test_a_spool_without_output_is_left_to_its_caller_to_remove(redis: Redis, tmp_path: Path) -> None:
    scene = Scene(redis, tmp_path)
    remove = scene.sent.finish(JOB, scene.spool)
    assert scene.sent.retained == 0
    assert remove is not None
    remove()
    assert not list(tmp_path.glob("s*/*"))


async def test_spools_are_removed_in_time_and_beyond_the_bounds(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module, "KEEP_FILES", 2)
    first = Scene(redis, tmp_path, "job-1")
    for number in (1, 2, 3):
        scene = first if number == 1 else Scene(redis, tmp_path, f"job-{number}")
        first.sent.track(scene.job, scene.log)
        scene.write(STDOUT, b"a")
        await scene.send()
        first.sent.finish(scene.job, scene.spool)
        clock[0] += 10
    assert sorted(path.name for path in (tmp_path / "sent").iterdir()) == ["job-2", "job-3"]
    first.sent.prune(1010 + module.KEEP_SECONDS + 5)
    assert [path.name for path in (tmp_path / "sent").iterdir()] == ["job-3"]
    monkeypatch.setattr(module, "KEEP_BYTES", 10)
    scene = Scene(redis, tmp_path, "job-4")
    first.sent.track(scene.job, scene.log)
    scene.write(STDOUT, b"a")
    await scene.send()
    first.sent.finish(scene.job, scene.spool)
    assert first.sent.retained == 0
    assert not list((tmp_path / "sent").iterdir())


@pytest.mark.parametrize("damage", ["gone", "not a spool", "another type"])
async def test_what_cannot_be_sent_again_stays_a_gap(redis: Redis, tmp_path: Path, damage: str) -> None:
    scene = Scene(redis, tmp_path)
    scene.write(STDOUT, b"a")
    await scene.send()
    scene.sent.finish(JOB, scene.spool)
    await redis.delete(KEY)
    if damage == "gone":
        (tmp_path / "sent" / JOB).unlink()
    elif damage == "not a spool":
        (tmp_path / "sent" / JOB).write_bytes(b"x" * 100)
    else:
        await redis.set(KEY, "a string")
    await scene.sent.restore(redis)
    left = await redis.get(KEY)
    assert left == (b"a string" if damage == "another type" else None)


async def test_many_executions_are_sent_again_in_few_round_trips(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `appendfsync always`, each round trip waits for the disk, and nothing else is sent meanwhile."""
    monkeypatch.setattr(module, "COMPARED", 40)
    first = Scene(redis, tmp_path, "job-0")
    before = {}
    for number in range(100):
        scene = first if not number else Scene(redis, tmp_path, f"job-{number}")
        first.sent.track(scene.job, scene.log)
        for part in range(number % 4):
            scene.write(STDOUT, b"%d " % part * 20 * number)
            await scene.send()
        if number % 2:
            first.sent.finish(scene.job, scene.spool)
        key = keys.output(AGENT, scene.job)
        before[key] = await redis.xrange(key)
        await redis.delete(key)
    # One refuses: its log has a number that is too high.
    refused = keys.output(AGENT, "job-7")
    await redis.xadd(refused, {FIELD: b"x"}, id="1-0")
    await redis.execute_command("XSETID", refused, "9-0")
    trips = 0
    send = SentOutput._send

    async def counted(self: SentOutput, *arguments: Any) -> int:
        nonlocal trips
        trips += 1
        return await send(self, *arguments)

    monkeypatch.setattr(SentOutput, "_send", counted)
    await first.sent.restore(redis)
    for key, entries in before.items():
        if key != refused:
            assert await redis.xrange(key) == entries
    assert len(await redis.xrange(refused)) == 1
    assert trips <= 5
    assert 900 < await redis.ttl(keys.output(AGENT, "job-99")) <= 1000
