"""`ExecuteInteractive` over a real ledger and Redis, with an agent that speaks the real protocol."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from admissions import AGENT, DOMAIN
from chunks import append
from patience import PATIENCE_SECONDS
from session_world import World, open_world
from tachikoma.client import wire
from tachikoma.errors import FailedPrecondition, InvalidRequest, NotFound, PermissionDenied
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.identity.spiffe import user_id
from tachikoma.redis.commands import Redis
from tachikoma.sessions.frames import Acknowledge, Close, Detach, Resize, Signal, SignalName
from tachikoma.streams.frames import STDOUT
from tachikoma.vocabulary.requests import ExecRequest, WindowSize
from tachikoma_orchestrator.sessions.attachment import Attachment
from tachikoma_worker.output.output_log import OutputLog

Until = Callable[[Callable[[], object], str], Awaitable[None]]


@pytest.fixture
async def world(redis: Redis, subscriptions: Redis, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(redis, subscriptions, tmp_path) as made:
        yield made


async def test_a_session_from_request_to_result(world: World, until: Until) -> None:
    caller, exec_id = world.open()
    agent = await world.start(exec_id)
    caller.send(data=pb.InputData(data=b"ls\n"))
    caller.send(resize=pb.Terminal(rows=50, columns=132))
    caller.send(signal="INT")
    log = OutputLog(world.redis, AGENT, exec_id, log_bytes=10**6, excerpt_bytes=1000)
    await append(log, [(STDOUT, b"file\r\n")])
    await until(lambda: bytes(agent.taken) == b"ls\n" and caller.of("stdout"), "input and output arrive")
    await until(lambda: Acknowledge(6) in agent.frames, "what was sent counts as written")
    await until(lambda: Signal(SignalName.INT) in agent.frames, "the signal arrives")
    assert Resize(WindowSize(50, 132)) in agent.frames
    await until(lambda: caller.of("accepted") and caller.of("accepted")[-1].offset == 3, "progress arrives")
    await world.finish(exec_id)
    assert await caller.end() is None
    assert [wire.status_from_pb(status).state for status in caller.of("status")] == ["QUEUED", "STARTED"]
    assert caller.of("result")[0].error == "the test ends it"
    assert await world.stand.codes(exec_id) == [
        *("admitted", "dispatched", "session_opened", "started", "session_resized", "session_signalled", "lost")
    ]


@pytest.mark.parametrize(
    "command", [("true", "--auth=ldap", "shell"), ("true", "token=" + "x" * 400), ("true", *["x"] * 100, "end")]
)
async def test_policy_decides_on_the_command_as_it_was_requested(
    world: World, until: Until, command: tuple[str, ...]
) -> None:
    """The ledger has it masked and shortened, of which policy may decide otherwise."""
    world.stand.change_policy('"/usr/bin/true ..."', json.dumps(shlex.join(("/usr/bin/true", *command[1:]))))
    request = ExecRequest(agent_id=AGENT, command=command, interactive=True, tty=True)
    caller = world.call()
    caller.send(request=wire.request_to_pb(request))
    agent = await world.start(request.id)
    caller.send(data=pb.InputData(data=b"x"))
    await until(lambda: bytes(agent.taken) == b"x", "the input arrives")
    await world.finish(request.id)
    assert await caller.end() is None


async def test_a_caller_that_detaches_can_attach_again(world: World, until: Until) -> None:
    caller, exec_id = world.open()
    agent = await world.start(exec_id)
    caller.send(data=pb.InputData(data=b"one "))
    await until(lambda: bytes(agent.taken) == b"one ", "input arrives")
    caller.send(detach=pb.SessionDetach())
    assert await caller.end() is None
    assert not caller.of("result")
    await until(lambda: Detach() in agent.frames, "the agent knows")
    again = world.call()
    again.send(attach=pb.SessionAttach(id=exec_id))
    again.send(data=pb.InputData(data=b"two"))
    await until(lambda: bytes(agent.taken) == b"one two", "input continues")
    third = world.call()
    third.send(attach=pb.SessionAttach(id=exec_id))
    third.send(data=pb.InputData(data=b" three"))
    await until(lambda: bytes(agent.taken) == b"one two three", "the place is taken over")
    # The place is lost for good once keys are wanted again.
    await agent.restart()
    assert isinstance(await again.end(), FailedPrecondition)
    assert "another caller has attached" in str(again.error)
    codes = await world.stand.codes(exec_id)
    assert codes.count("session_attached") == 2
    assert codes.count("session_detached") == 2


@pytest.mark.parametrize("again", [False, True], ids=["opened", "attached again"])
async def test_a_command_that_ends_before_its_caller_is_recorded_has_its_output_and_result(
    world: World, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    begin = Attachment.begin

    async def late(attachment: Attachment, **values: Any) -> None:
        if not again:
            await world.stand.ledger.started(AGENT, attachment._exec_id, 1)
        log = OutputLog(world.redis, AGENT, attachment._exec_id, log_bytes=10**6, excerpt_bytes=1000)
        await append(log, [(STDOUT, b"short\r\n")])
        await world.finish(attachment._exec_id)
        await begin(attachment, **values)

    if not again:
        monkeypatch.setattr(Attachment, "begin", late)
    caller, exec_id = world.open()
    if again:
        agent = await world.start(exec_id)
        caller.send(detach=pb.SessionDetach())
        assert await caller.end() is None
        assert agent
        monkeypatch.setattr(Attachment, "begin", late)
        caller = world.call()
        caller.send(attach=pb.SessionAttach(id=exec_id))
    assert await caller.end() is None
    assert b"".join(caller.of("stdout")) == b"short\r\n"
    assert caller.of("result")[0].error == "the test ends it"


async def test_a_broken_connection_detaches(world: World, until: Until) -> None:
    caller, exec_id = world.open()
    agent = await world.start(exec_id)
    await until(lambda: agent.frames, "it is attached")
    caller.context.done(None)
    await until(lambda: Detach() in agent.frames, "the agent knows")
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await world.stand.codes(exec_id))[-1] != "session_detached":  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_right_that_policy_takes_away_ends_the_attachment(world: World, until: Until) -> None:
    caller, exec_id = world.open()
    await world.start(exec_id)
    await until(lambda: caller.of("accepted"), "it is attached")
    world.stand.change_policy("allowTty: true", "allowTty: false")
    error = await caller.end()
    assert isinstance(error, PermissionDenied)
    assert "not allowed any more: policy free does not allow terminals" in str(error)
    again = world.call()
    again.send(attach=pb.SessionAttach(id=exec_id))
    assert isinstance(await again.end(), PermissionDenied)


async def test_nobody_else_attaches(world: World, until: Until) -> None:
    caller, exec_id = world.open()
    await until(lambda: caller.of("status"), "it is accepted")
    other = world.call(by=user_id(DOMAIN, "other"))
    other.send(attach=pb.SessionAttach(id=exec_id))
    assert isinstance(await other.end(), NotFound)


async def test_closing_ends_the_command_or_cancels_what_has_not_started(world: World, until: Until) -> None:
    caller, exec_id = world.open()
    await until(lambda: caller.of("status"), "it is accepted")
    caller.send(close=pb.SessionClose())
    assert await caller.end() is None
    assert caller.of("result")[0].cancelled
    caller, exec_id = world.open()
    agent = await world.start(exec_id)
    await until(lambda: caller.of("accepted"), "it is attached")
    caller.send(close=pb.SessionClose())
    await until(lambda: Close() in agent.frames, "the agent gets it")
    assert "session_closed" in await world.stand.codes(exec_id)


@pytest.mark.parametrize(
    ("event", "why"),
    [
        ({"signal": "KILL"}, "is not one of the signals INT, TERM"),
        ({"resize": pb.Terminal(rows=70_000)}, "at most 65535 rows"),
        ({"data": pb.InputData(data=bytes(1024 * 1024 + 1))}, "at most 1048576 bytes"),
        ({"attach": pb.SessionAttach(id="x")}, "are for the first message"),
        ({}, "are for the first message"),
    ],
)
async def test_a_wrong_message_ends_the_call(world: World, event: dict[str, Any], why: str) -> None:
    caller, _ = world.open()
    caller.send(**event)
    error = await caller.end()
    assert isinstance(error, InvalidRequest)
    assert why in str(error)


async def test_the_first_message_opens_or_attaches(world: World) -> None:
    caller = world.call()
    caller.send(data=pb.InputData(data=b"x"))
    assert isinstance(await caller.end(), InvalidRequest)
    ordinary = await world.stand.admit("true")
    caller = world.call()
    caller.send(attach=pb.SessionAttach(id=ordinary))
    assert isinstance(await caller.end(), FailedPrecondition)
