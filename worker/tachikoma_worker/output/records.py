"""Values that the spool stores beside the output: the facts of a start, running totals, and the ending.

They are written to disk as JSON, so that a later worker can continue where an earlier one stopped.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tachikoma.vocabulary.clock import LAST_MS
from tachikoma.vocabulary.limits import ResourceUsage
from tachikoma.vocabulary.results import IsolationReport, KillReceipt
from tachikoma.vocabulary.states import ExecState

__all__ = ["CLIPPED", "MAX_TEXT_CHARS", "Ending", "Facts", "SessionFacts", "Totals", "receipt_text"]

#: Longest text in a receipt, in characters; `signed_messages.Receipt` has the same bound.
MAX_TEXT_CHARS = 8192
#: Last characters of a text that was longer.
CLIPPED = " … (clipped)"
#: Largest count that a receipt may contain.
MAX_COUNT = 2**63 - 1


def receipt_text(value: object) -> str:
    """Return a text that a receipt may contain, whatever the value is.

    Parts that UTF-8 cannot encode (from names of files, for instance) become escapes. A text of more than
    `MAX_TEXT_CHARS` characters is clipped, and ends in `CLIPPED`.
    """
    text = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) <= MAX_TEXT_CHARS:
        return text
    return text[: MAX_TEXT_CHARS - len(CLIPPED)] + CLIPPED


def _within(least: int, most: int) -> BeforeValidator:
    """Return a validator that moves a number into bounds."""
    return BeforeValidator(lambda value: min(max(value, least), most) if isinstance(value, int) else value)


ReceiptText = Annotated[str, BeforeValidator(receipt_text)]


class Totals(BaseModel):
    """Position of an output when its spool was restarted: the parts of it that the spool no longer contains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Number of the last chunk, and offset of the byte after it.
    seq: int = 0
    offset: int = 0
    #: Bytes in the Redis log that stay, bytes after them that may be cut, and the number of the first chunk of those.
    pinned_bytes: int = 0
    held_bytes: int = 0
    held_from: int = 1
    #: Bytes of each stream, and the retained head and tail of each, in base64.
    total: dict[int, int] = Field(default_factory=dict)
    head: dict[int, str] = Field(default_factory=dict)
    tail: dict[int, str] = Field(default_factory=dict)
    #: The modes of its terminal, as `Modes.checkpoint` returns them; empty without a terminal.
    modes: str = ""

    def kept(self, kind: int) -> tuple[int, bytes, bytes]:
        """Return the byte count, the head and the tail of a stream."""
        head, tail = (base64.b64decode(part.get(kind, "")) for part in (self.head, self.tail))
        return self.total.get(kind, 0), head, tail


class SessionFacts(BaseModel):
    """Facts of an interactive command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Whether it has a terminal.
    terminal: bool = False
    #: Seconds without input, and seconds without an attached caller, after which it is ended; None for no limit.
    idle_seconds: float | None = None
    detached_seconds: float | None = None


class Facts(BaseModel):
    """Facts of a started command that a later worker needs to continue with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Id of the kernel's current run. A command of an earlier run is gone.
    host: str
    #: SHA-256 of the signed order.
    order_sha256: str
    #: SPIFFE ID of the requester; empty in a spool of a version that did not store it.
    requested_by: str = ""
    #: The lane of the orchestrator that sent the order; None if it names none.
    reply: int | None = None
    #: Path of the file that is executed.
    executable: ReceiptText
    #: Start by the clock, in milliseconds since the epoch.
    started_ms: int
    #: Start by CLOCK_MONOTONIC, in nanoseconds. All processes of a host share that clock.
    began_ns: int
    #: Seconds that the command may run, and seconds between TERM and KILL.
    timeout: float
    kill_grace: float
    #: Memory limit in bytes, for the message if it was exceeded; None for no limit.
    memory: int | None = None
    #: Bytes of the output that the log in Redis may hold.
    log_bytes: int = 64 * 1024 * 1024
    #: Whether the output waits for readers when the log is full, instead of being cut.
    waits: bool = False
    #: Longest wait for a reader that reads nothing, in seconds; None for no limit.
    wait_seconds: float | None = None
    #: Whether the caller reads the output while the command runs.
    attached: bool = False
    #: How it is isolated; None if only its user separates it from others.
    isolation: IsolationReport | None = None
    #: None for a command that is not interactive.
    session: SessionFacts | None = None
    totals: Totals = Totals()

    @property
    def has_terminal(self) -> bool:
        """Whether the command has a terminal."""
        return self.session is not None and self.session.terminal


class Ending(BaseModel):
    """The final state of an execution, in a form that a receipt can always contain.

    No input is refused for its size: texts are clipped, numbers are moved into the bounds of `Receipt`. A state that a
    receipt may not claim becomes LOST. So an ending can be made of any exception, and delivered.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: ExecState
    #: 128+n after signal n; -1 if the command never ran or its exit is unknown.
    exit_code: Annotated[int, _within(-1, 255)] = -1
    #: The signal that ended the command, or 0.
    signal: Annotated[int, _within(0, 64)] = 0
    #: Why the command did not succeed, for people; empty after success and after a plain exit code.
    error: ReceiptText = ""
    #: Path of the file that was executed, or empty.
    executable: ReceiptText = ""
    #: Start in milliseconds since the epoch; 0 for a command that never started.
    started_ms: Annotated[int, _within(0, LAST_MS)] = 0
    duration_us: Annotated[int, _within(0, MAX_COUNT)] = 0
    usage: ResourceUsage = ResourceUsage()
    #: How the command was killed; None if it was not.
    kill: KillReceipt | None = None
    #: How it was isolated; None if only its user separated it from others, or that is not known.
    isolation: IsolationReport | None = None

    @model_validator(mode="before")
    @classmethod
    def _claims_no_more_than_is_known(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "state" not in values:
            return values
        state = ExecState(values["state"])
        killed = state in (ExecState.CANCELLED, ExecState.TIMED_OUT) and values.get("started_ms")
        if state.terminal and not (killed and not _empty(values.get("kill"))):
            return values
        error = "; ".join(filter(None, (str(values.get("error", "")), f"it is not known whether it is {state}")))
        return {**values, "state": ExecState.LOST, "error": error}


def _empty(kill: Any) -> bool:
    """Return whether a kill receipt, or its JSON object, says that no process is left."""
    return bool(kill.get("empty") if isinstance(kill, dict) else kill is not None and kill.empty)
