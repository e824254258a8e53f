"""The requests of scheduled runs: an execution on one agent, or a batch on many."""

from __future__ import annotations

from collections.abc import Sequence

from tachikoma.schedules.file import Schedule
from tachikoma.vocabulary.schedules import ScheduledRun
from tachikoma_orchestrator.admission.admit import Admitter
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.batches.room import Batches
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.ledger import Ledger

__all__ = ["RunRequests"]


class RunRequests:
    """Requests runs like any other requester, and knows their states. All methods raise redis errors."""

    def __init__(self, admitter: Admitter, ledger: Ledger, trail: AuditTrail, batches: Batches) -> None:
        self._admitter = admitter
        self._ledger = ledger
        self._trail = trail
        self._batches = batches

    async def request(self, schedule: Schedule, run_id: str, peer: Peer) -> None:
        """Request a run under an id, once.

        Args:
            schedule: the schedule.
            run_id: id of the execution, or of the batch.
            peer: the schedule as a requester.

        Raises:
            Unavailable: it cannot be recorded now.
            TachikomaError: it is refused.
        """
        if not schedule.targets:
            await self._admitter.admit(schedule.exec_request(run_id), peer)
            return
        self._trail.check()
        # If Redis forgets the batch, a repetition must have the same executions, which agents start once.
        nonce = self._trail.keyed("batch", str(peer), run_id)[:32]
        await self._batches.submission.submit(schedule.batch_request(run_id), peer, nonce=nonce)

    async def unfinished(self, run_id: str) -> bool:
        """Return True if the execution or the batch of a run has not finished."""
        record = await self._ledger.record(run_id)
        if record is not None:
            return not record.state.terminal
        # The schedule may have changed from one agent to targets since, or back.
        status = await self._batches.store.status(run_id)
        return status is not None and not status.ended

    async def with_states(self, runs: Sequence[ScheduledRun]) -> list[ScheduledRun]:
        """Return runs with the present states of their executions and batches."""
        records = await self._ledger.records([run.id for run in runs if run.id and not run.is_batch])
        states = {record.exec_id: record.state for record in records}
        found = []
        for run in runs:
            changes: dict[str, object] = {"state": states.get(run.id)}
            if run.is_batch and (status := await self._batches.store.status(run.id)):
                changes = {"batch_state": status.state}
            found.append(run.model_copy(update=changes))
        return found

    def shown(self, schedule: Schedule) -> tuple[str, ...]:
        """Return the argv of a schedule with secrets masked."""
        if schedule.targets:
            return self._admitter.shown(schedule.batch_request("shown").execution("shown", "agent", None))
        return self._admitter.shown(schedule.exec_request("shown"))
