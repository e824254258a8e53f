"""The agent's spans in the trace of an order: its wait on the queue, the execution, and the command."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager

from tachikoma.config import tracing
from tachikoma.config.tracing import Kind
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.vocabulary.trace_context import TraceParent
from tachikoma_worker.confinement.prepare import Prepared
from tachikoma_worker.output.records import Ending

__all__ = ["command_span", "execution_span", "note_ending"]


@contextmanager
def execution_span(order: WorkOrder, since_ns: int | None) -> Iterator[None]:
    """Let the block be the agent's part of an execution's trace.

    Args:
        order: the verified order.
        since_ns: when the engine got it, by CLOCK_MONOTONIC; None for now.
    """
    parent = None if order.trace is None else TraceParent.parse(order.trace.parent)
    if parent is not None and order.trace is not None:
        tracing.finished("queue", parent, order.trace.signed_ms, since_ns)
    attributes = {"tachikoma.execution.id": order.jti}
    with tracing.span("execution", attributes, kind=Kind.CONSUMER, parent=parent, since_ns=since_ns):
        yield


@contextmanager
def command_span(prepared: Prepared) -> Iterator[None]:
    """Let the block be the span of a command, whose own spans belong under it.

    Of the command only the file name of its program is recorded.
    """
    with tracing.span("command", {"process.executable.name": posixpath.basename(prepared.executable.path)}):
        yield


def note_ending(ending: Ending) -> None:
    """Add the final state to the span of an execution."""
    tracing.note({"tachikoma.execution.state": ending.state.value, "process.exit.code": ending.exit_code})
