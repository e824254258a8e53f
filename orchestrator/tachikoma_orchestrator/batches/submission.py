"""The request of a batch: its targets resolved and frozen, and what would happen to each of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from tachikoma.errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound, ResourceExhausted, ServerError
from tachikoma.identity.signing import InvalidSignature
from tachikoma.identity.svid import Svid, SvidSource
from tachikoma.targets.expressions import resolve
from tachikoma.targets.nodesets import fold, in_order
from tachikoma.vocabulary.agents import AgentInfo
from tachikoma.vocabulary.batches import (
    BatchPreview,
    BatchRequest,
    BatchState,
    BatchStatus,
    PreviewedTarget,
    TargetState,
)
from tachikoma_orchestrator.admission.admit import Admitter
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.batches.examination import Examination, needs_of
from tachikoma_orchestrator.batches.frozen import Frozen, next_wave
from tachikoma_orchestrator.batches.gates import gate_verdict
from tachikoma_orchestrator.batches.starter import Starter, Verdict
from tachikoma_orchestrator.batches.store import MAX_OPEN, MAX_OPEN_OF_REQUESTER, BatchStore
from tachikoma_orchestrator.caller import Peer

__all__ = ["BatchSubmission", "read_frozen"]

#: Longest short form of the targets in an audit event, in characters.
MAX_SUMMARY = 1000


@dataclass(frozen=True, slots=True)
class _Resolved:
    """A request with its frozen list."""

    request: BatchRequest
    targets: tuple[str, ...]
    digest: str


class BatchSubmission:
    """Accepts batches."""

    def __init__(
        self, store: BatchStore, starter: Starter, admitter: Admitter, registry: Registry, identity: SvidSource
    ) -> None:
        self._store = store
        self._starter = starter
        self._admitter = admitter
        self._registry = registry
        self._identity = identity

    async def submit(self, request: BatchRequest, peer: Peer, *, nonce: str | None = None) -> BatchStatus:
        """Freeze the targets of a request and record the batch; its driver starts them.

        Args:
            request: the request.
            peer: the requester.
            nonce: see `Frozen.make`; a batch with the same id and nonce has the same executions.

        Raises:
            InvalidRequest: an expression cannot be understood, or finds no agent.
            NotFound: the batch to retry does not exist, or belongs to another requester.
            FailedPrecondition: the batch to retry has not ended.
            AlreadyExists: the id was used for another batch.
            ResourceExhausted: too many batches are open, in all or of this requester.
        """
        repeated = await self._store.signed(request.id)
        if repeated is not None:
            # The agents may have changed since, also all be gone: a repetition is compared by its request alone.
            earlier = read_frozen(self._identity.current(), request.id, repeated)
            if earlier.request != _completed(request, earlier.request) or earlier.requested_by != str(peer):
                raise AlreadyExists(f"the id {request.id!r} was used for another batch", metadata={"id": request.id})
            return await self._status(request.id)
        resolved = await self._resolve(request, peer)
        request, targets = resolved.request, resolved.targets
        template = request.execution(request.id, "agent", None)
        svid = self._identity.current()
        frozen, approval_timeout = Frozen.make(svid, request, targets, peer, nonce), timedelta(0)
        if self._admitter.approves_batches:
            found = await Examination.of(self._starter, frozen)
            frozen, approval_timeout = frozen.with_needs(found.needs), found.approval_timeout
        outcome = await self._store.submit(
            request, targets, frozen.signed(svid),
            requested_by=str(peer), shown=self._admitter.shown(template), digest=resolved.digest,
            released=0 if request.gate else next_wave(request, len(targets), 0), summary=_summary(frozen),
            needs=frozen.needs, approval_timeout=approval_timeout,
        )  # fmt: skip
        if outcome == "CONFLICT":
            raise AlreadyExists(f"the id {request.id!r} was used for another batch", metadata={"id": request.id})
        if outcome == "REQUESTER_FULL":
            raise ResourceExhausted(
                f"{MAX_OPEN_OF_REQUESTER} of your batches have not ended; wait, or cancel some "
                "(`tachikoma batches ls` shows them)", metadata={"limit": "batches"}, retry_after_seconds=5,
            )  # fmt: skip
        if outcome == "FULL":
            raise ResourceExhausted(
                f"{MAX_OPEN} batches have not ended; try again later", metadata={"limit": "batches"},
                retry_after_seconds=5,
            )  # fmt: skip
        return await self._status(request.id)

    async def preview(self, request: BatchRequest, peer: Peer) -> BatchPreview:
        """Return the targets that `submit` would freeze, each with its state now. Raises as `submit` does."""
        resolved = await self._resolve(request, peer)
        frozen = Frozen.make(self._identity.current(), resolved.request, resolved.targets, peer)
        agents = {agent.id: agent for agent in await self._registry.describe(resolved.targets)}
        targets, decisions = [], []
        for agent in resolved.targets:
            verdict = await self._starter.verdict(frozen, agent)
            targets.append(self._previewed(agent, agents.get(agent), verdict))
            # As for the batch itself, unreachable targets count too.
            if verdict.allowed is not None:
                decisions.append(verdict.allowed.decision)
            # Other calls go on in between: policy decides thousands of targets without waiting for anything.
            await asyncio.sleep(0)
        if frozen.request.gate is not None and (gate := await gate_verdict(self._starter, frozen, 0)).allowed:
            decisions.append(gate.allowed.decision)
        return BatchPreview(digest=resolved.digest, targets=tuple(targets), needs=needs_of(decisions))

    def _previewed(self, agent: str, info: AgentInfo | None, verdict: Verdict) -> PreviewedTarget:
        reason = "unknown" if info is None else self._obstacle(info)
        if reason:
            return PreviewedTarget(agent_id=agent, state=TargetState.UNREACHABLE, reason=reason)
        return PreviewedTarget(agent_id=agent, state=verdict.state or TargetState.PENDING, reason=verdict.reason)

    def _obstacle(self, info: AgentInfo) -> str:
        """Return why an agent cannot take an execution now; empty if it can."""
        if info.revoked:
            return "revoked"
        if not info.online:
            return "offline"
        if info.draining:
            return "draining"
        return self._registry.observations.obstacle(info.id)

    async def _resolve(self, request: BatchRequest, peer: Peer) -> _Resolved:
        if request.retry_of is not None:
            request, targets = await self._retried(request, peer)
        else:
            targets = await asyncio.to_thread(resolve, request.targets, await self._registry.known_labels())
        if not targets:
            raise InvalidRequest("the targets are no agent at all")
        try:
            request.execution(request.id, targets[0], None)
        except ValueError as error:
            raise InvalidRequest(f"invalid request: {error}") from None
        return _Resolved(request, targets, request.digest(targets))

    async def _retried(self, request: BatchRequest, peer: Peer) -> tuple[BatchRequest, tuple[str, ...]]:
        """Return a request to run again where an earlier batch ended in some states, and these targets.

        Raises:
            NotFound, FailedPrecondition, InvalidRequest: as `submit` does.
        """
        assert request.retry_of is not None
        token = await self._store.signed(request.retry_of)
        earlier = None if token is None else read_frozen(self._identity.current(), request.retry_of, token)
        if earlier is None or earlier.requested_by != str(peer):
            raise NotFound(f"there is no batch {request.retry_of!r} of yours")
        status = await self._status(earlier.id)
        pending, running = await self._store.not_ended(earlier.id)
        if not status.ended or running:
            # The command might run twice at once on a target, or a second time where it succeeds later.
            may_start = len(pending) if status.state in (BatchState.RUNNING, BatchState.PENDING_APPROVAL) else 0
            raise FailedPrecondition(
                f"the batch {earlier.id} has not ended: {len(running)} of its targets run, and {may_start} may still "
                f"start; wait, or cancel it (`tachikoma batches cancel {earlier.id}`), and retry it when it has ended"
            )
        states = {agent: result.state for agent, result in (await self._store.results(earlier.id)).items()}
        states |= dict.fromkeys(pending, TargetState.NOT_STARTED)
        wanted = frozenset(request.retry_states) or frozenset(TargetState) - {TargetState.SUCCEEDED}
        targets = tuple(in_order(agent for agent in earlier.targets if states.get(agent) in wanted))
        if not targets:
            raise InvalidRequest(f"no target of the batch {earlier.id} is in such a state")
        return _completed(request, earlier.request), targets

    async def _status(self, batch_id: str) -> BatchStatus:
        status = await self._store.status(batch_id)
        if status is None:
            raise ServerError(f"the batch {batch_id} was recorded and cannot be read")
        return status


def _completed(request: BatchRequest, earlier: BatchRequest) -> BatchRequest:
    """Return a request with the command of an earlier batch, if it retries that batch and has no command itself."""
    if request.command:
        return request
    again = ("command", "work_dir", "environment", "stdin", "timeout", "user", "limits")
    return request.model_copy(update={name: getattr(earlier, name) for name in again})


def read_frozen(svid: Svid, batch_id: str, token: str) -> Frozen:
    """Verify a stored batch. Raises ServerError if no orchestrator signed it."""
    try:
        return Frozen.read(svid, batch_id, token)
    except InvalidSignature as error:
        raise ServerError(f"the stored batch {batch_id} cannot be verified: it {error}") from None


def _summary(frozen: Frozen) -> str:
    """Return the number and the short form of the targets, and the policies that require an approval."""
    waits = "".join(f"; {need.policy} requires an approval of {need.targets}" for need in frozen.needs)
    return f"{len(frozen.targets)} targets: {fold(frozen.targets)[:MAX_SUMMARY]}{waits}"
