"""A watched batch: resumed when its connection breaks, each target once, cancelled when it is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from authority import Authority
from tachikoma import AsyncClient, BatchRequest, Profile, Unavailable
from tachikoma.exec.v1 import remote_execution_pb2 as pb

REQUEST = BatchRequest(id="b-1", targets=("web-*",), command=("x",))
STATUS = pb.BatchStatus(id="b-1", state=pb.BATCH_STATE_RUNNING, total=2, submit_time=Timestamp(seconds=1))
ENDED = pb.BatchStatus(
    id="b-1", state=pb.BATCH_STATE_DONE, total=2, submit_time=Timestamp(seconds=1), end_time=Timestamp(seconds=2)
)


def ended(agent: str) -> pb.BatchUpdate:
    result = pb.BatchResult(agent_id=agent, exec_id=f"e-{agent}", state=pb.TARGET_STATE_SUCCEEDED)
    return pb.BatchUpdate(result=result)


class Stream:
    """A call that sends messages, and then breaks or ends."""

    def __init__(self, messages: list[pb.BatchUpdate], *, breaks: bool) -> None:
        self._messages = messages
        self._breaks = breaks
        self.cancelled = False

    async def __aiter__(self) -> AsyncIterator[pb.BatchUpdate]:
        for message in self._messages:
            yield message
        if self._breaks:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())

    def cancel(self) -> None:
        self.cancelled = True


class Server:
    """A connection and a stub: streams of `WatchBatch` in their order, and calls that are remembered."""

    def __init__(self, *streams: Stream) -> None:
        self._streams = list(streams)
        self.calls: list[str] = []
        #: The call that is never answered.
        self.hanging = ""

    async def ready(self, subject: str = "") -> bool:
        return True

    def stub(self) -> Server:
        return self

    def error_of(self, error: object) -> Unavailable:
        return Unavailable("broken")

    async def close(self) -> None:
        pass

    def WatchBatch(self, message: pb.WatchBatchRequest) -> Stream:  # noqa: N802
        self.calls.append(f"WatchBatch {message.id} {message.output}")
        return self._streams.pop(0)

    def __getattr__(self, rpc: str) -> Any:
        async def call(message: Any) -> pb.BatchStatus:
            self.calls.append(rpc)
            if rpc == self.hanging:
                await asyncio.Event().wait()
            return STATUS

        return call


@pytest.fixture
async def client(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncClient]:
    monkeypatch.setattr("tachikoma.client.retry.BACKOFF_SECONDS", (1e-6, 1e-6))
    authority.write(tmp_path, "spiffe://tachikoma.local/user/alice")
    client = AsyncClient(Profile(address="127.0.0.1:1", server_name="x", identity=tmp_path))
    yield client
    await client.close()


async def serve(client: AsyncClient, *streams: Stream) -> Server:
    server = Server(*streams)
    await client._connection.close()
    client._connection = server  # type: ignore[assignment]
    return server


async def test_a_broken_watch_is_resumed_and_yields_each_target_once(client: AsyncClient) -> None:
    first = Stream([pb.BatchUpdate(status=STATUS), ended("web-1")], breaks=True)
    second = Stream(
        [pb.BatchUpdate(status=STATUS), ended("web-1"), ended("web-2"), pb.BatchUpdate(status=ENDED)], breaks=False
    )
    server = await serve(client, first, second)
    found = [update async for update in client.run(REQUEST)]
    assert [update.result.agent_id for update in found if update.result] == ["web-1", "web-2"]
    assert found[-1].status is not None
    assert found[-1].status.ended
    assert server.calls == ["SubmitBatch", "WatchBatch b-1 True", "WatchBatch b-1 True"]
    assert first.cancelled


@pytest.mark.parametrize(("detach", "calls"), [(False, ["CancelBatch"]), (True, [])])
async def test_leaving_cancels_the_batch_unless_it_is_detached(
    client: AsyncClient, detach: bool, calls: list[str]
) -> None:
    server = await serve(client, Stream([pb.BatchUpdate(status=STATUS), ended("web-1")], breaks=False))
    updates = client.run(REQUEST, output=False, detach=detach)
    assert (await anext(updates)).status is not None
    await updates.aclose()  # type: ignore[attr-defined]
    assert server.calls == ["SubmitBatch", "WatchBatch b-1 False", *calls]


async def test_a_caller_that_leaves_while_its_batch_is_submitted_cancels_it(client: AsyncClient) -> None:
    server = await serve(client)
    server.hanging = "SubmitBatch"

    async def run() -> None:
        async for _ in client.run(REQUEST):
            pass

    running = asyncio.create_task(run())
    while not server.calls:  # noqa: ASYNC110 (nothing announces it)
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert server.calls == ["SubmitBatch", "CancelBatch"]
