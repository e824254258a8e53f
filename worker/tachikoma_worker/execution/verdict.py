"""The final state of a command: decided from how it was stopped, how it exited, and what it used. Pure."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from enum import StrEnum

from pydantic import ByteSize

from tachikoma.vocabulary.limits import ResourceUsage
from tachikoma.vocabulary.results import KillReceipt
from tachikoma.vocabulary.states import ExecState
from tachikoma_worker.confinement.isolation.enclosure import HOST_FILES
from tachikoma_worker.confinement.protocol import Exit
from tachikoma_worker.confinement.refusals import CannotExecute, Refused
from tachikoma_worker.output.records import Ending, Facts, SessionFacts

__all__ = ["Stop", "describe", "end_unknown", "failure", "judge", "not_started", "stopped_before_start"]

#: Longest description of an unexpected exception, in characters.
MAX_FAILURE_CHARS = 1000
#: Hint for a command of root that failed by itself. Its output may name a read-only file system or a missing socket.
NEEDS_HOST_ACCESS = (
    "the host's files were read-only for this command of root, and its services were hidden; if it needs them, set "
    "hostAccess in the policy"
)
#: Largest number of process ids of survivors in a receipt.
MAX_SURVIVORS = 32


class Stop(StrEnum):
    """The reason for ending a command early."""

    CANCELLED = "cancelled"
    TIMED_OUT = "timed out"
    SHUTDOWN = "the agent is shutting down"
    #: An interactive command got no input, or had no attached caller, for as long as policy allows.
    IDLE = "idle"
    DETACHED = "detached"
    #: The caller of an interactive command closed its session.
    CLOSED = "closed"

    @property
    def number(self) -> int:
        """The number of the reason in a spool, above 0."""
        return _NUMBERS[self]

    @classmethod
    def of_number(cls, number: int) -> Stop | None:
        """Return the reason of a number in a spool; None for 0, and for a number of a later version."""
        return next((stop for stop, known in _NUMBERS.items() if known == number), None)


#: Spools contain these, so they never change.
_NUMBERS = {
    Stop.CANCELLED: 1, Stop.TIMED_OUT: 2, Stop.SHUTDOWN: 3, Stop.IDLE: 4, Stop.DETACHED: 5, Stop.CLOSED: 6,
}  # fmt: skip


def judge(
    facts: Facts,
    *,
    stopped: Stop | None,
    survivors: Sequence[int],
    exited: Exit | None,
    usage: ResourceUsage,
    whole: bool,
    duration_us: int,
) -> Ending:
    """Return the final state of a command.

    Args:
        facts: the facts of its start.
        stopped: why the worker ended it; None if it ended by itself.
        survivors: process ids that could not be killed.
        exited: how its process ended, or None if that is unknown.
        usage: the resources that it used.
        whole: True if the survivors of all its processes are known, which needs a cgroup.
        duration_us: time since its start, in microseconds.
    """
    state, error = _state(stopped, exited, usage, facts)
    if survivors:
        state = ExecState.LOST if stopped or exited is None else state
        error = f"{error}; {_survived(survivors)}".removeprefix("; ")
    if usage.cpu_seconds is None and exited is not None:
        usage = usage.model_copy(update={"cpu_seconds": exited.cpu_seconds})
    return Ending(
        state=state,
        exit_code=-1 if exited is None else exited.exit_code,
        signal=0 if exited is None else exited.signal,
        error=error,
        executable=facts.executable,
        started_ms=facts.started_ms,
        duration_us=duration_us,
        usage=usage,
        kill=_kill_receipt(stopped, survivors, whole),
        isolation=facts.isolation,
    )


def not_started(error: Refused | CannotExecute) -> Ending:
    """Return the final state of a command that was refused, or whose program cannot be executed."""
    if isinstance(error, CannotExecute):
        return Ending(state=ExecState.FAILED, exit_code=error.exit_code, error=str(error))
    return Ending(state=ExecState.REJECTED, error=str(error))


def end_unknown(facts: Facts, why: str) -> Ending:
    """Return the ending of a command that was started and whose end is not known."""
    return Ending(state=ExecState.LOST, error=f"its end is not known: {why}", started_ms=facts.started_ms)


def stopped_before_start(why: Stop) -> Ending:
    """Return the ending of a command that was stopped before it started."""
    if why is Stop.CANCELLED:
        return Ending(state=ExecState.CANCELLED, error="cancelled before it started")
    return Ending(state=ExecState.REJECTED, error=f"not started: {why}")


def failure(error: BaseException, facts: Facts | None = None) -> Ending:
    """Return the ending of an execution in which the agent itself failed.

    Args:
        error: the unexpected exception.
        facts: those of the start, if the command may have started.
    """
    return Ending(
        state=ExecState.LOST,
        error=f"the agent failed: {describe(error)}",
        executable=facts.executable if facts else "",
        started_ms=facts.started_ms if facts else 0,
    )


def describe(error: BaseException) -> str:
    """Return class and message of an exception, also of one that cannot be turned into a text."""
    name = type(error).__name__
    try:
        return f"{name}: {error}"[:MAX_FAILURE_CHARS]
    except Exception:
        return name


def _state(stopped: Stop | None, exited: Exit | None, usage: ResourceUsage, facts: Facts) -> tuple[ExecState, str]:
    """Return the state of a command without survivors, and the error text."""
    if stopped is Stop.CANCELLED:
        return ExecState.CANCELLED, "cancelled"
    if stopped is Stop.TIMED_OUT:
        return ExecState.TIMED_OUT, f"killed at its timeout of {facts.timeout:g} s"
    if stopped in (Stop.IDLE, Stop.DETACHED):
        return ExecState.TIMED_OUT, _hung_up(stopped, facts)
    if stopped is Stop.CLOSED:
        return ExecState.CANCELLED, "hung up: its caller closed the session"
    if stopped is Stop.SHUTDOWN:
        return ExecState.FAILED, "killed: the agent was shut down"
    if exited is None:
        return ExecState.LOST, "its end is not known"
    if not exited.exit_code:
        return ExecState.SUCCEEDED, ""
    if usage.oom_kills:
        limit = (
            f"more than its {ByteSize(facts.memory).human_readable()} of memory"
            if facts.memory
            else "more memory than there was"
        )
        return ExecState.OUT_OF_MEMORY, f"killed: it used {limit}"
    if exited.signal:
        return ExecState.FAILED, f"killed by {_signal_name(exited.signal)}"
    closed = facts.isolation is not None and HOST_FILES in facts.isolation.parts
    return ExecState.FAILED, NEEDS_HOST_ACCESS if closed else ""


def _survived(survivors: Sequence[int]) -> str:
    return f"could not kill all of it: processes {', '.join(map(str, survivors))} are still there"


def _hung_up(stopped: Stop | None, facts: Facts) -> str:
    """Return the error text of an interactive command that was left alone."""
    session = facts.session or SessionFacts()
    if stopped is Stop.IDLE:
        return f"hung up: no input for {session.idle_seconds or 0:g} s"
    return f"hung up: no caller was attached for {session.detached_seconds or 0:g} s"


def _kill_receipt(stopped: Stop | None, survivors: Sequence[int], whole: bool) -> KillReceipt | None:
    """Return the report about a kill; None if the command ended by itself and left no process."""
    if not stopped and not survivors:
        return None
    signals = (signal.SIGTERM, signal.SIGKILL) if stopped else (signal.SIGKILL,)
    return KillReceipt(empty=not survivors, whole=whole, signals=signals, survivors=tuple(survivors[:MAX_SURVIVORS]))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
