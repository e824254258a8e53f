"""Executions and agents as Celery's events tell of tasks and workers: what Flower shows.

Said from the ledger's records, so that what is told again is told in the same words. `docs/decisions/0017` says what
becomes of which state, and why.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

from kombu import Connection, Exchange, Producer

from tachikoma.audit.codes import AUDIT_CODES, FlowerStep
from tachikoma.redis import keys
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

#: What happened to a task or a worker, with the names and values that Celery gives it.
Event: TypeAlias = dict[str, Any]

#: Where Celery's events go; with Redis it is of the type `fanout` (`celery.events.event.get_exchange`).
EVENT_EXCHANGE = "celeryev"
#: Event of no kind that Celery knows: all that was told before is void, and told anew after it.
BEGIN = "ledger-begin"
#: Between two heartbeats of a worker; Celery takes one for offline after twice that.
HEARTBEAT_SECONDS = 10
#: Longest text of a command, and of a reason, that is shown.
MAX_SHOWN = 1000
#: Longest name of a task: it is also a label of Flower's own figures.
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
    """Everything that happened to an execution so far, in its order.

    Raises:
        RecordAltered: the record is none that this program wrote.
    """
    agent, exec_id, result = record.agent, record.exec_id, record.result()
    # In each of them: a listener may have let go of the one before.
    about = {
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
            yield {"type": _SENT, "timestamp": at_ms / 1000, **about}
        elif state is ExecState.QUEUED:
            yield {"type": _RECEIVED, "timestamp": at_ms / 1000, **about}
        elif state is ExecState.STARTED:
            # As the agent says; the ledger's time is when that was heard.
            yield {"type": _STARTED, "timestamp": (result.started_ms or at_ms) / 1000, **about}
        else:
            yield {**_end(record, result, state, at_ms), **about}


def _name(command: str) -> str:
    """The program."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    return words[0][:MAX_NAME] if words and words[0] else keys.EXECUTE_TASK


def _end(record: Record, reported: ReportedResult, state: ExecState, at_ms: int) -> Event:
    exit_code = -1 if reported.exit_code is None else reported.exit_code
    # Of what did not run, or whose end nobody saw, there is none.
    told = exit_code >= 0
    result: dict[str, str | int] = {"state": str(state)}
    if told:
        result["exit_code"] = exit_code
        result["stdout_bytes"] = reported.stdout_bytes or 0
        result["stderr_bytes"] = reported.stderr_bytes or 0
    event: Event = {
        "type": _ENDS[state],
        "timestamp": (reported.ended_ms or at_ms) / 1000,
        "result": repr(result),
    }
    if told:
        event["runtime"] = (reported.duration_us or 0) / 1e6
    if state is ExecState.SUCCEEDED:
        return event
    by = record.cancel_requested_by if state is ExecState.CANCELLED else ""
    reason = (f"by {by}" if by else record.error) or (f"exit code {exit_code}" if told else "nothing more is known")
    event["exception"] = f"{state}: {reason}"[:MAX_SHOWN]
    if state is ExecState.CANCELLED:
        event |= {"terminated": "runtime" in event, "signum": reported.signal or None, "expired": False}
    return event


def worker_events(agent: str, state: AgentState, *, queued: int, processed: int, news: bool) -> Iterator[Event]:
    """How an agent is.

    Args:
        agent: its id.
        state: as the registry has it.
        queued: orders on its queue.
        processed: executions it was given, as far as the ledger goes back.
        news: whether listeners do not know of it yet, or have it for offline. Of one that is offline too they must be
            told that it was online, or they would not remember it.
    """
    heartbeat = state.heartbeat
    common = {
        "hostname": keys.node(agent),
        "timestamp": state.seen_ms / 1000,
        "freq": HEARTBEAT_SECONDS,
        "sw_ident": "tachikoma",
        "sw_ver": heartbeat.version,
        "sw_sys": "Linux",
        "active": heartbeat.running if state.online else 0,
        "processed": processed,
        # Celery's workers say three; of an agent the last minute's is known.
        "loadavg": f"{heartbeat.load:.2f}",
        # Not of Celery; for our own Flower.
        "tachikoma": {
            "agent": agent,
            "host": heartbeat.hostname,
            "slots": heartbeat.slots,
            "queue": keys.queue(agent),
            "queued": queued,
            "memory_used": heartbeat.memory_used,
            "disk_used": heartbeat.disk_used,
            "labels": heartbeat.labels,
            "warnings": heartbeat.warnings,
        },
    }
    if news:
        yield {"type": "worker-online", **common}
    yield {"type": "worker-heartbeat" if state.online else "worker-offline", **common}


class EventFactory:
    """Makes Celery's messages of several events. For one thread."""

    def __init__(self) -> None:
        self._channel = cast(CapturingChannel, Connection(transport=CapturingTransport).channel())
        Exchange(EVENT_EXCHANGE, type="fanout")(self._channel).declare()
        self._producer = Producer(self._channel, auto_declare=False)

    def message(self, kind: str, events: Sequence[Event]) -> bytes:
        """The message for `keys.celery_events(kind)`, as a worker's own dispatcher makes it of events it gathered."""
        self._producer.publish(
            list(events),
            exchange=EVENT_EXCHANGE,
            routing_key=f"{kind}.multi",
            headers={"hostname": "tachikoma"},
            serializer="json",
            delivery_mode=1,
        )
        return self._channel.take()
