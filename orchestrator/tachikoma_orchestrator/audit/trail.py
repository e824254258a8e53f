"""The audit trail: a Redis stream to which only the scripts in `lua/` append, numbered without a gap.

`docs/audit.md` lists the events. Commands are redacted before they are recorded (`tachikoma.policy.masking.redaction`).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import structlog
from redis.exceptions import RedisError, ResponseError

from tachikoma.errors import Unavailable
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Entry, Redis
from tachikoma.vocabulary.audit import AuditCode, ExecAuditLog
from tachikoma.vocabulary.clock import duration_ms, ms_of_seconds
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.audit.entries import read_entries
from tachikoma_orchestrator.audit.positions import SinkPosition, cursor_order
from tachikoma_orchestrator.audit.refusals import PERIOD_SECONDS, RefusalBudget
from tachikoma_orchestrator.audit.requests import MAX_REFUSED_TEXT, RetainedRequest, clipped, refused, retained
from tachikoma_orchestrator.store.scripts import Runner, Script, flat

__all__ = ["AuditPage", "AuditTrail", "TrailBounds"]

log = structlog.get_logger(__name__)

#: Events read in one round trip, and the largest number of round trips for one page.
BATCH = 1000
MAX_STEPS = 20
#: Longest reason, in characters.
MAX_REASON = 2000


@dataclass(frozen=True, slots=True)
class AuditPage:
    """A part of the trail that a search found."""

    #: Oldest first.
    events: list[ExecAuditLog]
    #: The cursor with which the search goes on: as `after` if it had one, else as `before`. Empty at the end.
    further: str

    @classmethod
    def of(cls, found: list[ExecAuditLog], further: str, *, forward: bool) -> AuditPage:
        """Make a page from events in the order in which they were found."""
        return cls(found if forward else found[::-1], further)


@dataclass(frozen=True, slots=True)
class TrailBounds:
    """The limits of the trail: age and number of its events."""

    #: Lifetime of an event.
    retention: timedelta
    #: Number of events.
    events: int
    #: True if events that a sink has not taken are kept longer.
    closed: bool


class AuditTrail:
    """The trail in Redis: appends and reads events."""

    def __init__(self, redis: Redis, *, key: bytes = b"", refusals: RefusalBudget | None = None) -> None:
        """Prepare a trail.

        Args:
            redis: the connections.
            key: the key of the HMAC over commands; empty for no HMAC.
            refusals: bounds the events about refused requests; None for the default bound.
        """
        #: Bounds the events about refused requests.
        self.refusals = refusals or RefusalBudget()
        self._redis = redis
        self._key = key
        self._runner = Runner(redis)
        self._append = Script("audit")
        #: The reason for which requests are refused because a sink has too much to catch up with; empty if they are
        #: not. Set by the shipper.
        self.closed_reason = ""

    def check(self) -> None:
        """Raise Unavailable if too many events wait for a sink."""
        if self.closed_reason:
            raise Unavailable(
                f"requests are refused while they cannot be recorded: {self.closed_reason}",
                metadata={"dependency": "audit"},
                retry_after_seconds=5,
            )

    def request_fields(
        self, request: ExecRequest, shown: RetainedRequest, *, policy: str, client_ip: str, authorized: bool
    ) -> dict[str, str]:
        """Return the fields of an event that reports a decision on a request, by name.

        Args:
            request: the request.
            shown: the part of it that the event contains.
            policy: the policy that decided, as `name@digest`.
            client_ip: the caller's address; empty if it is unknown.
            authorized: True if policy allows the request.
        """
        fields = {
            "id": request.id, "agent_id": request.agent_id, "requested_by": request.requested_by,
            "command": shown.command, "client_ip": client_ip,
            "authorized": "1" if authorized else "0", "policy": policy,
            "request": shown.request.to_json(),
        }  # fmt: skip
        if self._key:
            fields["command_hmac"] = self._hmac(request)
        return fields

    def admission_fields(
        self, request: ExecRequest, shown: tuple[str, ...], *, policy: str, client_ip: str, batch: str
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Return the fields of the event of an admission, and those of its refusal; none if they are the same.

        Args:
            request, policy, client_ip: as in `request_fields`.
            shown: the redacted argv.
            batch: id of the batch that the request is a part of; empty for none.
        """
        fields = partial(self.request_fields, request, policy=policy, client_ip=client_ip, authorized=True)
        more = {"batch": batch} if batch else {}
        whole = retained(request, shown)
        shorter = refused(whole)
        # Most requests are small.
        return fields(whole) | more, {} if shorter is whole else fields(shorter) | more

    def _hmac(self, request: ExecRequest) -> str:
        # As JSON, so that two different argvs never give the same bytes.
        return hmac.new(self._key, json.dumps(request.command).encode(), hashlib.sha256).hexdigest()

    def keyed(self, *parts: str) -> str:
        """Return a digest of texts in hexadecimal: the same in all orchestrators with the same audit key."""
        return hmac.new(self._key, json.dumps(parts).encode(), hashlib.sha256).hexdigest()

    async def refuse(
        self, request: ExecRequest, code: AuditCode, *,
        policy: str, reason: str, client_ip: str, shown: tuple[str, ...], rule: str = "", batch: str = "",
    ) -> None:  # fmt: skip
        """Record a refusal within the budget of its requester, or count it; the request never becomes an execution.

        `shown` is its redacted argv, `batch` the id of its batch or empty.
        """
        if not self.refusals.admits(request.requested_by):
            self.refusals.leave_out(request.requested_by, code)
            return
        fields = self.request_fields(
            request,
            refused(retained(request, shown)),
            policy=policy,
            client_ip=client_ip,
            # Policy decided about `denied` alone.
            authorized=code is not AuditCode.DENIED,
        )
        fields["reason"] = clipped(reason, MAX_REFUSED_TEXT)
        if rule:
            fields["rule"] = clipped(rule, MAX_REFUSED_TEXT)
        if batch:
            fields["batch"] = batch
        await self._write(code, fields)

    async def append_refusal(self, code: AuditCode, *, subject: str, **fields: str) -> None:
        """Append an event about a refused call, or count it.

        Args:
            code: the code of the event.
            subject: identity of the caller, or its `address_subject`; it has the budget.
            fields: fields of the event.
        """
        if self.refusals.admits(subject):
            # Its certificate bounds the length of an identity, which must stay whole.
            await self.append(
                code, **{name: value if name == "requested_by" else clipped(value, MAX_REFUSED_TEXT)
                         for name, value in fields.items()}
            )  # fmt: skip
        else:
            self.refusals.leave_out(subject, code)

    async def count_refusals(self) -> None:
        """Append an event for each subject whose refusals were left out."""
        for left_out in list(self.refusals.take_left_out()):
            who = {"requested_by" if "://" in left_out.subject else "client_ip": left_out.subject}
            try:
                await self.append(AuditCode.REFUSALS_COUNTED, authorized="0", reason=left_out.reason, **who)
            except (RedisError, OSError):
                # Reported with the next ones.
                for code, number in left_out.numbers.items():
                    self.refusals.leave_out(left_out.subject, code, number)
                raise

    async def run_refusals(self) -> None:
        """Report refusals that were left out in each period, until cancelled, and then once more."""
        try:
            while True:
                await asyncio.sleep(PERIOD_SECONDS)
                with suppress(RedisError, OSError):
                    await self.count_refusals()
        finally:
            with suppress(RedisError, OSError):
                await self.count_refusals()

    async def append(self, code: AuditCode, **fields: str) -> None:
        """Append an event that does not concern a request."""
        await self._write(code, {name: value[:MAX_REASON] for name, value in fields.items()})

    async def _write(self, code: AuditCode, fields: Mapping[str, str]) -> None:
        await self._runner.run(self._append(keys=[keys.AUDIT], args={"event": flat({"event": code, **fields})}))

    async def read(self, *, after: str = "", before: str = "", limit: int, exec_id: str = "") -> AuditPage:
        """Return a page of events, oldest first, after a bounded search.

        Args:
            after: return the first events after this cursor.
            before: return the latest events before this cursor; if both are empty, the latest events of all.
            limit: largest number of events.
            exec_id: only events of this execution; empty for all.
        """
        found: list[ExecAuditLog] = []
        position = after or before
        # Without an id, each event that is read is one that was asked for.
        count = BATCH if exec_id else min(limit, BATCH)
        for _ in range(MAX_STEPS):
            entries = await self._batch(position, count, forward=bool(after))
            wanted = entries if not exec_id else [entry for entry in entries if _names(entry, exec_id)]
            found += read_entries(wanted)
            if len(found) > limit:
                return AuditPage.of(found[:limit], found[limit - 1].cursor, forward=bool(after))
            if len(entries) < count:
                return AuditPage.of(found, "", forward=bool(after))
            position = entries[-1][0].decode()
            if len(found) == limit:
                break
        return AuditPage.of(found, position, forward=bool(after))

    async def _batch(self, position: str, count: int, *, forward: bool) -> list[Entry]:
        """Read entries on one side of a position, the nearest first; an empty position is the end of the trail."""
        if forward:
            return await self._redis.xrange(keys.AUDIT, f"({position}", "+", count=count)
        return await self._redis.xrevrange(keys.AUDIT, f"({position}" if position else "+", "-", count=count)

    async def trim(self, now_ms: int, bounds: TrailBounds) -> None:
        """Delete events beyond the bounds, at a time by the clock of Redis.

        Nothing is deleted if a record of Redis cannot be read.
        """
        try:
            await self._trim(now_ms, bounds)
        except (ValueError, ResponseError) as error:
            if isinstance(error, ResponseError) and not wrong_type(error):
                raise
            log.error("audit.not_trimmed", reason=str(error)[:MAX_REASON])

    async def _trim(self, now_ms: int, bounds: TrailBounds) -> None:
        oldest_ms = now_ms - duration_ms(bounds.retention)
        oldest, by_number = f"{oldest_ms}-0", True
        if bounds.closed:
            latest = int(await self._redis.get(keys.AUDIT_SEQ) or 0)
            for raw in await self._redis.hvals(keys.AUDIT_SINKS):
                sink = SinkPosition.read(raw)
                # A sink without an update for the whole retention is gone.
                if sink is not None and ms_of_seconds(sink.at) >= oldest_ms:
                    oldest = min(oldest, sink.cursor, key=cursor_order)
                    by_number = by_number and latest - sink.seq <= bounds.events
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.xtrim(keys.AUDIT, minid=oldest, approximate=True)
            if by_number:
                pipe.xtrim(keys.AUDIT, maxlen=bounds.events, approximate=True)
            await pipe.execute()


def _names(entry: Entry, exec_id: str) -> bool:
    """Return whether an entry is about an execution; it is not parsed, since a search passes over many."""
    return entry[1].get(b"id") == exec_id.encode()
