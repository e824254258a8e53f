"""Output that was sent already, and is sent again when Redis has lost it.

Redis confirms an entry up to 2 s before its file has it, and a replica may have it even later. So the spool of a
finished execution stays on disk for a while. In each new life of Redis, the missing chunks are sent again before
anything else. Chunks that no spool contains any more stay a gap, which readers see.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import structlog
from redis.exceptions import ResponseError

from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.streams.frames import FIELD, Frame, entry_id, sequence_of
from tachikoma_worker.output.output_log import ENTRY_BYTES, OutputLog
from tachikoma_worker.output.records import Facts
from tachikoma_worker.output.spool import CHUNK_BYTES, Spool, StoredChunk, stored_chunks

__all__ = ["KEEP_SECONDS", "SentOutput", "in_log"]

log = structlog.get_logger(__name__)

#: Time for which the output of a finished execution can be sent again, in seconds.
KEEP_SECONDS = 60.0
#: Largest sum of all retained files, in bytes, and their largest number. The oldest are removed first.
KEEP_BYTES = 64 * 1024 * 1024
KEEP_FILES = 20_000
#: Logs that are compared in one round trip, with as many open files; and bytes of output that are sent in one.
COMPARED = 100
SEND_BYTES = 2 * CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class _Kept:
    """The spool of a finished execution."""

    #: Number of its last chunk; None if an earlier worker retained it.
    last: int | None
    size: int
    #: Since when it is retained, by the monotonic clock.
    since: float


class _Missing(NamedTuple):
    """An execution of whose output Redis lacks the end."""

    exec_id: str
    path: Path
    #: Number of the last chunk that Redis has.
    stored: int
    #: Number of the last chunk that it had; None if that is not known.
    last: int | None


#: A chunk with its execution and the open file that contains it.
_Chunk: TypeAlias = tuple[str, int, StoredChunk]


class SentOutput:
    """The output of one agent that may have to be sent again. It belongs to one event loop."""

    def __init__(self, agent: str, spools: Path, folder: Path, *, retention_seconds: int) -> None:
        """Create the folder of retained spools, and take over those of an earlier worker.

        Args:
            agent: the agent's id.
            spools: the folder of the spools of running executions.
            folder: the folder of the spools of finished executions.
            retention_seconds: lifetime of the output of a finished execution in Redis.
        """
        self._agent = agent
        self._spools, self._folder = spools, folder
        self._retention_seconds = retention_seconds
        self._running: dict[str, OutputLog] = {}
        #: The finished executions, oldest first.
        self._kept: dict[str, _Kept] = {}
        self._bytes = 0
        folder.mkdir(exist_ok=True, mode=0o700)
        for path in folder.iterdir():
            self._add(path.name, _Kept(None, path.stat().st_size, time.monotonic()))

    def track(self, exec_id: str, output: OutputLog) -> None:
        """Send the output of a running execution again if it is lost, until it is finished."""
        self._running[exec_id] = output

    def finish(self, exec_id: str, spool: Spool | None) -> Callable[[], None] | None:
        """Retain the spool of an execution whose receipt is delivered, if it has output.

        Returns:
            The function that removes the spool, which may wait for the disk; None if there is nothing to remove.

        Raises:
            OSError: the file cannot be moved.
        """
        output = self._running.pop(exec_id, None)
        if spool is None:
            return None
        if output is None or not output.sent:
            return spool.remove
        size = spool.move(self._folder / exec_id)
        if size:
            self._add(exec_id, _Kept(output.sent, size, time.monotonic()))
        return None

    def prune(self, now: float) -> None:
        """Remove output that Redis has held for `KEEP_SECONDS`.

        Args:
            now: monotonic time at which Redis last answered, in the life to which the output was sent.
        """
        for exec_id in [name for name, kept in self._kept.items() if kept.since < now - KEEP_SECONDS]:
            self._drop(exec_id)

    @property
    def retained(self) -> int:
        """Number of finished executions whose output can be sent again."""
        return len(self._kept)

    def _add(self, exec_id: str, kept: _Kept) -> None:
        self._kept[exec_id] = kept
        self._bytes += kept.size
        while self._kept and (self._bytes > KEEP_BYTES or len(self._kept) > KEEP_FILES):
            self._drop(next(iter(self._kept)))

    def _drop(self, exec_id: str) -> None:
        self._bytes -= self._kept.pop(exec_id).size
        (self._folder / exec_id).unlink(missing_ok=True)

    # --- in a new life ------------------------------------------------------------------------------------------------

    async def restore(self, redis: Redis) -> None:
        """Send all output again that a new life of Redis does not have. Raises redis errors.

        Args:
            redis: connections that need not wait for the life to be used.
        """
        wanted = [(exec_id, self._folder / exec_id, kept.last) for exec_id, kept in self._kept.items()]
        wanted += [(exec_id, self._spools / exec_id, output.sent) for exec_id, output in self._running.items()]
        chunks = 0
        for begin in range(0, len(wanted), COMPARED):
            part = wanted[begin : begin + COMPARED]
            async with redis.pipeline(transaction=False) as pipe:
                for exec_id, _, _ in part:
                    pipe.execute_command("XREVRANGE", keys.output(self._agent, exec_id), "+", "-", "COUNT", 1)
                answers = await pipe.execute(raise_on_error=False)
            missing = []
            for (exec_id, path, last), answer in zip(part, answers, strict=True):
                if isinstance(answer, Exception):
                    if not wrong_type(answer):
                        raise answer
                    continue
                stored = sequence_of(answer[0][0]) if answer else 0
                if last is None or stored < last:
                    missing.append(_Missing(exec_id, path, stored, last))
            chunks += await self._send_again(redis, missing)
        if chunks:
            log.warning("output.sent_again", chunks=chunks)

    async def _send_again(self, redis: Redis, missing: list[_Missing]) -> int:
        """Send the missing chunks of executions, and return their number.

        A round trip takes chunks of many executions: with `appendfsync always`, each waits for the disk.
        """
        sent = 0
        with ExitStack() as files:
            opened = []
            for one in missing:
                # A file that is not there went through memory, or was removed meanwhile.
                with suppress(OSError):
                    descriptor = os.open(one.path, os.O_RDONLY | os.O_CLOEXEC)
                    files.callback(os.close, descriptor)
                    opened.append((one, descriptor))
            found = await asyncio.to_thread(_missing_chunks, opened)
            for group in _groups(found):
                sent += len(group) - await self._send(redis, group)
            async with redis.pipeline(transaction=False) as pipe:
                for exec_id, _, chunks in found:
                    if chunks and exec_id in self._kept:
                        pipe.expire(keys.output(self._agent, exec_id), self._retention_seconds)
                await pipe.execute(raise_on_error=False)
        return sent

    async def _send(self, redis: Redis, group: list[_Chunk]) -> int:
        """Send chunks, and return the number of those that Redis refused."""
        async with redis.pipeline(transaction=False) as pipe:
            for exec_id, descriptor, chunk in group:
                key = keys.output(self._agent, exec_id)
                data = os.pread(descriptor, chunk.length, chunk.begin)
                raw = Frame(chunk.kind, chunk.seq, chunk.offset, chunk.time_us, data).encode()
                pipe.xadd(key, {FIELD: raw}, id=entry_id(chunk.seq))
                pipe.publish(key, raw)
            answers = await pipe.execute(raise_on_error=False)
        refused = []
        for (exec_id, _, _), answer in zip(group, answers[::2], strict=True):
            if isinstance(answer, ResponseError):
                refused.append((exec_id, answer))
            elif isinstance(answer, Exception):
                raise answer
        for exec_id, error in dict(refused).items():
            log.warning("output.not_sent_again", id=exec_id, error=str(error)[:300])
        return len(refused)


def _missing_chunks(opened: list[tuple[_Missing, int]]) -> list[tuple[str, int, list[StoredChunk]]]:
    """Return the missing chunks of each execution, with the open file of its spool. Blocks."""
    found = []
    for (exec_id, _, stored, last), descriptor in opened:
        try:
            facts, chunks = stored_chunks(descriptor, last)
        except (OSError, ValueError, struct.error) as error:
            # A file of an earlier run of the host: readers see a gap.
            log.warning("output.not_sent_again", id=exec_id, error=str(error)[:300])
            continue
        found.append((exec_id, descriptor, [chunk for chunk in in_log(facts, chunks) if chunk.seq > stored]))
    return found


def in_log(facts: Facts, chunks: list[StoredChunk]) -> list[StoredChunk]:
    """Return those chunks of a spool that the log in Redis retains: its beginning, and as much of its end as fits."""
    totals = facts.totals
    pin_bytes = 0 if facts.waits else facts.log_bytes // 2
    pinned, pinned_bytes = 0, totals.pinned_bytes
    while pinned < len(chunks) and not totals.held_bytes:
        pinned_bytes += chunks[pinned].length + ENTRY_BYTES
        if pinned_bytes > pin_bytes:
            break
        pinned += 1
    held, left_bytes = len(chunks), facts.log_bytes - pin_bytes
    while held > pinned:
        left_bytes -= chunks[held - 1].length + ENTRY_BYTES
        if left_bytes < 0:
            break
        held -= 1
    return chunks[:pinned] + chunks[held:]


def _groups(found: list[tuple[str, int, list[StoredChunk]]]) -> Iterator[list[_Chunk]]:
    """Yield the chunks in groups for one round trip each."""
    group: list[_Chunk] = []
    size = 0
    for exec_id, descriptor, chunks in found:
        for chunk in chunks:
            group.append((exec_id, descriptor, chunk))
            size += chunk.length + ENTRY_BYTES
            if size >= SEND_BYTES:
                yield group
                group, size = [], 0
    if group:
        yield group
