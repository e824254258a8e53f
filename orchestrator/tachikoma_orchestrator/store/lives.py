"""The lives of Redis: each restart, failover or restore begins one, which is numbered, signed, audited and reconciled.

A new replication id is a new life. It has lost data if its audit trail does not contain the last event that this
orchestrator knows, or if an agent remembers a later life. Then nothing that was queued before may start any more, and
every orchestrator writes again what it remembers. `docs/decisions/0033-lives-of-redis.md` has the reasons.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError, ResponseError

from tachikoma.identity.signed_messages import LifeRecord
from tachikoma.identity.signing import InvalidSignature, sign, verify
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Connection, Redis
from tachikoma.redis.gate import GATE_SECONDS, NotReconciled, replid_of
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.clock import redis_ms
from tachikoma_orchestrator.store.known import Known, online_replicas
from tachikoma_orchestrator.store.scripts import Runner, Script, flat

__all__ = ["Lives"]

log = structlog.get_logger(__name__)

#: Pause between two checks of the life of Redis, in seconds.
LOOK_SECONDS = 0.25
#: Time before a new life is recorded, in seconds. In this time, another orchestrator can notice that an event is
#: missing, and after a loss write its remembered data again. After a loss, this process waits twice as long.
HOLD_SECONDS = 0.6
#: Age from which on a record is signed again, in seconds: its signer may be removed from the trust bundle some day.
SIGN_AGAIN_SECONDS = 12 * 3600
#: Signed records of agents whose number is remembered.
MAX_TOKENS = 64

Remembering = Callable[[Redis], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Seen:
    """The state of Redis at one check."""

    replid: str
    #: The stored record; empty for none.
    token: str
    #: The same, verified; None if it is no record of an orchestrator.
    record: LifeRecord | None
    #: Time by the clock of Redis, in milliseconds since the epoch.
    now_ms: int


class Lives:
    """Knows the current life of Redis, and lets connections be used in no other."""

    def __init__(self, redis: Redis, identity: SvidSource, known: Known, name: str) -> None:
        """Prepare the watch of the lives of Redis.

        Args:
            redis: connections of its own, without a gate.
            identity: the orchestrator's, which signs records.
            known: known facts about Redis; this class updates the number of replicas in them.
            name: name of the process in the audit trail.
        """
        self._redis = redis
        self._identity = identity
        self._known = known
        self._name = name
        self._runner = Runner(redis, known)
        self._life = Script("life")
        self._renumber = Script("renumber")
        self._current: LifeRecord | None = None
        self._token = ""
        #: Highest number of a life that this orchestrator or an agent remembers.
        self._highest = 0
        #: Number and replication id of the lives in records that agents have sent, by record.
        self._numbers: dict[str, tuple[int, str]] = {}
        self._remembering: list[Remembering] = []
        #: An event that Redis has lost: its number, and its time in milliseconds; None for none. It is remembered until
        #: a life that knows of the loss is recorded: what is written again meanwhile makes later events known.
        self._missing: tuple[int, int] | None = None
        #: Monotonic time at which this process learned of the last loss; None if there was none while it runs.
        self.lost_at: float | None = None
        self._unavailable = False
        self._wanted = asyncio.Event()
        self._changed = asyncio.Event()

    # --- for other parts ----------------------------------------------------------------------------------------------

    @property
    def number(self) -> int:
        """Number of the current life; 0 before it is known."""
        return 0 if self._current is None else self._current.number

    @property
    def valid_from(self) -> int:
        """Lowest number of a life whose orders may start."""
        return 0 if self._current is None else self._current.valid_from

    @property
    def lost_ms(self) -> int:
        """Time of the last loss, in milliseconds since the epoch by the clock of Redis; 0 for none."""
        return 0 if self._current is None else self._current.lost_ms

    def knows(self, seq: int, cursor: str) -> None:
        """Remember an audit event: its number and its place in the trail."""
        self._known.note(seq, cursor)

    def on_loss(self, remembering: Remembering, *, first: bool = False) -> None:
        """Register a function that writes remembered data again. It is called in each life with a loss, before its use.

        Args:
            remembering: gets connections that need not wait for the life to be recorded.
            first: True to call it before the others.
        """
        self._remembering.insert(0 if first else len(self._remembering), remembering)

    def is_latest(self, token: bytes | None) -> bool:
        """Return True if the record of the life in Redis is that of the life which this process uses."""
        return self._current is not None and token == self._token.encode()

    def number_of(self, token: str) -> int:
        """Return the number of the life in a record that an agent sent; 0 if no orchestrator signed it.

        A number above that of the current life means that Redis forgot a life, and begins a new one.
        """
        if not token:
            return 0
        if token == self._token:
            return self.number
        found = self._numbers.get(token)
        if found is None:
            record = self._verify(token)
            found = (0, "") if record is None else (record.number, record.replid)
            if len(self._numbers) >= MAX_TOKENS:
                self._numbers.clear()
            self._numbers[token] = found
        number, replid = found
        if self._current is not None and number == self.number and replid != self._current.replid:
            # Redis forgot that life before this orchestrator heard of it, so the number was given again.
            return number - 1
        if number > self._highest:
            log.warning("life.forgotten", number=number, current=self.number)
            self._highest = number
            self._wanted.set()
        return number

    async def admit(self, connection: Connection) -> None:
        """Return once the life of a connection's server is the current one; see `tachikoma.redis.gate`."""
        replid = await replid_of(connection)
        try:
            async with asyncio.timeout(GATE_SECONDS):
                while self._current is None or self._current.replid != replid:
                    self._changed.clear()
                    self._wanted.set()
                    await self._changed.wait()
        except TimeoutError:
            raise NotReconciled from None

    # --- the watch ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Check Redis regularly, and immediately when a connection waits, until cancelled."""
        while True:
            await self.look_if_available()
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wanted.wait()
                await asyncio.sleep(LOOK_SECONDS / 5)
            except TimeoutError:
                pass
            self._wanted.clear()

    async def look_if_available(self) -> None:
        """Check Redis once, unless it is unavailable."""
        try:
            await self.look()
        except (RedisError, OSError) as error:
            if not self._unavailable:
                log.warning("life.redis_unavailable", error=str(error)[:300])
            self._unavailable = True
        else:
            self._unavailable = False

    async def look(self) -> None:
        """Adopt the recorded life of Redis, or begin a new one. Raises redis errors."""
        seen = await self._read()
        if not seen.replid:
            return
        if self._is_current(seen):
            if time.time() - seen.record.iat > SIGN_AGAIN_SECONDS if seen.record else False:
                await self._sign_again(seen)
        else:
            loss = await self._loss(seen)
            if loss or self._begins_unknown(seen):
                await self._begin(seen, loss)
            else:
                assert seen.record is not None
                await self._adopt(seen.token, seen.record)

    def _is_current(self, seen: _Seen) -> bool:
        current = self._current
        return (
            current is not None
            and (seen.token, seen.replid) == (self._token, current.replid)
            and self._highest <= current.number
        )

    def _begins_unknown(self, seen: _Seen) -> bool:
        """Return True if no record names the life of the server."""
        record = seen.record
        return record is None or record.replid != seen.replid or record.number < self._highest

    async def _loss(self, seen: _Seen) -> str:
        """Return the loss of a life, in words; empty if it lost nothing, or its loss is recorded already."""
        recorded = seen.record
        if self._highest > max(self.number, recorded.number if recorded is not None else 0):
            return f"Redis no longer knows its life {self._highest}"
        lost_ms = recorded.lost_ms if recorded is not None else 0
        if self._missing is None:
            last = self._known
            if not last.seq or last.time_ms <= lost_ms or await self._contains(last):
                return ""
            self._missing = last.seq, last.time_ms
        number, missing_ms = self._missing
        if missing_ms <= lost_ms:
            self._missing = None
            return ""
        return f"audit event {number} is missing"

    async def _contains(self, last: Known) -> bool:
        """Return whether the trail contains an event, or contained it before it was trimmed."""
        entries = await self._redis.xrange(keys.AUDIT, last.cursor, last.cursor)
        if entries:
            return entries[0][1].get(b"seq") == str(last.seq).encode()
        oldest = await self._redis.xrange(keys.AUDIT, "-", "+", count=1)
        number = oldest[0][1].get(b"seq", b"") if oldest else b""
        return number.isdigit() and int(number) > last.seq

    async def _begin(self, seen: _Seen, loss: str) -> None:
        """Record a new life. After a loss, write all remembered data again first."""
        if self._current is not None:
            if loss:
                # Another process may know later events, whose numbers none may use again.
                await self._continue_numbers()
                await asyncio.sleep(HOLD_SECONDS)
                await self._write_again()
            await asyncio.sleep(HOLD_SECONDS)
            if not loss and (await self._loss(seen) or (await self._read()).token != seen.token):
                return
        recorded = seen.record
        before = recorded.number if recorded is not None else 0
        number = max(self._highest, before) + 1
        missing_ms = self._missing[1] if self._missing is not None else 0
        record = self._record(
            seen.replid,
            number=number,
            valid_from=number if loss else max(self.valid_from, recorded.valid_from if recorded else 0),
            lost_ms=max(seen.now_ms, self._known.time_ms, missing_ms) if loss else recorded.lost_ms if recorded else 0,
        )
        why = f"{loss}, so what was queued before expires" if loss else "nothing is known to be lost"
        reason = f"life {number} of Redis begins, found by {self._name}: {why}"
        # The first life replaces no other one.
        event = {"event": AuditCode.REDIS_LIFE, "authorized": "1", "reason": reason} if number > 1 else {}
        if await self._store(record, seen, event):
            log.warning("life.began", number=number, loss=loss or None, replid=seen.replid)

    async def _adopt(self, token: str, record: LifeRecord) -> None:
        """Use a life that another orchestrator recorded."""
        if self._current is not None and record.valid_from > self._current.valid_from:
            await self._write_again()
        self._use(token, record)
        log.info("life.adopted", number=record.number, valid_from=record.valid_from)

    async def _sign_again(self, seen: _Seen) -> None:
        record = seen.record
        assert record is not None
        fresh = self._record(record.replid, number=record.number, valid_from=record.valid_from, lost_ms=record.lost_ms)
        await self._store(fresh, seen, {})

    async def _write_again(self) -> None:
        """Write the remembered data of every part again. The events of this get numbers that were not used before."""
        await self._continue_numbers()
        for remembering in self._remembering:
            await remembering(self._redis)

    async def _continue_numbers(self) -> None:
        """Continue the numbers of the audit trail after the last one that this process knows."""
        await self._runner.run(self._renumber(keys=[keys.AUDIT], args={"after": self._known.seq}))

    def _record(self, replid: str, *, number: int, valid_from: int, lost_ms: int) -> LifeRecord:
        issuer = str(self._identity.current().spiffe_id)
        return LifeRecord(
            iss=issuer, iat=int(time.time()), number=number, valid_from=valid_from, lost_ms=lost_ms, replid=replid
        )

    async def _store(self, record: LifeRecord, seen: _Seen, event: dict[str, str]) -> bool:
        """Store a record and use it; return False if another orchestrator was first."""
        token = sign(self._identity.current(), record)
        call = self._life(
            keys=[keys.LIFE, keys.AUDIT],
            args={"after": self._known.seq, "event": flat(event)},
            payloads=[token, seen.token],
        )
        if not await self._runner.run(call):
            return False
        self._use(token, record)
        return True

    def _use(self, token: str, record: LifeRecord) -> None:
        if self._current is not None and record.valid_from > self._current.valid_from:
            self.lost_at = time.monotonic()
        self._current, self._token = record, token
        self._highest = max(self._highest, record.number)
        self._changed.set()

    async def _read(self) -> _Seen:
        """Read the record, the replication id and the latest event. The event is remembered in the current life."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.get(keys.LIFE)
            pipe.execute_command("INFO", "replication")
            pipe.execute_command("TIME")
            pipe.execute_command("XREVRANGE", keys.AUDIT, "+", "-", "COUNT", 1)
            raw, info, clock, latest = await pipe.execute(raise_on_error=False)
        for answer in (raw, info, clock, latest):
            if isinstance(answer, Exception) and not wrong_type(answer):
                raise answer
        token = raw.decode("ascii", "replace") if isinstance(raw, bytes) else ""
        self._known.note_replicas(online_replicas(info), str(info["master_replid"]))
        seen = _Seen(str(info["master_replid"]), token, self._verify(token) if token else None, redis_ms(*clock))
        if self._is_current(seen) and not isinstance(latest, ResponseError):
            self._note(latest)
        return seen

    def _note(self, latest: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
        for cursor, fields in latest:
            number = (fields or {}).get(b"seq", b"")
            if number.isdigit() and len(number) < 19:
                self._known.note(int(number), cursor.decode())

    def _verify(self, token: str) -> LifeRecord | None:
        svid = self._identity.current()
        if token == self._token:
            return self._current
        try:
            return verify(token, LifeRecord, svid.bundle, svid.spiffe_id, kept=True)
        except InvalidSignature as error:
            log.warning("life.refused", reason=f"a record of the life of Redis {error}")
            return None
