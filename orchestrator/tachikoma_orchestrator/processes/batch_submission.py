"""Batches that Celery applications signed: verified, accepted like any other, and watched until their end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from tachikoma.config import error_reporting
from tachikoma.config.retry import Backoff
from tachikoma.errors import NotFound
from tachikoma.identity.signed_batches import SignedBatchRequest
from tachikoma.vocabulary.batches import BatchResult, BatchStatus
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.processes.parts import Core
from tachikoma_orchestrator.processes.submission import (
    check_revocation,
    check_validity,
    persist,
    read_request,
    rejections_recorded,
)

__all__ = ["MAX_OUTPUT_BYTES", "document", "execute_batch"]

#: Seconds between two looks at a batch: the first time, and at most.
LOOK_SECONDS = (0.1, 1.0)
#: Most output in the value of a task. Redis stores it as one value, and sends it to the application at once.
MAX_OUTPUT_BYTES = 1024 * 1024

#: Reports a status of a batch that has not ended.
Report = Callable[[BatchStatus], Awaitable[None]]


async def execute_batch(core: Core, token: object, report: Report) -> tuple[BatchStatus, list[BatchResult]]:
    """Run a signed batch, and return its final status with the end of each target.

    Each target is started at most once, however often the function is called with the same token.

    Args:
        core: the parts of the process.
        token: what the message contains.
        report: called at each change until the end, at most once a second.

    Raises:
        TachikomaError: the batch is refused, as `BatchSubmission.submit` refuses it, or it is not signed by a
            requester.
    """
    core.trail.check()
    async with rejections_recorded(core):
        claims, peer = read_request(token, core.identity.current(), SignedBatchRequest)
        check_revocation(core, claims, peer)
        error_reporting.concerns(claims.jti)
        await persist(lambda: _accept(core, claims, peer))
    status = await _ended(core, claims.jti, report)
    return status, await persist(lambda: _results(core, status))


async def _accept(core: Core, claims: SignedBatchRequest, peer: Peer) -> None:
    """Accept a batch, once. Raises Unauthenticated if the signature has expired; else as `BatchSubmission.submit`."""
    if await core.batches.store.signed(claims.jti) is None:
        # Otherwise a submitter that has ended accepted it.
        check_validity(claims)
    await core.batches.submission.submit(claims.batch, peer)


async def _ended(core: Core, batch_id: str, report: Report) -> BatchStatus:
    """Wait until nothing of a batch runs any more, and return its status."""
    last: BatchStatus | None = None
    pace = Backoff(*LOOK_SECONDS)
    while True:
        status = await persist(lambda: core.batches.store.status(batch_id))
        if status is None:
            raise NotFound(f"the batch {batch_id} is gone")
        if status.ended:
            return status
        if status != last:
            await report(status)
            last = status
        await pace.wait()


async def _results(core: Core, status: BatchStatus) -> list[BatchResult]:
    """Return the end of each target, with as much output as there is room for."""
    found: dict[str, BatchResult] = {}
    room = MAX_OUTPUT_BYTES
    async for result in core.batches.watch.ended(status, output=True):
        room -= len(result.stdout or b"") + len(result.stderr or b"")
        if room < 0:
            break
        found[result.agent_id] = result
    if room < 0:
        async for result in core.batches.watch.ended(status, output=False):
            found.setdefault(result.agent_id, result)
    return list(found.values())


def document(status: BatchStatus, results: list[BatchResult]) -> dict[str, Any]:
    """Return the value of the task of a batch."""
    return {"batch": status.to_dict(), "results": [result.to_dict() for result in results]}
