"""Connections of the asyncio clients, on which a cancellation is never lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from redis import asyncio as redis_asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

__all__ = ["PlainConnection", "Sending", "UnixConnection"]


class Sending:
    """The sending of commands, bounded in time by `asyncio.timeout`.

    redis-py uses `asyncio.wait_for`. In Python 3.11 that loses a cancellation which arrives together with its result
    (gh-86296, fixed in 3.12), so that a caller that was cancelled, or reached its timeout, waited forever. It also
    makes a task for each command.
    """

    is_connected: bool
    socket_timeout: float | None
    _writer: asyncio.StreamWriter | None

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """Send a command. Parameters and errors are those of redis-py."""
        if not self.is_connected:
            await self.connect_check_health(check_health=False)  # type: ignore[attr-defined]
        if check_health:
            await self.check_health()  # type: ignore[attr-defined]
        if isinstance(command, str):
            command = command.encode()
        try:
            async with asyncio.timeout(self.socket_timeout):
                if self._writer is None:
                    raise ConnectionResetError("closed meanwhile")
                self._writer.writelines([command] if isinstance(command, bytes) else command)
                await self._writer.drain()
        except BaseException as error:
            # A part of the command may have been sent, so nothing else can be sent here.
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            if isinstance(error, TimeoutError):
                raise RedisTimeoutError("Redis did not take a command in time") from None
            if isinstance(error, OSError):
                raise RedisConnectionError(f"the connection to Redis broke: {error}") from error
            raise


class PlainConnection(Sending, redis_asyncio.Connection):
    """A connection by TCP."""


class UnixConnection(Sending, redis_asyncio.UnixDomainSocketConnection):
    """A connection by a unix socket."""
