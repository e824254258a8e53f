"""Input on its way to an agent, on a real Redis: nothing is lost and nothing doubled, whatever breaks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from authority import Authority
from patience import PATIENCE_SECONDS
from session_agent import SessionAgent
from tachikoma.config.tasks import cancel_all
from tachikoma.errors import InvalidRequest
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.spiffe import agent_id, service_id
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.sessions.frames import INPUT_CREDIT_BYTES, Acknowledge, Close, Detach, Resize, Signal, SignalName
from tachikoma.vocabulary.requests import WindowSize
from tachikoma.vocabulary.results import InputAccepted
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.revocations import Revocations
from tachikoma_orchestrator.sessions.channel import InputChannel
from tachikoma_orchestrator.sessions.handshake import SessionAddress
from tachikoma_orchestrator.store.subscriber import Subscriber

Until = Callable[[Callable[[], object], str], Awaitable[None]]

AGENT, EXEC, ORDER = "web-1", "job-7", "ab" * 32
CALLER = "spiffe://tachikoma.local/user/alice"


@dataclass
class World:
    """A channel and the agent at its other end."""

    channel: InputChannel
    agent: SessionAgent
    subscriber: Subscriber
    running: asyncio.Task[None]
    accepted: list[InputAccepted]
    #: The state of the execution and its order.
    state: tuple[ExecState, str]
    epochs: int = 0


@asynccontextmanager
async def world(redis: Redis, subscriptions: Redis, folder: Path) -> AsyncIterator[World]:
    authority = Authority()
    authority.write(folder / "orchestrator", str(service_id("tachikoma.local", "orchestrator")))
    identity = FileSvidSource(folder / "orchestrator")
    agent = SessionAgent(redis, authority.svid(str(agent_id("tachikoma.local", AGENT))), EXEC)
    subscriber = Subscriber(subscriptions)

    async def nothing(_channel: str, _data: bytes) -> None: ...

    subscriber.on_pattern("nothing.*", nothing)

    async def next_epoch() -> int:
        made.epochs += 1
        return made.epochs

    async def state() -> tuple[ExecState, str]:
        return made.state

    accepted: list[InputAccepted] = []
    channel = InputChannel(
        redis, subscriber, identity, Revocations(redis), SessionAddress(AGENT, EXEC, CALLER, "192.0.2.7"),
        next_epoch=next_epoch, state=state, on_accepted=accepted.append,
    )  # fmt: skip
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(subscriber.run()), loop.create_task(agent.run())]
    async with AsyncExitStack() as stack:
        await asyncio.wait_for(subscriber.connected.wait(), PATIENCE_SECONDS)
        await stack.enter_async_context(channel.listen())
        tasks.append(loop.create_task(channel.run()))
        made = World(channel, agent, subscriber, tasks[-1], accepted, (ExecState.STARTED, ORDER))
        try:
            yield made
        finally:
            await cancel_all(tasks)


async def test_input_arrives_as_it_was_written(
    redis: Redis, subscriptions: Redis, tmp_path: Path, until: Until
) -> None:
    async with world(redis, subscriptions, tmp_path) as made:
        channel, agent = made.channel, made.agent
        await agent.restart()
        await channel.write(b"hello ", None)
        await channel.write(b"world", 6)
        await channel.resize(WindowSize(50, 132))
        await channel.signal(SignalName.INT)
        await channel.written(1000)
        await channel.written(500)
        await channel.end()
        await until(lambda: agent.ended and made.accepted[-1].ended, "the end is accepted")
        assert bytes(agent.taken) == b"hello world"
        wanted = [Resize(WindowSize(50, 132)), Signal(SignalName.INT), Acknowledge(1000)]
        assert [frame for frame in agent.frames if frame != Acknowledge(0)] == wanted
        assert made.accepted[-1] == InputAccepted(offset=11, echo=True, ended=True)
        offer = agent.offers[0]
        assert (offer.sub, offer.client_ip, offer.order_sha256, offer.epoch) == (CALLER, "192.0.2.7", ORDER, 1)
        with pytest.raises(InvalidRequest, match="after its end"):
            await channel.write(b"more", None)
        assert await channel.close()
        await channel.detach()
        await until(lambda: agent.frames[-2:] == [Close(), Detach()], "both arrive")
        assert await redis.execute_command("XLEN", keys.input(AGENT, EXEC)) == 0


async def test_nothing_is_lost_or_doubled_while_everything_breaks(
    redis: Redis, subscriptions: Redis, tmp_path: Path, until: Until
) -> None:
    chance = random.Random(7)
    data = chance.randbytes(3_000_000)
    async with world(redis, subscriptions, tmp_path) as made:
        await made.agent.restart()
        position = 0
        while position < len(data):
            size = chance.choice([1, 7, 1000, 100_000, 300_000])
            # A caller that reconnects sends again what was not accepted.
            again = chance.randrange(min(position, 5000) + 1)
            await made.channel.write(data[position - again : position + size], position - again)
            position = min(position + size, len(data))
            match chance.randrange(6):
                case 0:
                    await made.agent.restart()
                case 1:
                    await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                case 2:
                    made.agent.deaf = 1
                    made.channel.renew()
        await until(lambda: len(made.agent.taken) == len(data), "all input is taken")
        assert bytes(made.agent.taken) == data
        await until(lambda: made.accepted[-1].offset == len(data), "all input is accepted")
        assert made.epochs > 1


async def test_a_caller_waits_while_too_much_is_not_accepted(
    redis: Redis, subscriptions: Redis, tmp_path: Path, until: Until
) -> None:
    async with world(redis, subscriptions, tmp_path) as made:
        made.agent.stuck = True
        await made.agent.restart()
        writing = asyncio.create_task(made.channel.write(bytes(INPUT_CREDIT_BYTES + 1), None))
        await until(lambda: len(made.agent.taken) > INPUT_CREDIT_BYTES - 256 * 1024, "the credit is used")
        for _ in range(20):
            await asyncio.sleep(0)
        assert not writing.done()
        made.agent.stuck = False
        await made.agent.accept()
        await asyncio.wait_for(writing, PATIENCE_SECONDS)
        await until(lambda: len(made.agent.taken) == INPUT_CREDIT_BYTES + 1, "the rest follows")


async def test_a_gap_is_refused(redis: Redis, subscriptions: Redis, tmp_path: Path) -> None:
    async with world(redis, subscriptions, tmp_path) as made:
        await made.agent.restart()
        await made.channel.write(b"abc", 0)
        with pytest.raises(InvalidRequest, match="continues at byte 3, not at 4"):
            await made.channel.write(b"e", 4)


async def test_input_of_an_older_session_continues_where_the_agent_is(
    redis: Redis, subscriptions: Redis, tmp_path: Path, until: Until
) -> None:
    async with world(redis, subscriptions, tmp_path) as made:
        made.agent.taken += b"before"
        made.channel.renew()
        await made.channel.write(b" after", None)
        await until(lambda: bytes(made.agent.taken) == b"before after", "the input is joined")


async def test_nothing_is_offered_before_the_command_has_an_order(
    redis: Redis, subscriptions: Redis, tmp_path: Path, until: Until
) -> None:
    async with world(redis, subscriptions, tmp_path) as made:
        made.state = (ExecState.PENDING_APPROVAL, "")
        made.channel.renew()
        assert not await made.channel.close()
        # Time in which it could be offered, which it must not.
        await asyncio.sleep(0.05)
        assert made.agent.offers == []
        made.state = (ExecState.QUEUED, ORDER)
        await made.agent.restart()
        await until(lambda: made.agent.offers, "an offer is made when the agent wants one")


async def test_garbage_from_redis_changes_nothing(
    redis: Redis, subscriptions: Redis, tmp_path: Path, until: Until
) -> None:
    async with world(redis, subscriptions, tmp_path) as made:
        await made.agent.restart()
        await made.channel.write(b"a", None)
        for raw in (b"", b"A", b"Ax.y.z", b"F", b"F" + bytes(40), b"X", b"A\xff", bytes(400_000)):
            await redis.publish(keys.session(AGENT, EXEC), raw)
        await made.channel.write(b"b", None)
        await until(lambda: bytes(made.agent.taken) == b"ab", "input goes on")
