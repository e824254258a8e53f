"""The events of one attached caller in a recording: the time of attaching, window sizes, input."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Awaitable, Callable

import structlog

from tachikoma.sessions.asciicast import INPUT, MARKER, RESIZE
from tachikoma.vocabulary.clock import now_micros
from tachikoma.vocabulary.recordings import RecordMode, RecordRule
from tachikoma.vocabulary.requests import WindowSize
from tachikoma_orchestrator.recordings.parts import EVENTS_PART, Event, encode
from tachikoma_orchestrator.recordings.store import PartWriter, RecordingStore, StoreFailed
from tachikoma_orchestrator.sessions.sizes import DEFAULT

__all__ = ["Captions"]

log = structlog.get_logger(__name__)


class Captions:
    """Writes the events of one caller, if the execution is recorded. For one task at a time."""

    def __init__(
        self,
        store: RecordingStore | None,
        exec_id: str,
        rule: RecordRule,
        failed: Callable[[str], Awaitable[Exception]],
    ) -> None:
        """Prepare captions; nothing is written yet.

        Args:
            store: of the recordings; None to write nothing.
            exec_id: the execution.
            rule: whether it is recorded.
            failed: called with the reason when the recording is required and cannot be written. It ends the execution,
                and returns the error for the caller.
        """
        self._store = store if rule.mode is not RecordMode.OFF else None
        self._exec_id = exec_id
        self._rule = rule
        self._failed = failed
        self._part: PartWriter | None = None

    async def mark(self, offset: int, text: str) -> None:
        """Write a marker after a number of output bytes. Raises what `failed` returns."""
        await self._write(offset, MARKER, text)

    async def resize(self, offset: int, size: WindowSize) -> None:
        """Write the new size of the terminal. Raises what `failed` returns."""
        await self._write(offset, RESIZE, f"{size.columns or DEFAULT.columns}x{size.rows or DEFAULT.rows}")

    async def typed(self, offset: int, place: int, data: bytes) -> None:
        """Write input, if it is recorded. Raises what `failed` returns.

        Args:
            offset: number of output bytes that the caller had.
            place: number of input bytes before it; input that is sent again after a lost connection counts once.
            data: the bytes.
        """
        if self._rule.includes_input and data:
            await self._write(offset, INPUT, base64.b64encode(data).decode(), place)

    async def _write(self, offset: int, code: str, data: str, place: int = 0) -> None:
        if self._store is None:
            return
        line = encode(Event(offset, now_micros(), code, data, place))
        try:
            if self._part is None:
                name = f"{EVENTS_PART}{secrets.token_hex(8)}"
                self._part = await asyncio.to_thread(self._store.add_part, self._exec_id, name)
            await asyncio.to_thread(self._part.write, line)
        except StoreFailed as error:
            if self._rule.mode is RecordMode.REQUIRED:
                raise await self._failed(str(error)) from None
            log.warning("recording.captions_ended", id=self._exec_id, reason=str(error))
            self.close()

    def close(self) -> None:
        """End the part; nothing is written after it."""
        self._store = None
        if self._part is not None:
            self._part.close()
            self._part = None
