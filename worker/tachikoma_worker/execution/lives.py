"""The lives of Redis as an agent knows them: it starts nothing that was accepted before Redis lost data.

The orchestrators number the lives of Redis and sign a record of the current one. The agent keeps the record with the
highest number in its journal, so it never accepts an older one (`docs/decisions/0033-lives-of-redis.md`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from tachikoma.identity.signed_messages import LifeRecord, WorkOrder
from tachikoma.identity.signing import InvalidSignature, verify
from tachikoma.identity.spiffe import InvalidIdentity, service_id
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Connection, Redis
from tachikoma.redis.gate import GATE_SECONDS, POLL_SECONDS, NotReconciled, replid_of
from tachikoma.streams.heartbeat import RememberedLife
from tachikoma_worker.execution.journal import Journal, JournalError

__all__ = ["Lives"]

log = structlog.get_logger(__name__)

#: Seconds between two looks at the record, which find a new life also while no connection breaks.
LOOK_SECONDS = 2.0


class Lives:
    """The current life of Redis, by the record that an orchestrator signed."""

    def __init__(self, journal: Journal, identity: SvidSource, orchestrator: str) -> None:
        """Prepare the lives, from the record in the journal.

        Args:
            journal: keeps the record.
            identity: the agent's own, whose bundle verifies records.
            orchestrator: name of the orchestrators, as in the settings.
        """
        self._journal = journal
        self._identity = identity
        self._orchestrator = orchestrator
        #: The signed record of the highest life that the agent knows; empty for none.
        self.token = ""
        #: Its number, and the lowest number of a life whose orders may start.
        self.number = self.valid_from = 0
        #: Set when a life begins that the agent has not written its reports to.
        self.began = asyncio.Event()
        #: The record in `token`, verified once; None for none.
        self._record: LifeRecord | None = None
        #: Called in each new life before it is used, and held by the only task that takes one over.
        self._restore: Callable[[], Awaitable[None]] | None = None
        self._adopting = asyncio.Lock()
        if (token := journal.life()) and (record := self._verify(token)) is not None:
            self.token, self._record = token, record
            self.number, self.valid_from = record.number, record.valid_from
            self.began.set()

    def on_new_life(self, restore: Callable[[], Awaitable[None]]) -> None:
        """Call a function in each new life before it is used. It must need no connection that waits for the life."""
        self._restore = restore

    def refusal(self, order: WorkOrder) -> str:
        """Return why an order must not start, because Redis lost data after it was signed; else empty."""
        if order.life >= self.valid_from:
            return ""
        return (
            "not started: Redis went back to an older state while it was queued "
            f"(accepted in life {order.life} of Redis, data was lost before life {self.valid_from})"
        )

    async def admit(self, connection: Connection) -> None:
        """Return once the record in Redis names the server of a connection; see `tachikoma.redis.gate`."""
        replid = await replid_of(connection)
        until = time.monotonic() + GATE_SECONDS
        try:
            while not await self._learn(await _stored(connection), replid):
                if time.monotonic() >= until:
                    raise NotReconciled
                await asyncio.sleep(POLL_SECONDS)
        except JournalError as error:
            raise RedisConnectionError(f"the journal cannot remember the life of Redis: {error}") from None

    async def learn(self, token: str) -> None:
        """Adopt the record that Redis contains now, if it is of a later life."""
        await self._learn(token, None)

    async def watch(self, redis: Redis, agent: str) -> None:
        """Read the record regularly, and report if Redis and the orchestrators forgot a life, until cancelled.

        Args:
            redis: connections without a gate.
            agent: the agent.
        """
        while True:
            try:
                info = await redis.execute_command("INFO", "replication")
                raw = await redis.get(keys.LIFE)
                token = "" if raw is None else raw.decode("ascii", "replace")
                if token and not await self._learn(token, str(info["master_replid"])) and self._is_later_than(token):
                    log.warning("life.forgotten", number=self.number)
                    await redis.publish(keys.events(agent), RememberedLife(record=self.token).model_dump_json())
            except (RedisError, OSError, JournalError) as error:
                log.debug("life.unknown", error=str(error))
            await asyncio.sleep(LOOK_SECONDS)

    async def _learn(self, token: str, replid: str | None) -> bool:
        """Take over a record, and return whether it names the current life.

        Args:
            token: the record in Redis; empty for none.
            replid: replication id of the server; None if it was compared before.

        Raises:
            JournalError: the journal cannot be written.
        """
        if not token:
            # Orchestrators of older versions write none.
            return self.number == 0
        # Each claim reads the record, so the known one is not verified again.
        record = self._record if token == self.token else self._verify(token)
        if record is None or record.number < self.number or replid not in (None, record.replid):
            return False
        async with self._adopting:
            # Another connection may have found a later one meanwhile.
            if record.number < self.number:
                return False
            if token != self.token:
                await self._adopt(token, record)
        return True

    async def _adopt(self, token: str, record: LifeRecord) -> None:
        """Use a life, after the agent's reports were restored in it. Raises JournalError, redis errors."""
        await self._journal.remember_life(token)
        # Two lives have the same number if Redis forgot the first one before the second orchestrator heard of it.
        if self._record is None or (record.number, record.replid) != (self.number, self._record.replid):
            if self._restore is not None:
                await self._restore()
            log.info("life.began", number=record.number, valid_from=record.valid_from)
        self.number, self.token, self._record = record.number, token, record
        self.valid_from = max(self.valid_from, record.valid_from)
        self.began.set()

    def _is_later_than(self, token: str) -> bool:
        """Return whether a record is of an earlier life than this agent knows."""
        record = self._verify(token)
        return record is not None and record.number < self.number

    def _verify(self, token: str) -> LifeRecord | None:
        svid = self._identity.current()
        try:
            issuer = service_id(svid.spiffe_id.trust_domain, self._orchestrator)
            return verify(token, LifeRecord, svid.bundle, issuer, kept=True)
        except (InvalidSignature, InvalidIdentity) as error:
            log.warning("life.refused", reason=str(error))
            return None


async def _stored(connection: Connection) -> str:
    """Return the record in Redis; empty for none."""
    await connection.send_command("GET", keys.LIFE)
    try:
        value = await connection.read_response()
    except ResponseError as error:
        if not wrong_type(error):
            raise
        return "a value of another type"
    return "" if value is None else bytes(value).decode("ascii", "replace")
