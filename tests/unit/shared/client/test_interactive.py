"""A session over several calls: input continues where the command has taken it, whatever breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from patience import PATIENCE_SECONDS
from tachikoma.client.connection import Connection
from tachikoma.client.interactive import REPORT_BYTES, AsyncSession
from tachikoma.client.retry import Attempts
from tachikoma.errors import FailedPrecondition, TachikomaError, Unavailable
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.sessions.frames import INPUT_CREDIT_BYTES, SignalName
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.requests import WindowSize

BROKEN = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
REQUEST = pb.ExecInput(request=pb.ExecRequest(id="job-7", agent_id="web-1", command=["x"], interactive=True))
STATUS = pb.ExecOutput(id="job-7", status=pb.ExecStatus(id="job-7", agent_id="web-1", state=pb.EXEC_STATE_STARTED))
RESULT = pb.ExecOutput(id="job-7", result=pb.ExecResponse(id="job-7", agent_id="web-1", state=pb.EXEC_STATE_SUCCEEDED))


def accepted(offset: int, *, ended: bool = False) -> pb.ExecOutput:
    return pb.ExecOutput(id="job-7", accepted=pb.InputAccepted(offset=offset, ended=ended))


class Call:
    """One call, whose messages a test sends."""

    def __init__(self) -> None:
        self.sent: list[pb.ExecInput] = []
        self.messages: asyncio.Queue[pb.ExecOutput | Exception | None] = asyncio.Queue()
        self._done: list[Callable[[object], None]] = []

    async def write(self, message: pb.ExecInput) -> None:
        self.sent.append(message)

    def add_done_callback(self, callback: Callable[[object], None]) -> None:
        self._done.append(callback)

    async def __aiter__(self) -> AsyncIterator[pb.ExecOutput]:
        while (message := await self.messages.get()) is not None:
            if isinstance(message, Exception):
                raise message
            yield message

    def cancel(self) -> None:
        for callback in self._done:
            callback(self)

    def kinds(self) -> list[str]:
        return [str(message.WhichOneof("event")) for message in self.sent]

    def data(self) -> bytes:
        return b"".join(message.data.data for message in self.sent if message.HasField("data"))


class Server:
    """A connection to a server that a test plays."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def ready(self, subject: str = "") -> bool:
        return True

    def stub(self) -> Server:
        return self

    def error_of(self, error: grpc.aio.AioRpcError) -> TachikomaError:
        return Unavailable("broken")

    def ExecuteInteractive(self) -> Call:  # noqa: N802 (the RPC's name)
        self.calls.append(Call())
        return self.calls[-1]


class World:
    """A session that is iterated, and what it yielded."""

    def __init__(self, first: pb.ExecInput = REQUEST) -> None:
        self.server = Server()
        self.left: list[str] = []

        async def cancel(exec_id: str) -> None:
            self.left.append(exec_id)

        attempts = Attempts(timedelta(0), timedelta(seconds=60))
        self.session = AsyncSession(cast(Connection, self.server), attempts, first, cancel=cancel)
        self.seen: list[Any] = []
        self.task = asyncio.create_task(self._iterate())

    async def _iterate(self) -> None:
        async for message in self.session:
            self.seen.append(message)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.001)

    async def call(self, number: int) -> Call:
        """The call of a number, once it is made."""
        await self.until(lambda: len(self.server.calls) > number and self.server.calls[number].sent)
        return self.server.calls[number]


async def test_everything_is_sent_in_one_call_while_nothing_breaks() -> None:
    world = World()
    call = await world.call(0)
    assert call.sent[0] == REQUEST
    call.messages.put_nowait(STATUS)
    await world.session.write(b"ls\n")
    await world.session.resize(WindowSize(50, 132))
    await world.session.signal(SignalName.INT)
    await world.session.end()
    await world.until(lambda: len(call.sent) == 5)
    assert sorted(call.kinds()) == ["data", "end", "request", "resize", "signal"]
    assert next(message.data for message in call.sent if message.HasField("data")).offset == 0
    call.messages.put_nowait(accepted(3, ended=True))
    call.messages.put_nowait(RESULT)
    call.messages.put_nowait(None)
    await asyncio.wait_for(world.task, PATIENCE_SECONDS)
    assert [message.kind for message in world.seen] == [OutputKind.STATUS, OutputKind.RESULT]
    assert world.session.accepted.offset == 3
    with pytest.raises(FailedPrecondition, match="input has ended"):
        await world.session.write(b"x")


