from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tachikoma.config import stages, tracing
from tachikoma.config.stages import Stage
from tachikoma.config.tracing import Kind
from tachikoma.vocabulary.clock import now_ms
from tachikoma.vocabulary.order_trace import OrderTrace
from tachikoma.vocabulary.trace_context import TraceParent

GIVEN = TraceParent("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", 1)


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that records nothing, with no trace around the test."""
    monkeypatch.setattr(stages, "_observers", [])
    monkeypatch.setattr(tracing._Process, "tracer", None)
    monkeypatch.setattr(tracing._Process, "remembered", OrderedDict())
    monkeypatch.delenv("TRACEPARENT", raising=False)
    before, measured = tracing._current.set(None), stages._measured.set(None)
    yield
    tracing._current.reset(before)
    stages._measured.reset(measured)


@pytest.fixture
def recorded() -> InMemorySpanExporter:
    """The spans of this test, from a process that records them."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.record_with(provider.get_tracer("test"))
    return exporter


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def above(span: ReadableSpan) -> str:
    """The id of the span above one; empty for none."""
    return "" if span.parent is None else f"{span.parent.span_id:016x}"


def own(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


# --- a process that records nothing -----------------------------------------------------------------------------------


def test_a_process_without_opentelemetry_passes_the_trace_of_its_caller_on() -> None:
    assert tracing.current() is None
    assert tracing.variables() == {}
    with tracing.span("call", parent=GIVEN), tracing.span("inner"):
        assert tracing.current() == GIVEN
        assert tracing.variables() == {"TRACEPARENT": str(GIVEN)}
        trace = tracing.order_trace("one")
    assert trace is not None
    assert trace.parent == str(GIVEN)
    assert tracing.current() is None
    assert tracing.order_trace("one") is None


def test_a_process_without_opentelemetry_remembers_no_execution() -> None:
    with tracing.span("call", parent=GIVEN):
        tracing.order_trace("one")
    with tracing.remembered("one", "result"):
        assert tracing.current() is None


# --- spans ------------------------------------------------------------------------------------------------------------


def test_a_span_lies_below_the_one_around_it(recorded: InMemorySpanExporter) -> None:
    with tracing.span("outer", {"tachikoma.agent.id": "a"}, kind=Kind.SERVER, parent=GIVEN), tracing.span("inner"):
        tracing.note({"process.exit.code": 3})
        current = tracing.current()
    found = by_name(recorded)
    assert current is not None
    assert (current.trace_id, current.span_id) == (GIVEN.trace_id, own(found["inner"]))
    assert (above(found["outer"]), above(found["inner"])) == (GIVEN.span_id, own(found["outer"]))
    assert dict(found["outer"].attributes or {}) == {"tachikoma.agent.id": "a"}
    assert dict(found["inner"].attributes or {}) == {"process.exit.code": 3}
    assert found["outer"].kind.name == "SERVER"


async def test_each_task_has_a_current_span_of_its_own(recorded: InMemorySpanExporter) -> None:
    async def work(name: str) -> None:
        with tracing.span(name):
            await asyncio.sleep(0)
            with tracing.span(f"{name}.inner"):
                await asyncio.sleep(0)

    await asyncio.gather(work("a"), work("b"))
    found = by_name(recorded)
    assert above(found["a.inner"]) == own(found["a"])
    assert above(found["b.inner"]) == own(found["b"])
    assert above(found["a"]) == above(found["b"]) == ""


def test_a_failed_span_has_the_class_of_its_error_and_not_its_text(recorded: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="hunter2"), tracing.span("work"):
        raise ValueError("password hunter2")
    found = by_name(recorded)["work"]
    assert found.status.status_code is StatusCode.ERROR
    assert dict(found.attributes or {}) == {"error.type": "ValueError"}
    assert "hunter2" not in found.to_json()


def test_what_an_unsampled_trace_does_is_not_recorded_and_still_passed_on(recorded: InMemorySpanExporter) -> None:
    with tracing.span("call", parent=TraceParent(GIVEN.trace_id, GIVEN.span_id, 0)):
        current = tracing.current()
    assert current is not None
    assert (current.trace_id, current.flags & 1) == (GIVEN.trace_id, 0)
    assert recorded.get_finished_spans() == ()


async def test_a_span_of_an_abandoned_generator_ends_in_another_context(recorded: InMemorySpanExporter) -> None:
    async def stream() -> object:
        with tracing.span("stream"):
            yield 1  # type: ignore[misc]

    generator = stream()
    assert await asyncio.create_task(generator.__anext__()) == 1  # type: ignore[attr-defined]
    await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
    assert list(by_name(recorded)) == ["stream"]


# --- times ------------------------------------------------------------------------------------------------------------


def test_times_of_the_monotonic_clock_become_times_of_day(recorded: InMemorySpanExporter) -> None:
    before = time.time_ns()
    with tracing.span("work", since_ns=time.monotonic_ns() - 5_000_000_000):
        pass
    found = by_name(recorded)["work"]
    assert found.start_time is not None
    # The process may be held up between two readings of its clocks, which moves the begin back.
    assert before - 30_000_000_000 < found.start_time + 5_000_000_000 <= time.time_ns()


# --- executions -------------------------------------------------------------------------------------------------------


def test_the_wait_on_the_queue_and_the_execution_are_spans_below_the_order(recorded: InMemorySpanExporter) -> None:
    with tracing.execution("e", OrderTrace(parent=str(GIVEN), signed_ms=1000), None):
        current = tracing.current()
    queue, execution = recorded.get_finished_spans()
    assert (queue.name, execution.name) == ("queue", "execution")
    assert above(queue) == above(execution) == GIVEN.span_id
    assert queue.start_time == 1_000_000_000
    assert current is not None
    assert current.span_id == own(execution)
    assert dict(execution.attributes or {}) == {"tachikoma.execution.id": "e"}


def test_a_wait_never_ends_before_it_begins(recorded: InMemorySpanExporter) -> None:
    # The clock of the orchestrator may be ahead of the agent's.
    with tracing.execution("e", OrderTrace(parent=str(GIVEN), signed_ms=now_ms() + 600_000), None):
        pass
    queue = by_name(recorded)["queue"]
    assert queue.start_time is not None
    assert queue.start_time == queue.end_time


@pytest.mark.parametrize("trace", [None, OrderTrace(parent="of a later form", signed_ms=0)])
def test_an_order_without_a_trace_begins_one(trace: OrderTrace | None, recorded: InMemorySpanExporter) -> None:
    with tracing.execution("e", trace, None):
        pass
    (execution,) = recorded.get_finished_spans()
    assert (execution.name, above(execution)) == ("execution", "")


def test_an_agent_without_opentelemetry_passes_the_trace_of_an_order_on() -> None:
    with tracing.execution("e", OrderTrace(parent=str(GIVEN), signed_ms=0), None):
        assert tracing.variables() == {"TRACEPARENT": str(GIVEN)}
    with tracing.execution("e", None, None):
        assert tracing.variables() == {}


def test_a_stage_is_a_span_below_the_current_one(recorded: InMemorySpanExporter) -> None:
    stages.begin("one")
    stages.passed(Stage.READ)
    with tracing.span("admission"):
        stages.passed(Stage.DECIDE)
    found = by_name(recorded)
    assert set(found) == {"admission", "decide"}, "a stage outside of any trace begins none"
    assert above(found["decide"]) == own(found["admission"])


def test_the_receipt_belongs_to_the_trace_of_its_order_once(recorded: InMemorySpanExporter) -> None:
    with tracing.span("admission"):
        trace = tracing.order_trace("one")
    for _ in range(2):
        with tracing.remembered("one", "result"):
            pass
    admission, result = recorded.get_finished_spans()
    assert (admission.name, result.name) == ("admission", "result")
    assert above(result) == own(admission)
    assert trace is not None
    assert own(admission) in trace.parent


def test_only_the_latest_executions_are_remembered(
    recorded: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "MAX_REMEMBERED", 2)
    with tracing.span("admission"):
        for name in ("one", "two", "three"):
            tracing.order_trace(name)
    assert list(tracing._Process.remembered) == ["two", "three"]


# --- clients ----------------------------------------------------------------------------------------------------------


def test_a_call_outside_of_any_trace_is_no_part_of_one() -> None:
    assert tracing.begin_call("/package.Service/Rpc") is None


@pytest.mark.parametrize(("value", "taken"), [(str(GIVEN), True), (str(GIVEN).upper(), False), ("hunter2", False)])
def test_a_call_continues_the_trace_of_the_environment(
    value: str, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", value)
    call = tracing.begin_call("/package.Service/Rpc")
    assert (call is not None and call.parent == GIVEN) is taken


def test_a_call_is_a_span_of_the_program_that_makes_it(recorded: InMemorySpanExporter) -> None:
    with tracing.span("own work"):
        call = tracing.begin_call("/package.Service/Rpc")
    assert call is not None
    call.end()
    found = by_name(recorded)
    assert above(found["package.Service/Rpc"]) == own(found["own work"])
    assert call.parent.span_id == own(found["package.Service/Rpc"])


def test_a_call_belongs_to_the_span_of_a_program_with_its_own_opentelemetry() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("application").start_as_current_span("application") as around:
        call = tracing.begin_call("/package.Service/Rpc")
    assert call is not None
    assert call.parent.trace_id == f"{around.get_span_context().trace_id:032x}"


def test_a_command_of_the_client_is_a_span_below_the_one_of_the_environment(
    recorded: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", str(GIVEN))
    tracing.begin_command("tachikoma ps")
    call = tracing.begin_call("/package.Service/Rpc")
    assert call is not None
    call.end()
    tracing.end_command()
    found = by_name(recorded)
    assert above(found["tachikoma ps"]) == GIVEN.span_id
    assert above(found["package.Service/Rpc"]) == own(found["tachikoma ps"])
