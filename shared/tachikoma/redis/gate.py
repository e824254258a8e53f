"""A gate for new connections: no command is sent to a server before the current life of Redis is known there.

A server that was restarted, restored or promoted has another replication id than before, and closes its connections or
gets new ones. So one check of each new connection is enough. `docs/decisions/0033-lives-of-redis.md` has the reasons.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError

from tachikoma.redis.commands import Connection

__all__ = ["GATE_SECONDS", "POLL_SECONDS", "Gate", "NotReconciled", "guarded", "replid_in", "replid_of"]

#: Longest wait of a new connection for the life of its server, in seconds.
GATE_SECONDS = 3.0
#: Pause between two looks while a connection waits, in seconds.
POLL_SECONDS = 0.1


class NotReconciled(RedisConnectionError):
    """A connection to a Redis that began a new life, which no orchestrator has recorded yet."""

    def __init__(self) -> None:
        super().__init__(
            "Redis was restarted, restored or replaced, and no orchestrator has recorded its new life yet; "
            "try again, and check that an orchestrator is running"
        )


class Gate(Protocol):
    """A check that each new connection must pass."""

    async def admit(self, connection: Connection) -> None:
        """Return once the connection may be used.

        Raises:
            NotReconciled: the life of its server did not become known in time.
        """


def guarded(gate: Gate) -> Callable[[Any], Awaitable[None]]:
    """Return the `redis_connect_func` of connections that pass a gate after their login."""

    async def on_connect(connection: Any) -> None:
        try:
            await connection.on_connect()
            await gate.admit(connection)
        except BaseException:
            # The pool would use a connection that is still open without another check.
            await connection.disconnect(nowait=True)
            raise

    return on_connect


async def replid_of(connection: Connection) -> str:
    """Return the replication id of the server at the other end of a connection. Raises redis errors."""
    await connection.send_command("INFO", "replication")
    return replid_in(await connection.read_response())


def replid_in(reply: bytes) -> str:
    """Return `master_replid` in the reply to INFO; empty if there is none."""
    for line in reply.splitlines():
        name, _, value = line.partition(b":")
        if name == b"master_replid":
            return value.decode("ascii", "replace").strip()
    return ""
