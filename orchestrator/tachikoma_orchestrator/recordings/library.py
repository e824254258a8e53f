"""The finished recordings: found, searched, read and deleted. Only those whose signed seal is genuine exist."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta

import structlog

from tachikoma.errors import OutputAltered
from tachikoma.identity.signed_messages import RecordingSeal
from tachikoma.identity.signing import InvalidSignature, verify
from tachikoma.identity.svid import SvidSource
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.clock import duration_ms, from_ms, now_ms
from tachikoma.vocabulary.recordings import RecordingInfo, RecordingMatch
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.recordings.search import matching_lines
from tachikoma_orchestrator.recordings.store import FileKind, RecordingStore, StoreFailed

__all__ = ["Library", "described"]

log = structlog.get_logger(__name__)

#: Size of a part that is read at once, in bytes.
READ_BYTES = 256 * 1024
#: Lines that a search returns of one recording.
MAX_MATCHES = 20


class Library:
    """Finished recordings."""

    def __init__(self, store: RecordingStore, identity: SvidSource, trail: AuditTrail, retention: timedelta) -> None:
        """Open the library.

        Args:
            store: of the recordings.
            identity: the orchestrator's own; orchestrators of one identity signed the seals.
            trail: records what is deleted.
            retention: how long a recording is retained after its beginning.
        """
        self._store = store
        self._identity = identity
        self._trail = trail
        self._retention_ms = duration_ms(retention)
        #: Verified seals. A recording is never changed, so each is verified once.
        self._seals: dict[str, RecordingSeal] = {}

    async def newest(self) -> list[RecordingSeal]:
        """Return all recordings, the newest first. Raises StoreFailed."""
        ids = await asyncio.to_thread(self._store.finished)
        for gone in self._seals.keys() - set(ids):
            self._seals.pop(gone, None)
        found = [seal for exec_id in ids if (seal := await self.find(exec_id)) is not None]
        return sorted(found, key=lambda seal: (seal.began_ms, seal.jti), reverse=True)

    async def find(self, exec_id: str) -> RecordingSeal | None:
        """Return one recording; None if it does not exist, or its seal is not genuine."""
        if exec_id not in self._seals:
            try:
                token = await asyncio.to_thread(_read_text, self._store, exec_id)
                svid = self._identity.current()
                seal = verify(token, RecordingSeal, svid.bundle, svid.spiffe_id, kept=True)
                if seal.jti != exec_id:
                    raise InvalidSignature("is of another execution")
            except StoreFailed:
                return None
            except InvalidSignature as error:
                log.error("recording.refused", id=exec_id, reason=str(error))
                return None
            self._seals[exec_id] = seal
        return self._seals[exec_id]

    async def search(self, seal: RecordingSeal, text: str) -> tuple[RecordingMatch, ...]:
        """Return the lines of a recording's screen that contain a text; none if they were altered."""
        try:
            found = await asyncio.to_thread(_search, self._store, seal, text)
        except StoreFailed as error:
            log.error("recording.unreadable", id=seal.jti, reason=str(error))
            return ()
        return tuple(RecordingMatch(at=timedelta(microseconds=at_us), line=line) for at_us, line in found)

    async def read(self, seal: RecordingSeal) -> AsyncIterator[bytes]:
        """Yield the bytes of a recording, after a comparison with its seal.

        Raises:
            StoreFailed: it cannot be read.
            OutputAltered: the recording is not the one that was sealed.
        """
        if await asyncio.to_thread(_digest, self._store, seal.jti, FileKind.CAST) != seal.sha256:
            raise OutputAltered(f"the recording of {seal.jti} is not the one that was signed")
        with closing(await asyncio.to_thread(self._store.open, seal.jti, FileKind.CAST)) as file:
            while data := await asyncio.to_thread(file.read, READ_BYTES):
                yield data

    async def trim(self) -> None:
        """Delete the recordings beyond their retention. Raises StoreFailed, and redis errors."""
        oldest_ms = now_ms() - self._retention_ms
        for seal in await self.newest():
            if seal.began_ms < oldest_ms:
                await asyncio.to_thread(self._store.delete, seal.jti)
                self._seals.pop(seal.jti, None)
                await self._trail.append(
                    AuditCode.RECORDING_DELETED, id=seal.jti, agent_id=seal.agent, requested_by=seal.sub,
                    authorized="1", reason="its retention has ended", evidence_sha256=seal.sha256,
                )  # fmt: skip


def described(seal: RecordingSeal, matches: tuple[RecordingMatch, ...] = ()) -> RecordingInfo:
    """Return a recording for callers."""
    return RecordingInfo(
        id=seal.jti, agent_id=seal.agent, requested_by=seal.sub, command=seal.request.command, tty=seal.request.tty,
        start_time=from_ms(seal.began_ms), duration=timedelta(microseconds=seal.duration_us), size=seal.size,
        sha256=seal.sha256, exit_code=seal.exit_code, complete=not seal.problem, problem=seal.problem,
        has_input=seal.has_input, matches=matches,
    )  # fmt: skip


def _read_text(store: RecordingStore, exec_id: str) -> str:
    with closing(store.open(exec_id, FileKind.SEAL)) as file:
        return file.read().decode("ascii", "replace")


def _digest(store: RecordingStore, exec_id: str, kind: FileKind) -> str:
    with closing(store.open(exec_id, kind)) as file:
        digest = hashlib.sha256()
        while data := file.read(READ_BYTES):
            digest.update(data)
        return digest.hexdigest()


def _search(store: RecordingStore, seal: RecordingSeal, text: str) -> list[tuple[int, str]]:
    if _digest(store, seal.jti, FileKind.TEXT) != seal.text_sha256:
        raise StoreFailed("its text is not the one that was signed")
    with closing(store.open(seal.jti, FileKind.TEXT)) as file:
        return matching_lines(file, text, MAX_MATCHES)
