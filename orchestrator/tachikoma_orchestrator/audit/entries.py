"""The entries of the trail in Redis as audit events.

An attacker who owns Redis can write any entry. Readers and sinks get `trail_altered`, without a number, in place of an
entry that is not an event.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import structlog
from pydantic import ValidationError

from tachikoma.audit.chain import MAX_LINE_BYTES
from tachikoma.redis.commands import Entry
from tachikoma.vocabulary.audit import AuditCode, AuditedRequest, ExecAuditLog
from tachikoma.vocabulary.clock import LAST_MS, from_ms, optional_from_ms
from tachikoma.vocabulary.model import describe_validation_error

__all__ = ["parse", "read_entries"]

log = structlog.get_logger(__name__)

#: Longest reason why an entry cannot be read, in characters.
MAX_UNREADABLE = 200
#: An entry of at most this many bytes fits into a line of an audit log, even if its JSON is six times as long.
SMALL_BYTES = 64 * 1024
#: Bytes of a line of an audit log that surround the event.
LINE_MARGIN = 1024


def read_entries(entries: Iterable[Entry]) -> list[ExecAuditLog]:
    """Convert entries of the stream to events; log one line for all that cannot be read."""
    events = [parse(entry) for entry in entries]
    altered = [event for event in events if not event.seq]
    if altered:
        log.error("audit.unreadable", entries=len(altered), first=altered[0].cursor, reason=altered[0].reason)
    return events


def parse(entry: Entry) -> ExecAuditLog:
    """Convert an entry of the stream to an event: `trail_altered` if the entry is not an event."""
    cursor, raw = entry
    try:
        event = _event(cursor, raw)
        if sum(map(len, raw.values())) > SMALL_BYTES and len(event.to_json()) > MAX_LINE_BYTES - LINE_MARGIN:
            raise ValueError("it is larger than any event")
        return event
    except ValidationError as error:
        why = describe_validation_error(error)
    except KeyError as error:
        why = f"it has no field {error}"
    except (ValueError, OverflowError, OSError) as error:
        why = str(error)
    time_ms = min(int(cursor.partition(b"-")[0]), LAST_MS)
    return ExecAuditLog(
        cursor=cursor.decode(),
        time=from_ms(time_ms),
        event=AuditCode.TRAIL_ALTERED,
        reason=f"this entry of the trail in Redis is not an event: {why[:MAX_UNREADABLE]}",
    )


def _event(cursor: bytes, raw: dict[bytes, bytes]) -> ExecAuditLog:
    fields: dict[str, Any] = {name.decode(): value.decode() for name, value in raw.items()}
    seq = int(fields["seq"])
    if seq < 1:
        raise ValueError(f"its number is {seq}")
    started = int(fields.get("start_ms") or 0)
    return ExecAuditLog(
        cursor=cursor.decode(),
        seq=seq,
        time=from_ms(int(cursor.partition(b"-")[0])),
        event=fields["event"],
        id=fields.get("id", ""),
        agent_id=fields.get("agent_id", ""),
        requested_by=fields.get("requested_by", ""),
        command=fields.get("command", ""),
        exit_code=int(fields.get("exit_code", -1)),
        start_time=optional_from_ms(started),
        duration=timedelta(microseconds=int(fields.get("duration_us", 0))),
        client_ip=fields.get("client_ip", ""),
        authorized=fields.get("authorized") == "1",
        policy_applied=fields.get("policy", ""),
        reason=fields.get("reason", ""),
        actor=fields.get("actor", ""),
        rule=fields.get("rule", ""),
        request=AuditedRequest.model_validate_json(fields["request"]) if "request" in fields else None,
        command_hmac=fields.get("command_hmac", ""),
        evidence_sha256=fields.get("evidence_sha256", ""),
        batch=fields.get("batch", ""),
    )
