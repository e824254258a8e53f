"""The calls that each identity may have in progress, and the bytes of their requests.

An identity beyond a quota gets RESOURCE_EXHAUSTED before its request is received. Others are not affected.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from tachikoma.errors import ResourceExhausted

__all__ = ["CallQuotas"]

#: Requests of one identity that are received at once. Further ones wait for their turn.
RECEIVED_AT_ONCE = 8
#: Seconds after which a refused call may be repeated.
RETRY_SECONDS = 1.0


@dataclass(slots=True)
class _Usage:
    """The calls in progress of one identity."""

    calls: int = 0
    streams: int = 0
    #: Bytes of the requests of these calls.
    request_bytes: int = 0
    receiving: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(RECEIVED_AT_ONCE))


class CallQuotas:
    """Counts the calls in progress of each identity. For one event loop."""

    def __init__(self, *, calls: int = 2000, streams: int = 1000, request_bytes: int = 64 * 1024 * 1024) -> None:
        """Prepare quotas, each for one identity.

        Args:
            calls: most calls in progress, streams included.
            streams: most streams in progress.
            request_bytes: most bytes of the requests of all its calls.
        """
        self._calls = calls
        self._streams = streams
        self._request_bytes = request_bytes
        #: Identities with calls in progress.
        self._usage: dict[str, _Usage] = {}

    @contextmanager
    def call(self, identity: str, *, stream: bool) -> Iterator[None]:
        """Count a call while the block runs.

        Raises:
            ResourceExhausted: the identity has too many calls or streams in progress.
        """
        usage = self._usage.setdefault(identity, _Usage())
        if usage.calls >= self._calls:
            raise _exhausted(f"{usage.calls} calls in progress, the most for one identity", "calls")
        if stream and usage.streams >= self._streams:
            raise _exhausted(f"{usage.streams} streams in progress, the most for one identity", "streams")
        usage.calls += 1
        usage.streams += stream
        try:
            yield
        finally:
            usage.calls -= 1
            usage.streams -= stream
            if not usage.calls:
                self._usage.pop(identity, None)

    @asynccontextmanager
    async def receiving(self, identity: str) -> AsyncIterator[None]:
        """Wait for the turn to receive a request, inside `call`."""
        async with self._usage[identity].receiving:
            yield

    @contextmanager
    def holding(self, identity: str, size: int) -> Iterator[None]:
        """Count the bytes of a request while the block runs, inside `call`.

        Raises:
            ResourceExhausted: the requests of the identity's calls in progress are too large together.
        """
        usage = self._usage[identity]
        if usage.request_bytes and usage.request_bytes + size > self._request_bytes:
            raise _exhausted(
                f"requests of {usage.request_bytes} bytes in progress; all of one identity have at most "
                f"{self._request_bytes}",
                "request_bytes",
            )
        usage.request_bytes += size
        try:
            yield
        finally:
            usage.request_bytes -= size


def _exhausted(what: str, limit: str) -> ResourceExhausted:
    return ResourceExhausted(
        f"you have {what}; try again when some have ended", metadata={"limit": limit},
        retry_after_seconds=RETRY_SECONDS,
    )  # fmt: skip
