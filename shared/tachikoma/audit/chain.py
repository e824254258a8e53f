"""The audit trail as files: one JSON object a line, each with the SHA-256 of the line before it.

    {"line":1,"prev":"00…","chain":{"writer":"spiffe://…/service/orchestrator","host":"control-1","began":"…"}}
    {"line":2,"prev":"5a…","event":{"cursor":"…","seq":17,"event":"admitted",…}}
    {"line":3,"prev":"e1…","checkpoint":"<signed>"}

A line that is changed, deleted, inserted or moved breaks the chain. Whoever can write the file can make a new chain,
but not sign the checkpoints in it; and a checkpoint kept elsewhere (`AuditCheckpoint`; the writer logs each) shows when
the end was cut off. Rotated files go on with the same chain.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tachikoma.errors import ConfigurationError
from tachikoma.identity.signed_messages import AuditCheckpoint, InvalidSignature, verify
from tachikoma.identity.spiffe import SpiffeId, TrustBundle
from tachikoma.vocabulary.audit import ExecAuditLog
from tachikoma.vocabulary.model import describe_validation_error

__all__ = [
    "CHECKPOINT_EVENTS",
    "FIRST_PREV",
    "Finding",
    "Report",
    "audit_files",
    "last_number",
    "line_digest",
    "read_events",
    "verify_files",
]

#: The `prev` of a chain's first line.
FIRST_PREV = "0" * 64
#: Events between two checkpoints at the most.
CHECKPOINT_EVENTS = 1000
#: Longest line that is read: an event's parts are all bounded.
MAX_LINE_BYTES = 1024 * 1024
#: Findings after which a file is not looked at further.
MAX_FINDINGS = 100


def line_digest(line: bytes) -> str:
    """What the next line's `prev` says of a line, given without its end."""
    return hashlib.sha256(line).hexdigest()


def audit_files(path: Path) -> list[Path]:
    """The files of one chain, oldest first: those put aside, named `<name>-<first line>.jsonl`, and the current.

    Raises:
        ConfigurationError: there is none.
    """
    if path.is_dir():
        path = path / "audit.jsonl"
    rotated = re.compile(rf"{re.escape(path.stem)}-[0-9]{{12}}{re.escape(path.suffix)}")
    found = sorted(file for file in path.parent.glob(f"{path.stem}-*{path.suffix}") if rotated.fullmatch(file.name))
    if path.exists():
        found.append(path)
    if not found:
        raise ConfigurationError(f"there is no audit log at {path}")
    return found


