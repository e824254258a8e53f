"""Observers of a session: they read, whatever they send reaches nobody, and everybody sees that they are there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from admissions import AGENT, DOMAIN
from chunks import append
from patience import PATIENCE_SECONDS
from session_world import Caller, World, open_world
from tachikoma.errors import FailedPrecondition, InvalidRequest, NotFound, PermissionDenied, ResourceExhausted
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.identity.spiffe import user_id
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.sessions.frames import Acknowledge
from tachikoma.streams.frames import STDOUT
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.sessions import observation
from tachikoma_worker.output.output_log import OutputLog

Until = Callable[[Callable[[], object], str], Awaitable[None]]
BOB = user_id(DOMAIN, "bob")
GRANT = '    allowTty: true\n    observers: ["spiffe://tachikoma.local/user/bob"]\n'


@pytest.fixture
async def world(redis: Redis, subscriptions: Redis, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(redis, subscriptions, tmp_path) as made:
        made.stand.change_policy("    allowTty: true\n", GRANT)
        yield made


def observe(world: World, exec_id: str, *, by: Any = BOB, **values: Any) -> Caller:
    caller = world.call(by=by)
    caller.send(attach=pb.SessionAttach(id=exec_id, observe=True, **values))
    return caller


async def observers(world: World, exec_id: str) -> tuple[str, ...]:
    record = await world.stand.ledger.record(exec_id)
    assert record is not None
    return record.status().observers


async def gone(world: World, exec_id: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await observers(world, exec_id):  # noqa: ASYNC110 (nothing announces it)
            await asyncio.sleep(0.01)


async def test_an_observer_reads_and_is_seen(world: World, until: Until) -> None:
    caller, exec_id = world.open()
    agent = await world.start(exec_id)
    log = OutputLog(world.redis, AGENT, exec_id, log_bytes=10**6, excerpt_bytes=1000)
    await append(log, [(STDOUT, b"before ")])
    observer = observe(world, exec_id)
    await until(lambda: observer.of("stdout"), "the output so far arrives")
    await append(log, [(STDOUT, b"after")])
    await until(lambda: b"".join(observer.of("stdout")) == b"before after", "later output arrives")
    assert await observers(world, exec_id) == (str(BOB),)
    await until(lambda: any(list(status.observers) for status in caller.of("status")), "the caller is notified")
    observer.send(detach=pb.SessionDetach())
    assert await observer.end() is None
    await gone(world, exec_id)
    # The caller is attached all the time, and can type.
    caller.send(data=pb.InputData(data=b"typed"))
    await until(lambda: bytes(agent.taken) == b"typed", "the input arrives")
    await until(lambda: not list(caller.of("status")[-1].observers), "the caller is notified")
    assert [code for code in await world.stand.codes(exec_id) if "observed" in code] == [
        "session_observed", "session_unobserved"
    ]  # fmt: skip
    events = [event for event in await world.stand.events(exec_id) if "observed" in event.event]
    assert [(event.actor, event.reason) for event in events] == [
        (str(BOB), "from 192.0.2.7"), (str(BOB), "from 192.0.2.7: the observer left it")
    ]  # fmt: skip


async def test_a_screen_is_drawn_for_an_observer(world: World, until: Until) -> None:
    _, exec_id = world.open()
    await world.start(exec_id)
    log = OutputLog(world.redis, AGENT, exec_id, log_bytes=10**6, excerpt_bytes=1000)
    await append(log, [(STDOUT, b"one\r\x1b[2Ktwo")])
    observer = observe(world, exec_id, screen=pb.Terminal(rows=5, columns=20))
    await until(lambda: observer.of("screen"), "the screen arrives")
    assert b"two" in observer.of("screen")[0]
    assert b"one" not in observer.of("screen")[0]
    assert not observer.of("stdout")


def messages(chance: random.Random) -> list[dict[str, Any]]:
    """Messages that would change a session if they came from its caller."""
    data = chance.randbytes(chance.randrange(200))
    return [
        {"data": pb.InputData(data=data)}, {"data": pb.InputData(data=data, offset=chance.randrange(1000))},
        {"end": pb.EndOfInput()}, {"resize": pb.Terminal(rows=chance.randrange(70_000), columns=9)},
        {"signal": chance.choice(["INT", "KILL", "", "x" * 1000])}, {"close": pb.SessionClose()},
        {"attach": pb.SessionAttach(id="other", observe=chance.random() < 0.5)}, {"request": pb.ExecRequest()}, {},
    ]  # fmt: skip


async def test_nothing_that_an_observer_sends_reaches_the_session(world: World, until: Until) -> None:
    caller, exec_id = world.open()
    agent = await world.start(exec_id)
    await until(lambda: caller.of("accepted"), "the caller is attached")
    chance = random.Random(3)
    owner = await world.redis.hget(keys.execution(exec_id), "session_owner")
    for number in range(9):
        observer = observe(world, exec_id)
        # What an observer may send counts for nothing either.
        observer.send(written=pb.OutputWritten(bytes=10**9 + number))
        observer.send(**messages(chance)[number])
        assert isinstance(await observer.end(), InvalidRequest)
    await gone(world, exec_id)
    assert await world.redis.hget(keys.execution(exec_id), "session_owner") == owner
    assert not agent.taken
    assert not [frame for frame in agent.frames if not isinstance(frame, Acknowledge)]
    assert Acknowledge(10**9) not in agent.frames
    codes = await world.stand.codes(exec_id)
    assert set(codes) == {
        "admitted",
        "dispatched",
        "session_opened",
        "started",
        "session_observed",
        "session_unobserved",
    }


@pytest.mark.parametrize("seed", range(25))
async def test_no_sequence_of_messages_of_an_observer_reaches_the_session(
    world: World, until: Until, seed: int
) -> None:
    caller, exec_id = world.open()
    agent = await world.start(exec_id)
    await until(lambda: caller.of("accepted"), "the caller is attached")
    chance = random.Random(seed)
    observer = observe(world, exec_id)
    # Also at once, before the observation has begun; what follows a wrong message counts for nothing.
    for _ in range(chance.randrange(1, 12)):
        allowed = {"written": pb.OutputWritten(bytes=chance.randrange(2**40))}
        observer.send(**(allowed if chance.random() < 0.3 else chance.choice(messages(chance))))
        if chance.random() < 0.3:
            await asyncio.sleep(0)
    observer.send(close=pb.SessionClose())
    assert isinstance(await observer.end(), InvalidRequest)
    await gone(world, exec_id)
    caller.send(data=pb.InputData(data=b"typed"))
    await until(lambda: bytes(agent.taken) == b"typed", "the caller's input arrives, and nothing else")
    record = await world.stand.ledger.record(exec_id)
    assert record is not None
    assert (record.state, record.cancel_requested_by) == (ExecState.STARTED, "")
    others = {"session_resized", "session_signalled", "session_closed", "session_attached", "session_detached"}
    assert not others & set(await world.stand.codes(exec_id))


async def test_only_callers_that_policy_names_observe(world: World, until: Until) -> None:
    caller, exec_id = world.open()
    await world.start(exec_id)
    assert isinstance(await observe(world, exec_id, by=user_id(DOMAIN, "eve")).end(), NotFound)
    assert isinstance(await observe(world, "another").end(), NotFound)
    # Who may observe may neither attach nor see the record in other ways.
    attach = world.call(by=BOB)
    attach.send(attach=pb.SessionAttach(id=exec_id))
    assert isinstance(await attach.end(), NotFound)
    # The requester may.
    mine = observe(world, exec_id, by=user_id(DOMAIN, "alice"))
    await until(lambda: mine.of("status"), "it observes")
    await world.finish(exec_id)
    assert await mine.end() is None
    assert mine.of("result")
    assert await caller.end() is None
    assert isinstance(await observe(world, exec_id).end(), FailedPrecondition)


async def test_a_right_that_policy_takes_away_ends_the_observation(world: World, until: Until) -> None:
    _, exec_id = world.open()
    await world.start(exec_id)
    observer = observe(world, exec_id)
    await until(lambda: observer.of("status"), "it observes")
    world.stand.change_policy("user/bob", "user/carol")
    assert isinstance(await observer.end(), PermissionDenied)
    await gone(world, exec_id)
    assert isinstance(await observe(world, exec_id).end(), NotFound)


async def test_the_number_of_observers_is_bounded_and_a_killed_one_is_forgotten(
    world: World, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observation, "MAX_OBSERVERS", 2)
    _, exec_id = world.open()
    await world.start(exec_id)
    entries = ", ".join(f'"dead{number}": ["x", 1]' for number in range(2))
    await world.redis.hset(keys.execution(exec_id), "observers", f"{{{entries}}}")
    assert await observers(world, exec_id) == ()
    watching = [observe(world, exec_id) for _ in range(2)]
    await until(lambda: all(observer.of("status") for observer in watching), "they observe")
    assert isinstance(await observe(world, exec_id).end(), ResourceExhausted)
    # A value that no orchestrator wrote is replaced.
    await world.redis.hset(keys.execution(exec_id), "observers", "no JSON")
    another = observe(world, exec_id)
    await until(lambda: another.of("status") or another.error, "it is answered")
