"""All servers behind Sentinels: one client each, the primary first."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tachikoma.redis.access import RedisAccess
from tachikoma.redis.sentinel import Address, Primary
from tachikoma.redis.servers import Servers, access_to

URL = "redis+sentinel://s1,s2/tk"


class Named:
    """The servers that the Sentinels name; a test changes them."""

    def __init__(self, *addresses: Address) -> None:
        self.addresses = list(addresses)

    def servers(self) -> list[Address]:
        return self.addresses


def access(named: Named, url: str = URL) -> RedisAccess:
    return RedisAccess(url, primary=cast(Primary, named))


@pytest.mark.parametrize(
    ("url", "address", "wanted"),
    [
        (URL, ("10.0.0.1", 6379), "redis://10.0.0.1:6379"),
        ("rediss+sentinel://s1/tk", ("r1.example.org", 7000), "rediss://r1.example.org:7000"),
        ("rediss+sentinel://s1/tk", ("2001:db8::1", 6379), "rediss://[2001:db8::1]:6379"),
    ],
)
def test_one_server_is_reached_directly_with_the_same_means(url: str, address: Address, wanted: str) -> None:
    found = access_to(access(Named(), url), address)
    assert (found.url, found.primary) == (wanted, None)


async def test_each_server_has_one_client_as_long_as_the_sentinels_name_it() -> None:
    first, second, third = ("10.0.0.1", 1), ("10.0.0.2", 2), ("10.0.0.3", 3)
    named = Named(first, second)
    servers = Servers(access(named), name="test")
    before = await servers.all()
    assert list(before) == [first, second]
    options: dict[str, Any] = before[second].connection_pool.connection_kwargs
    assert (options["host"], options["port"]) == second
    # Another primary, a new server, and one that is gone.
    named.addresses = [second, third]
    after = await servers.all()
    assert list(after) == [second, third]
    assert after[second] is before[second]
    named.addresses = [first]
    assert (await servers.all())[first] is not before[first]
    await servers.close()
