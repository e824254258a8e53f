"""Celery's task and worker events, made from executions and agents: the content of Flower.

They are made from the ledger's records alone, so an event that is made twice has the same content.
`docs/decisions/0017` gives the event of each state, and the reasons.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

from kombu import Connection, Exchange, Producer

from tachikoma.audit.codes import AUDIT_CODES, FlowerStep
from tachikoma.redis import keys
from tachikoma.vocabulary.clock import seconds_of_ms
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.agents.registry import AgentState
from tachikoma_orchestrator.executions.record import Record, ReportedResult
from tachikoma_orchestrator.store.capture import CapturingChannel, CapturingTransport

__all__ = [
    "BEGIN",
    "EVENT_EXCHANGE",
    "HEARTBEAT_SECONDS",
    "STEPS",
    "WORKER_CODES",
    "Event",
    "EventFactory",
    "task_events",
    "worker_events",
]

#: An event of a task or a worker, with Celery's names and values.
Event: TypeAlias = dict[str, Any]

#: The exchange of Celery's events; with Redis, its type is `fanout` (`celery.events.event.get_exchange`).
EVENT_EXCHANGE = "celeryev"
#: Type of an event that Celery does not know: all earlier events are void, and are published again after it.
BEGIN = "ledger-begin"
#: Time between two heartbeats of a worker; Celery marks it offline after twice that.
HEARTBEAT_SECONDS = 10
#: Longest text of a command and of a reason, in characters.
MAX_SHOWN = 1000
#: Longest name of a task, which is also a label of Flower's metrics.
MAX_NAME = 100

_SENT, _RECEIVED, _STARTED = "task-sent", "task-received", "task-started"
_ENDS = {
    ExecState.SUCCEEDED: "task-succeeded",
    ExecState.FAILED: "task-failed",
    ExecState.TIMED_OUT: "task-failed",
    ExecState.OUT_OF_MEMORY: "task-failed",
    ExecState.EXPIRED: "task-failed",
    ExecState.REJECTED: "task-failed",
    ExecState.LOST: "task-failed",
    ExecState.CANCELLED: "task-revoked",
}
_TYPES = {
    FlowerStep.SENT: frozenset({_SENT}),
    FlowerStep.RECEIVED: frozenset({_RECEIVED}),
    FlowerStep.STARTED: frozenset({_STARTED}),
    FlowerStep.ENDED: frozenset(_ENDS.values()),
}
#: The types of Celery task events that an audit event causes, by its code; a code without one is not contained.
STEPS: Mapping[str, frozenset[str]] = {
    code: _TYPES[row.flower] for code, row in AUDIT_CODES.items() if row.flower in _TYPES
}
#: The codes of audit events after which the list of workers is published again.
WORKER_CODES: frozenset[str] = frozenset(code for code, row in AUDIT_CODES.items() if row.flower is FlowerStep.WORKERS)


def task_events(record: Record) -> Iterator[Event]:
    """Make the events of an execution's whole history, oldest first.

    Raises:
        RecordAltered: the record was not written by this program.
        OverflowError: a time in the record is too large.
    """
    agent, exec_id, result = record.agent, record.exec_id, record.result()
    # Part of each event: a listener may have dropped the one before.
    common = {
        "uuid": exec_id,
        "hostname": keys.node(agent),
        "name": _name(record.command),
        "args": record.command[:MAX_SHOWN],
        "kwargs": repr(
            {
                "task_id": keys.task_id(agent, exec_id),
                "requested_by": record.requested_by,
                "policy": record.policy,
            }
        ),
        "routing_key": keys.queue(agent),
        "retries": 0,
    }
    for state, at_ms in record.history:
        if state is ExecState.PENDING_APPROVAL:
            yield {"type": _SENT, "timestamp": seconds_of_ms(at_ms), **common}
        elif state is ExecState.QUEUED:
            yield {"type": _RECEIVED, "timestamp": seconds_of_ms(at_ms), **common}
        elif state is ExecState.STARTED:
            # The agent's time; the ledger has the time at which its notice arrived.
            yield {"type": _STARTED, "timestamp": seconds_of_ms(result.started_ms or at_ms), **common}
        else:
            yield {**_end(record, result, state, at_ms), **common}


def _name(command: str) -> str:
    """Return the program of a command, as the name of the task."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    return words[0][:MAX_NAME] if words and words[0] else keys.EXECUTE_TASK


