"""The final states that this orchestrator reported, to be recorded again after a loss.

A cancelled, rejected or expired execution must not be queued or pending again after Redis went back to an older state.
One with a receipt must not be lost because its agent, which has the receipt in its journal, is silent then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma_orchestrator.executions.transitions import DISPATCHED, FENCE, Transition, TransitionOutcome
from tachikoma_orchestrator.store.remembered import Remembered
from tachikoma_orchestrator.store.scripts import Call, Runner, Script, flat
from tachikoma_orchestrator.store.states import stored_states

__all__ = ["EndedRecords", "ReportedStates"]

#: How long a final state is remembered, in seconds.
KEEP_SECONDS = 24 * 3600
#: Largest number of final states that are remembered; the oldest are forgotten first.
MAX_SETTLED = 10_000
#: The same for those with a receipt, which agents write again as well. A receipt has about 4 KiB.
KEEP_RECEIPTS_SECONDS, MAX_RECEIPTS = 900, 4000
#: Records that are read at once.
BATCH = 200
#: How long a record is remembered, in seconds; agents retain orders for the same time.
KEEP_RECORDS_SECONDS = 900
#: Most records that are remembered, and the bytes that each may have: 64 MiB together.
MAX_RECORDS, MAX_BYTES = 1024, 64 * 1024
#: Reason in the audit event.
REASON = "Redis lost its record, which an orchestrator remembered"
#: Fields of the record that its audit event contains.
_AUDITED = ("requested_by", "command", "client_ip", "policy", "batch")


class EndedRecords:
    """Remembers the records of executions that ended without a receipt, to be written again if Redis loses them.

    No agent can show an order for them. Without the record, the status of a cancelled execution would be unknown, and
    a repetition of its request would be a new one.
    """

    def __init__(self, keep_seconds: int) -> None:
        """Remember nothing yet.

        Args:
            keep_seconds: how long a completed record is kept in Redis.
        """
        self._keep_seconds = keep_seconds
        self._recall = Script("recall")
        #: The fields of each record.
        self._records: Remembered[str, Mapping[str, str]] = Remembered(KEEP_RECORDS_SECONDS, MAX_RECORDS)

    def remember(self, exec_id: str, record: Sequence[bytes]) -> None:
        """Remember a record, unless it is empty, too long or no text.

        Args:
            exec_id: the execution.
            record: its names and values.
        """
        self._records.forget(exec_id)
        if not record or sum(map(len, record)) > MAX_BYTES:
            return
        try:
            texts = [part.decode() for part in record]
        except UnicodeDecodeError:
            return
        self._records.put(exec_id, dict(zip(texts[::2], texts[1::2], strict=True)))

    async def write_again(self, runner: Runner, transition: Transition) -> bool:
        """Write the record again that a change led to. Raises redis errors.

        Args:
            runner: runs the script.
            transition: the change to the final state.

        Returns:
            False if the record is not remembered, or there is one.
        """
        record = self._records.get(transition.exec_id)
        return record is not None and bool(await runner.run(self._call(transition, record)))

    def _call(self, transition: Transition, record: Mapping[str, str]) -> Call:
        exec_id, agent = transition.exec_id, transition.agent
        final = transition.audit_event() | {name: record[name] for name in _AUDITED if record.get(name)}
        restored = final | {"event": AuditCode.RECORD_RESTORED, "reason": REASON, "actor": ""}
        return self._recall(
            keys=[
                keys.execution(exec_id), keys.AUDIT, keys.INDEX, keys.agent_index(agent), keys.claim(agent, exec_id),
            ],
            args={
                "id": exec_id,
                "agent": agent,
                "batch": record.get("batch", ""),
                "state": record["state"],
                "error": record.get("error", ""),
                "fence": FENCE if transition.fence else "",
                "admitted_ms": record["admitted_ms"],
                "keep_seconds": self._keep_seconds,
                "record": flat(record),
                "events": [flat(restored), flat(final)],
            },
        )  # fmt: skip


class ReportedStates:
    """Remembers the final states that were reported, and records them again."""

    def __init__(self, call: Callable[[Transition], Call], keep_seconds: int) -> None:
        """Remember nothing yet.

        Args:
            call: returns the call of the script that makes a change.
            keep_seconds: how long a completed record is kept in Redis.
        """
        self._call = call
        self._records = EndedRecords(keep_seconds)
        #: The last change of each execution.
        self._without_receipt: Remembered[str, Transition] = Remembered(KEEP_SECONDS, MAX_SETTLED)
        self._with_receipt: Remembered[str, Transition] = Remembered(KEEP_RECEIPTS_SECONDS, MAX_RECEIPTS)

    def remember(self, transition: Transition, record: Sequence[bytes] = ()) -> None:
        """Remember a change that was made, if the new state is final.

        Args:
            transition: the change.
            record: names and values of the changed record; empty if the change does not show it.
        """
        if transition.target is None or not transition.target.terminal:
            return
        changes = self._with_receipt if "receipt" in transition.fields else self._without_receipt
        changes.put(transition.exec_id, transition)
        self._records.remember(transition.exec_id, record)

    async def write_again(self, redis: Redis) -> None:
        """Record all of them again, after Redis lost data. Raises redis errors.

        Args:
            redis: connections that need not wait for the new life of Redis.
        """
        runner = Runner(redis)
        for _, transition, _ in self._without_receipt:
            answer = await runner.run(self._call(transition))
            missing = TransitionOutcome(answer[0].decode()) is TransitionOutcome.MISSING
            if missing and not await self._records.write_again(runner, transition):
                # Another orchestrator may have restored the record from its order meanwhile.
                await runner.run(self._call(transition))
        # Most of these are still there.
        completed = [change.value for change in self._with_receipt]
        for begin in range(0, len(completed), BATCH):
            for transition in await self._forgotten(redis, completed[begin : begin + BATCH]):
                await runner.run(self._call(transition))

    @staticmethod
    async def _forgotten(redis: Redis, transitions: list[Transition]) -> list[Transition]:
        """Return the changes whose records have no final state."""
        found = await stored_states(redis, [transition.exec_id for transition in transitions])
        return [transition for transition, state in zip(transitions, found, strict=True) if state in DISPATCHED]
