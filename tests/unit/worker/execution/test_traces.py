"""The agent's spans belong to the trace that the signed order names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tachikoma.config import stages, tracing
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.vocabulary.clock import now_ms
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma.vocabulary.states import ExecState
from tachikoma.vocabulary.trace_context import OrderTrace, TraceParent
from tachikoma_worker.confinement.executable import Executable
from tachikoma_worker.confinement.prepare import Prepared
from tachikoma_worker.execution.traces import command_span, execution_span, note_ending
from tachikoma_worker.output.records import Ending

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Program:
    """A prepared command, as far as its program goes."""

    executable = Executable(path="/usr/bin/env", fd=-1, argv=("env", "hunter2"), real_path="/usr/bin/env")


PREPARED = cast("Prepared", Program())


def order(trace: OrderTrace | None) -> WorkOrder:
    return WorkOrder(
        iss="o", aud="a", sub="u", iat=1, exp=2, jti="e", policy="p@1", trace=trace,
        grant=Grant(executables=(GrantedExecutable(path="/usr/bin/env"),)),
        request=ExecRequest(id="e", agent_id="a", command=["/usr/bin/env", "hunter2"]),
    )  # fmt: skip


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The spans of an agent that records them."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(stages, "_observers", [])
    monkeypatch.setattr(tracing._Process, "tracer", None)
    tracing.record_with(provider.get_tracer("test"))
    before = tracing._current.set(None)
    yield exporter
    tracing._current.reset(before)


def above(span: ReadableSpan) -> str:
    return "" if span.parent is None else f"{span.parent.span_id:016x}"


def test_wait_execution_and_command_are_spans_below_the_order(recorded: InMemorySpanExporter) -> None:
    with execution_span(order(OrderTrace(parent=f"00-{TRACE}-{SPAN}-01", signed_ms=now_ms())), None):
        with command_span(PREPARED):
            seen = tracing.variables()["TRACEPARENT"]
        note_ending(Ending(state=ExecState.FAILED, exit_code=3, error="hunter2"))
    queue, command, execution = recorded.get_finished_spans()
    assert (queue.name, command.name, execution.name) == ("queue", "command", "execution")
    assert above(queue) == above(execution) == SPAN
    assert execution.context is not None
    assert above(command) == f"{execution.context.span_id:016x}"
    assert command.context is not None
    assert TraceParent.parse(seen) == TraceParent(TRACE, f"{command.context.span_id:016x}", 1)
    assert dict(command.attributes or {}) == {"process.executable.name": "env"}
    assert dict(execution.attributes or {}) == {
        "tachikoma.execution.id": "e", "tachikoma.execution.state": "FAILED", "process.exit.code": 3,
    }  # fmt: skip
    assert "hunter2" not in "".join(span.to_json() for span in (queue, command, execution))


@pytest.mark.parametrize("trace", [None, OrderTrace(parent="of a later form", signed_ms=0)])
def test_an_order_without_a_trace_begins_one(trace: OrderTrace | None, recorded: InMemorySpanExporter) -> None:
    with execution_span(order(trace), None):
        pass
    (execution,) = recorded.get_finished_spans()
    assert (execution.name, above(execution)) == ("execution", "")


def test_an_agent_that_records_nothing_passes_the_trace_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing._Process, "tracer", None)
    parent = f"00-{TRACE}-{SPAN}-01"
    with execution_span(order(OrderTrace(parent=parent, signed_ms=0)), None), command_span(PREPARED):
        assert tracing.variables() == {"TRACEPARENT": parent}
    with execution_span(order(None), None), command_span(PREPARED):
        assert tracing.variables() == {}