def _end(record: Record, reported: ReportedResult, state: ExecState, at_ms: int) -> Event:
    """Return the event of a final state, without the fields common to all events."""
    # None if the command did not run, or its exit is unknown.
    exit_code = reported.exit_code if reported.exit_code is not None and reported.exit_code >= 0 else None
    result: dict[str, str | int] = {"state": str(state)}
    event: Event = {"type": _ENDS[state], "timestamp": seconds_of_ms(reported.ended_ms or at_ms)}
    if exit_code is not None:
        result["exit_code"] = exit_code
        result["stdout_bytes"] = reported.stdout_bytes or 0
        result["stderr_bytes"] = reported.stderr_bytes or 0
        event["runtime"] = (reported.duration_us or 0) / 1e6
    event["result"] = repr(result)
    if state is not ExecState.SUCCEEDED:
        event["exception"] = f"{state}: {_reason(record, state, exit_code)}"[:MAX_SHOWN]
    if state is ExecState.CANCELLED:
        event |= {"terminated": exit_code is not None, "signum": reported.signal or None, "expired": False}
    return event


def _reason(record: Record, state: ExecState, exit_code: int | None) -> str:
    """Return the reason of a final state other than success."""
    if state is ExecState.CANCELLED and record.cancel_requested_by:
        return f"by {record.cancel_requested_by}"
    return record.error or ("the reason is unknown" if exit_code is None else f"exit code {exit_code}")


def worker_events(agent: str, state: AgentState, *, queued: int, processed: int, news: bool) -> Iterator[Event]:
    """Make the events of an agent's state.

    Args:
        agent: its id.
        state: its state in the registry.
        queued: number of orders on its queue.
        processed: number of its executions in the ledger.
        news: True if listeners do not know the agent, or know it as offline. An offline agent gets an event that it
            was online first, or listeners would not remember it.
    """
    heartbeat = state.heartbeat
    common = {
        "hostname": keys.node(agent),
        "timestamp": seconds_of_ms(state.seen_ms),
        "freq": HEARTBEAT_SECONDS,
        "sw_ident": "tachikoma",
        "sw_ver": heartbeat.version,
        "sw_sys": "Linux",
        "active": heartbeat.running if state.online else 0,
        "processed": processed,
        # Celery's workers report three values; agents report that of the last minute.
        "loadavg": f"{heartbeat.load:.2f}",
        # Not part of Celery's events; shown by `dashboard`.
        "tachikoma": {
            "agent": agent,
            "host": heartbeat.hostname,
            "slots": heartbeat.slots,
            "queue": keys.queue(agent),
            "queued": queued,
            "memory_used": heartbeat.memory_used,
            "disk_used": heartbeat.disk_used,
            "labels": dict(state.labels),
            "warnings": heartbeat.warnings,
        },
    }
    if news:
        yield {"type": "worker-online", **common}
    yield {"type": "worker-heartbeat" if state.online else "worker-offline", **common}


class EventFactory:
    """Makes messages of several events, as Celery does. For one thread."""

    def __init__(self) -> None:
        self._channel = cast(CapturingChannel, Connection(transport=CapturingTransport).channel())
        Exchange(EVENT_EXCHANGE, type="fanout")(self._channel).declare()
        self._producer = Producer(self._channel, auto_declare=False)

    def message(self, kind: str, events: Sequence[Event]) -> bytes:
        """Return the message for `keys.celery_events(kind)`, in the form that a Celery worker gives to gathered events.

        Args:
            kind: `task` or `worker`.
            events: the events, oldest first.
        """
        self._producer.publish(
            list(events),
            exchange=EVENT_EXCHANGE,
            routing_key=f"{kind}.multi",
            headers={"hostname": "tachikoma"},
            serializer="json",
            delivery_mode=1,
        )
        return self._channel.take()
