"""Spans of OpenTelemetry: the steps of a request, in one trace over all processes that it passes.

The current span is held here, as its W3C `traceparent`. So a process without OpenTelemetry still passes the trace of
its caller on: from gRPC metadata to the signed order, and from there to the command. `trace_export.configure` makes a
process record spans of its own; until then nothing of OpenTelemetry is imported.

Attributes contain names and numbers only: ids, states, exit codes, and the file name of a program. Arguments,
environment, input, output and texts of errors may contain secrets and never become attributes (docs/decisions/0082).
"""

from __future__ import annotations

import os
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from tachikoma.config import stages
from tachikoma.vocabulary.clock import now_ms, to_ns
from tachikoma.vocabulary.trace_context import TRACEPARENT, TraceParent

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanKind, Tracer

    from tachikoma.vocabulary.order_trace import OrderTrace

__all__ = [
    "Attributes",
    "Call",
    "Kind",
    "begin_call",
    "begin_command",
    "current",
    "end_command",
    "execution",
    "note",
    "order_trace",
    "record_with",
    "remembered",
    "span",
    "variables",
]

#: Attributes of a span, by their names.
Attributes: TypeAlias = Mapping[str, str | int]

#: Most executions whose trace a process remembers until their receipts come; the oldest are forgotten first.
MAX_REMEMBERED = 10_000


class Kind(StrEnum):
    """The kinds of spans, by their names in OpenTelemetry."""

    INTERNAL = "INTERNAL"
    SERVER = "SERVER"
    CLIENT = "CLIENT"
    CONSUMER = "CONSUMER"


@dataclass(frozen=True, slots=True)
class _Current:
    """The span of the current task."""

    parent: TraceParent
    #: The span itself; None if another process records it.
    span: Span | None = None


class _Process:
    """The state of this process."""

    #: Makes the spans; None while no spans are recorded.
    tracer: Tracer | None = None
    #: The spans of admitted executions, by id.
    remembered: ClassVar[OrderedDict[str, TraceParent]] = OrderedDict()
    #: Spans of the whole process, which end with it.
    lasting: tuple[Span, ...] = ()


_current: ContextVar[_Current | None] = ContextVar("trace", default=None)


def record_with(tracer: Tracer) -> None:
    """Record the spans of this process from now on, and each stage of an execution as a span."""
    if _Process.tracer is None:
        stages.observe(_record_stage)
    _Process.tracer = tracer


def current() -> TraceParent | None:
    """Return the span of the current task, or None outside of any trace."""
    found = _current.get()
    return None if found is None else found.parent


def variables() -> dict[str, str]:
    """Return the environment variables by which a process that the current task starts continues the trace."""
    parent = current()
    return {} if parent is None else {TRACEPARENT: str(parent)}


@contextmanager
def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Kind = Kind.INTERNAL,
    parent: TraceParent | None = None,
    since_ns: int | None = None,
) -> Iterator[None]:
    """Record the block as a span of the current trace.

    Args:
        name: its name, one of few.
        attributes: facts about it.
        kind: its kind.
        parent: the span above it; None for the current one, or for a trace of its own if there is none.
        since_ns: its begin by CLOCK_MONOTONIC; None for now.
    """
    before = _current.get()
    above = parent or (None if before is None else before.parent)
    if _Process.tracer is None:
        _current.set(None if above is None else _Current(above))
        try:
            yield
        finally:
            _current.set(before)
        return
    own = _start(_Process.tracer, name, attributes, kind, above, since_ns)
    _current.set(_Current(_parent_of(own), own))
    try:
        yield
    except Exception as error:
        _fail(own, error)
        raise
    finally:
        # Not by a token: an async generator that was abandoned is finished in another context.
        _current.set(before)
        own.end()


def note(attributes: Attributes) -> None:
    """Add attributes to the current span, if this process records it."""
    found = _current.get()
    if found is not None and found.span is not None:
        found.span.set_attributes(dict(attributes))


# --- executions -------------------------------------------------------------------------------------------------------


def order_trace(exec_id: str) -> OrderTrace | None:
    """Return the trace that the order of an execution names, and remember it; None outside of any trace."""
    parent = current()
    if parent is None:
        return None
    if _Process.tracer is not None:
        _Process.remembered[exec_id] = parent
        while len(_Process.remembered) > MAX_REMEMBERED:
            _Process.remembered.popitem(last=False)
    # Imported here: with it comes pydantic, which a short command of the client does not need.
    from tachikoma.vocabulary.order_trace import OrderTrace

    return OrderTrace(parent=str(parent), signed_ms=now_ms())


@contextmanager
def remembered(exec_id: str, name: str) -> Iterator[None]:
    """Record the block as a span of an execution, if this process signed its order; else record nothing."""
    parent = _Process.remembered.pop(exec_id, None)
    if parent is None:
        yield
        return
    with span(name, {"tachikoma.execution.id": exec_id}, parent=parent):
        yield


