"""Audit events about data that cannot be trusted, limited so that a flood of it cannot fill the trail."""

from __future__ import annotations

import time
from collections import OrderedDict, deque

from redis.exceptions import ResponseError

from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma_orchestrator.audit.trail import AuditTrail

__all__ = ["MAX_IN_A_MINUTE", "MAX_REASON", "MAX_SEEN", "Bound", "Findings"]

#: Number of findings that are remembered, so that each is recorded once.
MAX_SEEN = 4096

#: Largest number of findings that are recorded in a minute.
MAX_IN_A_MINUTE = 60

#: Longest reason of a finding, in characters.
MAX_REASON = 300


class Bound:
    """A limit of events in a minute; the next recorded event counts those that were left out."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._left_out = 0

    def admits(self) -> bool:
        """Return True and count an event if another one may be recorded in this minute."""
        now = time.monotonic()
        while self._times and self._times[0] < now - 60:
            self._times.popleft()
        if len(self._times) >= MAX_IN_A_MINUTE:
            self._left_out += 1
            return False
        self._times.append(now)
        return True

    def left_out(self) -> str:
        """Return the addition to the next event's reason: the number of events left out before it, or nothing."""
        left_out, self._left_out = self._left_out, 0
        return f" (and {left_out} more were left out)" if left_out else ""


class Findings:
    """Records data that cannot be trusted: each finding once, and at most `MAX_IN_A_MINUTE`.

    A finding about an execution that does not exist is not recorded; the caller logs it.
    """

    def __init__(self, redis: Redis, trail: AuditTrail) -> None:
        self._redis = redis
        self._trail = trail
        self._seen: OrderedDict[tuple[AuditCode, str, str], None] = OrderedDict()
        self._bound = Bound()

    async def add(self, code: AuditCode, exec_id: str, reason: str) -> None:
        """Record a finding about an execution.

        Args:
            code: the code of the audit event.
            exec_id: the execution.
            reason: the data, and why it is not trusted.
        """
        reason = reason[:MAX_REASON]
        if not self._is_new(code, exec_id, reason):
            return
        try:
            agent, requested_by = await self._redis.hmget(keys.execution(exec_id), "agent", "requested_by")
        except ResponseError as error:
            if not wrong_type(error):
                raise
            agent, requested_by = b"", b""
        if agent is None:
            return
        reason += self._bound.left_out()
        await self._trail.append(
            code, id=exec_id, agent_id=agent.decode(errors="replace"), authorized="1",
            requested_by=(requested_by or b"").decode(errors="replace"), reason=reason,
        )  # fmt: skip

    async def add_lost(self, exec_id: str, agent: str, reason: str) -> None:
        """Record that the ledger lost the record of an execution that is known from its order."""
        reason = reason[:MAX_REASON]
        if self._is_new(AuditCode.RECORD_ALTERED, exec_id, reason):
            reason += self._bound.left_out()
            await self._trail.append(
                AuditCode.RECORD_ALTERED, id=exec_id, agent_id=agent, authorized="1", reason=reason
            )

    async def add_of_agent(self, code: AuditCode, agent: str, reason: str) -> None:
        """Record a finding about an agent's statement about itself; arguments as of `add`."""
        reason = reason[:MAX_REASON]
        if self._is_new(code, agent, reason):
            await self._trail.append(code, agent_id=agent[:64], authorized="0", reason=reason + self._bound.left_out())

    def _is_new(self, code: AuditCode, subject: str, reason: str) -> bool:
        """Return True if a finding was not recorded before and another one may be recorded now."""
        if (code, subject, reason) in self._seen or not self._bound.admits():
            return False
        self._seen[code, subject, reason] = None
        while len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        return True
