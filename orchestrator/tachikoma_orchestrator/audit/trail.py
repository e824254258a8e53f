"""The audit trail: a Redis stream to which only the scripts in `lua/` append, numbered without a hole.

`docs/audit.md` lists the events. Commands are redacted before they get here (`tachikoma.policy.redaction`).
Whoever owns Redis can put there what is no event: readers and sinks get `trail_altered` in its place, without a number.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from pydantic import ValidationError
from redis.exceptions import ResponseError

from tachikoma.audit.chain import MAX_LINE_BYTES
from tachikoma.errors import Unavailable
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import MAX_NUMBER, AuditCode, AuditedRequest, ExecAuditLog
from tachikoma.vocabulary.model import describe_validation_error
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.store.scripts import Runner, Script

__all__ = ["AuditTrail", "SinkPosition", "audited", "parse", "read_entries"]

log = structlog.get_logger(__name__)

#: An entry of the stream as redis-py gives it.
Entry = tuple[bytes, dict[bytes, bytes]]

#: Events read in one round trip, and round trips that one search takes at the most.
BATCH = 1000
MAX_STEPS = 100
#: Longest reason kept.
MAX_REASON = 2000
#: Longest reason why an entry cannot be read.
MAX_UNREADABLE = 200
#: An entry of so few bytes is not measured as the line it becomes; six times as many would still fit.
SMALL_BYTES = 64 * 1024
#: Room in a line of an audit log for what stands around the event.
LINE_MARGIN = 1024
#: The last moment a time can be of, in ms.
LAST_MS = 253_402_300_799_999


def audited(request: ExecRequest, shown: tuple[str, ...]) -> AuditedRequest:
    """What may be kept of a request, with its redacted argv."""
    return AuditedRequest(
        command=shown,
        work_dir=request.work_dir,
        # Values may be secrets; the order carries them, nothing else does.
        environment=tuple(sorted(request.environment)),
        timeout=None if request.timeout is None else request.timeout.total_seconds(),
        user=request.user,
        interactive=request.interactive,
        tty=request.tty,
        stdin_bytes=len(request.stdin),
    )


class AuditTrail:
    """Appends events, and reads them."""

    def __init__(self, redis: Redis, *, key: bytes = b"") -> None:
        """Prepare a trail.

        Args:
            redis: the connections.
            key: of the HMAC over commands; without one there is none.
        """
        self._redis = redis
        self._key = key
        self._runner = Runner(redis)
        self._append = Script("audit")
        #: Why no more events may be made by asking, or nothing; the shipper says.
        self.behind = ""

    def check(self) -> None:
        """See that requests may leave events.

        Raises:
            Unavailable: too many wait for a sink.
        """
        if self.behind:
            raise Unavailable(
                f"nothing is accepted while it cannot be recorded: {self.behind}",
                metadata={"dependency": "audit"},
                retry_after_seconds=5,
            )

    def request_fields(
        self, request: ExecRequest, *, policy: str, client_ip: str, authorized: bool, shown: tuple[str, ...]
    ) -> list[str]:
        """Names and values of an event about a decision on a request, but its code; `shown` is its redacted argv."""
        fields = [
            "id", request.id, "agent_id", request.agent_id, "requested_by", request.requested_by,
            "command", shlex.join(shown), "client_ip", client_ip,
            "authorized", "1" if authorized else "0", "policy", policy,
            "request", audited(request, shown).to_json(),
        ]  # fmt: skip
        if self._key:
            fields += ("command_hmac", self._hmac(request))
        return fields

    def _hmac(self, request: ExecRequest) -> str:
        # Joined so that no other argv gives the same.
        return hmac.new(self._key, json.dumps(request.command).encode(), hashlib.sha256).hexdigest()

    def keyed(self, *parts: str) -> str:
        """A digest of texts, in hexadecimal: the same in all orchestrators, and nobody else's where there is a key."""
        return hmac.new(self._key, json.dumps(parts).encode(), hashlib.sha256).hexdigest()

    async def refuse(
        self, request: ExecRequest, code: AuditCode, *,
        policy: str, reason: str, client_ip: str, shown: tuple[str, ...], rule: str = "",
    ) -> None:  # fmt: skip
        """Put a refusal on the record; it never becomes an execution. `shown` is the redacted argv."""
        fields = self.request_fields(request, policy=policy, client_ip=client_ip, authorized=False, shown=shown)
        await self._write(["event", code, *fields, "reason", reason[:MAX_REASON], *(["rule", rule] if rule else [])])

    async def append(self, code: AuditCode, **fields: str) -> None:
        """Append an event about something else than a request."""
        flat = [part for name, value in fields.items() for part in (name, value[:MAX_REASON])]
        await self._write(["event", code, *flat])

    async def _write(self, event: list[str]) -> None:
        await self._runner.run(self._append(keys=[keys.AUDIT], args=event))

    async def read(self, *, after: str, limit: int, exec_id: str = "") -> list[ExecAuditLog]:
        """Events after a cursor, oldest first; without one, the latest.

        An execution's events all lie near its own times, but the trail is read from its end in bounded steps, so
        those of a very old execution are found by its cursor rather than by its id.
        """
        found: list[ExecAuditLog] = []
        if after:
            position = f"({after}"
            while len(found) < limit:
                entries = await self._redis.xrange(keys.AUDIT, position, "+", count=BATCH)
                found += [event for event in read_entries(entries) if not exec_id or event.id == exec_id]
                if len(entries) < BATCH:
                    break
                position = f"({entries[-1][0].decode()}"
            return found[:limit]
        position, steps = "+", 0
        while len(found) < limit and steps < MAX_STEPS:
            entries = await self._redis.xrevrange(keys.AUDIT, position, "-", count=BATCH)
            found += [event for event in read_entries(entries) if not exec_id or event.id == exec_id]
            if len(entries) < BATCH:
                break
            position, steps = f"({entries[-1][0].decode()}", steps + 1
        return found[:limit][::-1]

    async def trim(self, now_ms: int, *, retention: timedelta, events: int, closed: bool) -> None:
        """Let go of what is past its retention; of nothing where Redis cannot say what that is.

        Args:
            now_ms: by the clock of Redis.
            retention, events: how long, and how many, are kept.
            closed: whether what a sink has not taken yet is kept all the same.
        """
        try:
            await self._trim(now_ms, retention=retention, events=events, closed=closed)
        except (ValueError, ResponseError) as error:
            if isinstance(error, ResponseError) and not wrong_type(error):
                raise
            log.error("audit.not_trimmed", reason=str(error)[:MAX_UNREADABLE])

    async def _trim(self, now_ms: int, *, retention: timedelta, events: int, closed: bool) -> None:
        oldest_ms = now_ms - round(retention.total_seconds() * 1000)
        oldest, by_number = f"{oldest_ms}-0", True
        if closed:
            latest = int(await self._redis.get(keys.AUDIT_SEQ) or 0)
            for raw in await self._redis.hvals(keys.AUDIT_SINKS):
                sink = SinkPosition.read(raw)
                # One that was not heard of for so long has no claim any more.
                if sink is not None and sink.at * 1000 >= oldest_ms:
                    oldest = min(oldest, sink.cursor, key=_order)
                    by_number = by_number and latest - sink.seq <= events
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.xtrim(keys.AUDIT, minid=oldest, approximate=True)
            if by_number:
                pipe.xtrim(keys.AUDIT, maxlen=events, approximate=True)
            await pipe.execute()


