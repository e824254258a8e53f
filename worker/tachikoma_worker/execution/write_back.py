"""The claims and results that an agent writes again in each new life of Redis, because Redis may have lost them.

After a loss of data it also publishes the signed orders of its journal. An orchestrator rebuilds lost records from
them. The heartbeat names the life only afterwards, so an execution without a claim was certainly not started.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

import structlog
from redis.exceptions import RedisError

from tachikoma.config.retry import Backoff
from tachikoma.redis import keys
from tachikoma_worker.execution.claim import CLAIM_SECONDS
from tachikoma_worker.execution.context import Context
from tachikoma_worker.execution.journal import JournalError
from tachikoma_worker.execution.recent import KEEP_SECONDS, RecentExecution

__all__ = ["WriteBack"]

log = structlog.get_logger(__name__)

#: First and longest delay between attempts while Redis is unavailable.
RETRY_SECONDS = (0.1, 2.0)
#: Pause between two looks at sent output that need not be retained any longer, in seconds.
PRUNE_SECONDS = 5.0
#: Executions written in one round trip. Each may have a result of some hundred kilobytes.
BATCH = 50


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
        # Also in the next lives: they may lack what was shown, without a loss that anybody knows of.
        lost = time.monotonic() - self._lost_at < KEEP_SECONDS
        try:
            executions = await self._context.journal.recent()
            for begin in range(0, len(executions), BATCH):
                await self._write(executions[begin : begin + BATCH], orders=lost)
        except BaseException:
            lives.began.set()
            raise
        if executions:
            log.info("write_back.done", executions=len(executions), orders=lost)
        self._valid_from, self.done = valid_from, token
        self._written()

    async def _write(self, executions: list[RecentExecution], *, orders: bool) -> None:
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
                if orders and execution.order:
                    pipe.execute_command("HSET", shown, execution.exec_id, execution.order)
            pipe.expire(shown, KEEP_SECONDS)
            await pipe.execute()
