"""The verification of an audit log: every line, every checkpoint, and the checkpoints that are stored elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tachikoma.audit.chain import CHECKPOINT_EVENTS, FIRST_PREV, PLACE, audit_files, line_digest, read_lines
from tachikoma.identity.bundles import TrustBundle
from tachikoma.identity.signed_messages import AuditCheckpoint
from tachikoma.identity.signing import InvalidSignature, verify
from tachikoma.identity.spiffe import SpiffeId
from tachikoma.vocabulary.audit import ExecAuditLog
from tachikoma.vocabulary.model import describe_validation_error

__all__ = ["Finding", "Report", "verify_files"]

#: Findings after which the verification ends.
MAX_FINDINGS = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference between an audit log and the log that was written."""

    file: Path
    #: Line of the file, from 1; 0 for the file as a whole.
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.problem}"


@dataclass(slots=True)
class Report:
    """The result of a verification."""

    lines: int = 0
    events: int = 0
    #: Number of events that replace an unreadable entry of the trail in Redis.
    unreadable: int = 0
    checkpoints: int = 0
    #: Number of events after the last checkpoint; no signature covers them yet.
    unsigned: int = 0
    #: `seq` of the first and the last event.
    first_seq: int = 0
    last_seq: int = 0
    #: Place of the last event in the trail of Redis.
    last_place: tuple[int, ...] = ()
    #: Digest of the last line.
    head: str = FIRST_PREV
    findings: list[Finding] = field(default_factory=list)
    #: Events that Redis lost before they were written here, or afterwards. The files are as they were written.
    gaps: list[str] = field(default_factory=list)


