"""Stages of an execution: how long each step of its path took, measured inside the processes.

A process begins to measure an execution in the task that handles it, and notes each stage as it ends. A stage begins
where the one before it ended, so the stages of a task have no gaps. Without an observer nothing is measured. Times are
those of CLOCK_MONOTONIC, which all processes of a host share: there, the stages of one execution form one picture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from time import monotonic_ns
from typing import TypeAlias

from tachikoma.errors import ConfigurationError

__all__ = ["Observer", "Span", "Stage", "begin", "begin_unless_begun", "identify", "observe", "passed", "write_to"]


class Stage(StrEnum):
    """The stages, in the order in which an execution passes them. Those of two processes may overlap."""

    #: Orchestrator: the caller is authenticated, and its request is received and parsed.
    READ = "read"
    #: Orchestrator: policy has decided, and the request has its digest.
    DECIDE = "decide"
    #: Orchestrator: the order is signed and wrapped into a message.
    SIGN = "sign"
    #: Orchestrator: Redis has recorded the request and has the order on the agent's queue.
    ADMIT = "admit"
    #: Agent: the order came from Celery's worker to the engine's loop.
    HAND_OVER = "hand over"
    #: Agent: the order is verified.
    VERIFY = "verify"
    #: Agent: the journal contains the execution.
    JOURNAL = "journal"
    #: Agent: Redis has the claim, and the row of the journal is on disk.
    CLAIM = "claim"
    #: Agent: the command is prepared. It began beside the claim; only the rest after it counts here.
    PREPARE = "prepare"
    #: Agent: the spool exists.
    SPOOL = "spool"
    #: Agent: the command is started.
    SPAWN = "spawn"
    #: Agent: the command has ended, its output is sent, and its cgroup is empty.
    RUN = "run"
    #: Agent: the receipt is signed.
    RECEIPT = "receipt"
    #: Agent: Redis has stored and published the receipt.
    DELIVER = "deliver"
    #: Orchestrator: the receipt is verified.
    CHECK = "check"
    #: Orchestrator: the ledger has the final state.
    RECORD = "record"
    #: Orchestrator: the caller's task has waited for the receipt since the admission.
    WAIT = "wait"
    #: Orchestrator: the response is made.
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class Span:
    """A stage that an execution has passed."""

    #: Id of the execution; empty for a request that ended before it had one.
    exec_id: str
    stage: Stage
    #: Nanoseconds of CLOCK_MONOTONIC.
    begin_ns: int
    end_ns: int


#: Receives each span, on the thread that passed the stage. It must return at once and raise nothing.
Observer: TypeAlias = Callable[[Span], None]


@dataclass(slots=True)
class _Measured:
    """An execution that is measured in the current task."""

    exec_id: str
    #: End of its last stage.
    last_ns: int


_observers: list[Observer] = []
_measured: ContextVar[_Measured | None] = ContextVar("measured", default=None)


def observe(observer: Observer) -> None:
    """Send the spans of this process to an observer from now on."""
    _observers.append(observer)


def begin(exec_id: str = "", *, since_ns: int | None = None) -> None:
    """Begin to measure an execution in the current task, if there is an observer.

    Args:
        exec_id: its id; empty if it is not known yet.
        since_ns: beginning of its first stage; None for now.
    """
    if _observers:
        _measured.set(_Measured(exec_id, since_ns if since_ns is not None else monotonic_ns()))


def begin_unless_begun(exec_id: str) -> None:
    """Begin to measure an execution in the current task, unless its caller already does. Set its id in both cases."""
    measured = _measured.get()
    if measured is None or measured.exec_id not in ("", exec_id):
        begin(exec_id)
    else:
        measured.exec_id = exec_id


def identify(exec_id: str) -> None:
    """Set the id of the execution that the current task measures."""
    if (measured := _measured.get()) is not None:
        measured.exec_id = exec_id


def passed(stage: Stage) -> None:
    """Record that the execution of the current task has passed a stage."""
    measured = _measured.get()
    if measured is None:
        return
    begin_ns, measured.last_ns = measured.last_ns, monotonic_ns()
    span = Span(measured.exec_id, stage, begin_ns, measured.last_ns)
    for observer in _observers:
        observer(span)


def write_to(path: Path) -> None:
    """Append each span of this process to a file from now on, as a line of JSON.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    try:
        # Open until the process ends. Several processes may append to it, each a line at once.
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(f"cannot write the stages of executions to {path}: {error.strerror}") from None

    def write(span: Span) -> None:
        os.write(file, (json.dumps(asdict(span)) + "\n").encode())

    observe(write)
