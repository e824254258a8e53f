"""The claims and results that an agent writes again in each new life of Redis, because Redis may have lost them.

After a loss of data it also publishes signed orders of its journal: those of the executions whose claims were lost. An
orchestrator rebuilds lost records from them. A record is older than its claim, so an execution with a claim has its
record as well. The heartbeat names the life only afterwards, so an execution without a claim was certainly not started.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

import structlog
from redis.exceptions import RedisError

from tachikoma.config.retry import Backoff
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.redis import keys
from tachikoma_worker.execution.claim import CLAIM_SECONDS
from tachikoma_worker.execution.context import Context
from tachikoma_worker.execution.journal import JournalError
from tachikoma_worker.execution.recent import KEEP_SECONDS, MAX_TEXT, RecentExecution

__all__ = ["WriteBack", "publish_if_lost"]

log = structlog.get_logger(__name__)

#: First and longest delay between attempts while Redis is unavailable.
RETRY_SECONDS = (0.1, 2.0)
#: Pause between two looks at sent output that need not be retained any longer, in seconds.
PRUNE_SECONDS = 5.0
#: Executions written in one round trip. Each may have a result of some hundred kilobytes.
BATCH = 50
#: Executions whose claims and results are looked for in one round trip. Most are there.
SOUGHT = 500


async def publish_if_lost(context: Context, order: WorkOrder, token: str) -> None:
    """Publish an order that was delivered before Redis lost data, and whose execution ends now.

    Redis may have lost its record as well, and its receipt would answer none. An order that is larger than those that
    the journal retains is not published. Repeats until Redis is available.
    """
    if not context.lives.refusal(order) or len(token) > MAX_TEXT:
        return
    backoff = Backoff(*RETRY_SECONDS)
    shown = keys.orders(context.agent)
    while True:
        try:
            async with context.redis.pipeline(transaction=False) as pipe:
                pipe.execute_command("HSET", shown, order.jti, token)
                pipe.expire(shown, KEEP_SECONDS)
                await pipe.execute()
        except (RedisError, OSError) as error:
            log.warning("order.not_published", id=order.jti, error=str(error))
            await backoff.wait()
        else:
            return


class WriteBack:
    """Writes the agent's reports of the last minutes again, once in each life of Redis."""

    def __init__(self, context: Context, written: Callable[[], None]) -> None:
        """Prepare the write-back of one agent.

        Args:
            context: the agent.
            written: called each time everything was written, so that the heartbeat says so at once.
        """
        self._context = context
        self._written = written
        self._valid_from = context.lives.valid_from
        #: When the last loss of data was learned, by the monotonic clock.
        self._lost_at = -math.inf
        #: The signed record of the latest life that has all reports; empty for none.
        self.done = ""

    async def run(self) -> None:
        """Write the reports again in each new life, until cancelled."""
        backoff = Backoff(*RETRY_SECONDS)
        while True:
            try:
                if await self._wait_for_life():
                    await self.write()
                else:
                    await self._prune()
            except (RedisError, OSError, JournalError) as error:
                log.warning("write_back.waiting", error=str(error))
                await backoff.wait()
            else:
                backoff.reset()

    async def _wait_for_life(self) -> bool:
        """Wait until a life begins, and return True, or return False after a while."""
        try:
            async with asyncio.timeout(PRUNE_SECONDS):
                await self._context.lives.began.wait()
        except TimeoutError:
            return self._context.lives.began.is_set()
        return True

    async def _prune(self) -> None:
        """Remove sent output that Redis has had for long enough, if Redis answers. Raises redis errors."""
        now = time.monotonic()
        if self._context.sent.retained:
            # A connection to another life would have begun it, and the output be sent again.
            await self._context.redis.execute_command("PING")
            self._context.sent.prune(now)

    async def write(self) -> None:
        """Write everything once. Raises redis errors, JournalError."""
        lives = self._context.lives
        lives.began.clear()
        # A further loss that is learned meanwhile has a pass of its own.
        token, valid_from = lives.token, lives.valid_from
        if valid_from > self._valid_from:
            self._lost_at = time.monotonic()
        # Also in the next lives: they may lack what was published, without a loss that anybody knows of. An earlier
        # worker may have been killed before it had published all.
        lost = time.monotonic() - self._lost_at < KEEP_SECONDS or (not self.done and valid_from > 0)
        try:
            executions = await self._context.journal.recent()
            written = 0
            for begin in range(0, len(executions), SOUGHT):
                written += await self._write_missing(executions[begin : begin + SOUGHT], orders=lost)
        except BaseException:
            lives.began.set()
            raise
        if executions:
            log.info("write_back.done", executions=len(executions), written=written, orders=lost)
        self._valid_from, self.done = valid_from, token
        self._written()

    async def _write_missing(self, executions: list[RecentExecution], *, orders: bool) -> int:
        """Write what Redis lacks of some executions, and return of how many it lacked something."""
        agent = self._context.agent
        async with self._context.redis.pipeline(transaction=False) as pipe:
            for execution in executions:
                pipe.exists(keys.claim(agent, execution.exec_id))
                pipe.exists(keys.result(agent, execution.exec_id))
            answers = await pipe.execute()
        claims, results = answers[::2], answers[1::2]
        without_claim = {one.exec_id for one, claim in zip(executions, claims, strict=True) if not claim}
        new = [one.exec_id for one in executions if one.exec_id in without_claim and not one.rewritten]
        if new:
            # Noted first: a connection may break, or this worker be killed, between the claim and the order.
            await self._context.journal.mark_rewritten(new)
        published = {one.exec_id for one in executions if orders and (one.rewritten or one.exec_id in without_claim)}
        wanted = [
            execution
            for execution, result in zip(executions, results, strict=True)
            if execution.exec_id in published | without_claim or (execution.result and not result)
        ]
        for begin in range(0, len(wanted), BATCH):
            await self._write(wanted[begin : begin + BATCH], published)
        return len(wanted)

    async def _write(self, executions: list[RecentExecution], published: set[str]) -> None:
        """Write claims and results of some executions, and orders of those that are published."""
        context = self._context
        shown = keys.orders(context.agent)
        retention = round(context.settings.output_retention.total_seconds())
        async with context.redis.pipeline(transaction=False) as pipe:
            for execution in executions:
                claim = keys.claim(context.agent, execution.exec_id)
                pipe.set(claim, context.journal.boot, nx=True, ex=CLAIM_SECONDS)
                if execution.result:
                    # The reaper reads results that it was not notified of.
                    key = keys.result(context.agent, execution.exec_id)
                    pipe.set(key, execution.result, nx=True, ex=retention)
                if execution.exec_id in published and execution.order:
                    pipe.execute_command("HSET", shown, execution.exec_id, execution.order)
            pipe.expire(shown, KEEP_SECONDS)
            await pipe.execute()
