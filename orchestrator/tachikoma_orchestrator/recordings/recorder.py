"""The recorder of one execution: from its output in Redis to a part of its recording, until it ends.

One orchestrator records an execution, under a lease. When the lease expires, another one continues after
the last chunk in the parts. Two recorders at once do no harm, since chunks have numbers and each writes its own part.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
from redis.exceptions import RedisError

from tachikoma.config.retry import Backoff
from tachikoma.config.tasks import supervised
from tachikoma.errors import OutputAltered, RecordAltered, ResultUnknown, Unavailable
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode, AuditedRequest
from tachikoma.vocabulary.clock import now_micros, to_micros
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.recordings import RecordMode, RecordRule
from tachikoma.vocabulary.results import ExecOutput, ExecResponse
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.final_state import FinalState
from tachikoma_orchestrator.executions.follower import Follower
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.waiters import AwaitedOrder, Completions
from tachikoma_orchestrator.recordings.enforcement import end_unrecorded
from tachikoma_orchestrator.recordings.finishing import finish
from tachikoma_orchestrator.recordings.parts import OUTPUT_PART, Origin, Output, encode, is_output, read_lines
from tachikoma_orchestrator.recordings.store import FileKind, PartWriter, RecordingStore, StoreFailed
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["Recorder", "RecorderParts"]

log = structlog.get_logger(__name__)

#: Lifetime of a lease that is not renewed, and the time between two renewals, in seconds.
LEASE_SECONDS, RENEW_SECONDS = 15, 4.0
#: Longest time in which written output is not on the disk, while more comes.
SYNC_US = 1_000_000
#: First and longest delay between attempts while Redis is unavailable.
RETRY_SECONDS = (0.1, 2.0)
#: Seconds between two orders to end an execution whose recording failed.
END_SECONDS = 5.0
#: Seconds after which a record that the ledger lost is not expected any more.
LOST_SECONDS = 60.0


class _Incomplete(Exception):
    """The recording cannot contain all output; the message says why."""


@dataclass(frozen=True, slots=True)
class RecorderParts:
    """The parts of the process that all recorders share."""

    redis: Redis
    #: Delivers live output.
    subscriber: Subscriber
    identity: SvidSource
    trail: AuditTrail
    ledger: Ledger
    evidence: Evidence
    completions: Completions
    store: RecordingStore
    #: Largest number of bytes of output in one recording.
    max_bytes: int
    #: Name of this process in leases.
    name: str
    #: Called with the id and the reason when an execution that must be recorded cannot be.
    on_failure: Callable[[str, str], None]
    #: Executions whose failure this process has written to the audit trail. A recording is tried again and again.
    reported: set[str] = field(default_factory=set)


class Recorder:
    """Records one execution, and finishes its recording."""

    def __init__(self, parts: RecorderParts, exec_id: str) -> None:
        self._parts = parts
        self._exec_id = exec_id
        self._rule = RecordRule()
        #: Position after the latest chunk in the parts: its number, and the number of bytes until its end.
        self._seq, self._offset = 0, 0
        self._part: PartWriter | None = None
        self._unsynced_us = 0
        #: Why output is missing in the recording; empty while none is.
        self._problem = ""
        #: Time since which the ledger has no record, by the monotonic clock; None while it has one.
        self._lost_since: float | None = None

    async def run(self) -> None:
        """Record until the execution has ended, and finish. Return at once if another orchestrator records it."""
        if not await self._lead():
            return
        # An event that came after the end has made a part again.
        if await asyncio.to_thread(_is_finished, self._parts.store, self._exec_id):
            await asyncio.to_thread(self._parts.store.remove_parts, self._exec_id)
            await self._give_up_lease()
            return
        try:
            async with supervised(self._renew()):
                await self._until_finished()
        finally:
            self._close_part()
            with suppress(RedisError, OSError):
                await self._give_up_lease()

    # --- the lease ----------------------------------------------------------------------------------------------------

    async def _lead(self) -> bool:
        """Take the lease, and return whether this recorder has it now. Raises redis errors."""
        key = keys.recorder(self._exec_id)
        if await self._parts.redis.set(key, self._parts.name, ex=LEASE_SECONDS, nx=True):
            return True
        # A value that no recorder renews must not prevent a recording, no matter which process wrote it.
        await self._parts.redis.execute_command("EXPIRE", key, LEASE_SECONDS, "LT")
        return False

    async def _renew(self) -> None:
        key, name = keys.recorder(self._exec_id), self._parts.name
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            with suppress(RedisError, OSError):
                if await self._parts.redis.get(key) in (None, name.encode()):
                    await self._parts.redis.set(key, name, ex=LEASE_SECONDS)

    async def _give_up_lease(self) -> None:
        key = keys.recorder(self._exec_id)
        if await self._parts.redis.get(key) == self._parts.name.encode():
            await self._parts.redis.delete(key)

    # --- the steps ----------------------------------------------------------------------------------------------------

    async def _until_finished(self) -> None:
        backoff = Backoff(*RETRY_SECONDS)
        while True:
            try:
                result = await self._record()
                break
            except (RedisError, OSError, Unavailable) as error:
                log.warning("recording.waiting", id=self._exec_id, error=str(error)[:300])
                await backoff.wait()
        self._close_part()
        await self._finish(result)

    async def _record(self) -> ExecResponse | None:
        """Follow the output to its end, and return the result; None if it is unknown. Raises redis errors."""
        parts, exec_id = self._parts, self._exec_id
        record = await self._current()
        if record is None:
            self._give_up_record()
            return None
        self._lost_since = None
        self._rule = RecordRule.parse(record.recording)
        await self._read_position()
        follower = Follower(parts.redis, parts.subscriber, record.agent, exec_id, self._seq)
        with parts.completions.expect(exec_id) as end:
            async with follower.listen():
                record = await self._current() or record
                parts.completions.note_order(exec_id, AwaitedOrder(record.agent, record.order_sha256))
                if record.state.terminal:
                    parts.completions.deliver(await parts.evidence.final_state(record), record.order_sha256)
                follower.acknowledges = record.waits
                await self._follow(follower, record, end)
                return _result(await end)

    def _give_up_record(self) -> None:
        """Return if the ledger's record is not expected any more.

        Raises:
            Unavailable: it may come back, since agents retain their orders.
        """
        now = time.monotonic()
        self._lost_since = self._lost_since or now
        if now - self._lost_since < LOST_SECONDS:
            raise Unavailable("the ledger has no record of the execution")

    async def _follow(self, follower: Follower, record: Record, end: asyncio.Future[FinalState]) -> None:
        """Write the output until its end. After a failure only the end is awaited."""
        if not self._problem:
            try:
                await self._open_part(record)
                async for output in follower.until(end):
                    if output.kind is not OutputKind.GAP:
                        await self._write(output)
                return
            except (StoreFailed, _Incomplete, OutputAltered) as error:
                self._fail(str(error))
        await self._report_failure()
        parts = self._parts
        while not end.done():
            if self._rule.mode is RecordMode.REQUIRED:
                await end_unrecorded(parts.redis, parts.ledger, parts.identity, self._exec_id, self._problem)
            await asyncio.wait([end], timeout=END_SECONDS)

    async def _finish(self, result: ExecResponse | None) -> None:
        svid = self._parts.identity.current()
        try:
            seal = await asyncio.to_thread(
                finish, self._parts.store, self._exec_id, result, svid, problem=self._problem
            )  # fmt: skip
        except StoreFailed as error:
            # A later pass tries it again.
            self._fail(f"the recording cannot be finished: {error}")
            await self._report_failure()
            return
        self._parts.reported.discard(self._exec_id)
        if seal is None:
            return
        problem = f"; not complete: {seal.problem}" if seal.problem else ""
        await self._parts.trail.append(
            AuditCode.RECORDING_FINISHED, id=self._exec_id, agent_id=seal.agent, authorized="1", requested_by=seal.sub,
            reason=f"{seal.size} bytes{problem}", evidence_sha256=seal.sha256,
        )  # fmt: skip

    async def _current(self) -> Record | None:
        try:
            return await self._parts.ledger.record(self._exec_id)
        except RecordAltered:
            return None

    # --- writing ------------------------------------------------------------------------------------------------------

    async def _read_position(self) -> None:
        """Find the end of the output in the parts, unless this recorder has written some."""
        if self._part is None:
            try:
                self._seq, self._offset = await asyncio.to_thread(_position, self._parts.store, self._exec_id)
            except StoreFailed as error:
                self._fail(str(error))

    async def _open_part(self, record: Record) -> None:
        if self._part is not None:
            return
        name = f"{OUTPUT_PART}{secrets.token_hex(8)}"
        origin = Origin(
            record.agent, record.requested_by, record.policy, AuditedRequest.model_validate_json(record.request),
            self._rule.includes_input, now_micros(),
        )  # fmt: skip
        self._part = await asyncio.to_thread(self._parts.store.add_part, self._exec_id, name)
        await asyncio.to_thread(self._part.write, encode(origin))

    async def _write(self, output: ExecOutput) -> None:
        """Write a chunk.

        Raises:
            StoreFailed: it cannot be written.
            _Incomplete: the chunk before it was missed, and the recording is required; or it would be too large.
        """
        assert self._part is not None
        missing = output.offset - self._offset
        if missing > 0 and self._rule.mode is RecordMode.REQUIRED:
            raise _Incomplete(f"{missing} bytes of output were lost before they were recorded")
        if output.offset + len(output.data) > self._parts.max_bytes:
            raise _Incomplete(f"the recording would have more than {self._parts.max_bytes} bytes of output")
        time_us = now_micros() if output.time is None else to_micros(output.time)
        line = Output(output.seq, output.offset, time_us, output.kind is OutputKind.STDERR, output.data)
        sync = time_us - self._unsynced_us >= SYNC_US
        await asyncio.to_thread(_append, self._part, encode(line), sync)
        if sync:
            self._unsynced_us = time_us
        self._seq, self._offset = output.seq, output.offset + len(output.data)

    def _close_part(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None

    # --- failures -----------------------------------------------------------------------------------------------------

    def _fail(self, reason: str) -> None:
        """Record once that the recording is not complete, and why."""
        if self._problem:
            return
        self._problem = reason
        log.error("recording.failed", id=self._exec_id, mode=self._rule.mode, reason=reason)
        if self._rule.mode is RecordMode.REQUIRED:
            self._parts.on_failure(self._exec_id, reason)

    async def _report_failure(self) -> None:
        """Write the failure to the audit trail, once. Raises redis errors."""
        if not self._problem or self._exec_id in self._parts.reported:
            return
        record = await self._current()
        await self._parts.trail.append(
            AuditCode.RECORDING_FAILED, id=self._exec_id, authorized="1", reason=self._problem,
            agent_id=record.agent if record else "", requested_by=record.requested_by if record else "",
        )  # fmt: skip
        self._parts.reported.add(self._exec_id)


def _result(final: FinalState) -> ExecResponse | None:
    """Return the result; None if it will never be known.

    Raises:
        Unavailable: the agent is silent; the execution continues.
    """
    try:
        return final.response()
    except (ResultUnknown, RecordAltered):
        return None


def _is_finished(store: RecordingStore, exec_id: str) -> bool:
    try:
        store.open(exec_id, FileKind.SEAL).close()
    except StoreFailed:
        return False
    return True


def _append(part: PartWriter, line: bytes, sync: bool) -> None:
    part.write(line)
    if sync:
        part.sync()


def _position(store: RecordingStore, exec_id: str) -> tuple[int, int]:
    """Return number and end of the latest chunk in the parts of a recording."""
    seq, offset = 0, 0
    for name in store.parts(exec_id):
        if not is_output(name):
            continue
        with store.read_part(exec_id, name) as file:
            for line in read_lines(file):
                if isinstance(line, Output) and line.seq > seq:
                    seq, offset = line.seq, line.offset + len(line.data)
    return seq, offset