async def test_a_broken_call_continues_at_the_last_accepted_byte_and_chunk() -> None:
    world = World()
    call = await world.call(0)
    call.messages.put_nowait(STATUS)
    for part in (b"abc", b"def", b"ghi"):
        await world.session.write(part)
    await world.session.resize(WindowSize(50, 132))
    await world.until(lambda: call.data() == b"abcdefghi")
    call.messages.put_nowait(accepted(6))
    call.messages.put_nowait(pb.ExecOutput(id="job-7", seq=1, stdout=b"out"))
    call.messages.put_nowait(BROKEN)
    again = await world.call(1)
    assert again.sent[0] == pb.ExecInput(attach=pb.SessionAttach(id="job-7", after_seq=1))
    await world.until(lambda: again.data() == b"ghi")
    assert [message.data.offset for message in again.sent if message.HasField("data")] == [6]
    assert "resize" in again.kinds()
    again.messages.put_nowait(STATUS)
    again.messages.put_nowait(RESULT)
    again.messages.put_nowait(None)
    await asyncio.wait_for(world.task, PATIENCE_SECONDS)
    # The status that the second call repeats is no change.
    assert [message.kind for message in world.seen][:2] == [OutputKind.STATUS, OutputKind.STDOUT]
    assert sum(message.kind is OutputKind.STATUS for message in world.seen) == 1


async def test_the_end_of_input_comes_after_the_last_byte_however_slow_the_call_is() -> None:
    world = World()
    call = await world.call(0)
    slow = asyncio.Event()
    written = call.write

    async def write(message: pb.ExecInput) -> None:
        await written(message)
        await slow.wait()

    call.write = write  # type: ignore[method-assign]
    await world.session.write(b"one")
    await world.until(lambda: call.data() == b"one")
    # Written and ended while the first part is still on its way.
    await world.session.write(b"two")
    await world.session.end()
    slow.set()
    await world.until(lambda: "end" in call.kinds())
    assert call.data() == b"onetwo"
    assert call.kinds()[-1] == "end"
    world.task.cancel()


async def test_input_waits_while_the_command_takes_none() -> None:
    world = World()
    call = await world.call(0)
    writing = asyncio.create_task(world.session.write(bytes(2 * INPUT_CREDIT_BYTES)))
    await world.until(lambda: len(call.data()) > INPUT_CREDIT_BYTES)
    for _ in range(50):
        await asyncio.sleep(0)
    assert not writing.done()
    sent = len(call.data())
    assert sent <= INPUT_CREDIT_BYTES + 256 * 1024
    call.messages.put_nowait(STATUS)
    call.messages.put_nowait(accepted(sent))
    await asyncio.wait_for(writing, PATIENCE_SECONDS)
    world.task.cancel()


@pytest.mark.parametrize("last", [None, ValueError("the call failed")])
@pytest.mark.parametrize("attached", [False, True])
async def test_a_write_that_waits_ends_with_the_session(last: Exception | None, attached: bool) -> None:
    world = World(pb.ExecInput(attach=pb.SessionAttach(id="job-7")) if attached else REQUEST)
    call = await world.call(0)
    call.messages.put_nowait(STATUS)
    # A new session has room for some input; the position of an older one is not known yet.
    writing = asyncio.create_task(world.session.write(bytes(2 * INPUT_CREDIT_BYTES)))
    await world.until(lambda: attached or len(call.data()) > INPUT_CREDIT_BYTES)
    call.messages.put_nowait(last)
    with pytest.raises(FailedPrecondition, match="the session has ended"):
        await asyncio.wait_for(writing, 60)
    outcome = await asyncio.gather(world.task, return_exceptions=True)
    assert outcome == [last]


async def test_output_is_reported_as_written_when_the_reader_goes_on() -> None:
    world = World()
    call = await world.call(0)
    call.messages.put_nowait(STATUS)
    call.messages.put_nowait(pb.ExecOutput(id="job-7", seq=1, stdout=bytes(REPORT_BYTES)))
    await world.until(lambda: "written" in call.kinds())
    assert call.sent[-1].written.bytes == REPORT_BYTES
    world.task.cancel()


async def test_input_of_an_older_session_waits_for_its_position() -> None:
    world = World(pb.ExecInput(attach=pb.SessionAttach(id="job-7")))
    call = await world.call(0)
    writing = asyncio.create_task(world.session.write(b"more"))
    await asyncio.sleep(0)
    assert not writing.done()
    call.messages.put_nowait(accepted(40))
    await asyncio.wait_for(writing, PATIENCE_SECONDS)
    await world.until(lambda: call.data() == b"more")
    assert call.sent[-1].data.offset == 40
    world.task.cancel()


@pytest.mark.parametrize("detached", [True, False])
async def test_leaving_cancels_unless_the_session_is_detached(detached: bool) -> None:
    world = World()
    call = await world.call(0)
    async with world.session:
        if detached:
            await world.session.detach()
            await world.until(lambda: "detach" in call.kinds())
            call.messages.put_nowait(None)
            await asyncio.wait_for(world.task, PATIENCE_SECONDS)
    assert world.left == ([] if detached else ["job-7"])
    world.task.cancel()


async def test_close_is_sent_once_for_each_call() -> None:
    world = World()
    call = await world.call(0)
    await world.session.close()
    await world.until(lambda: call.kinds().count("close") == 1)
    call.messages.put_nowait(STATUS)
    call.messages.put_nowait(RESULT)
    call.messages.put_nowait(None)
    await asyncio.wait_for(world.task, PATIENCE_SECONDS)
    assert call.kinds().count("close") == 1
