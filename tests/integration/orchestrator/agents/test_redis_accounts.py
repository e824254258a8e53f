"""The agents' Redis users on a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as redis_asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.redis.users import agent_user
from tachikoma_orchestrator.agents.redis_accounts import Accounts

AGENT = "web-1"


def connection(redis: Redis, password: str, agent: str = AGENT) -> redis_asyncio.Redis:
    """A client of the agent's, which connects once and never again by itself."""
    path = str(redis.connection_pool.connection_kwargs["path"])
    return redis_asyncio.Redis(
        unix_socket_path=path,
        username=agent_user(agent),
        password=password,
        single_connection_client=True,
        retry=Retry(NoBackoff(), 0),
    )


def refused() -> Any:
    """Expect that Redis does not accept the password."""
    return pytest.raises(RedisConnectionError, match="invalid username-password pair")


@pytest.fixture(autouse=True)
async def no_users_left(redis: Redis) -> AsyncIterator[None]:
    yield
    await redis.execute_command("ACL", "DELUSER", agent_user(AGENT), agent_user("web-2"))


async def test_an_agents_user_may_write_its_own_names_and_no_others(redis: Redis) -> None:
    accounts = Accounts(redis)
    async with connection(redis, await accounts.create(AGENT)) as agent:
        await agent.set(keys.info(AGENT), "{}")
        with pytest.raises(NoPermissionError):
            await agent.set(keys.info("web-2"), "{}")
        with pytest.raises(NoPermissionError):
            await agent.lpush(keys.queue(AGENT), "order")


async def test_a_new_password_replaces_the_old_one_and_closes_its_connections(redis: Redis) -> None:
    accounts = Accounts(redis)
    old = await accounts.create(AGENT)
    async with connection(redis, old) as connected:
        await connected.ping()
        new = await accounts.create(AGENT)
        with pytest.raises(RedisConnectionError):
            await connected.ping()
    assert new != old
    with refused():
        await connection(redis, old).ping()
    async with connection(redis, new) as connected:
        assert await connected.ping()


async def test_a_removed_agent_can_neither_connect_nor_find_its_queue(redis: Redis) -> None:
    accounts = Accounts(redis)
    password, other = await accounts.create(AGENT), await accounts.create("web-2")
    await redis.set(keys.info(AGENT), "{}")
    for agent in (AGENT, "web-2"):
        await redis.lpush(keys.queue(agent), "order")
    await redis.lpush(keys.queue_lane(AGENT, 3), "order")
    await accounts.remove(AGENT)
    with refused():
        await connection(redis, password).ping()
    assert await redis.exists(*keys.queues(AGENT), keys.info(AGENT)) == 0
    # Another agent keeps both.
    async with connection(redis, other, "web-2") as connected:
        assert await connected.ping()
    assert await redis.llen(keys.queue("web-2")) == 1


async def test_removing_an_agent_that_has_no_user_is_no_error(redis: Redis) -> None:
    await Accounts(redis).remove(AGENT)
    assert not [line for line in await redis.acl_list() if agent_user(AGENT) in line]
