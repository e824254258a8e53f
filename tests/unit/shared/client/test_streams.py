"""An output stream over several calls: nothing twice, nothing lost, nothing altered."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.client import wire
from tachikoma.client.connection import Connection
from tachikoma.client.model_stream import ModelStream
from tachikoma.client.retry import Attempts
from tachikoma.client.streams import OutputStream
from tachikoma.errors import OutputAltered, PermissionDenied, ServerError, TachikomaError, Unauthenticated, Unavailable
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.vocabulary.messages import OutputKind
from tachikoma.vocabulary.results import ExecOutput, ExecResponse, ExecStatus, OutputSummary
from tachikoma.vocabulary.states import ExecState

NOW = datetime(2026, 1, 31, tzinfo=UTC)
BROKEN = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())

DENIED = grpc.aio.AioRpcError(grpc.StatusCode.PERMISSION_DENIED, grpc.aio.Metadata(), grpc.aio.Metadata())


def status(state: ExecState = ExecState.STARTED) -> ExecOutput:
    value = ExecStatus(
        id="job-7", agent_id="web-1", state=state, command=("x",), requested_by="alice", request_time=NOW
    )
    return ExecOutput(id="job-7", kind=OutputKind.STATUS, status=value)


def chunk(seq: int, data: bytes) -> ExecOutput:
    return ExecOutput(id="job-7", kind=OutputKind.STDOUT, seq=seq, time=NOW, data=data)


def result(written: bytes, seq: int = 0) -> ExecOutput:
    """The end of an execution whose agent wrote and signed these bytes."""
    summary = OutputSummary(total_bytes=len(written), sha256=hashlib.sha256(written).hexdigest())
    response = ExecResponse(
        id="job-7", agent_id="web-1", state=ExecState.SUCCEEDED, exit_code=0, stdout_summary=summary
    )
    return ExecOutput(id="job-7", kind=OutputKind.RESULT, seq=seq, result=response)


class Call:
    """One call: messages, and then its end or an error."""

    def __init__(self, messages: Sequence[ExecOutput | Exception]) -> None:
        self._messages = messages
        self.cancelled = False

    async def __aiter__(self) -> AsyncIterator[pb.ExecOutput]:
        for message in self._messages:
            if isinstance(message, Exception):
                raise message
            yield wire.output_to_pb(message)

    def cancel(self) -> None:
        self.cancelled = True


class Server:
    """A connection whose calls are scripted."""

    def __init__(self, *calls: Sequence[ExecOutput | Exception]) -> None:
        self.calls = [Call(messages) for messages in calls]
        self.made = 0
        #: The messages of calls of `Attach`.
        self.attached: list[pb.AttachRequest] = []
        self.translated: TachikomaError = Unavailable("broken")

    async def ready(self, subject: str = "") -> bool:
        if self.made == len(self.calls):
            # The identity ended while the caller waited.
            raise Unauthenticated("your identity ended")
        return True

    def stub(self) -> Server:
        return self

    def error_of(self, error: grpc.aio.AioRpcError) -> TachikomaError:
        return self.translated

    def next_call(self) -> Call:
        self.made += 1
        return self.calls[self.made - 1]

    def Attach(self, message: pb.AttachRequest) -> Call:  # noqa: N802
        self.attached.append(message)
        return self.next_call()

    def stream(self, kind: type[OutputStream[Any]] = ModelStream, **options: Any) -> OutputStream[Any]:
        attempts = Attempts(timedelta(0), timedelta(seconds=60), "job-7")
        return kind(cast("Connection", self), attempts, lambda stub: cast("Any", self).next_call(), **options)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tachikoma.client.retry.BACKOFF_SECONDS", (1e-6, 1e-6))


async def read(stream: OutputStream[Any]) -> list[ExecOutput]:
    return [output async for output in stream.read()]


async def test_one_call_gives_its_messages_in_their_order() -> None:
    sent = [status(), chunk(1, b"a"), chunk(2, b"b"), result(b"ab", 2)]
    server = Server(sent)
    assert await read(server.stream()) == sent
    assert server.calls[0].cancelled
    assert server.attached == []


async def test_a_broken_stream_resumes_after_the_last_chunk_and_repeats_no_status() -> None:
    server = Server(
        [status(), chunk(1, b"a"), BROKEN],
        [status(), chunk(2, b"b"), BROKEN],
        [status(), result(b"ab", 2)],
    )
    assert await read(server.stream()) == [status(), chunk(1, b"a"), chunk(2, b"b"), result(b"ab", 2)]
    assert [(message.id, message.after_seq, message.no_follow) for message in server.attached] == [
        ("job-7", 1, False),
        ("job-7", 2, False),
    ]
    assert all(call.cancelled for call in server.calls)


async def test_a_server_that_answers_and_then_always_fails_is_not_asked_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments = count(step=0.01)
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    server = Server(*[[status(), BROKEN]] * 10_000)
    with pytest.raises(Unavailable, match="broken"):
        await read(server.stream())
    assert 60 / 0.1 < server.made < 10_000


async def test_an_error_after_the_acceptance_names_the_execution() -> None:
    with pytest.raises(Unauthenticated) as expired:
        await read(Server([status(), BROKEN]).stream())
    assert expired.value.metadata == {"id": "job-7"}
    revoked = Server([status(), DENIED])
    revoked.translated = PermissionDenied("alice is revoked")
    with pytest.raises(PermissionDenied) as denied:
        await read(revoked.stream())
    assert denied.value.metadata == {"id": "job-7"}
    strange = Server([status()])
    strange.calls[0]._messages = [status(), ServerError("cannot be read")]
    with pytest.raises(ServerError) as unreadable:
        await read(strange.stream())
    assert unreadable.value.metadata == {"id": "job-7"}


async def test_an_error_before_the_acceptance_names_none() -> None:
    refused = Server([DENIED])
    refused.translated = PermissionDenied("no policy grants it")
    with pytest.raises(PermissionDenied) as denied:
        await read(refused.stream())
    assert denied.value.metadata == {}
    with pytest.raises(Unauthenticated) as expired:
        await read(Server().stream())
    assert expired.value.metadata == {}


async def test_a_stream_that_broke_before_it_was_accepted_makes_the_same_call_again() -> None:
    server = Server([BROKEN], [status(), result(b"")])
    assert await read(server.stream()) == [status(), result(b"")]
    assert server.attached == []


async def test_a_stream_that_is_not_followed_resumes_in_the_same_way() -> None:
    server = Server([status(), chunk(4, b"a"), BROKEN], [status(), chunk(5, b"b")])
    found = await read(server.stream(after_seq=3, follow=False))
    assert [output.seq for output in found] == [0, 4, 5]
    assert [(message.after_seq, message.no_follow) for message in server.attached] == [(4, True)]


async def test_a_refusal_is_raised_and_nothing_is_repeated() -> None:
    server = Server([BROKEN])
    server.translated = PermissionDenied("no policy grants it")
    stream = server.stream()
    stream._attempts.connected(False)
    refusal = grpc.aio.AioRpcError(grpc.StatusCode.PERMISSION_DENIED, grpc.aio.Metadata(), grpc.aio.Metadata())
    server.calls = [Call([refusal])]
    with pytest.raises(PermissionDenied):
        await read(stream)
    assert server.made == 1
    assert server.calls[0].cancelled


async def test_an_approval_shows_as_a_second_status() -> None:
    waiting, approved = status(ExecState.PENDING_APPROVAL), status(ExecState.QUEUED)
    server = Server([waiting, BROKEN], [waiting, approved, BROKEN], [approved, result(b"")])
    assert await read(server.stream()) == [waiting, approved, result(b"")]


async def test_bytes_that_did_not_come_are_a_gap_before_the_result() -> None:
    found = await read(Server([status(), chunk(2, b"b"), result(b"ab", 2)]).stream())
    assert [output.kind for output in found] == ["status", "stdout", "gap", "result"]
    assert (found[2].missing_bytes, found[2].seq) == (1, 2)


async def test_output_that_its_agent_did_not_sign_is_an_error() -> None:
    with pytest.raises(OutputAltered, match="the stdout of job-7 that arrived is not the one that its agent signed"):
        await read(Server([status(), chunk(1, b"x"), result(b"a", 1)]).stream())


async def test_a_stream_from_the_middle_cannot_be_checked() -> None:
    found = await read(Server([status(), chunk(3, b"x"), result(b"abc", 3)]).stream(after_seq=2))
    assert [output.kind for output in found] == ["status", "stdout", "result"]


@given(st.lists(st.binary(min_size=1, max_size=3), max_size=8), st.data())
async def test_wherever_it_breaks_each_byte_comes_once(written: list[bytes], data: st.DataObject) -> None:
    chunks = [chunk(number, piece) for number, piece in enumerate(written, 1)]
    end = result(b"".join(written), len(chunks))
    calls: list[list[ExecOutput | Exception]] = []
    position = 0
    while position < len(chunks) and data.draw(st.booleans()):
        after = data.draw(st.integers(position, len(chunks)))
        calls.append([status(), *chunks[position:after], BROKEN])
        position = after
    calls.append([status(), *chunks[position:], end])
    assert await read(Server(*calls).stream()) == [status(), *chunks, end]
