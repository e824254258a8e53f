"""Quotas of the output that Redis retains of ended executions, for each requester and in total.

The index `orch:outputs` has an entry for each ended execution with output, written with its final state. Each
orchestrator reads the new entries in every pass of the reaper. Beyond a quota the oldest output is deleted first: its
log and the excerpt in its Celery result. Readers get a gap; state, digests and receipt stay in the ledger.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import structlog
from redis.exceptions import ResponseError

from tachikoma.redis import keys
from tachikoma.redis.access import wrong_type
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.clock import duration_ms

__all__ = ["RetainedOutput"]

log = structlog.get_logger(__name__)

#: Entries read in one step.
BATCH = 1000
#: Bytes that an output occupies beside its data.
OVERHEAD_BYTES = 1024


@dataclass(frozen=True, slots=True)
class _Output:
    """An entry of the index: the output of one ended execution."""

    #: The entry itself.
    member: bytes
    #: When the execution ended, in milliseconds since the epoch by the clock of Redis.
    at_ms: int
    size: int
    agent: str
    exec_id: str
    requester: str

    @classmethod
    def parse(cls, member: bytes) -> _Output | None:
        """Read an entry, as `lua/transition.lua` writes it; None if another writer wrote it."""
        try:
            at_ms, size, agent, exec_id, requester = member.decode().split(" ")
            return cls(member, int(at_ms), max(0, int(size)) + OVERHEAD_BYTES, agent, exec_id, requester)
        except ValueError:
            return None


class RetainedOutput:
    """Deletes the oldest output beyond the quotas."""

    def __init__(
        self, redis: Redis, *, total_bytes: int, requester_bytes: int, log_bytes: int, retention: timedelta
    ) -> None:
        """Prepare quotas.

        Args:
            redis: the connections.
            total_bytes: most bytes that are retained in total.
            requester_bytes: most bytes that are retained of one requester.
            log_bytes: most bytes that an agent retains of one execution.
            retention: how long agents retain an output.
        """
        self._redis = redis
        self._total_bytes = total_bytes
        self._requester_bytes = requester_bytes
        self._log_bytes = log_bytes
        self._retention_ms = duration_ms(retention)
        #: The retained outputs by requester, oldest first, and their sizes.
        self._outputs: dict[str, deque[_Output]] = {}
        self._sizes: Counter[str] = Counter()
        #: Time of the newest entry that was read, and the entries of that millisecond.
        self._read_to_ms = 0
        self._read_last: set[bytes] = set()

    async def enforce(self, now_ms: int) -> None:
        """Read new entries, and delete what exceeds a quota. Raises redis errors."""
        oldest_ms = now_ms - self._retention_ms
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.zremrangebyscore(keys.OUTPUTS, "-inf", oldest_ms)
                await pipe.execute()
            await self._read()
        except ResponseError as error:
            if not wrong_type(error):
                raise
            log.error("outputs.index_recreated", key=keys.OUTPUTS, error=str(error))
            await self._redis.expire(keys.OUTPUTS, 0)
            return
        self._forget_before(oldest_ms)
        await self._delete(list(self._beyond()))

    async def _read(self) -> None:
        while True:
            # The entries of the last millisecond are read again, and recognised.
            count = BATCH + len(self._read_last)
            found = await self._redis.zrange(keys.OUTPUTS, self._read_to_ms, "+inf", byscore=True, offset=0, num=count)
            for member in found:
                output = _Output.parse(member)
                if output is None:
                    await self._redis.zrem(keys.OUTPUTS, member)
                    continue
                if output.at_ms > self._read_to_ms:
                    self._read_to_ms, self._read_last = output.at_ms, set()
                elif member in self._read_last:
                    continue
                self._read_last.add(member)
                self._outputs.setdefault(output.requester, deque()).append(output)
                self._sizes[output.requester] += self._size(output)
            if len(found) < count:
                return

    def _size(self, output: _Output) -> int:
        return min(output.size, self._log_bytes + OVERHEAD_BYTES)

    def _pop(self, requester: str) -> _Output:
        """Remove the oldest output of a requester."""
        output = self._outputs[requester].popleft()
        self._sizes[requester] -= self._size(output)
        if not self._outputs[requester]:
            del self._outputs[requester], self._sizes[requester]
        return output

    def _forget_before(self, oldest_ms: int) -> None:
        for requester in list(self._outputs):
            while requester in self._outputs and self._outputs[requester][0].at_ms <= oldest_ms:
                self._pop(requester)

    def _beyond(self) -> Iterable[_Output]:
        """Remove and return the outputs beyond a quota, oldest first."""
        for requester in list(self._outputs):
            while self._sizes[requester] > self._requester_bytes:
                yield self._pop(requester)
        while self._sizes.total() > self._total_bytes:
            yield self._pop(min(self._outputs, key=lambda name: self._outputs[name][0].at_ms))

    async def _delete(self, outputs: list[_Output]) -> None:
        for begin in range(0, len(outputs), BATCH):
            part = outputs[begin : begin + BATCH]
            async with self._redis.pipeline(transaction=False) as pipe:
                for output in part:
                    pipe.expire(keys.output(output.agent, output.exec_id), 0)
                    pipe.expire(keys.result(output.agent, output.exec_id), 0)
                await pipe.execute()
            await self._redis.zrem(keys.OUTPUTS, *[output.member for output in part])
        if outputs:
            size = sum(map(self._size, outputs))
            log.info("outputs.deleted", executions=len(outputs), bytes=size, reason="beyond the quota")