@contextmanager
def execution(exec_id: str, trace: OrderTrace | None, since_ns: int | None) -> Iterator[None]:
    """Record the block as the agent's part of an execution, and before it the wait of its order on the queue.

    Args:
        exec_id: the execution.
        trace: as the verified order names it; None for a trace of its own.
        since_ns: when the agent got the order, by CLOCK_MONOTONIC; None for now.
    """
    parent = None if trace is None else TraceParent.parse(trace.parent)
    if parent is not None and trace is not None:
        _record_wait(parent, trace.signed_ms, since_ns)
    attributes = {"tachikoma.execution.id": exec_id}
    with span("execution", attributes, kind=Kind.CONSUMER, parent=parent, since_ns=since_ns):
        yield


def _record_wait(parent: TraceParent, signed_ms: int, end_ns: int | None) -> None:
    """Record the wait on the queue. It begins by the clock of the orchestrator, which may be ahead."""
    if _Process.tracer is None:
        return
    end = _wall_ns(end_ns)
    begin = min(to_ns(signed_ms), end)
    _Process.tracer.start_span("queue", _above(parent), start_time=begin).end(end)


def _record_stage(passed: stages.Span) -> None:
    """Record a stage of an execution as a span below the current one."""
    parent = current()
    if parent is None or _Process.tracer is None:
        return
    # Both by the same reading of the clocks, so that no stage ends before it begins.
    begin = _wall_ns(passed.begin_ns)
    end = begin + passed.end_ns - passed.begin_ns
    _Process.tracer.start_span(passed.stage.value, _above(parent), start_time=begin).end(end)


# --- clients ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """A call to the orchestrator, as a part of the caller's trace."""

    parent: TraceParent
    _span: Span | None = None

    def end(self) -> None:
        """End the span of the call."""
        if self._span is not None:
            self._span.end()


def begin_command(name: str) -> None:
    """Begin the span of the whole process, a command of the client. `end_command` ends it."""
    if _Process.tracer is None:
        return
    own = _start(_Process.tracer, name, None, Kind.INTERNAL, _inherited(), None)
    _Process.lasting = (*_Process.lasting, own)
    _current.set(_Current(_parent_of(own), own))


def end_command() -> None:
    """End the spans of the whole process."""
    ended, _Process.lasting = _Process.lasting, ()
    for own in ended:
        own.end()


def begin_call(method: str) -> Call | None:
    """Begin the span of a call to the orchestrator; return None outside of any trace.

    It belongs under the current span: of this library, else of the program's own OpenTelemetry, else under the span
    that `TRACEPARENT` in the environment names. A program's own OpenTelemetry is used only if it is loaded already.

    Args:
        method: full name of the RPC, `/package.Service/Rpc`.
    """
    tracer, parent = _Process.tracer, current()
    if parent is None and (api := sys.modules.get("opentelemetry.trace")) is not None:
        found = api.get_current_span()
        if found.get_span_context().is_valid:
            parent, tracer = _parent_of(found), tracer or api.get_tracer("tachikoma")
    parent = parent or _inherited()
    if tracer is None:
        return None if parent is None else Call(parent)
    own = _start(tracer, method.removeprefix("/"), {"rpc.system.name": "grpc"}, Kind.CLIENT, parent, None)
    return Call(_parent_of(own), own)


def _inherited() -> TraceParent | None:
    return TraceParent.parse(os.environ.get(TRACEPARENT, ""))


# --- OpenTelemetry's own types ----------------------------------------------------------------------------------------


def _start(
    tracer: Tracer,
    name: str,
    attributes: Attributes | None,
    kind: Kind,
    parent: TraceParent | None,
    since_ns: int | None,
) -> Span:
    begin = None if since_ns is None else _wall_ns(since_ns)
    return tracer.start_span(name, _above(parent), _kind(kind), dict(attributes or {}), start_time=begin)


def _above(parent: TraceParent | None) -> Context:
    """Return a context of OpenTelemetry in which a span is the current one; an empty one for None."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    if parent is None:
        return Context()
    numbers = int(parent.trace_id, 16), int(parent.span_id, 16)
    above = SpanContext(*numbers, is_remote=True, trace_flags=TraceFlags(parent.flags))
    return set_span_in_context(NonRecordingSpan(above), Context())


def _parent_of(own: Span) -> TraceParent:
    found = own.get_span_context()
    return TraceParent(f"{found.trace_id:032x}", f"{found.span_id:016x}", int(found.trace_flags))


def _kind(kind: Kind) -> SpanKind:
    from opentelemetry.trace import SpanKind

    return SpanKind[kind.value]


def _fail(own: Span, error: Exception) -> None:
    """Mark a span as failed. The text of the error may contain secrets, so only its class is recorded."""
    from opentelemetry.trace import StatusCode

    own.set_attribute("error.type", type(error).__qualname__)
    own.set_status(StatusCode.ERROR)


def _wall_ns(monotonic_ns: int | None) -> int:
    """Return a time of CLOCK_MONOTONIC in nanoseconds since the epoch; None is now."""
    now = time.time_ns()
    return now if monotonic_ns is None else now - (time.monotonic_ns() - monotonic_ns)
