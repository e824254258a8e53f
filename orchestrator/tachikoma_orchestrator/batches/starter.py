"""The start of targets: each is an ordinary request, which policy decides and which is admitted like every other."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple

import structlog

from tachikoma.config import tracing
from tachikoma.identity.signed_batches import ApprovedBatch
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.batches import TargetState
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.admission.admit import Admitter
from tachikoma_orchestrator.admission.digests import approval_digest, request_digest
from tachikoma_orchestrator.admission.orders import AllowedRequest
from tachikoma_orchestrator.admission.refusals import Denial, not_allowed, unsuitable
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.batches.frozen import Frozen
from tachikoma_orchestrator.batches.store import PAGE, BatchStore
from tachikoma_orchestrator.executions.ledger import LIMITS, Ledger
from tachikoma_orchestrator.executions.transitions import Admission, Dispatch

__all__ = ["CHUNK", "Starter", "Verdict", "approved", "with_approval"]

log = structlog.get_logger(__name__)

#: Targets that are admitted in one round trip. A transaction of 50 holds Redis for about 4 ms.
CHUNK = 50
#: Seconds after which a target that met a limit is tried again, the first time and at most. After all that were tried
#: met a limit, the other targets of the batch are tried after the first time too.
RETRY_SECONDS = (1.0, 15.0)
#: Targets with such a delay that are remembered for all batches.
MAX_DELAYED = 50_000
#: Waiting targets that are looked at in one step, of which most may have a delay.
MAX_LOOKED = 2000
#: Batches whose turn is remembered.
MAX_TURNS = 10_000


class Verdict(NamedTuple):
    """The present decision of policy on a target."""

    #: None if it may start; else DENIED.
    state: TargetState | None
    reason: str
    allowed: AllowedRequest | None

    @property
    def binding(self) -> str:
        """The first half of the digest over request and grant, as an approval contains it; empty if denied."""
        if self.state is not None or self.allowed is None:
            return ""
        return approval_digest(self.allowed.request, self.allowed.decision)[:32]


class _Turn(NamedTuple):
    """The turn of the targets of a batch."""

    #: Place in the list at which the next look begins.
    place: int = 0
    #: Monotonic time before which no target is tried.
    begin: float = 0.0


class Starter:
    """Starts targets of batches."""

    def __init__(self, admitter: Admitter, ledger: Ledger, registry: Registry, store: BatchStore) -> None:
        self._admitter = admitter
        self._trail = ledger.trail
        self._ledger = ledger
        self._registry = registry
        self._store = store
        #: Monotonic time before which a target is not tried again, and its last delay in seconds; by execution id.
        self._delayed: dict[str, tuple[float, float]] = {}
        #: By batch id.
        self._turns: dict[str, _Turn] = {}

    async def ready(self, frozen: Frozen, released: int, room: int) -> list[str]:
        """Return the targets that may be tried now: waiting ones of the frozen list without a delay.

        Each look begins where the last one ended. So targets that meet a limit never keep later ones from their turn,
        however many there are. Targets on an agent whose records are being restored are left out: they might run a
        second time.

        Args:
            frozen: the batch.
            released: targets before this place may start.
            room: largest number of targets, at least 1.
        """
        place, begin = self._turns.get(frozen.id, _Turn())
        now, looked = time.monotonic(), 0
        found: list[str] = []
        if now < begin:
            return found
        async with aclosing(self._waiting(frozen, place, released)) as waiting:
            async for agent in waiting:
                place, looked = frozen.places.get(agent, place) + 1, looked + 1
                if self._may_try(frozen, agent, now):
                    found.append(agent)
                if len(found) == room or looked == MAX_LOOKED:
                    break
        self._remember_turn(frozen, _Turn(place))
        return found

    async def _waiting(self, frozen: Frozen, place: int, released: int) -> AsyncGenerator[str]:
        """Yield the waiting targets from a place in the list to the end, then from the first one to this place."""
        for first, end in ((place, released), (0, min(place, released))):
            while first < end:
                page = await self._store.pending(frozen.id, first, end)
                for agent in page:
                    # Redis may have replaced the list: the next place is a later one whatever it contains.
                    first = max(first, frozen.places.get(agent, first)) + 1
                    yield agent
                if len(page) < PAGE:
                    break

    def _may_try(self, frozen: Frozen, agent: str, now: float) -> bool:
        return (
            agent in frozen.places
            and self._admitter.settled(agent)
            and self._delayed.get(frozen.exec_id(agent), (0.0, 0.0))[0] <= now
        )

    def _remember_turn(self, frozen: Frozen, turn: _Turn) -> None:
        if len(self._turns) >= MAX_TURNS:
            self._turns.clear()
        self._turns[frozen.id] = turn

    async def verdict(self, frozen: Frozen, agent: str) -> Verdict:
        """Return the decision of policy on a target, after substitution; nothing is recorded."""
        try:
            request = frozen.request.execution(frozen.exec_id(agent), agent, self._registry.labels(agent))
        except ValueError as error:
            return Verdict(TargetState.DENIED, str(error), None)
        return await self.decided(frozen, request)

    async def decided(self, frozen: Frozen, request: ExecRequest) -> Verdict:
        """Return the decision of policy on a request of a batch; nothing is recorded."""
        request = request.model_copy(update={"requested_by": frozen.requested_by})
        decision = await self._admitter.decide(request, frozen.peer.address)
        allowed = self._admitter.allowed(request, decision, request_digest(request), frozen.peer.address)
        if not decision.allowed:
            return Verdict(TargetState.DENIED, decision.reason, allowed)
        return Verdict(None, "", allowed)

    async def start(self, frozen: Frozen, agents: Sequence[str], approval: ApprovedBatch | None = None) -> bool:
        """Start targets, as far as their batch lets them; the scripts decide. Return False if all met a limit.

        Args:
            frozen: the batch.
            agents: the targets.
            approval: the verified approval of the batch; None without one.

        Raises:
            Unavailable: requests cannot be recorded, or the orchestrator's certificate has expired.
        """
        prepared: list[tuple[Admission, Dispatch | None]] = []
        for agent in agents:
            verdict = await self.verdict(frozen, agent)
            bound = approval is not None and approval.targets[frozen.places[agent]] == verdict.binding
            verdict = with_approval(verdict, approval, bound)
            if verdict.state is not None or verdict.allowed is None:
                await self._deny(frozen, agent, verdict)
                continue
            unfit = self._admitter.unfit(verdict.allowed.request)
            with tracing.span("admission", {"tachikoma.batch.id": frozen.id, "tachikoma.agent.id": agent}):
                prepared.append(
                    await self._admitter.prepare(verdict.allowed, unfit, batch=frozen.id, **approved(approval))
                )
        if not prepared:
            return True
        limited = 0
        for (admission, _), (outcome, retry_seconds) in zip(
            prepared, await self._ledger.admit_all(prepared), strict=True
        ):
            if outcome in LIMITS:
                limited += 1
                self._delay(admission.request.id, retry_seconds)
            else:
                self._delayed.pop(admission.request.id, None)
        if limited < len(agents):
            return True
        # A limit that all targets meet must not cost an attempt for each of thousands.
        turn = self._turns.get(frozen.id, _Turn())
        self._remember_turn(frozen, turn._replace(begin=time.monotonic() + RETRY_SECONDS[0]))
        return False

    async def _deny(self, frozen: Frozen, agent: str, verdict: Verdict) -> None:
        """Record that policy does not allow a target, and end the target."""
        if verdict.allowed is not None:
            await self.refuse(frozen, verdict)
        else:
            await self._trail.append_refusal(
                AuditCode.DENIED, subject=frozen.requested_by, id=frozen.exec_id(agent), agent_id=agent,
                authorized="0", requested_by=frozen.requested_by, reason=verdict.reason, batch=frozen.id,
            )  # fmt: skip
        await self._store.deny_target(frozen.id, agent, verdict.reason)

    async def refuse(self, frozen: Frozen, verdict: Verdict) -> None:
        """Record that policy does not allow a request of a batch."""
        assert verdict.allowed is not None
        await self._admitter.deny(verdict.allowed.request, frozen.peer, _denial(verdict), batch=frozen.id)

    def _delay(self, exec_id: str, retry_seconds: float) -> None:
        first, most = RETRY_SECONDS
        _, last = self._delayed.get(exec_id, (0.0, first / 2))
        seconds = min(most, max(last * 2, retry_seconds))
        if len(self._delayed) >= MAX_DELAYED:
            self._delayed.clear()
        self._delayed[exec_id] = time.monotonic() + seconds, seconds


def approved(approval: ApprovedBatch | None) -> dict[str, str]:
    """Return the arguments of `Admitter.prepare` for a request of a batch, by the approval of the batch."""
    return {} if approval is None else {"approved_by": approval.sub, "approval_reason": approval.reason}


def with_approval(verdict: Verdict, approval: ApprovedBatch | None, bound: bool) -> Verdict:
    """Return a verdict, or a denial if the request needs an approval that the batch does not have.

    Args:
        verdict: what policy says.
        approval: the verified approval of the batch; None without one.
        bound: True if the approval contains what would run.
    """
    if verdict.state is not None or verdict.allowed is None:
        return verdict
    if approval is not None:
        why = "" if bound else "what would run is not what was approved: policy or the agent's labels changed"
    else:
        needed = verdict.allowed.decision.approvers
        why = "policy requires an approval, which the batch does not have; submit it again" if needed else ""
    return Verdict(TargetState.DENIED, why, verdict.allowed) if why else verdict


def _denial(verdict: Verdict) -> Denial:
    assert verdict.allowed is not None
    decision = verdict.allowed.decision
    return unsuitable(decision, verdict.reason) if decision.allowed else not_allowed(decision)
