"""A watched batch: the result of each target when it has ended, each distinct output once, and the final status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import structlog

from tachikoma.errors import RecordAltered, ResultUnknown
from tachikoma.redis import keys
from tachikoma.vocabulary.batches import BatchResult, BatchStatus, BatchUpdate, TargetState
from tachikoma_orchestrator.batches.store import BatchStore
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["BatchWatch"]

log = structlog.get_logger(__name__)

#: Shortest and longest time between two looks at a batch, in seconds.
LOOK_SECONDS = (0.1, 1.0)
#: Longest output of each stream in a result; more is cut at its end. The execution's own log has all.
MAX_OUTPUT_BYTES = 64 * 1024


class BatchWatch:
    """Follows batches for callers."""

    def __init__(self, store: BatchStore, ledger: Ledger, evidence: Evidence, subscriber: Subscriber) -> None:
        self._store = store
        self._ledger = ledger
        self._evidence = evidence
        self._subscriber = subscriber

    async def follow(self, batch_id: str, *, output: bool, follow: bool) -> AsyncIterator[BatchUpdate]:
        """Yield the status, then each ended target, then the status again on a change; the last one is final.

        Args:
            batch_id: the batch.
            output: True to add output, verified by the receipt, to the first result with the same digests.
            follow: True to wait until nothing of the batch runs any more.
        """
        changed = asyncio.Event()
        wanted = batch_id.encode()

        def notice(message: bytes) -> None:
            if message == wanted:
                changed.set()

        seen: set[str] = set()
        bodies: set[tuple[str, str]] = set()
        last: BatchStatus | None = None
        async with self._subscriber.listen(keys.BATCHES_CHANGED, notice, changed.set):
            while True:
                changed.clear()
                status = await self._store.status(batch_id)
                if status is None:
                    return
                if last is None:
                    yield BatchUpdate(status=status)
                async for result in self._new_results(status, seen, bodies, output=output):
                    yield BatchUpdate(result=result)
                if status != last or status.ended or not follow:
                    yield BatchUpdate(status=status)
                if status.ended or not follow:
                    return
                last = status
                await asyncio.sleep(LOOK_SECONDS[0])
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS[1]):
                        await changed.wait()

    async def ended(self, status: BatchStatus, *, output: bool) -> AsyncIterator[BatchResult]:
        """Yield each ended target of a batch now.

        Args:
            status: of the batch.
            output: as in `follow`.
        """
        async for result in self._new_results(status, set(), set(), output=output):
            yield result

    async def _new_results(
        self, status: BatchStatus, seen: set[str], bodies: set[tuple[str, str]], *, output: bool
    ) -> AsyncIterator[BatchResult]:
        results = await self._store.results(status.id, but=seen)
        if status.ended:
            pending, _ = await self._store.not_ended(status.id)
            results |= {agent: BatchResult(agent_id=agent, state=TargetState.NOT_STARTED) for agent in pending}
        for agent, result in results.items():
            if agent in seen:
                continue
            seen.add(agent)
            body = (result.stdout_sha256, result.stderr_sha256)
            if output and result.exec_id and any(body) and body not in bodies:
                result = await self._with_output(result)
                if result.stdout is not None:
                    bodies.add(body)
            yield result

    async def _with_output(self, result: BatchResult) -> BatchResult:
        """Return a result with the output of its execution, if its receipt confirms it."""
        try:
            record = await self._ledger.record(result.exec_id)
            if record is None:
                return result
            response = (await self._evidence.final_state(record)).response()
        except (RecordAltered, ResultUnknown) as error:
            return result.model_copy(update={"error": f"{result.error}; {error}".strip("; ")[:4000]})
        digests = (response.stdout_summary.sha256, response.stderr_summary.sha256)
        if digests != (result.stdout_sha256, result.stderr_sha256):
            return result.model_copy(update={"error": "the ledger has other digests than the receipt"})
        return result.model_copy(
            update={"stdout": response.stdout[:MAX_OUTPUT_BYTES], "stderr": response.stderr[:MAX_OUTPUT_BYTES]}
        )
