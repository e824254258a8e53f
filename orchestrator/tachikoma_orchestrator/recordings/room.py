"""The recordings of one orchestrator: recorders of open executions, captions of attached callers, the library."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import structlog
from redis.exceptions import RedisError

from tachikoma.config.tasks import cancel_all
from tachikoma.errors import FailedPrecondition
from tachikoma.identity.svid import SvidSource
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.recordings import RecordMode, RecordRule
from tachikoma_orchestrator.admission.admit import no_recordings
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.waiters import Completions, Waiters
from tachikoma_orchestrator.recordings.captions import Captions
from tachikoma_orchestrator.recordings.enforcement import end_unrecorded
from tachikoma_orchestrator.recordings.library import Library
from tachikoma_orchestrator.recordings.recorder import Recorder, RecorderParts
from tachikoma_orchestrator.recordings.store import RecordingStore, StoreFailed
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["Recordings", "unrecorded"]

log = structlog.get_logger(__name__)

#: Seconds between two looks at unfinished recordings, and between two looks at old ones.
LOOK_SECONDS, TRIM_SECONDS = 5.0, 3600.0


class Recordings:
    """Everything about recordings in one process."""

    def __init__(self, store: RecordingStore | None, library: Library | None) -> None:
        """Use `over`; without a store nothing is recorded."""
        self._store = store
        #: None without a store.
        self.library = library
        self._parts: RecorderParts | None = None
        self._recorders: dict[str, asyncio.Task[None]] = {}
        #: Calls that wait for the failure of a recording that is required.
        self._failures: Waiters[str] = Waiters()

    @classmethod
    def over(
        cls, store: RecordingStore | None, *, redis: Redis, subscriber: Subscriber, identity: SvidSource,
        trail: AuditTrail, ledger: Ledger, evidence: Evidence, completions: Completions,
        max_bytes: int, retention: timedelta,
    ) -> Recordings:  # fmt: skip
        """Put the parts together.

        Args:
            store: where recordings are stored; None to record nothing.
            redis, subscriber: the connections, and the live output.
            identity: signs the seals.
            trail, ledger, evidence, completions: of the executions.
            max_bytes: most bytes of output in one recording.
            retention: how long a recording is retained.
        """
        recordings = cls(store, None if store is None else Library(store, identity, trail, retention))
        if store is not None:
            recordings._parts = RecorderParts(
                redis, subscriber, identity, trail, ledger, evidence, completions, store, max_bytes,
                f"{os.getpid()}-{secrets.token_hex(8)}", recordings._failures.resolve,
            )  # fmt: skip
        return recordings

    async def obstacle(self) -> str:
        """Return why no recording can be written now, in words; empty if one can."""
        if self._store is None:
            return await no_recordings()
        try:
            await asyncio.to_thread(self._store.check)
        except StoreFailed as error:
            return str(error)
        return ""

    # --- recorders ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Finish what other processes left unfinished, and delete old recordings, until cancelled."""
        if self._store is None:
            return
        loop, trimmed = asyncio.get_running_loop(), float("-inf")
        try:
            while True:
                try:
                    self.record(await asyncio.to_thread(self._store.unfinished))
                    if self.library is not None and loop.time() - trimmed >= TRIM_SECONDS:
                        await self.library.trim()
                        trimmed = loop.time()
                except (StoreFailed, RedisError, OSError) as error:
                    log.warning("recordings.waiting", error=str(error)[:300])
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await cancel_all(self._recorders.values())

    def record(self, exec_ids: list[str]) -> None:
        """Record executions, each unless this or another orchestrator does so already."""
        if self._parts is None:
            return
        for exec_id in exec_ids:
            if exec_id not in self._recorders:
                task = asyncio.get_running_loop().create_task(self._record(self._parts, exec_id), name="recorder")
                self._recorders[exec_id] = task

    async def _record(self, parts: RecorderParts, exec_id: str) -> None:
        try:
            await Recorder(parts, exec_id).run()
        except (StoreFailed, RedisError, OSError) as error:
            log.warning("recording.waiting", id=exec_id, error=str(error)[:300])
        except Exception:
            # One recording must not end the others. The next look begins it again.
            log.exception("recording.broken", id=exec_id)
        finally:
            del self._recorders[exec_id]

    # --- attached callers ---------------------------------------------------------------------------------------------

    def captions(self, record: Record) -> Captions:
        """Return the captions of a caller, and begin the recording. Without a recording, they write nothing."""
        rule = RecordRule.parse(record.recording)
        if rule.mode is not RecordMode.OFF:
            self.record([record.exec_id])
        return Captions(self._store, record.exec_id, rule, lambda reason: self._fail(record.exec_id, reason))

    async def require(self, record: Record) -> None:
        """Check that a caller can be attached to an execution here.

        Raises:
            FailedPrecondition: policy requires its recording, for which this orchestrator has no store.
        """
        if self._store is None and RecordRule.parse(record.recording).mode is RecordMode.REQUIRED:
            raise unrecorded(record.exec_id, await no_recordings())

    async def _fail(self, exec_id: str, reason: str) -> FailedPrecondition:
        """End an execution that must be recorded, and return the error for its caller."""
        if (parts := self._parts) is not None:
            with suppress(RedisError, OSError):
                await end_unrecorded(parts.redis, parts.ledger, parts.identity, exec_id, reason)
        return unrecorded(exec_id, reason)

    @contextmanager
    def failure(self, exec_id: str) -> Iterator[asyncio.Future[str]]:
        """Return a future of the reason why an execution that must be recorded is not."""
        with self._failures.expect(exec_id) as future:
            yield future


def unrecorded(exec_id: str, reason: str) -> FailedPrecondition:
    """Return the error for a caller of an execution that must be recorded and is not."""
    return FailedPrecondition(
        f"{exec_id} must be recorded, and its recording cannot be written: {reason}", metadata={"rule": "record"}
    )
