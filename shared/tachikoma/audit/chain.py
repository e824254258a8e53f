"""The audit log as files: one JSON object a line, each with the SHA-256 of the line before it.

    {"line":1,"prev":"00…","chain":{"writer":"spiffe://…/service/orchestrator","host":"control-1","began":"…"}}
    {"line":2,"prev":"5a…","event":{"cursor":"…","seq":17,"event":"admitted",…}}
    {"line":3,"prev":"e1…","checkpoint":"<signed>"}

A line that is changed, deleted, inserted or moved breaks the chain (`verification`). An attacker who can write the
file can also write a new chain, but cannot sign its checkpoints. A checkpoint that is stored elsewhere (the writer logs
each) shows that the end of a chain was removed. A new file continues the chain of the previous one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.audit import ExecAuditLog
from tachikoma.vocabulary.model import describe_validation_error

__all__ = [
    "CHECKPOINT_EVENTS",
    "FIRST_PREV",
    "MAX_LINE_BYTES",
    "PLACE",
    "ChainEnd",
    "audit_files",
    "encode",
    "last_number",
    "line_digest",
    "read_end",
    "read_events",
    "read_lines",
]

#: The `prev` of a chain's first line.
FIRST_PREV = "0" * 64
#: Largest number of events between two checkpoints.
CHECKPOINT_EVENTS = 1000
#: Longest line that is read: all parts of an event are bounded.
MAX_LINE_BYTES = 1024 * 1024
#: The place of an event in the trail: the id of an entry of a stream, as Redis writes it.
PLACE = re.compile("[0-9]{1,20}-[0-9]{1,20}")
#: Bytes read at once from the end of a file.
BLOCK_BYTES = 256 * 1024


def encode(content: dict[str, Any]) -> bytes:
    """Return an object as a line of JSON, without the line break."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()


def line_digest(line: bytes) -> str:
    """Return the `prev` of the line that follows this one; the line is given without its line break."""
    return hashlib.sha256(line).hexdigest()


def last_number(events: Sequence[ExecAuditLog], before: int) -> int:
    """Return the number of the last event that has one, or `before` if none has."""
    return next((event.seq for event in reversed(events) if event.seq), before)


@dataclass(frozen=True, slots=True)
class ChainEnd:
    """The end of a chain: everything that its next line continues."""

    #: Number and digest of the last line; 0 and `FIRST_PREV` if there is none.
    line: int = 0
    head: str = FIRST_PREV
    #: Place of the last event in the trail of Redis, and the number of the last event that has one.
    cursor: str = "0-0"
    seq: int = 0
    #: Number of events after the last checkpoint.
    unsigned: int = 0

    def append(self, kind: str, content: Any) -> tuple[bytes, ChainEnd]:
        """Return the next line of the chain, without its line break, and the end after it."""
        line = encode({"line": self.line + 1, "prev": self.head, kind: content})
        return line, replace(self, line=self.line + 1, head=line_digest(line))

    def append_event(self, event: ExecAuditLog) -> tuple[bytes, ChainEnd]:
        """Return the line of an event, and the end of the chain after it."""
        line, end = self.append("event", event.to_dict())
        return line, replace(end, cursor=event.cursor, seq=event.seq or self.seq, unsigned=self.unsigned + 1)

    def append_checkpoint(self, token: str) -> tuple[bytes, ChainEnd]:
        """Return the line of a signed `AuditCheckpoint` of this end, and the end of the chain after it."""
        line, end = self.append("checkpoint", token)
        return line, replace(end, unsigned=0)


def audit_files(path: Path) -> list[Path]:
    """Return the files of one chain, oldest first: the full ones, `<name>-<first line>.jsonl`, and the current one.

    Args:
        path: the current file, or its folder.

    Raises:
        ConfigurationError: there is no file.
    """
    if path.is_dir():
        path = path / "audit.jsonl"
    full = re.compile(rf"{re.escape(path.stem)}-[0-9]{{12}}{re.escape(path.suffix)}")
    found = sorted(file for file in path.parent.glob(f"{path.stem}-*{path.suffix}") if full.fullmatch(file.name))
    if path.exists():
        found.append(path)
    if not found:
        raise ConfigurationError(f"there is no audit log at {path}")
    return found


def read_lines(files: Iterable[Path]) -> Iterator[tuple[Path, int, bytes]]:
    """Yield each line of some files: the file, the line's number from 1, and the line with its line break.

    Raises:
        ConfigurationError: a file cannot be read.
    """
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
    """Read the events of a chain's files, oldest first, without verifying the chain.

    Args:
        path: the current file, or its folder.

    Raises:
        ConfigurationError: a file cannot be read, or contains a line that is not an event.
    """
    for file, number, line in read_lines(audit_files(path)):
        try:
            content = json.loads(line)
            if "event" in content:
                yield ExecAuditLog.model_validate(content["event"])
        except ValidationError as error:
            raise ConfigurationError(f"{file}:{number}: {describe_validation_error(error)}") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigurationError(f"{file}:{number}: not a line of an audit log: {error}") from None


def read_end(files: Sequence[Path]) -> ChainEnd:
    """Read the end of a chain from its complete lines; bytes after the last line break of a file are ignored.

    Reads backwards until the last event, its number and the last checkpoint are known. All three may be in an older
    file than the last line.

    Args:
        files: the files of the chain, oldest first.

    Raises:
        OSError: a file cannot be read.
        ValueError: a line is not one of an audit log.
    """
    end = ChainEnd()
    signed = False
    for line in _lines_backwards(files):
        try:
            content = json.loads(line)
            if not end.line:
                end = replace(end, line=int(content["line"]), head=line_digest(line))
            if "event" in content:
                event = content["event"]
                if not PLACE.fullmatch(event["cursor"]):
                    raise ValueError(f"its event is at {event['cursor'][:80]!r}, which is no place in a stream")
                end = replace(
                    end,
                    cursor=event["cursor"] if end.cursor == "0-0" else end.cursor,
                    seq=end.seq or int(event["seq"]),
                    unsigned=end.unsigned + (not signed),
                )
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
            raise ValueError(f"a line is not one of an audit log: {error!r}") from None
        signed = signed or "checkpoint" in content
        if signed and end.seq:
            break
    return end


def _lines_backwards(files: Sequence[Path]) -> Iterator[bytes]:
    """Read the complete lines of files without their line breaks, the last one first."""
    for file in reversed(files):
        with file.open("rb") as opened:
            position = opened.seek(0, os.SEEK_END)
            rest = b""
            complete = False
            while position:
                size = min(BLOCK_BYTES, position)
                position = opened.seek(position - size)
                first, *lines = (opened.read(size) + rest).split(b"\n")
                rest = first
                if lines and not complete:
                    # Behind the last line break: an incomplete line, or nothing.
                    lines.pop()
                    complete = True
                yield from reversed(lines)
            if complete:
                yield rest
