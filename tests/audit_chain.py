"""Chains of the audit log for tests, and the identities that sign them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tachikoma.audit.chain import ChainEnd
from tachikoma.audit.verification import Report, verify_files
from tachikoma.dev.ca import DevelopmentCA
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.signed_messages import AuditCheckpoint
from tachikoma.identity.signing import sign
from tachikoma.identity.spiffe import service_id
from tachikoma.vocabulary.audit import ExecAuditLog

DOMAIN = "tachikoma.local"
WRITER = service_id(DOMAIN, "orchestrator")
#: A size that no file of a test has.
BIG = 1024 * 1024 * 1024


def writer(folder: Path) -> FileSvidSource:
    """Return an identity of the writer's name, of an authority of its own."""
    DevelopmentCA(folder / "ca", DOMAIN).issue(WRITER, folder / "orchestrator")
    return FileSvidSource(folder / "orchestrator")


def event(seq: int, **values: Any) -> ExecAuditLog:
    at = datetime(2026, 1, 31, 12, tzinfo=UTC) + timedelta(seconds=seq)
    return ExecAuditLog(
        cursor=f"{1_769_860_800_000 + seq}-0", seq=seq, time=at, event="admitted", id=f"e{seq}", **values
    )


def events(first: int, last: int) -> list[ExecAuditLog]:
    return [event(seq) for seq in range(first, last + 1)]


def checkpoint(end: ChainEnd, identity: FileSvidSource) -> str:
    """Sign the end of a chain."""
    svid = identity.current()
    claims = AuditCheckpoint(
        iss=str(svid.spiffe_id), iat=int(time.time()), line=end.line, head=end.head, seq=end.seq
    )  # fmt: skip
    return sign(svid, claims)


def chain(identity: FileSvidSource, given: Sequence[ExecAuditLog], *, every: int = 0) -> list[bytes]:
    """Return the lines of a chain with events, signed at the end and, unless it is 0, after every so many events."""
    line, end = ChainEnd().append("chain", {"writer": str(WRITER), "host": "h", "began": "2026-01-31T12:00:00Z"})
    lines = [line]
    for number, item in enumerate(given, 1):
        line, end = end.append_event(item)
        lines.append(line)
        if number == len(given) or (every and number % every == 0):
            line, end = end.append_checkpoint(checkpoint(end, identity))
            lines.append(line)
    return [line + b"\n" for line in lines]


def verified(path: Path, identity: FileSvidSource, *heads: str) -> Report:
    return verify_files(path, identity.current().bundle, WRITER, heads)


def last_checkpoint(path: Path) -> str:
    found = [json.loads(line).get("checkpoint") for line in path.read_bytes().splitlines()]
    return [token for token in found if token][-1]
