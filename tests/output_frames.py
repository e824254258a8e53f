"""Output logs of tests, and the frames in them."""

from __future__ import annotations

from typing import Any

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.streams.frames import FIELD, Frame, entry_id, sequence_of
from tachikoma_worker.output.output_log import OutputLog

__all__ = ["KEY", "MIB", "follows", "joined", "new_log", "stream"]

KEY = keys.output("web-1", "job-7")
MIB = 1024 * 1024


def new_log(redis: Redis, *, log_bytes: int = 64 * MIB, excerpt_bytes: int = MIB, **values: Any) -> OutputLog:
    return OutputLog(redis, "web-1", "job-7", log_bytes=log_bytes, excerpt_bytes=excerpt_bytes, **values)


async def stream(redis: Redis) -> list[Frame]:
    """The frames in the log, whose entry ids are their numbers."""
    frames = []
    for entry, fields in await redis.xrange(KEY):
        assert list(fields) == [FIELD]
        frame = Frame.decode(fields[FIELD])
        assert sequence_of(entry) == frame.seq
        assert entry == entry_id(frame.seq).encode()
        frames.append(frame)
    return frames


def follows(frames: list[Frame], *, seq: int = 1, offset: int = 0) -> None:
    """Numbers and offsets are without a hole."""
    for number, frame in enumerate(frames, seq):
        assert (frame.seq, frame.offset) == (number, offset)
        offset += len(frame.data)


def joined(frames: list[Frame], kind: int) -> bytes:
    return b"".join(frame.data for frame in frames if frame.kind == kind)