def _order(cursor: str) -> tuple[int, int]:
    time_ms, _, number = cursor.partition("-")
    return int(time_ms), int(number or 0)


@dataclass(frozen=True, slots=True)
class SinkPosition:
    """How far a sink is, as it stands in `orch:audit:sinks`."""

    #: Place in the trail of the last event it took, and that event's number.
    cursor: str
    seq: int
    #: When that was written, in seconds since the epoch.
    at: int

    @classmethod
    def read(cls, raw: bytes) -> SinkPosition | None:
        """A position; None where it is none that this program wrote."""
        try:
            kept = json.loads(raw)
            position = cls(kept["cursor"], kept["seq"], kept["at"])
            if type(position.seq) is not int or type(position.at) is not int or abs(position.seq) > MAX_NUMBER:
                return None
            if not re.fullmatch("[0-9]{1,20}-[0-9]{1,20}", position.cursor) or max(_order(position.cursor)) >= 2**64:
                return None
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return position

    def to_json(self) -> str:
        return json.dumps({"cursor": self.cursor, "seq": self.seq, "at": self.at})


def read_entries(entries: Iterable[Entry]) -> list[ExecAuditLog]:
    """Entries of the stream as events; what cannot be read is in the log, one line for all of it."""
    events = [parse(entry) for entry in entries]
    altered = [event for event in events if not event.seq]
    if altered:
        log.error("audit.unreadable", entries=len(altered), first=altered[0].cursor, reason=altered[0].reason)
    return events


def parse(entry: Entry) -> ExecAuditLog:
    """An entry of the stream as an event: `trail_altered` where it is none."""
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
        time=datetime.fromtimestamp(time_ms / 1000, UTC),
        event=AuditCode.TRAIL_ALTERED,
        reason=f"what stands here in Redis is no event: {why[:MAX_UNREADABLE]}",
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
        time=datetime.fromtimestamp(int(cursor.partition(b"-")[0]) / 1000, UTC),
        event=fields["event"],
        id=fields.get("id", ""),
        agent_id=fields.get("agent_id", ""),
        requested_by=fields.get("requested_by", ""),
        command=fields.get("command", ""),
        exit_code=int(fields.get("exit_code", -1)),
        start_time=datetime.fromtimestamp(started / 1000, UTC) if started else None,
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
    )
