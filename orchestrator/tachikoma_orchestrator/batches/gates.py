"""Health gates of batches: a command on an agent that must succeed before the first wave, and before each further one.

A gate is an ordinary request of the batch's requester: policy decides, its order is signed, its receipt verified. Its
id is a hash over the batch and the place in the list, so each gate runs once, however many orchestrators drive.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from typing import NamedTuple

from tachikoma.errors import RecordAltered, ResultUnknown
from tachikoma.identity.signed_batches import ApprovedBatch
from tachikoma.vocabulary.states import ExecState
from tachikoma_orchestrator.admission.admit import Admitter
from tachikoma_orchestrator.batches.frozen import Frozen
from tachikoma_orchestrator.batches.starter import Starter, Verdict, approved, with_approval
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.ledger import LIMITS, Ledger
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.transitions import Outcome

__all__ = ["GateFinding", "GateState", "HealthGates", "gate_verdict"]


class GateState(Enum):
    """The state of a gate, by its consequence for the batch."""

    #: The next wave may begin.
    PASSED = "passed"
    #: The gate has not ended.
    OPEN = "open"
    #: No further target may start.
    FAILED = "failed"


class GateFinding(NamedTuple):
    """The state of a gate, with its reason and evidence."""

    state: GateState
    #: In words, with the id of the gate's execution.
    reason: str = ""
    #: SHA-256 of the gate's receipt, in hexadecimal; empty if it has none.
    evidence: str = ""


async def gate_verdict(starter: Starter, frozen: Frozen, place: int) -> Verdict:
    """Return the decision of policy on the gate of a batch at a place in the list of targets."""
    assert frozen.request.gate is not None
    return await starter.decided(frozen, frozen.request.gate.execution(frozen.gate_id(place)))


class HealthGates:
    """Runs the gates of batches."""

    def __init__(self, admitter: Admitter, ledger: Ledger, evidence: Evidence, starter: Starter) -> None:
        """Prepare the health gates.

        Args:
            admitter: admits the gates' executions.
            ledger: the executions.
            evidence: verifies their receipts.
            starter: decides about the gates.
        """
        self._admitter = admitter
        self._ledger = ledger
        self._evidence = evidence
        self._starter = starter

    async def check(self, frozen: Frozen, place: int, approval: ApprovedBatch | None) -> GateFinding:
        """Return the state of the gate at a place in the list of targets; start it if it has not started.

        Args:
            frozen: a batch with a gate.
            place: number of targets that may start before the gate.
            approval: the verified approval of the batch; None without one.

        Raises:
            Unavailable: the gate cannot be recorded, or the orchestrator's certificate has expired.
        """
        record = await self._ledger.record(frozen.gate_id(place))
        if record is None:
            return await self._start(frozen, place, approval)
        if not record.state.terminal:
            return GateFinding(GateState.OPEN)
        return await self._ended(record)

    async def _start(self, frozen: Frozen, place: int, approval: ApprovedBatch | None) -> GateFinding:
        verdict = await gate_verdict(self._starter, frozen, place)
        # An approval names the first gate; the others differ from it in their ids only.
        binding = (await gate_verdict(self._starter, frozen, 0)).binding
        verdict = with_approval(verdict, approval, approval is not None and approval.gate == binding)
        assert verdict.allowed is not None
        request = verdict.allowed.request
        named = f"the health gate {request.id} on {request.agent_id}"
        if verdict.state is not None:
            await self._starter.refuse(frozen, verdict)
            return GateFinding(GateState.FAILED, f"{named} is denied: {verdict.reason}")
        unfit = self._admitter.unfit(request)
        admission, dispatch = await self._admitter.prepare(verdict.allowed, unfit, **approved(approval))
        outcome, _ = await self._ledger.admit(admission, dispatch)
        if outcome in (Outcome.ADMITTED, Outcome.DUPLICATE, *LIMITS):
            return GateFinding(GateState.OPEN)
        return GateFinding(GateState.FAILED, f"{named} could not start: {unfit or outcome}")

    async def _ended(self, record: Record) -> GateFinding:
        named = f"the health gate {record.exec_id} on {record.agent}"
        try:
            response = (await self._evidence.final_state(record)).response()
        except (RecordAltered, ResultUnknown) as error:
            return GateFinding(GateState.FAILED, f"{named} has no result that can be verified: {error}")
        evidence = hashlib.sha256(record.receipt.encode()).hexdigest() if record.receipt else ""
        if response.state is ExecState.SUCCEEDED:
            return GateFinding(GateState.PASSED, f"{named} succeeded", evidence)
        code = f" with exit code {response.exit_code}" if response.state is ExecState.FAILED else ""
        return GateFinding(GateState.FAILED, f"{named} ended as {response.state}{code}", evidence)
