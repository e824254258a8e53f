"""Calls are counted by RPC and by the status code with which they end."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.message import Message
from redis.exceptions import ConnectionError as RedisConnectionError

from metric_values import value
from tachikoma.config import tracing
from tachikoma.errors import NotFound, Unavailable
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma_orchestrator.api.call_measures import measured


class Called:
    """The context of a call, as far as its metadata goes."""

    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._metadata


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, "OK"),
        (NotFound("no such execution"), "NOT_FOUND"),
        (Unavailable("no Redis"), "UNAVAILABLE"),
        (RedisConnectionError("refused"), "UNAVAILABLE"),
        (OSError("reset"), "UNAVAILABLE"),
        (ValueError("a defect"), "INTERNAL"),
        (asyncio.CancelledError(), "CANCELLED"),
        (GeneratorExit(), "CANCELLED"),
    ],
)
def test_a_call_is_counted_once_with_its_code(error: BaseException | None, code: str) -> None:
    labels = {"rpc": "Test", "code": code}
    calls, times = value("tachikoma_calls_total", **labels), value("tachikoma_call_seconds_count", rpc="Test")

    def call() -> None:
        with measured("/tachikoma.exec.v1.RemoteExecution/Test", Called()):  # type: ignore[arg-type]
            if error is not None:
                raise error

    if error is None:
        call()
    else:
        with pytest.raises(type(error)):
            call()
    assert value("tachikoma_calls_total", **labels) == calls + 1
    assert value("tachikoma_call_seconds_count", rpc="Test") == times + 1


GIVEN, OTHER = f"00-{'a' * 32}-{'b' * 16}-01", f"00-{'c' * 32}-{'d' * 16}-01"


@pytest.mark.parametrize(
    ("metadata", "parent"),
    [
        ((), ""),
        ((("traceparent", GIVEN),), GIVEN),
        ((("traceparent", OTHER), ("user-agent", "x"), ("traceparent", GIVEN)), GIVEN),
        ((("traceparent", GIVEN.upper()),), ""),
        ((("traceparent", b"\xff"),), ""),
        ((("traceparent-bin", GIVEN),), ""),
    ],
)
def test_a_call_belongs_to_the_trace_that_its_caller_names(
    metadata: tuple[tuple[str, str | bytes], ...], parent: str
) -> None:
    with measured("/tachikoma.exec.v1.RemoteExecution/Test", Called(*metadata)):  # type: ignore[arg-type]
        found = tracing.current()
    assert str(found or "") == parent


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([pb.ExecOutput(result=pb.ExecResponse())], "OK"),
        ([pb.ExecOutput(), pb.ExecOutput(result=pb.ExecResponse())], "OK"),
        ([pb.ExecOutput()], "CANCELLED"),
        # Of a batch, each target has a result.
        ([pb.BatchUpdate(result=pb.BatchResult())], "CANCELLED"),
    ],
)
def test_a_caller_that_leaves_after_the_result_has_cancelled_nothing(messages: list[Message], code: str) -> None:
    labels = {"rpc": "Left", "code": code}
    before = value("tachikoma_calls_total", **labels)

    def leave() -> None:
        with measured("/tachikoma.exec.v1.RemoteExecution/Left", Called()) as answer:  # type: ignore[arg-type]
            for message in messages:
                answer.sent(message)
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        leave()
    assert value("tachikoma_calls_total", **labels) == before + 1