def verify_files(path: Path, bundle: TrustBundle, writer: SpiffeId, heads: Iterable[str] = ()) -> Report:
    """Verify a chain: every line, every checkpoint, and that it contains the checkpoints stored elsewhere.

    Args:
        path: the current file, or its folder.
        bundle: roots that checkpoints are verified with.
        writer: the identity that signs checkpoints.
        heads: signed checkpoints that were stored elsewhere; the chain must contain the line that each signs.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    verification = _Verification(path, bundle, writer)
    for token in heads:
        verification.expect(token)
    files = audit_files(path)
    for file, number, raw in read_lines(files):
        if len(verification.report.findings) >= MAX_FINDINGS:
            verification.found("more findings may follow; the verification ended here", file, number)
            return verification.report
        verification.check_line(file, number, raw)
    verification.finish(files[-1])
    return verification.report


class _Verification:
    """The state of a verification between two lines."""

    def __init__(self, path: Path, bundle: TrustBundle, writer: SpiffeId) -> None:
        self.report = Report()
        self._bundle = bundle
        self._writer = writer
        #: Heads stored elsewhere that were not reached yet, by the number of their line.
        self._wanted: dict[int, str] = {}
        #: Number of the next line; None before the first line.
        self._next_line: int | None = None
        #: Number of the first line; lines before it were archived with their file.
        self._first_line = 0
        self._file = path
        self._number = 0

    def found(self, problem: str, file: Path | None = None, number: int | None = None) -> None:
        """Add a finding, by default at the current line."""
        place = (self._file if file is None else file, self._number if number is None else number)
        self.report.findings.append(Finding(*place, problem))

    def expect(self, token: str) -> None:
        """Require the line that a checkpoint stored elsewhere signs."""
        checkpoint = self._read_checkpoint(token)
        if isinstance(checkpoint, str):
            self.found(f"the head given {checkpoint}")
        else:
            self._wanted[checkpoint.line] = checkpoint.head

    def check_line(self, file: Path, number: int, raw: bytes) -> None:
        """Check the next line of the chain, given with its line break."""
        self._file, self._number = file, number
        line = raw.rstrip(b"\n")
        content = _parse(line, complete=raw.endswith(b"\n"))
        if isinstance(content, str):
            self.found(content)
            self.report.head = line_digest(line)
            self._next_line = None if self._next_line is None else self._next_line + 1
            return
        self._check_link(content)
        self.report.head = line_digest(line)
        self.report.lines += 1
        if "event" in content:
            self._check_event(content["event"])
        elif "checkpoint" in content:
            self._check_checkpoint(content)
        self._check_head(content["line"])
        self._next_line = content["line"] + 1

    def finish(self, last: Path) -> None:
        """Run the checks that need the end of the last file."""
        report = self.report
        if report.unreadable > MAX_FINDINGS:
            report.gaps.append(f"in all, {report.unreadable} entries of the trail in Redis could not be read")
        for missing in sorted(line for line in self._wanted if line >= self._first_line):
            problem = "which a head stored elsewhere signs, is missing: the end of the chain was removed"
            self.found(f"line {missing} of the chain, {problem}", last, 0)
        if report.unsigned > CHECKPOINT_EVENTS:
            rule = f"there must be one at least every {CHECKPOINT_EVENTS} events"
            self.found(f"the last {report.unsigned} events have no checkpoint; {rule}", last, 0)

    def _check_link(self, content: dict[str, Any]) -> None:
        """Check that a line has the next number and the digest of the previous line."""
        if self._next_line is None:
            # The oldest file may be one whose predecessors were archived.
            self._next_line = self._first_line = content["line"]
            self.report.head = content["prev"]
            if content["line"] == 1 and content["prev"] != FIRST_PREV:
                self.found("begins a chain, but refers to a line before it")
        if content["line"] != self._next_line:
            problem = "lines were deleted, inserted or moved"
            self.found(f"is line {content['line']} of the chain where {self._next_line} follows: {problem}")
        if content["prev"] != self.report.head:
            problem = "that line was changed, or lines were deleted, inserted or moved"
            self.found(f"does not follow the line before it: {problem}")

    def _check_event(self, content: object) -> None:
        """Check an event, and note the events that Redis lost before it."""
        report = self.report
        try:
            event = ExecAuditLog.model_validate(content)
        except ValidationError as error:
            self.found(f"is not an event: {describe_validation_error(error)}")
            return
        report.events += 1
        report.unsigned += 1
        if not PLACE.fullmatch(event.cursor):
            self.found(f"is event {event.seq} at {event.cursor[:80]!r}, which is no place in a stream")
            return
        place = tuple(map(int, event.cursor.split("-")))
        if place <= report.last_place:
            self.found(f"is event {event.seq} at {event.cursor}, which belongs before the event that precedes it")
        elif not event.seq:
            report.unreadable += 1
            if report.unreadable <= MAX_FINDINGS:
                report.gaps.append(f"at {event.cursor} the trail in Redis had an entry that could not be read")
            report.last_place = place
            return
        elif event.seq <= report.last_seq:
            problem = f"Redis returned to an older state and counts from {event.seq}"
            report.gaps.append(f"after event {report.last_seq} {problem}")
        elif report.last_seq and event.seq != report.last_seq + 1:
            missing = f"{report.last_seq + 1} to {event.seq - 1}"
            report.gaps.append(f"events {missing} were gone from Redis before they were written here")
        report.first_seq = report.first_seq or event.seq
        report.last_seq, report.last_place = event.seq, place

    def _check_checkpoint(self, content: dict[str, Any]) -> None:
        """Check that a checkpoint signs the line before it."""
        checkpoint = self._read_checkpoint(content["checkpoint"])
        if isinstance(checkpoint, str):
            self.found(f"the checkpoint {checkpoint}")
        elif (checkpoint.line, checkpoint.head) != (content["line"] - 1, content["prev"]):
            self.found("the checkpoint signs another chain: the lines before it were rewritten")
        else:
            self.report.checkpoints += 1
            self.report.unsigned = 0

    def _check_head(self, line: int) -> None:
        """Compare a line with the head that is stored elsewhere for it, if there is one."""
        if self._wanted.pop(line, self.report.head) != self.report.head:
            self.found("is not the line that a head stored elsewhere signs: the lines before it were rewritten")

    def _read_checkpoint(self, token: object) -> AuditCheckpoint | str:
        """Return a verified checkpoint, or the reason why it is not accepted."""
        if not isinstance(token, str):
            return "is not a signed message"
        try:
            return verify(token, AuditCheckpoint, self._bundle, self._writer, kept=True)
        except InvalidSignature as error:
            return str(error)


def _parse(line: bytes, *, complete: bool) -> dict[str, Any] | str:
    """Return the content of a line, or the problem with it."""
    if not complete:
        return "is not complete: it is longer than any line, or its end is missing"
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return "is not JSON"
    if (
        not isinstance(content, dict)
        or type(content.get("line")) is not int
        or not isinstance(content.get("prev"), str)
        or len(content.keys() & {"event", "checkpoint", "chain"}) != 1
    ):
        return "is not a line of an audit log"
    return content
