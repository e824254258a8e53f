"""The control channel on a real Redis: cancels are heard whenever they are published."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from local_agent import AGENT, LocalAgent
from patience import PATIENCE_SECONDS
from tachikoma.config.tasks import cancel_all
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma_worker.engine import control as module
from tachikoma_worker.engine.control import Control


class Recorder:
    """An execution that records its cancels."""

    def __init__(self) -> None:
        self.cancels: list[str] = []

    def cancel(self, token: str) -> None:
        self.cancels.append(token)


@asynccontextmanager
async def listening(agent: LocalAgent, subscriptions: Redis, running: dict[str, Any]) -> AsyncIterator[None]:
    """A control channel that has subscribed."""
    task = asyncio.create_task(Control(agent.context, subscriptions, running).run())
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await agent.redis.publish(keys.control(AGENT), "nothing"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield
        assert not task.done()
    finally:
        await cancel_all([task])


async def test_a_published_cancel_reaches_its_execution_and_no_other(
    agent: LocalAgent, subscriptions: Redis, until: Any
) -> None:
    one, other = Recorder(), Recorder()
    async with listening(agent, subscriptions, {"job-7": one, "job-8": other}):
        await agent.redis.publish(keys.control(AGENT), "job-7 token")
        await until(lambda: one.cancels, "it is heard")
    assert (one.cancels, other.cancels) == (["token"], [])


async def test_cancels_that_were_published_before_are_read(agent: LocalAgent, subscriptions: Redis, until: Any) -> None:
    one = Recorder()
    await agent.redis.set(keys.cancel(AGENT, "job-7"), "token")
    async with listening(agent, subscriptions, {"job-7": one}):
        await until(lambda: one.cancels, "it is read")
    assert one.cancels == ["token"]


async def test_a_retained_cancel_of_another_type_keeps_none_of_the_others(
    agent: LocalAgent, subscriptions: Redis, until: Any
) -> None:
    one, other = Recorder(), Recorder()
    await agent.redis.hset(keys.cancel(AGENT, "job-7"), "not", "a cancel")
    await agent.redis.set(keys.cancel(AGENT, "job-8"), "token")
    async with listening(agent, subscriptions, {"job-7": one, "job-8": other}):
        await until(lambda: other.cancels, "it is read")
    assert one.cancels == []


@pytest.mark.parametrize("message", [b"", b" ", b"job-9", b"\xff\xfe", b"job-7", b"x" * 100_000])
async def test_no_message_ends_the_control_channel(
    agent: LocalAgent, subscriptions: Redis, until: Any, message: bytes
) -> None:
    one = Recorder()
    async with listening(agent, subscriptions, {"job-7": one}):
        await agent.redis.publish(keys.control(AGENT), message)
        await agent.redis.publish(keys.control(AGENT), "job-7 token")
        await until(lambda: "token" in one.cancels, "it goes on")


async def test_after_a_broken_connection_it_subscribes_again(
    agent: LocalAgent, subscriptions: Redis, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.01, 0.01))
    one = Recorder()
    async with listening(agent, subscriptions, {"job-7": one}):
        # At once, so that the cancel is there before the new subscription.
        async with agent.redis.pipeline(transaction=True) as pipe:
            pipe.execute_command("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")
            pipe.set(keys.cancel(AGENT, "job-7"), "token")
            await pipe.execute()
        await until(lambda: one.cancels, "it is read after the new subscription")


async def test_a_connection_without_messages_is_tested(
    agent: LocalAgent, subscriptions: Redis, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.01)
    one = Recorder()
    async with listening(agent, subscriptions, {"job-7": one}):
        # Several times as long as the connection may be silent.
        await asyncio.sleep(0.1)
        await agent.redis.set(keys.cancel(AGENT, "job-7"), "token")
        await agent.redis.publish(keys.control(AGENT), "job-7 token")
        await until(lambda: one.cancels, "it is heard")