def last_number(events: Sequence[ExecAuditLog], before: int) -> int:
    """Number of the last of some events that has one; else of the one before them."""
    return next((event.seq for event in reversed(events) if event.seq), before)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written."""

    file: Path
    #: Line of the file, from 1.
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


@dataclass(slots=True)
class Report:
    """What a verification found."""

    lines: int = 0
    events: int = 0
    #: Of the events, those that stand for something in Redis that could not be read.
    unreadable: int = 0
    checkpoints: int = 0
    #: Events after the last checkpoint; nobody signed for them yet.
    unsigned: int = 0
    #: `seq` of the first and last event.
    first_seq: int = 0
    last_seq: int = 0
    #: Place in Redis of the last event.
    last_place: tuple[int, ...] = ()
    #: Digest of the last line.
    head: str = FIRST_PREV
    findings: list[Finding] = field(default_factory=list)
    #: What Redis no longer had when it was to be written here, or lost afterwards. The file is as it was written.
    gaps: list[str] = field(default_factory=list)


def _lines(files: Iterable[Path]) -> Iterator[tuple[Path, int, bytes]]:
    for file in files:
        try:
            with file.open("rb") as opened:
                number = 0
                while line := opened.readline(MAX_LINE_BYTES):
                    number += 1
                    yield file, number, line
        except OSError as error:
            raise ConfigurationError(f"cannot read the audit log {file}: {error.strerror}") from error


def read_events(path: Path) -> Iterator[ExecAuditLog]:
    """The events of a chain's files, oldest first, whether or not the chain holds.

    Raises:
        ConfigurationError: a file cannot be read, or holds what is no event.
    """
    for file, number, line in _lines(audit_files(path)):
        try:
            content = json.loads(line)
            if "event" in content:
                yield ExecAuditLog.model_validate(content["event"])
        except ValidationError as error:
            raise ConfigurationError(f"{file}:{number}: {describe_validation_error(error)}") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigurationError(f"{file}:{number}: is no line of an audit log: {error}") from None


def verify_files(path: Path, bundle: TrustBundle, writer: SpiffeId, heads: Iterable[str] = ()) -> Report:
    """Verify a chain: every line, every checkpoint, and that it reaches the heads kept elsewhere.

    Args:
        path: the current file, or its folder.
        bundle: roots that checkpoints are verified with.
        writer: the identity that signs checkpoints.
        heads: signed checkpoints that were kept elsewhere; the chain must hold what each vouches for.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    report = Report()
    files = audit_files(path)
    wanted: dict[int, str] = {}
    for token in heads:
        checkpoint = _checkpoint(token, bundle, writer)
        if isinstance(checkpoint, str):
            report.findings.append(Finding(path, 0, f"the head given {checkpoint}"))
        else:
            wanted[checkpoint.line] = checkpoint.head
    expected_line: int | None = None
    first_line = 0
    for file, number, raw in _lines(files):
        if len(report.findings) >= MAX_FINDINGS:
            report.findings.append(Finding(file, number, "and so on; the rest was not looked at"))
            return report

        def found(what: str, file: Path = file, number: int = number) -> None:
            report.findings.append(Finding(file, number, what))

        line = raw.rstrip(b"\n")
        content = _parse(line, complete=raw.endswith(b"\n"))
        if isinstance(content, str):
            found(content)
            report.head = line_digest(line)
            expected_line = None if expected_line is None else expected_line + 1
            continue
        if expected_line is None:
            # The oldest file there is may be one whose predecessors were archived.
            expected_line, report.head = content["line"], content["prev"]
            first_line = expected_line
            if content["line"] == 1 and content["prev"] != FIRST_PREV:
                found("begins a chain, but says that a line was before it")
        if content["line"] != expected_line:
            why = "lines were deleted, inserted or moved"
            found(f"is line {content['line']} of the chain where {expected_line} follows: {why}")
            expected_line = content["line"]
        if content["prev"] != report.head:
            found("does not follow the line before it: that was changed, or lines were deleted, inserted or moved")
        report.head = line_digest(line)
        report.lines += 1
        if "event" in content:
            _look_at_event(content["event"], report, found)
        elif "checkpoint" in content:
            checkpoint = _checkpoint(content["checkpoint"], bundle, writer)
            if isinstance(checkpoint, str):
                found(f"the checkpoint {checkpoint}")
            elif (checkpoint.line, checkpoint.head) != (content["line"] - 1, content["prev"]):
                found("the checkpoint vouches for another chain: what is before it was written anew")
            else:
                report.checkpoints += 1
                report.unsigned = 0
        if wanted.get(content["line"], report.head) != report.head:
            found("is not the line that a head kept elsewhere vouches for: what is before it was written anew")
        wanted.pop(content["line"], None)
        expected_line += 1
    if report.unreadable > MAX_FINDINGS:
        report.gaps.append(f"and so on: what could not be read stood in Redis at {report.unreadable} places")
    last = files[-1]
    # Lines before the first there is were archived with their file.
    for missing in sorted(line for line in wanted if line >= first_line):
        why = "which a head kept elsewhere vouches for, is missing: the end was cut off"
        report.findings.append(Finding(last, 0, f"line {missing} of the chain, {why}"))
    if report.unsigned > CHECKPOINT_EVENTS:
        why = f"have no checkpoint; there is one at least every {CHECKPOINT_EVENTS} events"
        report.findings.append(Finding(last, 0, f"the last {report.unsigned} events {why}"))
    return report


def _look_at_event(event: Any, report: Report, found: Callable[[str], None]) -> None:
    try:
        parsed = ExecAuditLog.model_validate(event)
    except ValidationError as error:
        found(f"is no event: {describe_validation_error(error)}")
        return
    report.events += 1
    report.unsigned += 1
    place = tuple(int(part) for part in re.findall("[0-9]+", parsed.cursor))
    if place <= report.last_place:
        found(f"is event {parsed.seq} at {parsed.cursor}, which belongs before the event that stands before it")
    elif not parsed.seq:
        report.unreadable += 1
        if report.unreadable <= MAX_FINDINGS:
            report.gaps.append(f"at {parsed.cursor} Redis had what could not be read as an event")
        report.last_place = place
        return
    elif parsed.seq <= report.last_seq:
        report.gaps.append(
            f"after event {report.last_seq} Redis went back to an older state, and counts from {parsed.seq}"
        )
    elif report.last_seq and parsed.seq != report.last_seq + 1:
        gone = f"{report.last_seq + 1} to {parsed.seq - 1}"
        report.gaps.append(f"events {gone} were gone from Redis before they were written here")
    report.first_seq = report.first_seq or parsed.seq
    report.last_seq, report.last_place = parsed.seq, place


def _parse(line: bytes, *, complete: bool) -> dict[str, Any] | str:
    """A line's content, or what is wrong with it."""
    if not complete:
        return "is not complete: it is longer than any line, or its end is missing"
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return "is no JSON"
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("line"), int)
        or not isinstance(content.get("prev"), str)
        or len(content.keys() & {"event", "checkpoint", "chain"}) != 1
    ):
        return "is no line of an audit log"
    return content


def _checkpoint(token: Any, bundle: TrustBundle, writer: SpiffeId) -> AuditCheckpoint | str:
    """A checkpoint, or why it is not believed."""
    if not isinstance(token, str):
        return "is no signed message"
    try:
        return verify(token, AuditCheckpoint, bundle, writer, kept=True)
    except InvalidSignature as error:
        return str(error)
