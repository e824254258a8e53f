"""Recordings of interactive executions: the rule of policy for them, and the facts of a finished one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tachikoma.vocabulary.model import Model
from tachikoma.vocabulary.types import Duration, Timestamp

__all__ = ["NOT_RECORDED", "RecordMode", "RecordRule", "RecordingInfo", "RecordingMatch"]

#: Mark of a rule that includes input, in its text.
_INPUT = "+input"


class RecordMode(StrEnum):
    """The rule of a policy for recordings of interactive executions."""

    #: They are not recorded.
    OFF = "off"
    #: They are recorded as far as that is possible.
    BEST_EFFORT = "best-effort"
    #: They are ended when their recording cannot be written.
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class RecordRule:
    """The rule of policy for one execution."""

    mode: RecordMode = RecordMode.OFF
    #: True if input is recorded too.
    includes_input: bool = False

    def encode(self) -> str:
        """Return the rule as text; empty if nothing is recorded."""
        if self.mode is RecordMode.OFF:
            return ""
        return f"{self.mode}{_INPUT if self.includes_input else ''}"

    @classmethod
    def parse(cls, text: str) -> RecordRule:
        """Read a rule from text. Any other text means that nothing is recorded."""
        name = text.removesuffix(_INPUT)
        if name not in set(RecordMode):
            return cls()
        return cls(RecordMode(name), text.endswith(_INPUT))


#: The rule of executions that are not recorded.
NOT_RECORDED = RecordRule()


class RecordingMatch(Model):
    """A line of a recording's screen that contains the text of a search."""

    #: Time since the start of the recording.
    at: Duration
    #: The line, as it was on the screen.
    line: str


class RecordingInfo(Model):
    """A finished recording."""

    #: Id of the execution.
    id: str
    agent_id: str
    #: SPIFFE ID of the requester.
    requested_by: str
    #: The argv, with secrets masked.
    command: tuple[str, ...]
    #: True if the command had a terminal.
    tty: bool = False
    #: Start of the recording.
    start_time: Timestamp
    duration: Duration = timedelta(0)
    #: Size of the recording in bytes.
    size: Annotated[int, Field(ge=0, lt=2**63)] = 0
    #: SHA-256 of the recording, in hexadecimal.
    sha256: str
    #: Exit code of the command; -1 if it is unknown.
    exit_code: Annotated[int, Field(ge=-1, le=255)] = -1
    #: True if it contains the complete output, compared with the digests in the agent's receipt.
    complete: bool = False
    #: Why it is not complete; empty if it is.
    problem: str = ""
    #: True if it contains the input.
    has_input: bool = False
    #: The lines that a search found, at most 20.
    matches: tuple[RecordingMatch, ...] = ()
