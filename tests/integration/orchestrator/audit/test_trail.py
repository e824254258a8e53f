"""The audit trail on its way out of Redis: into files that show tampering, to syslog, to standard output."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from tachikoma.audit.chain import (
    CHECKPOINT_EVENTS,
    FIRST_PREV,
    Report,
    audit_files,
    line_digest,
    read_events,
    verify_files,
)
from tachikoma.audit.ocsf import to_ocsf
from tachikoma.client import wire
from tachikoma.config.tasks import cancel_all
from tachikoma.dev.ca import DevelopmentCA
from tachikoma.errors import ConfigurationError, Unavailable
from tachikoma.identity.signed_messages import AuditCheckpoint, sign
from tachikoma.identity.spiffe import service_id
from tachikoma.identity.svid import FileSvidSource
from tachikoma.redis import keys
from tachikoma.redis.access import connect
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode, ExecAuditLog
from tachikoma_orchestrator.audit.positions import SinkPosition
from tachikoma_orchestrator.audit.shipper import Shipper
from tachikoma_orchestrator.audit.sinks import FileSink, SinkAway, StandardOutputSink, SyslogSink, syslog_message
from tachikoma_orchestrator.audit.trail import AuditTrail

DOMAIN = "tachikoma.local"
WRITER = service_id(DOMAIN, "orchestrator")
BIG = 1024 * 1024 * 1024
Until = Callable[[Callable[[], object], str], Awaitable[None]]


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> FileSvidSource:
    folder = tmp_path_factory.mktemp("identity")
    DevelopmentCA(folder / "ca", DOMAIN).issue(WRITER, folder / "orchestrator")
    return FileSvidSource(folder / "orchestrator")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> FileSvidSource:
    """The same name, by a CA that nobody trusts."""
    folder = tmp_path_factory.mktemp("stranger")
    DevelopmentCA(folder / "ca", DOMAIN).issue(WRITER, folder / "orchestrator")
    return FileSvidSource(folder / "orchestrator")


def event(seq: int, **values: Any) -> ExecAuditLog:
    at = datetime(2026, 1, 31, 12, tzinfo=UTC) + timedelta(seconds=seq)
    return ExecAuditLog(
        cursor=f"{1_769_860_800_000 + seq}-0", seq=seq, time=at, event="admitted", id=f"e{seq}", **values
    )


def events(first: int, last: int) -> list[ExecAuditLog]:
    return [event(seq) for seq in range(first, last + 1)]


def verified(path: Path, identity: FileSvidSource, *heads: str) -> Report:
    return verify_files(path, identity.current().bundle, WRITER, heads)


def last_checkpoint(path: Path) -> str:
    found = [json.loads(line).get("checkpoint") for line in path.read_bytes().splitlines()]
    return [token for token in found if token][-1]


def written(path: Path, identity: FileSvidSource, count: int, *, every: int = 0, rotate_bytes: int = BIG) -> None:
    """A file with so many events, signed for at the end and after every so many."""
    sink = FileSink(path, identity, rotate_bytes=rotate_bytes)
    for seq in range(sink.seq + 1, sink.seq + count + 1):
        sink.send([event(seq)])
        if every and seq % every == 0:
            sink.checkpoint()
    sink.checkpoint()
    sink.close()


# --- the chain --------------------------------------------------------------------------------------------------------


def test_what_is_written_holds_and_reads_as_it_was(tmp_path: Path, identity: FileSvidSource) -> None:
    path = tmp_path / "audit.jsonl"
    written(path, identity, 20, every=7)
    report = verified(path, identity, last_checkpoint(path))
    assert report.findings == []
    assert (report.events, report.checkpoints, report.unsigned) == (20, 3, 0)
    assert (report.first_seq, report.last_seq) == (1, 20)
    assert list(read_events(tmp_path)) == events(1, 20)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_chain_goes_on_after_a_restart_and_over_rotated_files(tmp_path: Path, identity: FileSvidSource) -> None:
    path = tmp_path / "audit.jsonl"
    for _ in range(6):
        written(path, identity, 5, rotate_bytes=4096)
    files = audit_files(path)
    assert len(files) > 3
    assert files[-1] == path
    report = verified(path, identity, last_checkpoint(path) if path.read_bytes() else last_checkpoint(files[-2]))
    assert report.findings == []
    assert (report.events, report.last_seq) == (30, 30)
    assert list(read_events(path)) == events(1, 30)
    # The oldest may be archived, but not one between.
    files[0].unlink()
    assert verified(path, identity).findings == []
    files[2].unlink()
    assert any("lines were deleted" in str(finding) for finding in verified(path, identity).findings)


def test_a_file_put_aside_just_before_a_crash_is_gone_on_with(tmp_path: Path, identity: FileSvidSource) -> None:
    path = tmp_path / "audit.jsonl"
    written(path, identity, 5)
    path.rename(tmp_path / "audit-000000000001.jsonl")
    written(path, identity, 5)
    report = verified(path, identity)
    assert (report.findings, report.last_seq) == ([], 10)


def test_there_is_a_checkpoint_for_every_so_many_events(tmp_path: Path, identity: FileSvidSource) -> None:
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, identity, rotate_bytes=BIG)
    sink.send(events(1, 2 * CHECKPOINT_EVENTS + 10))
    sink.close()
    report = verified(path, identity)
    assert (report.checkpoints, report.unsigned, report.findings) == (2, 10, [])


def test_two_processes_never_write_one_file(tmp_path: Path, identity: FileSvidSource) -> None:
    sink = FileSink(tmp_path / "audit.jsonl", identity, rotate_bytes=BIG)
    with pytest.raises(ConfigurationError, match="another process writes it"):
        FileSink(tmp_path / "audit.jsonl", identity, rotate_bytes=BIG)
    sink.close()


@pytest.mark.parametrize("cut", [1, 2, 40, 300])
def test_a_line_that_a_crash_cut_is_written_again(tmp_path: Path, identity: FileSvidSource, cut: int) -> None:
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, identity, rotate_bytes=BIG)
    sink.send(events(1, 10))
    sink.close()
    os.truncate(path, path.stat().st_size - cut)
    sink = FileSink(path, identity, rotate_bytes=BIG)
    assert sink.seq == 9
    assert sink.cursor == event(9).cursor
    assert sink.unsigned == 9
    sink.send(events(10, 12))
    sink.checkpoint()
    sink.close()
    report = verified(path, identity)
    assert (report.findings, report.events) == ([], 12)


def test_what_is_no_audit_log_is_not_gone_on_with(tmp_path: Path, identity: FileSvidSource) -> None:
    path = tmp_path / "audit.jsonl"
    for content in (b"hello\n", b'{"line": "x"}\n', b"[]\n"):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match="cannot go on with the audit log"):
            FileSink(path, identity, rotate_bytes=BIG)
        assert path.read_bytes() == content
    with pytest.raises(ConfigurationError, match="there is no audit log"):
        audit_files(tmp_path / "other.jsonl")


def test_a_disk_that_is_full_takes_nothing_and_everything_later(
    tmp_path: Path, identity: FileSvidSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, identity, rotate_bytes=BIG)
    sink.send(events(1, 3))
    real = os.write

    def full(fd: int, data: Any) -> int:
        # A part is written, as on a disk that fills up.
        real(fd, bytes(data)[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for _ in range(2):
        with pytest.raises(SinkAway, match="No space left"):
            sink.send(events(4, 6))
    with pytest.raises(SinkAway, match="No space left"):
        sink.checkpoint()
    monkeypatch.undo()
    sink.send(events(4, 6))
    sink.checkpoint()
    sink.close()
    report = verified(path, identity)
    assert (report.findings, report.events, report.unsigned) == ([], 6, 0)


# --- tampering --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def genuine(tmp_path_factory: pytest.TempPathFactory, identity: FileSvidSource) -> list[bytes]:
    path = tmp_path_factory.mktemp("genuine") / "audit.jsonl"
    written(path, identity, 30, every=10)
    return path.read_bytes().splitlines(keepends=True)


def tampered(path: Path, lines: list[bytes], identity: FileSvidSource, *heads: str) -> Report:
    path.write_bytes(b"".join(lines))
    return verified(path, identity, *heads)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_change_is_found(
    data: st.DataObject, tmp_path: Path, genuine: list[bytes], identity: FileSvidSource
) -> None:
    """Any one line edited, deleted, inserted, doubled or moved, with a head kept elsewhere."""
    path, lines = tmp_path / "audit.jsonl", list(genuine)
    head = json.loads(genuine[-1])["checkpoint"]
    assert tampered(path, lines, identity, head).findings == []
    place = data.draw(st.integers(0, len(lines) - 1))
    kind = data.draw(st.sampled_from(["edit", "delete", "insert", "double", "move", "cut"]))
    if kind == "edit":
        content = bytearray(lines[place])
        at = data.draw(st.integers(0, len(content) - 2))
        content[at] ^= data.draw(st.integers(1, 255))
        lines[place] = bytes(content)
    elif kind == "delete":
        del lines[place]
    elif kind == "insert":
        lines.insert(place, lines[data.draw(st.integers(0, len(lines) - 1))])
    elif kind == "double":
        lines.insert(place, lines[place])
    elif kind == "move":
        other = data.draw(st.integers(0, len(lines) - 1).filter(lambda it: it != place))
        lines.insert(other, lines.pop(place))
    else:
        del lines[place:]
    if lines == genuine or lines == genuine[-len(lines) :] or lines == genuine[:-1]:
        # Without its first lines it is as after archiving; the last line is the head itself, which nobody vouches for.
        return
    if not lines:
        return
    assert tampered(path, lines, identity, head).findings != [], kind


def test_a_chain_made_anew_from_a_change_on_is_found_by_its_checkpoints(
    tmp_path: Path, genuine: list[bytes], identity: FileSvidSource, stranger: FileSvidSource
) -> None:
    path = tmp_path / "audit.jsonl"
    # Whoever owns the host writes it all again, with something else in it, and keeps the checkpoints there were.
    forged: list[bytes] = []
    head = FIRST_PREV
    for content in map(json.loads, genuine):
        if content.get("event", {}).get("seq") == 5:
            content["event"]["requestedBy"] = "somebody else"
        line = json.dumps({**content, "prev": head}, separators=(",", ":")).encode()
        head = line_digest(line)
        forged.append(line + b"\n")
    found = tampered(path, forged, identity).findings
    assert len(found) == 3
    assert all("vouches for another chain" in str(finding) for finding in found)
    # Signing them with another key does not help.
    path.unlink()
    written(path, stranger, 30, every=10)
    assert all("signed by nobody we trust" in str(finding) for finding in verified(path, identity).findings)
    # Nor does leaving them out, where a head was kept elsewhere, or where there are too many without one.
    bare = [line for line in forged if b'"checkpoint"' not in line]
    head_token = json.loads(genuine[-1])["checkpoint"]
    assert tampered(path, bare, identity, head_token).findings != []


def test_events_without_checkpoints_are_found(
    tmp_path: Path, identity: FileSvidSource, stranger: FileSvidSource
) -> None:
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, stranger, rotate_bytes=BIG)
    for seq in range(1, CHECKPOINT_EVENTS + 2):
        sink.unsigned = 0
        sink.send([event(seq)])
    sink.close()
    assert any("have no checkpoint" in str(finding) for finding in verified(path, identity).findings)


def test_a_cut_end_is_found_with_a_head_that_was_kept_elsewhere(
    tmp_path: Path, genuine: list[bytes], identity: FileSvidSource
) -> None:
    path = tmp_path / "audit.jsonl"
    head = json.loads(genuine[-1])["checkpoint"]
    assert tampered(path, genuine[:-6], identity).findings == []
    [finding] = tampered(path, genuine[:-6], identity, head).findings
    assert "the end was cut off" in str(finding)
    # A head of another is no help to anybody.
    [finding] = tampered(path, genuine, identity, head[:-4] + "AAAA").findings
    assert "the head given" in str(finding)


def test_what_redis_no_longer_had_is_told_and_is_no_change_of_the_file(
    tmp_path: Path, identity: FileSvidSource
) -> None:
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, identity, rotate_bytes=BIG)
    sink.send([*events(1, 3), *events(7, 9)])
    back = [event(4), event(5)]
    sink.send([item.model_copy(update={"cursor": f"1869860800000-{item.seq}"}) for item in back])
    sink.close()
    report = verified(path, identity)
    assert report.findings == []
    assert report.gaps == [
        "events 4 to 6 were gone from Redis before they were written here",
        "after event 9 Redis went back to an older state, and counts from 4",
    ]


def test_an_event_that_is_there_twice_is_found(tmp_path: Path, identity: FileSvidSource) -> None:
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, identity, rotate_bytes=BIG)
    sink.send([event(1), event(2), event(2)])
    sink.close()
    assert any("belongs before" in str(finding) for finding in verified(path, identity).findings)


NONSENSE = st.binary(max_size=80) | st.sampled_from([b"{}", b'{"line":1,"prev":"","event":{}}', b"null"])


@given(lines=st.lists(NONSENSE, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_verifying_nonsense_finds_it_and_nothing_else_happens(
    lines: list[bytes], tmp_path: Path, identity: FileSvidSource
) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"\n".join(lines))
    report = verified(path, identity)
    assert bool(report.findings) == bool(path.read_bytes())


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path, identity: FileSvidSource) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"x" * 20_000_000)
    assert len(verified(path, identity).findings) <= 101


# --- syslog and standard output ---------------------------------------------------------------------------------------


def test_a_syslog_message_is_of_rfc_5424() -> None:
    good = syslog_message(event(7, authorized=True, command="/bin/ls 'ä'"), "host-1").decode()
    header, _, body = good.partition(" - {")
    assert header == f"<110>1 2026-01-31T12:00:07.000Z host-1 tachikoma {os.getpid()} admitted"
    assert json.loads("{" + body)["seq"] == 7
    denied = event(7).model_copy(update={"event": "denied"})
    assert syslog_message(denied, "h").startswith(b"<108>1 ")
    assert b"\n" not in syslog_message(event(7, reason="a\nb"), "h")


class Receiver(threading.Thread):
    """A syslog server on TCP, as far as RFC 6587 goes. It can be away, and come back on the same port."""

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(daemon=True)
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self.messages: list[dict[str, Any]] = []
        self._connection: socket.socket | None = None
        self._stopping = False
        self.start()

    def run(self) -> None:
        while not self._stopping:
            try:
                self._connection, _ = self._listener.accept()
                if self._tls is not None:
                    self._connection = self._tls.wrap_socket(self._connection, server_side=True)
            except ssl.SSLError:
                continue
            except OSError:
                return
            with self._connection.makefile("rb") as stream:
                while size := stream.read(1):
                    while (digit := stream.read(1)) != b" ":
                        size += digit
                    self.messages.append(json.loads(stream.read(int(size)).partition(b" - ")[2]))

    def stop(self) -> None:
        self._stopping = True
        if self._connection is not None:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            self._connection.close()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join(10)


@pytest.mark.parametrize("url", ["udp://h:1", "tcp://h", "tcp://:514", "unix://", "tls://h:x", "/dev/log", ""])
def test_a_syslog_that_cannot_be_reached_in_a_known_way_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is no way to reach syslog"):
        SyslogSink(url)


def test_syslog_over_a_unix_socket(tmp_path: Path) -> None:
    address = tmp_path / "log"
    sink = SyslogSink(f"unix://{address}")
    with pytest.raises(SinkAway, match="cannot reach"):
        sink.send(events(1, 2))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(address))
        sink.send(events(1, 2))
        assert [json.loads(server.recv(65536).partition(b" - ")[2])["seq"] for _ in range(2)] == [1, 2]
    sink.close()


async def test_syslog_that_is_away_loses_and_doubles_nothing(until: Until) -> None:
    receiver = Receiver()
    sink = SyslogSink(f"tcp://127.0.0.1:{receiver.port}")
    await asyncio.to_thread(sink.send, events(1, 50))
    await until(lambda: len(receiver.messages) == 50, "all arrived")
    receiver.stop()
    with pytest.raises(SinkAway) as away:
        await asyncio.to_thread(sink.send, events(51, 60))
    assert away.value.sent == 0
    again = Receiver(receiver.port)
    await asyncio.to_thread(sink.send, events(51, 60))
    await until(lambda: len(again.messages) == 10, "the rest arrived")
    sink.close()
    again.stop()
    assert [message["seq"] for message in receiver.messages + again.messages] == list(range(1, 61))


def test_standard_output_gets_a_line_each(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    StandardOutputSink(writing).send(events(1, 3))
    os.close(writing)
    with os.fdopen(reading) as stream:
        assert [json.loads(line)["seq"] for line in stream] == [1, 2, 3]


def test_standard_output_that_nobody_reads_says_how_far_it_came() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(SinkAway, match="standard output") as away:
        StandardOutputSink(writing).send(events(1, 3))
    assert away.value.sent == 0
    os.close(writing)


# --- shipping ---------------------------------------------------------------------------------------------------------


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
            raise SinkAway("away")
        self.taken += [item.seq for item in given[: self.most]]
        if len(given) > self.most:
            raise SinkAway("full", sent=self.most)

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
    for name, seconds in (("BLOCK_SECONDS", 0.05), ("RETRY_SECONDS", 0.02), ("LOCK_SECONDS", 1.0)):
        monkeypatch.setattr(f"tachikoma_orchestrator.audit.shipper.{name}", seconds)


async def append(trail: AuditTrail, count: int) -> None:
    for _ in range(count):
        await trail.append(AuditCode.POLICY_CHANGED, reason="x")


class Running:
    """A shipper that runs while a block lasts."""

    def __init__(self, shipper: Shipper) -> None:
        self._shipper = shipper

    async def __aenter__(self) -> Shipper:
        self._tasks = self._shipper.start()
        return self._shipper

    async def __aexit__(self, *_: object) -> None:
        await cancel_all(self._tasks)


def shipper(
    shipping: Redis, trail: AuditTrail, file: FileSink | None, *shared: Any, backlog: int = 10, closed: bool = True
) -> Running:
    return Running(Shipper(shipping, trail, file, shared, backlog=backlog, closed=closed))


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
        with pytest.raises(Unavailable, match="11 events of the audit trail wait for recorder, and at most 10 may"):
            trail.check()
        sink.away = False
        await until(lambda: not trail.closed_reason, "it is noticed")
        trail.check()


async def test_by_choice_it_stays_open(redis: Redis, shipping: Redis, until: Until) -> None:
    trail, sink = AuditTrail(redis), Recorder()
    sink.away = True
    async with shipper(shipping, trail, None, sink, backlog=1, closed=False) as running:
        await append(trail, 5)
        await running.look()
        trail.check()


async def test_what_a_sink_has_not_taken_is_not_trimmed_unless_by_choice(redis: Redis, shipping: Redis) -> None:
    trail, sink = AuditTrail(redis), Recorder()
    await append(trail, 1000)
    now = int((await redis.time())[0]) * 1000 + 3_600_000
    oldest = await trail.read(after="0-0", limit=500)
    kept = {"cursor": oldest[-1].cursor, "seq": 500, "at": now // 1000}
    await redis.hset(keys.AUDIT_SINKS, sink.name, json.dumps(kept))
    await trail.trim(now, retention=timedelta(minutes=1), events=100, closed=True)
    left = await trail.read(after="0-0", limit=2000)
    assert left[-1].seq == 1000
    # Redis trims whole nodes of a hundred.
    assert 400 <= left[0].seq <= 501
    # One that was not heard of since has no claim.
    await redis.hset(keys.AUDIT_SINKS, sink.name, json.dumps({**kept, "at": 1}))
    await trail.trim(now, retention=timedelta(minutes=1), events=100, closed=True)
    assert len(await trail.read(after="0-0", limit=2000)) <= 100
    await append(trail, 300)
    await redis.hset(keys.AUDIT_SINKS, sink.name, json.dumps(kept))
    await trail.trim(now, retention=timedelta(minutes=1), events=100, closed=False)
    assert len(await trail.read(after="0-0", limit=2000)) <= 200


# --- what is no event -------------------------------------------------------------------------------------------------


GENUINE = {"seq": "7", "event": "started", "id": "x", "authorized": "1"}
NO_EVENTS: dict[str, dict[Any, Any]] = {
    "no field of ours": {"x": "y"},
    "no number": {name: value for name, value in GENUINE.items() if name != "seq"},
    "no code": {"seq": "7"},
    "a number that is none": GENUINE | {"seq": "seven"},
    "a number of nothing": GENUINE | {"seq": "0"},
    "a number below": GENUINE | {"seq": "-7"},
    "a number too large": GENUINE | {"seq": "9" * 30},
    "a number without end": GENUINE | {"seq": "9" * 5000},
    "a code that is none": GENUINE | {"event": "started\n<134>1 forged"},
    "no text": GENUINE | {"reason": b"\xff\xfe"},
    "no name": GENUINE | {b"\xff": "x"},
    "an exit code too large": GENUINE | {"exit_code": "9" * 10},
    "a time too late": GENUINE | {"start_ms": "9" * 18},
    "a duration too long": GENUINE | {"duration_us": "9" * 18},
    "a duration below": GENUINE | {"duration_us": "-1"},
    "no request": GENUINE | {"request": "[" * 5000},
    "a request without a command": GENUINE | {"request": '{"command":[]}'},
    "a request without end": GENUINE | {"request": '{"command":["x"],"timeout":NaN}'},
    "a request with too much": GENUINE | {"request": '{"command":["x"],"stdinBytes":-1}'},
    "more than a line": GENUINE | {"reason": "\n" * 600_000},
}


@pytest.mark.parametrize("fields", NO_EVENTS.values(), ids=NO_EVENTS)
async def test_what_is_no_event_is_shown_as_that_by_everybody(
    redis: Redis, fields: dict[Any, Any], tmp_path: Path, identity: FileSvidSource
) -> None:
    trail = AuditTrail(redis)
    await append(trail, 1)
    cursor = (await redis.xadd(keys.AUDIT, fields)).decode()
    await append(trail, 1)
    found = await trail.read(after="", limit=10)
    assert [(event.event, event.seq) for event in found] == [
        ("policy_changed", 1), ("trail_altered", 0), ("policy_changed", 2)
    ]  # fmt: skip
    assert found == await trail.read(after="0-0", limit=10)
    told = found[1]
    assert (told.cursor, told.id, told.authorized) == (cursor, "", False)
    assert told.reason.startswith("this entry of the trail in Redis is not an event: ")
    assert len(told.reason) < 300
    # As it goes over gRPC, to a SIEM and to syslog, and as it is in a file.
    assert wire.audit_from_pb(wire.audit_to_pb(told)) == told
    assert to_ocsf(told)["status_code"] == "trail_altered"
    assert syslog_message(told, "host").startswith(b"<108>1 ")
    sink = FileSink(tmp_path / "audit.jsonl", identity, rotate_bytes=BIG)
    sink.send(found)
    sink.close()
    assert list(read_events(tmp_path)) == found


async def test_an_event_of_any_time_can_be_told(redis: Redis) -> None:
    """Whoever owns Redis also chooses the place, which says the time; nothing can come behind the last there is."""
    for cursor in ("1-1", f"{2**63}-1", f"{2**64 - 1}-{2**64 - 1}"):
        await redis.xadd(keys.AUDIT, GENUINE, id=cursor)
    events = await AuditTrail(redis).read(after="", limit=10)
    assert [event.event for event in events] == ["started", "trail_altered", "trail_altered"]
    assert [wire.audit_from_pb(wire.audit_to_pb(event)) for event in events] == events


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
        await running.look()
        # What could not be read counts as waiting until the next number comes, and no longer.
        assert not trail.closed_reason
        await append(trail, 2)
        await until(lambda: sink.seq == 5 and shared.taken == [1, 2, 0, 0, 4, 5], "the rest came")
        await until(lambda: not trail.closed_reason, "nothing waits")
    report = verified(path, identity)
    assert report.findings == []
    assert report.gaps == [
        f"at {added} Redis had what could not be read as an event",
        f"at {altered} Redis had what could not be read as an event",
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


def test_a_flood_of_what_is_no_event_is_told_in_bounds(tmp_path: Path, identity: FileSvidSource) -> None:
    path = tmp_path / "audit.jsonl"
    sink = FileSink(path, identity, rotate_bytes=BIG)
    sink.send([event(number).model_copy(update={"seq": 0, "event": "trail_altered"}) for number in range(1, 1501)])
    sink.checkpoint()
    sink.close()
    report = verified(path, identity)
    assert (report.findings, report.checkpoints, report.unreadable) == ([], 2, 1500)
    assert len(report.gaps) == 101
    assert report.gaps[-1] == "and so on: what could not be read stood in Redis at 1500 places"


GARBAGE = [
    b"", b"\xff", b"null", b"[]", b"[" * 9999, b'{"cursor":"0-0"}', b'{"cursor":5,"seq":1,"at":1}',
    b'{"cursor":" 1-0","seq":1,"at":1}', b'{"cursor":"99999999999999999999-0","seq":1,"at":1}',
    b'{"cursor":"1-0","seq":1e999,"at":1}', b'{"cursor":"1-0","seq":99999999999999999999,"at":1}',
    b'{"cursor":"1-0","seq":1,"at":NaN}',
]  # fmt: skip


async def test_a_shared_sink_whose_position_is_garbage_gets_everything_again(
    redis: Redis, shipping: Redis, until: Until
) -> None:
    trail = AuditTrail(redis)
    await append(trail, 3)
    assert [SinkPosition.read(garbage) for garbage in GARBAGE] == [None] * len(GARBAGE)
    for garbage in GARBAGE[:2]:
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
            await until(lambda: "cannot be told" in trail.closed_reason, "it is noticed")
            with pytest.raises(Unavailable, match="cannot be told"):
                trail.check()
            await trail.trim(0, retention=timedelta(0), events=0, closed=True)
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
        return "audit.redis_away" in said and "WRONGTYPE" in said

    async with shipper(shipping, trail, sink):
        await until(told, "it is said")
        await trail.trim(0, retention=timedelta(0), events=0, closed=False)
        with pytest.raises(ResponseError):
            await append(trail, 1)
        await redis.delete(keys.AUDIT)
        await append(trail, 1)
        await until(lambda: sink.seq == 2, "it goes on; the number that could not be used is gone")


async def test_a_sink_whose_position_is_garbage_does_not_keep_the_trail_from_being_trimmed(redis: Redis) -> None:
    trail = AuditTrail(redis)
    await append(trail, 1000)
    for number, garbage in enumerate(GARBAGE):
        await redis.hset(keys.AUDIT_SINKS, f"sink-{number}", garbage)
    await trail.trim(0, retention=timedelta(0), events=100, closed=True)
    assert len(await trail.read(after="0-0", limit=2000)) <= 200


def test_a_checkpoint_names_the_line_before_it(tmp_path: Path, identity: FileSvidSource) -> None:
    path = tmp_path / "audit.jsonl"
    written(path, identity, 3)
    lines = path.read_bytes().splitlines()
    forged = json.loads(lines[-1])
    svid = identity.current()
    wrong = AuditCheckpoint(iss=str(svid.spiffe_id), iat=1, line=2, head="0" * 64, seq=1)
    forged["checkpoint"] = sign(svid, wrong.model_copy(update={"iat": int(datetime.now(UTC).timestamp())}))
    path.write_bytes(b"\n".join([*lines[:-1], json.dumps(forged).encode(), b""]))
    assert any("vouches for another chain" in str(finding) for finding in verified(path, identity).findings)


async def test_syslog_over_tls_is_for_a_server_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    authority = DevelopmentCA(tmp_path / "ca", DOMAIN)
    authority.issue(service_id(DOMAIN, "syslog"), tmp_path / "server", dns_names=("localhost",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server" / "svid.pem", tmp_path / "server" / "svid_key.pem")
    receiver = Receiver(tls=context)
    sink = SyslogSink(f"tls://localhost:{receiver.port}")
    with pytest.raises(SinkAway, match="certificate verify failed"):
        await asyncio.to_thread(sink.send, events(1, 3))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca" / "ca.pem"))
    await asyncio.to_thread(sink.send, events(1, 3))
    await until(lambda: [message["seq"] for message in receiver.messages] == [1, 2, 3], "all arrived")
    sink.close()
    receiver.stop()
