"""Recordings of a session over a real Redis: written by any orchestrator, finished once, ended where they must be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from admissions import AGENT, DOMAIN
from chunks import append
from patience import PATIENCE_SECONDS
from session_world import Caller, World, open_world
from tachikoma.client import wire
from tachikoma.config.tasks import cancel_all
from tachikoma.errors import FailedPrecondition, NotFound, OutputAltered, TachikomaError
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.identity.spiffe import SpiffeId, user_id
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.sessions.asciicast import CastEvent, read_cast
from tachikoma.streams.frames import STDERR, STDOUT
from tachikoma.vocabulary.recordings import RecordingInfo
from tachikoma_orchestrator.api import guard
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.recordings import recorder, room
from tachikoma_orchestrator.recordings.folder import RecordingFolder
from tachikoma_orchestrator.recordings.store import StoreFailed
from tachikoma_worker.output.output_log import OutputLog

Until = Callable[[Callable[[], object], str], Awaitable[None]]
ALICE, BOB, EVE = (user_id(DOMAIN, name) for name in ("alice", "bob", "eve"))
RULES = """\
    allowTty: true
    record: required
    recordInput: true
    players: ["spiffe://tachikoma.local/user/bob"]
"""


@pytest.fixture
async def world(
    redis: Redis, subscriptions: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setattr(room, "LOOK_SECONDS", 0.05)
    async with open_world(redis, subscriptions, tmp_path, recorded=True) as made:
        made.stand.change_policy("    allowTty: true\n", RULES)
        yield made


def output_log(world: World, exec_id: str, log_bytes: int = 10**6) -> OutputLog:
    return OutputLog(world.redis, AGENT, exec_id, log_bytes=log_bytes, excerpt_bytes=1000)


async def listed(world: World, *, by: SpiffeId = ALICE, **wanted: Any) -> list[RecordingInfo]:
    guard._peer.set(Peer(by, "192.0.2.7"))
    answer = await world.service.ListRecordings(pb.ListRecordingsRequest(**wanted), None)
    return [wire.recording_from_pb(item) for item in answer.recordings]


async def finished(world: World, exec_id: str) -> RecordingInfo:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (found := await listed(world, id=exec_id)):  # noqa: ASYNC110 (nothing announces it)
            await asyncio.sleep(0.01)
    return found[0]


async def played(world: World, exec_id: str, *, by: SpiffeId = ALICE) -> list[CastEvent]:
    guard._peer.set(Peer(by, "192.0.2.7"))
    parts = [part.data async for part in world.service.ReadRecording(pb.ReadRecordingRequest(id=exec_id), None)]
    _, events = read_cast(b"".join(parts).splitlines(keepends=True))
    return list(events)


def text_of(events: list[CastEvent], code: str = "o") -> str:
    return "".join(event.data for event in events if event.code == code)


async def code_of(world: World, exec_id: str, code: str) -> str:
    """Wait for an audit event, and return its reason."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            for event in await world.stand.events(exec_id):
                if event.event == code:
                    return event.reason
            await asyncio.sleep(0.01)


async def recorded_session(world: World, until: Until) -> tuple[Caller, str]:
    caller, exec_id = world.open()
    agent = await world.start(exec_id)
    log = output_log(world, exec_id)
    await append(log, [(STDOUT, b"$ "), (STDERR, "caf\u00e9 ".encode())])
    await until(lambda: caller.of("stderr"), "the output arrives")
    caller.send(resize=pb.Terminal(rows=30, columns=90))
    caller.send(data=pb.InputData(data=b"ls\n", offset=0))
    await until(lambda: bytes(agent.taken) == b"ls\n", "the input arrives")
    await append(log, [(STDOUT, b"ls\r\nneedle in it\r\n")])
    await until(lambda: any(b"needle" in data for data in caller.of("stdout")), "the output arrives")
    return caller, exec_id


async def test_a_session_is_recorded_found_and_played(world: World, until: Until) -> None:
    caller, exec_id = await recorded_session(world, until)
    assert caller.of("status")[0].recorded
    assert await listed(world) == []
    await world.finish(exec_id)
    info = await finished(world, exec_id)
    # Without a receipt of the agent nothing vouches for the output.
    assert (info.agent_id, info.requested_by, info.command, info.tty) == (AGENT, str(ALICE), ("true",), True)
    assert (info.exit_code, info.has_input) == (-1, True)
    events = await played(world, exec_id)
    assert text_of(events) == "$ caf\u00e9 ls\r\nneedle in it\r\n"
    assert text_of(events, "i") == "ls\n"
    assert [event.data for event in events if event.code == "r"] == ["80x24", "90x30"]
    assert f"attached: {ALICE}" in text_of(events, "m")
    assert events[-1][1:] == ("x", "-1")
    [found] = await listed(world, text="NEEDLE")
    assert [match.line for match in found.matches] == ["needle in it"]
    assert await listed(world, text="nowhere") == []
    assert await listed(world, agent_id="other") == await listed(world, requested_by="other") == []
    assert "bytes" in await code_of(world, exec_id, "recording_finished")
    assert await code_of(world, exec_id, "recording_played") == "from 192.0.2.7"
    assert not world.store.unfinished()


