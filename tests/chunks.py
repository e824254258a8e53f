"""Chunks of output for tests that need no command."""

from __future__ import annotations

from tachikoma_worker.output.output_log import OutputLog
from tachikoma_worker.output.spool import Chunk

__all__ = ["append"]


async def append(log: OutputLog, chunks: list[tuple[int, bytes]]) -> None:
    """Append chunks that follow those there are."""
    await log.append([Chunk(kind, log.seq + number, 0, data) for number, (kind, data) in enumerate(chunks, 1)])
