"""All servers that Sentinels watch, each with its own connections: Redis does not replicate users and settings."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tachikoma.redis.access import RedisAccess, connect
from tachikoma.redis.commands import Redis
from tachikoma.redis.sentinel import SCHEMES, Address

__all__ = ["Servers", "access_to"]


def access_to(access: RedisAccess, address: Address) -> RedisAccess:
    """Return the access to one server of the Sentinels, with the same user and certificates."""
    host, port = address
    scheme = SCHEMES[access.url.partition("://")[0]]
    place = f"[{host}]" if ":" in host else host
    return replace(access, url=f"{scheme}://{place}:{port}", primary=None)


class Servers:
    """The servers that the Sentinels know."""

    def __init__(self, access: RedisAccess, *, name: str) -> None:
        """Prepare an empty list of servers; `all` finds them.

        Args:
            access: with the URL of Sentinels.
            name: name of the connections in `CLIENT LIST`.
        """
        self._access = access
        self._name = name
        self._clients: dict[Address, Redis] = {}

    async def all(self) -> dict[Address, Redis]:
        """Return a client of each server, the primary first. Raises redis errors if no Sentinel answers."""
        assert self._access.primary is not None
        # It waits for the Sentinels, so not in the event loop.
        addresses = await asyncio.to_thread(self._access.primary.servers)
        for address in addresses:
            if address not in self._clients:
                access = access_to(self._access, address)
                self._clients[address] = connect(access, name=self._name, max_connections=2)
        for address in self._clients.keys() - set(addresses):
            await self._clients.pop(address).aclose()
        return {address: self._clients[address] for address in addresses}

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()