async def test_policy_says_who_plays_it(world: World, until: Until) -> None:
    _, exec_id = await recorded_session(world, until)
    await world.finish(exec_id)
    await finished(world, exec_id)
    assert [item.id for item in await listed(world, by=BOB)] == [exec_id]
    assert text_of(await played(world, exec_id, by=BOB))
    assert await listed(world, by=EVE) == []
    for by, wanted in ((EVE, exec_id), (ALICE, "another")):
        with pytest.raises(NotFound):
            await played(world, wanted, by=by)
    world.stand.change_policy("user/bob", "user/carol")
    assert await listed(world, by=BOB) == []
    world.stand.change_policy("operators: []", f"operators: ['{EVE}']")
    assert [item.id for item in await listed(world, by=EVE)] == [exec_id]


async def test_a_recording_that_was_altered_is_not_played(world: World, until: Until, tmp_path: Path) -> None:
    _, exec_id = await recorded_session(world, until)
    await world.finish(exec_id)
    await finished(world, exec_id)
    folder = tmp_path / "recordings/finished"
    cast = folder / f"{exec_id}.cast"
    cast.write_bytes(cast.read_bytes().replace(b"needle", b"nothin"))
    with pytest.raises(OutputAltered, match="is not the one that was signed"):
        await played(world, exec_id)
    (folder / f"{exec_id}.txt").write_text("1\tneedle\n")
    assert await listed(world, text="needle") == []
    # A seal of another recording does not count either.
    (folder / "other.seal").write_bytes((folder / f"{exec_id}.seal").read_bytes())
    assert [item.id for item in await listed(world)] == [exec_id]


async def test_another_orchestrator_continues_a_recording(world: World, until: Until) -> None:
    caller, exec_id = world.open()
    await world.start(exec_id)
    log = output_log(world, exec_id)
    await append(log, [(STDOUT, b"one ")])
    await until(lambda: b"one" in parts_of(world, exec_id), "it is recorded")
    # The recorder is stopped, and gives up its lease. The next look finds the parts.
    await cancel_all(list(world.recordings._recorders.values()))
    await append(log, [(STDOUT, b"two ")])
    await until(lambda: b"two" in parts_of(world, exec_id), "another one continues")
    await append(log, [(STDOUT, b"three")])
    await world.finish(exec_id)
    await finished(world, exec_id)
    assert text_of(await played(world, exec_id)) == "one two three"
    await caller.end()


@pytest.mark.parametrize("value", [("SET", "another"), ("RPUSH", "x"), ("HSET", "x", "x"), ("XADD", "*", "x", "x")])
async def test_a_lease_that_nobody_renews_prevents_no_recording(
    world: World, until: Until, monkeypatch: pytest.MonkeyPatch, value: tuple[str, ...]
) -> None:
    monkeypatch.setattr(recorder, "LEASE_SECONDS", 1)
    caller, exec_id = world.open()
    command, *values = value
    await world.redis.execute_command(command, keys.recorder(exec_id), *values)
    await world.start(exec_id)
    await append(output_log(world, exec_id), [(STDOUT, b"one")])
    await until(lambda: b"one" in parts_of(world, exec_id), "it is recorded")
    await world.finish(exec_id)
    await finished(world, exec_id)
    await caller.end()


def parts_of(world: World, exec_id: str) -> bytes:
    """The output in the parts of a recording."""
    from tachikoma_orchestrator.recordings.parts import Output, read_lines

    found = b""
    for name in world.store.parts(exec_id):
        with world.store.read_part(exec_id, name) as file:
            found += b"".join(line.data for line in read_lines(file) if isinstance(line, Output))
    return found


class FullStore(RecordingFolder):
    """A folder on a disk that becomes full."""

    full = False

    def add_part(self, exec_id: str, name: str) -> Any:
        store, part = self, super().add_part(exec_id, name)

        class Part:
            def write(self, data: bytes) -> None:
                if store.full:
                    raise StoreFailed("cannot write the recording: No space left on device")
                part.write(data)

            def sync(self) -> None:
                part.sync()

            def close(self) -> None:
                part.close()

        return Part()


@pytest.fixture
async def full(world: World, monkeypatch: pytest.MonkeyPatch) -> FullStore:
    assert world.store is not None
    store = FullStore(world.store._path)
    parts = world.recordings._parts
    assert parts is not None
    monkeypatch.setattr(world.recordings, "_store", store)
    object.__setattr__(parts, "store", store)
    return store


