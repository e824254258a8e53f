"""A process's copy of a part of Redis that is kept fresh in the background, and used while Redis is unavailable."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import ClassVar

import structlog
from redis.exceptions import RedisError

__all__ = ["REFRESH_SECONDS", "RefreshedCopy"]

log = structlog.get_logger(__name__)

#: Pause between two readings of Redis. Even if a reading takes as long, a change is known within about a second.
REFRESH_SECONDS = 0.5


class RefreshedCopy(ABC):
    """A copy of a part of Redis."""

    #: Name of the copied part; the names of its log events begin with it.
    subject: ClassVar[str]

    @abstractmethod
    async def refresh(self) -> None:
        """Read the changes since the last refresh. Raises redis errors."""

    async def update(self) -> None:
        """Refresh the copy and take the steps that follow a refresh. Raises redis errors."""
        await self.refresh()

    async def run(self) -> None:
        """Keep the copy fresh, until cancelled."""
        while True:
            await self.refresh_if_available()
            await asyncio.sleep(REFRESH_SECONDS)

    async def refresh_if_available(self) -> None:
        """Refresh the copy, or keep it while Redis is unavailable: then no process can change the original either."""
        try:
            await self.update()
        except (RedisError, OSError) as error:
            log.warning(f"{self.subject}.redis_unavailable", error=str(error))
