"""Rebuilds ledger records that Redis lost, from the signed orders that agents retained.

After a loss of data an agent shows the orders of its last minutes (`agent.<id>:orders`) and then names the life of
Redis in its heartbeat. Only orders that an orchestrator signed for this agent count.

The index of open executions is compared with all records as well. Redis may go back to a state in which it lacked an
entry that no running process remembers, and the execution of that record would never end.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog
from redis.exceptions import RedisError, ResponseError

from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.identity.signing import InvalidSignature, verify
from tachikoma.identity.spiffe import agent_id
from tachikoma.identity.svid import SvidSource
from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.clock import ms_of_seconds
from tachikoma.vocabulary.limits import WhenFull
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.transitions import Admission, record_fields
from tachikoma_orchestrator.store.lives import Lives
from tachikoma_orchestrator.store.scripts import Call, Runner, Script, flat
from tachikoma_orchestrator.store.states import stored_states

__all__ = ["OpenIndex", "Restoration"]

log = structlog.get_logger(__name__)

#: Longest time after a loss for which new orders for an agent wait until its records are restored, in seconds. A worker
#: of an earlier version shows no orders.
HOLD_SECONDS = 5.0
#: Orders read in one round trip.
BATCH = 100
#: Executions whose states are read in one round trip.
STATES = 1000
#: Executions whose states are compared with the index in one round trip.
COMPARED = 500
#: Keys of Redis that one step of a scan looks at.
SCANNED = 1000
#: Reason in the audit event.
REASON = "Redis lost its record, which was rebuilt from the order that its agent retained"

Fold = Callable[[str, str, bytes], Awaitable[bool]]


class Restoration:
    """Restores the records of each agent once in each life after a loss of data."""

    def __init__(
        self, redis: Redis, identity: SvidSource, lives: Lives,
        shown: Callable[[ExecRequest], tuple[str, ...]], fold: Fold,
    ) -> None:  # fmt: skip
        """Prepare the restoration of records.

        Args:
            redis: the connections.
            identity: the orchestrator's own, which signed the orders.
            lives: the lives of Redis.
            shown: returns the redacted argv of a request.
            fold: records the Celery result of an agent's execution.
        """
        self._redis = redis
        self._identity = identity
        self._lives = lives
        self._shown = shown
        self._fold = fold
        self._runner = Runner(redis)
        self._restore = Script("restore")
        #: Number of the last life after a loss in which the records of an agent were restored.
        self._done: dict[str, int] = {}
        #: The agents of which this was completed after the last loss, with its number.
        self._restored: dict[str, int] = {}
        self._changed = asyncio.Event()

    def settled(self, agent: str) -> bool:
        """Return True if new orders may be sent to an agent.

        An order for an execution whose record was lost would be refused by its agent, which ran it before, and replace
        the result by `LOST`. So orders wait until the agent's records are restored, for `HOLD_SECONDS` at most.
        """
        return self._restored.get(agent) == self._lives.valid_from or self._hold_seconds() <= 0

    @property
    def under_way(self) -> bool:
        """True for `HOLD_SECONDS` after a loss: an execution that the ledger does not have may be restored."""
        return self._hold_seconds() > 0

    async def wait_for(self, agent: str) -> None:
        """Return once new orders may be sent to an agent."""
        try:
            async with asyncio.timeout(self._hold_seconds()):
                while not self.settled(agent):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            log.info("restoration.not_awaited", agent=agent)

    def _hold_seconds(self) -> float:
        lost_at = self._lives.lost_at
        return 0.0 if lost_at is None else max(0.0, lost_at + HOLD_SECONDS - time.monotonic())

    async def heard(self, agent: str, life: str) -> None:
        """Restore the records of an agent whose heartbeat names a life, unless that was done. Raises redis errors.

        Args:
            agent: the agent.
            life: the signed record of the life to which it has written its reports again; empty for none.
        """
        loss, reported = self._lives.valid_from, self._lives.number_of(life)
        if not loss or reported < loss or self._done.get(agent) == reported:
            return
        self._done[agent] = reported
        try:
            await self._restore_all(agent)
        except (RedisError, OSError):
            # The next heartbeat may have failed as well meanwhile.
            self._done.pop(agent, None)
            raise
        self._restored[agent] = loss
        self._changed.set()

    async def restore(self, agent: str, exec_id: str) -> bool:
        """Restore the record that the receipt of an agent should complete, and return whether there is one now.

        The agent publishes an order that was delivered before a loss of data, and whose execution ends after it. Only
        such an order counts here: a record without a loss was not lost.

        Raises:
            RedisError, OSError: Redis is unavailable.
        """
        try:
            (raw,) = await self._redis.hmget(keys.orders(agent), [exec_id])
            if raw is None:
                return False
            token = raw.decode("ascii", "replace")
            order = self._verify(agent, exec_id, token)
            if order is None or order.life >= self._lives.valid_from:
                return False
            return int(await self._runner.run(self._call(agent, order, token))) > 0
        except ResponseError as error:
            if not wrong_type(error):
                raise
            log.error("restoration.unreadable", agent=agent, id=exec_id, error=str(error))
            return False

    async def _restore_all(self, agent: str) -> None:
        key = keys.orders(agent)
        try:
            names = await self._redis.hkeys(key)
        except ResponseError as error:
            if not wrong_type(error):
                raise
            return
        restored = 0
        unfinished: list[str] = []
        for begin in range(0, len(names), STATES):
            exec_ids = [name.decode(errors="replace") for name in names[begin : begin + STATES]]
            unfinished += await self._unfinished(exec_ids)
        for begin in range(0, len(unfinished), BATCH):
            part = unfinished[begin : begin + BATCH]
            orders = await self._redis.hmget(key, part)
            for exec_id, raw in zip(part, orders, strict=True):
                if raw is not None and await self._restore_if_possible(agent, exec_id, raw.decode("ascii", "replace")):
                    restored += 1
        if names:
            log.warning("restoration.done", agent=agent, orders=len(names), records=restored)

    async def _unfinished(self, exec_ids: list[str]) -> list[str]:
        """Return the executions without a final state in the ledger. Most still have one, and need no verification."""
        states = await stored_states(self._redis, exec_ids)
        return [exec_id for exec_id, state in zip(exec_ids, states, strict=True) if state is None or not state.terminal]

    async def _restore_if_possible(self, agent: str, exec_id: str, token: str) -> bool:
        """Restore one record; False also if its key is no record, which must not keep others from being restored."""
        try:
            return await self._restore_one(agent, exec_id, token)
        except ResponseError as error:
            if not wrong_type(error):
                raise
            log.error("restoration.unreadable", agent=agent, id=exec_id, error=str(error))
            return False

    async def _restore_one(self, agent: str, exec_id: str, token: str) -> bool:
        """Restore one record and its result; return False if there is a record, or the order is not genuine."""
        order = self._verify(agent, exec_id, token)
        found = 0 if order is None else int(await self._runner.run(self._call(agent, order, token)))
        # Also if another orchestrator restored the record, and stopped before it read the result.
        raw = await self._redis.get(keys.result(agent, exec_id)) if found else None
        if raw is not None:
            await self._fold(agent, exec_id, raw)
        return found == 1

    def _verify(self, agent: str, exec_id: str, token: str) -> WorkOrder | None:
        """Return an order, or None if it is not genuine."""
        svid = self._identity.current()
        try:
            order = verify(token, WorkOrder, svid.bundle, svid.spiffe_id, kept=True)
            if order.aud != str(agent_id(svid.spiffe_id.trust_domain, agent)) or order.request.agent_id != agent:
                raise InvalidSignature("is for another agent")
            if order.jti != exec_id or order.request.id != exec_id or not order.digest:
                raise InvalidSignature("is for another execution")
        except InvalidSignature as error:
            log.warning("restoration.refused", agent=agent, id=exec_id[:80], reason=str(error))
            return None
        return order

    def _call(self, agent: str, order: WorkOrder, token: str) -> Call:
        exec_id = order.jti
        return self._restore(
            keys=[
                keys.execution(exec_id), keys.AUDIT, keys.INDEX, keys.agent_index(agent), keys.OPEN, keys.APPROVALS,
                keys.parked(exec_id),
            ],
            args=self._arguments(order, hashlib.sha256(token.encode()).hexdigest()),
        )  # fmt: skip

    def _arguments(self, order: WorkOrder, order_sha256: str) -> dict[str, str | int | list[str]]:
        """Return the arguments of `lua/restore.lua` for a verified order."""
        request, batch = order.request, {"batch": order.batch} if order.batch else {}
        admission = Admission(
            request=request, shown=self._shown(request), digest=order.digest, policy=order.policy,
            client_ip=order.client_ip, wait=timedelta(0), timeout=request.timeout or timedelta(0), scopes={},
            waits=order.grant.output.when_full is WhenFull.WAIT,
        )  # fmt: skip
        record = record_fields(admission) | batch | {
            "agent": request.agent_id, "approved_by": order.approved_by, "order_sha256": order_sha256,
            "life": str(order.life), "approvers": json.dumps([]),
        }  # fmt: skip
        event = {
            "event": AuditCode.RECORD_RESTORED, "id": order.jti, "agent_id": request.agent_id, "authorized": "1",
            "requested_by": order.sub, "command": record["command"], "client_ip": order.client_ip,
            "policy": order.policy, "reason": REASON, "evidence_sha256": order_sha256, **batch,
        }  # fmt: skip
        return {
            "id": order.jti,
            "agent": request.agent_id,
            "batch": order.batch,
            "digest": order.digest,
            "order": order_sha256,
            "admitted_ms": ms_of_seconds(order.iat),
            "deadline_ms": ms_of_seconds(order.exp),
            "record": flat(record),
            "event": flat(event),
        }


class OpenIndex:
    """Restores the index after each loss of data, and after it was damaged."""

    def __init__(self, redis: Redis, ledger: Ledger, lives: Lives | None) -> None:
        """Prepare the restoration of the index.

        Args:
            redis: the connections.
            ledger: the executions.
            lives: the lives of Redis; None if no life may lose data.
        """
        self._redis = redis
        self._ledger = ledger
        self._lives = lives
        #: The last loss, by the number of its life, after which the index was restored.
        self._done = 0
        self._damaged = False

    def note_damage(self) -> None:
        """Note that the index lost entries. Some may be of executions that no pass has seen."""
        self._damaged = True

    async def restore_if_needed(self) -> None:
        """Add every execution without a final state to the index again, if some may be missing. Raises redis errors."""
        loss = 0 if self._lives is None else self._lives.valid_from
        if loss <= self._done and not self._damaged:
            return
        await self._restore()
        self._done, self._damaged = loss, False

    async def _restore(self) -> None:
        """Compare the index with all records. No other index is used, since it may be damaged as well."""
        exec_ids: list[str] = []
        prefix = keys.execution("")
        async for key in self._redis.scan_iter(match=keys.execution("*"), count=SCANNED):
            exec_ids.append(key.decode(errors="replace").removeprefix(prefix))
            if len(exec_ids) >= COMPARED:
                await self._reopen(exec_ids)
                exec_ids.clear()
        await self._reopen(exec_ids)

    async def _reopen(self, exec_ids: list[str]) -> None:
        states = await stored_states(self._redis, exec_ids)
        unfinished = [exec_id for exec_id, state in zip(exec_ids, states, strict=True) if state and not state.terminal]
        records = await self._ledger.records(unfinished)
        await self._ledger.reopen([record for record in records if not record.state.terminal])
