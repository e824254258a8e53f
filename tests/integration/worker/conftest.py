"""What the worker's integration tests share: an agent in the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from authority import Authority
from local_agent import LocalAgent, local_agent
from tachikoma.redis.commands import Redis


@pytest.fixture(scope="session")
def authority() -> Authority:
    """The authority of trust domain `tachikoma.local`."""
    return Authority()


@pytest_asyncio.fixture
async def agent(redis: Redis, redis_url: str, authority: Authority) -> AsyncIterator[LocalAgent]:
    """An agent on an empty Redis."""
    async with local_agent(redis, redis_url, authority) as made:
        yield made
