"""A caller that leaves cancels its execution; a connection that breaks does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from authority import Authority
from tachikoma import AsyncClient, Client, ExecOutput, ExecRequest, NotFound, OutputKind, Profile, Unavailable
from tachikoma.client import retry
from tachikoma.exec.v1 import remote_execution_pb2 as pb

REQUEST = ExecRequest(id="job-7", agent_id="web-1", command=("x",))
STATUS = pb.ExecStatus(id="job-7", agent_id="web-1", state=pb.EXEC_STATE_STARTED)
MESSAGES = {
    "status": pb.ExecOutput(id="job-7", status=STATUS),
    "result": pb.ExecOutput(
        id="job-7",         result=pb.ExecResponse(id="job-7", agent_id="web-1", state=pb.EXEC_STATE_REJECTED),
    ),
}  # fmt: skip


def failure(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())


class Call:
    """A stream of messages, which then fails or stays open."""

    def __init__(self, messages: list[str], error: Exception | None) -> None:
        self._messages = messages
        self._error = error

    async def __aiter__(self) -> AsyncIterator[pb.ExecOutput]:
        for name in self._messages:
            yield MESSAGES[name]
        if self._error is not None:
            raise self._error
        if "result" not in self._messages:
            await asyncio.Event().wait()

    def cancel(self) -> None:
        pass


class Server:
    """A connection and a stub that record which executions are cancelled."""

    def __init__(self, messages: list[str], error: Exception | None = None) -> None:
        self._call = Call(messages, error)
        self.cancelled: list[str] = []
        self.executing = asyncio.Event()
        #: Errors of the next calls to cancel.
        self.failures: list[Exception] = []
        self.closed = False

    async def ready(self, subject: str = "") -> bool:
        return True

    def stub(self) -> Server:
        return self

    def check_usable(self) -> None:
        pass

    def error_of(self, error: grpc.aio.AioRpcError) -> Exception:
        return NotFound("unknown") if error.code() is grpc.StatusCode.NOT_FOUND else Unavailable("broken")

    async def close(self) -> None:
        self.closed = True

    def ExecuteStream(self, _: Any) -> Call:  # noqa: N802 (the RPC's name)
        return self._call

    async def Execute(self, _: Any) -> None:  # noqa: N802 (the RPC's name)
        self.executing.set()
        await asyncio.Event().wait()

    async def Cancel(self, message: pb.CancelRequest) -> pb.CancelResponse:  # noqa: N802 (the RPC's name)
        assert not self.closed
        self.cancelled.append(message.id)
        if self.failures:
            raise self.failures.pop(0)
        return pb.CancelResponse(outcome=pb.CANCEL_OUTCOME_REQUESTED, status=STATUS)


@pytest.fixture
async def client(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncClient]:
    monkeypatch.setattr(retry, "ARRIVAL_SECONDS", 0.001)
    authority.write(tmp_path, "spiffe://tachikoma.local/user/alice")
    client = AsyncClient(Profile(address="127.0.0.1:1", server_name="x", identity=tmp_path), reconnect=timedelta(0))
    yield client
    await client.close()


async def serve(client: AsyncClient, *messages: str, error: Exception | None = None) -> Server:
    server = Server(list(messages), error)
    await client._connection.close()
    client._connection = cast("Any", server)
    return server


async def first(stream: AsyncIterator[ExecOutput]) -> ExecOutput:
    return await anext(stream)


async def test_closing_a_stream_cancels(client: AsyncClient) -> None:
    server = await serve(client, "status")
    stream = cast("Any", client.execute_stream(REQUEST))
    assert (await first(stream)).kind is OutputKind.STATUS
    await stream.aclose()
    assert server.cancelled == ["job-7"]


async def test_an_error_of_the_caller_cancels(client: AsyncClient) -> None:
    server = await serve(client, "status")
    with suppress(ZeroDivisionError):
        async with aclosing(cast("Any", client.execute_stream(REQUEST))) as stream:
            async for _ in stream:
                raise ZeroDivisionError
    assert server.cancelled == ["job-7"]


@pytest.mark.parametrize("messages", [[], ["status"]])
async def test_cancelling_the_task_that_reads_cancels(client: AsyncClient, messages: list[str]) -> None:
    server = await serve(client, *messages)

    async def read() -> None:
        async for _ in client.execute_stream(REQUEST):
            pass

    task = asyncio.create_task(read())
    for _ in range(10):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.cancelled == ["job-7"]


async def test_closing_the_client_cancels_what_its_streams_run(client: AsyncClient) -> None:
    server = await serve(client, "status")
    stream = client.execute_stream(REQUEST)
    await first(stream)
    await client.close()
    assert (server.cancelled, server.closed) == (["job-7"], True)
    # The stream has nothing more to cancel when it is closed itself.
    await cast("Any", stream).aclose()
    assert server.cancelled == ["job-7"]


async def test_cancelling_execute_cancels(client: AsyncClient) -> None:
    server = await serve(client)
    task = asyncio.create_task(client.execute(REQUEST))
    await server.executing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.cancelled == ["job-7"]


async def test_a_detached_stream_cancels_nothing(client: AsyncClient) -> None:
    server = await serve(client, "status")
    stream = client.execute_stream(REQUEST, detach=True)
    await first(stream)
    await cast("Any", stream).aclose()
    await client.close()
    assert server.cancelled == []


async def test_an_execution_that_has_ended_is_not_cancelled(client: AsyncClient) -> None:
    server = await serve(client, "status", "result")
    stream = client.execute_stream(REQUEST)
    async for output in stream:
        if output.kind is OutputKind.RESULT:
            break
    await cast("Any", stream).aclose()
    await client.close()
    assert server.cancelled == []


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL])
async def test_a_connection_that_breaks_cancels_nothing(client: AsyncClient, code: grpc.StatusCode) -> None:
    server = await serve(client, "status", error=failure(code))
    with pytest.raises(Unavailable):
        async for _ in client.execute_stream(REQUEST):
            pass
    await client.close()
    assert server.cancelled == []


async def test_a_request_that_is_still_on_its_way_is_cancelled_when_it_has_arrived(client: AsyncClient) -> None:
    server = await serve(client, "status")
    server.failures = [failure(grpc.StatusCode.NOT_FOUND)]
    stream = client.execute_stream(REQUEST)
    await first(stream)
    await cast("Any", stream).aclose()
    assert server.cancelled == ["job-7", "job-7"]


async def test_a_cancel_that_fails_is_logged_and_hides_no_error(
    client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    server = await serve(client, "status")
    server.failures = [failure(grpc.StatusCode.UNAVAILABLE)]
    stream = client.execute_stream(REQUEST)
    await first(stream)
    with caplog.at_level(logging.WARNING):
        await cast("Any", stream).aclose()
    assert server.cancelled == ["job-7"]
    assert "leaving.not_cancelled" in caplog.text


def test_leaving_an_iterator_early_cancels(authority: Authority, tmp_path: Path) -> None:
    authority.write(tmp_path, "spiffe://tachikoma.local/user/alice")
    with Client(Profile(address="127.0.0.1:1", server_name="x", identity=tmp_path)) as client:
        server = client._run(serve(client._async, "status"))
        for output in client.execute_stream(REQUEST):
            assert output.id == "job-7"
            break
        assert server.cancelled == ["job-7"]
