from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import grpc.aio
import pytest

from tachikoma.client.traced_channel import traced
from tachikoma.config import tracing
from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionStub
from tachikoma.vocabulary.trace_context import TraceParent

GIVEN = TraceParent("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", 1)


class Made:
    """A call that a channel made."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[object], None]] = []

    def add_done_callback(self, callback: Callable[[object], None]) -> None:
        self.callbacks.append(callback)


class Channel:
    """A channel that notes what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.made = Made()

    def _multicallable(self, method: str, **_: Any) -> Callable[..., Made]:
        def call(*args: Any, **options: Any) -> Made:
            self.calls.append((method.rpartition("/")[2], args, options))
            return self.made

        return call

    unary_unary = unary_stream = stream_stream = stream_unary = _multicallable


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Channel:
    monkeypatch.setattr(tracing._Process, "tracer", None)
    monkeypatch.delenv("TRACEPARENT", raising=False)
    return Channel()


@pytest.mark.parametrize("rpc", ["Execute", "ExecuteStream", "ExecuteInteractive"])
def test_a_call_of_each_kind_names_its_span(channel: Channel, rpc: str) -> None:
    stub = RemoteExecutionStub(traced(cast("grpc.aio.Channel", channel)))
    with tracing.span("work", parent=GIVEN):
        made = getattr(stub, rpc)("request", timeout=5)
    assert channel.calls == [(rpc, ("request",), {"timeout": 5, "metadata": (("traceparent", str(GIVEN)),)})]
    assert made is channel.made
    assert len(channel.made.callbacks) == 1
    channel.made.callbacks[0](made)


def test_a_call_outside_of_any_trace_is_as_it_was(channel: Channel) -> None:
    stub = RemoteExecutionStub(traced(cast("grpc.aio.Channel", channel)))
    assert stub.Execute("request") is channel.made  # type: ignore[arg-type,comparison-overlap]
    assert channel.calls == [("Execute", ("request",), {})]
    assert channel.made.callbacks == []