async def cancelled(world: World, exec_id: str) -> None:
    """Wait until the agent has the order to end the execution, and the ledger its reason."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await world.redis.get(keys.cancel(AGENT, exec_id)) is None:  # noqa: ASYNC110 (nothing announces it)
            await asyncio.sleep(0.01)


async def test_a_full_disk_ends_an_execution_that_must_be_recorded(world: World, full: FullStore, until: Until) -> None:
    caller, exec_id = world.open()
    await world.start(exec_id)
    log = output_log(world, exec_id)
    await append(log, [(STDOUT, b"before")])
    await until(lambda: b"before" in parts_of(world, exec_id), "it is recorded")
    full.full = True
    await append(log, [(STDOUT, b"after")])
    error = await caller.end()
    assert isinstance(error, FailedPrecondition)
    assert str(error) == f"{exec_id} must be recorded, and its recording cannot be written: {NO_SPACE}"
    await cancelled(world, exec_id)
    assert await code_of(world, exec_id, "recording_failed") == NO_SPACE
    assert "cancel_requested" in await world.stand.codes(exec_id)
    await world.finish(exec_id)
    info = await finished(world, exec_id)
    assert (info.complete, info.problem) == (False, NO_SPACE)
    assert text_of(await played(world, exec_id)) == "before"


NO_SPACE = "cannot write the recording: No space left on device"


async def test_a_caller_whose_events_cannot_be_written_ends_it_too(world: World, full: FullStore, until: Until) -> None:
    caller, exec_id = world.open()
    await world.start(exec_id)
    await until(lambda: caller.of("accepted"), "it takes input")
    full.full = True
    caller.send(data=pb.InputData(data=b"typed"))
    assert isinstance(await caller.end(), FailedPrecondition)
    await cancelled(world, exec_id)


async def test_best_effort_goes_on_without_a_recording(world: World, full: FullStore, until: Until) -> None:
    world.stand.change_policy("record: required", "record: best-effort")
    caller, exec_id = world.open()
    await world.start(exec_id)
    log = output_log(world, exec_id)
    await append(log, [(STDOUT, b"before")])
    await until(lambda: b"before" in parts_of(world, exec_id), "it is recorded")
    full.full = True
    await append(log, [(STDOUT, b"after")])
    assert await code_of(world, exec_id, "recording_failed") == NO_SPACE
    caller.send(data=pb.InputData(data=b"typed"))
    await until(lambda: b"".join(caller.of("stdout")) == b"beforeafter", "the caller reads on")
    await world.finish(exec_id)
    assert await caller.end() is None
    assert (await finished(world, exec_id)).problem == NO_SPACE
    assert await world.redis.get(keys.cancel(AGENT, exec_id)) is None


async def test_output_that_was_lost_ends_it_or_is_a_marker(world: World, until: Until) -> None:
    caller, exec_id = world.open()
    await world.start(exec_id)
    log = output_log(world, exec_id)
    await append(log, [(STDOUT, b"a" * 10)])
    await until(lambda: b"aaa" in parts_of(world, exec_id), "it is recorded")
    # An attacker, or a recorder that was away for long: a chunk is gone before it is read.
    await cancel_all(list(world.recordings._recorders.values()))
    log._offset += 5
    await append(log, [(STDOUT, b"b")])
    error = await caller.end()
    assert "5 bytes of output were lost before they were recorded" in str(error)
    await cancelled(world, exec_id)


async def test_a_request_that_must_be_recorded_needs_a_store(world: World, tmp_path: Path) -> None:
    (tmp_path / "recordings").rename(tmp_path / "elsewhere")
    caller, exec_id = world.open()
    error = await caller.end()
    assert isinstance(error, FailedPrecondition)
    assert "policy requires a recording, which cannot be written: cannot write recordings to" in str(error)
    assert await world.stand.codes(exec_id) == ["refused"]
    world.stand.change_policy("record: required", "record: best-effort")
    caller, exec_id = world.open()
    await world.start(exec_id)
    assert "No such file" in await code_of(world, exec_id, "recording_failed")


async def test_an_orchestrator_without_a_store_plays_nothing(
    redis: Redis, subscriptions: Redis, tmp_path: Path
) -> None:
    async with open_world(redis, subscriptions, tmp_path) as world:
        with pytest.raises(FailedPrecondition, match="set TACHIKOMA_RECORDINGS"):
            await listed(world)
        world.stand.change_policy("    allowTty: true\n", RULES)
        caller, _ = world.open()
        assert isinstance(await caller.end(), TachikomaError)


async def test_old_recordings_are_deleted(world: World, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    _, exec_id = await recorded_session(world, until)
    await world.finish(exec_id)
    await finished(world, exec_id)
    library = world.recordings.library
    assert library is not None
    await library.trim()
    assert await listed(world)
    monkeypatch.setattr(library, "_retention_ms", -1)
    await library.trim()
    assert await listed(world) == []
    assert await code_of(world, exec_id, "recording_deleted") == "its retention has ended"


async def test_the_rule_is_in_the_record_and_shown(world: World) -> None:
    _, exec_id = world.open()
    await world.start(exec_id)
    record = await world.stand.ledger.record(exec_id)
    assert record is not None
    assert (record.recording, record.status().recorded, record.waits) == ("required+input", True, True)
    assert json.loads(record.request)["interactive"]
