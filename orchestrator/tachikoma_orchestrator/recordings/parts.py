"""The lines of a recording's parts: what was recorded, before it becomes an asciicast.

A part of a recorder has output, numbered as the agent numbered it. After a takeover there is one more part, and two of
them may contain the same chunks; the numbers show that. A part of an attached caller has the caller's events, each with
its place in the output. A process that is killed leaves a part whose last line may be cut, which is ignored.
"""

from __future__ import annotations

import base64
import heapq
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tachikoma.sessions.asciicast import INPUT, MARKER, RESIZE
from tachikoma.vocabulary.audit import AuditedRequest

__all__ = ["Event", "Origin", "Output", "encode", "is_output", "numbered", "read_lines"]

#: Beginnings of the names of parts: output, and events of an attached caller.
OUTPUT_PART, EVENTS_PART = "output-", "events-"


@dataclass(frozen=True, slots=True)
class Origin:
    """The execution that is recorded; the first line of a part with output."""

    agent: str
    #: SPIFFE ID of the requester.
    requested_by: str
    #: name@digest of the policy that granted the request.
    policy: str
    request: AuditedRequest
    #: True if input is recorded too.
    includes_input: bool
    #: Beginning of the recording, in microseconds since the epoch.
    began_us: int


@dataclass(frozen=True, slots=True)
class Output:
    """A chunk of output."""

    seq: int
    #: Number of output bytes before it, of both streams.
    offset: int
    #: Time of the agent, in microseconds since the epoch.
    time_us: int
    #: True for standard error.
    is_error: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a caller did."""

    #: Number of output bytes before it, of both streams.
    offset: int
    #: Time of the orchestrator, in microseconds since the epoch.
    time_us: int
    #: Code of asciicast: input, marker or resize.
    code: str
    #: As in an asciicast; of input, the bytes in base64.
    data: str
    #: Of input: number of input bytes before it.
    place: int = 0


Line = Origin | Output | Event

#: Largest number in a line: RFC 8259 promises no exact larger ones.
MAX_NUMBER = 2**53 - 1
_SIZE = re.compile("[0-9]{1,5}x[0-9]{1,5}")


def encode(line: Line) -> bytes:
    """Return a line of a part, with its end."""
    match line:
        case Output(seq, offset, time_us, is_error, data):
            fields: list[object] = ["o", seq, offset, time_us, int(is_error), base64.b64encode(data).decode()]
        case Event(offset, time_us, code, data, place):
            fields = ["e", offset, time_us, code, data, place]
        case Origin(agent, requested_by, policy, request, includes_input, began_us):
            fields = ["r", agent, requested_by, policy, request.to_dict(), includes_input, began_us]
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _decode(raw: bytes) -> Line | None:
    """Read a line; None for one that was cut, or that no version of this program wrote."""
    if not raw.endswith(b"\n"):
        return None
    try:
        kind, *fields = json.loads(raw)
        if kind == "o":
            seq, offset, time_us, is_error, data = fields
            return Output(_number(seq), _number(offset), _number(time_us), bool(is_error), base64.b64decode(data))
        if kind == "e":
            offset, time_us, code, text, place = fields
            return _event(Event(_number(offset), _number(time_us), str(code), str(text), _number(place)))
        if kind == "r":
            agent, requested_by, policy, request, includes_input, began_us = fields
            audited = AuditedRequest.from_dict(request)
            return Origin(str(agent), str(requested_by), str(policy), audited, bool(includes_input), _number(began_us))
    except (ValueError, TypeError, RecursionError):
        pass
    return None


def _number(value: object) -> int:
    """Return a number of a line. Raises ValueError if it is none."""
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise ValueError
    return value


def _event(event: Event) -> Event:
    """Return an event whose data fit its code. Raises ValueError for others."""
    if event.code == INPUT:
        base64.b64decode(event.data, validate=True)
    elif event.code == RESIZE:
        if not _SIZE.fullmatch(event.data):
            raise ValueError
    elif event.code != MARKER:
        raise ValueError
    return event


def read_lines(raw: Iterable[bytes]) -> Iterator[Line]:
    """Yield the lines of a part, without those that cannot be read."""
    for line in raw:
        if (decoded := _decode(line)) is not None:
            yield decoded


def is_output(part: str) -> bool:
    """Return True if a part has output, by its name."""
    return part.startswith(OUTPUT_PART)


def numbered(parts: Iterable[Iterable[Line]]) -> Iterator[Output]:
    """Yield the output of several parts in its order, each chunk once."""
    latest = 0
    streams = [(line for line in part if isinstance(line, Output)) for part in parts]
    for output in heapq.merge(*streams, key=lambda output: output.seq):
        if output.seq > latest:
            latest = output.seq
            yield output
