"""The base of the classes that implement the RPCs: the parts they use, and checks that several of them need."""

from __future__ import annotations

from dataclasses import dataclass

from tachikoma.client import wire
from tachikoma.config.error_reporting import concerns
from tachikoma.errors import InvalidRequest, NotFound, PermissionDenied, RecordAltered, Unavailable
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.exec.v1.remote_execution_pb2_grpc import RemoteExecutionServicer
from tachikoma.identity.svid import SvidSource
from tachikoma.policy.masking.redaction import redact
from tachikoma.policy.watch import PolicyWatch
from tachikoma.redis.commands import Redis
from tachikoma.vocabulary.audit import AuditCode
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_orchestrator.admission.admit import Admitter
from tachikoma_orchestrator.admission.approvals import Approvals
from tachikoma_orchestrator.agents.membership import Membership
from tachikoma_orchestrator.agents.registry import Registry
from tachikoma_orchestrator.api.guard import current_peer
from tachikoma_orchestrator.audit.trail import AuditTrail
from tachikoma_orchestrator.batches.room import Batches
from tachikoma_orchestrator.caller import Peer
from tachikoma_orchestrator.executions.evidence import Evidence
from tachikoma_orchestrator.executions.ledger import Ledger
from tachikoma_orchestrator.executions.record import Record
from tachikoma_orchestrator.executions.waiters import Completions
from tachikoma_orchestrator.recordings.room import Recordings
from tachikoma_orchestrator.schedules.runner import ScheduleRunner
from tachikoma_orchestrator.store.subscriber import Subscriber

__all__ = ["DEFAULT_PAGE", "MAX_PAGE", "Service", "ServiceParts", "page_size"]

#: Entries of one page of a list: the default, and the most that a caller may request.
DEFAULT_PAGE = 100
MAX_PAGE = 1000


def page_size(requested: int, field: str) -> int:
    """Return the number of entries on a page.

    Args:
        requested: the caller's value; 0 for the default.
        field: name of the request's field, for the message.

    Raises:
        InvalidRequest: the caller requests more than `MAX_PAGE`.
    """
    if requested > MAX_PAGE:
        raise InvalidRequest(f"{field} is at most {MAX_PAGE}")
    return requested or DEFAULT_PAGE


def printable_id(text: str) -> str:
    """Return the loggable form of an id that was not validated: shortened, secrets masked."""
    return redact((text[:64],))[0]


@dataclass(frozen=True, slots=True)
class ServiceParts:
    """The parts of a process that its services use; they share them with the background tasks."""

    redis: Redis
    #: The orchestrator's own identity.
    identity: SvidSource
    policies: PolicyWatch
    trail: AuditTrail
    ledger: Ledger
    evidence: Evidence
    admitter: Admitter
    approvals: Approvals
    #: Calls that wait for the result of an execution.
    completions: Completions
    #: Delivers live output to followers.
    output_subscriber: Subscriber
    registry: Registry
    membership: Membership
    #: None if the orchestrator has no schedules.
    schedule_runner: ScheduleRunner | None
    batches: Batches
    recordings: Recordings


class Service(RemoteExecutionServicer):
    """A part of `tachikoma.exec.v1.RemoteExecution`."""

    def __init__(self, parts: ServiceParts) -> None:
        self._parts = parts

    def _is_operator(self, peer: Peer) -> bool:
        return self._parts.policies.current.is_operator(str(peer))

    def _operator(self, action: str) -> Peer:
        """Return the caller, who is an operator.

        Raises:
            PermissionDenied: the caller is not; the message names the action.
        """
        peer = current_peer()
        if not self._is_operator(peer):
            raise PermissionDenied(f"only operators may {action}", metadata={"rule": "operators"})
        return peer

    async def _request(self, message: pb.ExecRequest) -> ExecRequest:
        """Read the request of an execution.

        Raises:
            InvalidRequest: the request breaks a bound; the refusal is in the audit trail.
        """
        try:
            request = wire.request_from_pb(message)
        except InvalidRequest as error:
            self._parts.trail.check()
            peer = current_peer()
            await self._parts.trail.append_refusal(
                AuditCode.MALFORMED,
                subject=str(peer),
                id=printable_id(message.id),
                agent_id=printable_id(message.agent_id),
                authorized="0",
                requested_by=str(peer),
                client_ip=peer.address,
                reason=str(error),
            )
            raise
        concerns(request.id)
        return request

    async def _record(self, exec_id: str) -> Record:
        """Return the record of an execution that the caller may see.

        Raises:
            NotFound: the execution does not exist or belongs to another requester; the two look the same.
            Unavailable: the same, while records that Redis lost a moment ago are being restored.
            RecordAltered: the record cannot be read; that is in the audit trail.
        """
        record, peer = await self._stored(exec_id), current_peer()
        if record is None or not (record.requested_by == str(peer) or self._is_operator(peer)):
            if self._parts.admitter.restoring:
                raise Unavailable(
                    f"Redis lost data, and whether there is an execution {exec_id[:80]!r} of yours is not known until"
                    " its agent has shown what it retained; call again in a few seconds"
                )
            raise NotFound(f"there is no execution {exec_id[:80]!r} of yours")
        return record

    async def _existing(self, exec_id: str) -> Record:
        """Return the record of an execution that this call admitted or changed.

        Raises:
            Unavailable: Redis has lost the record since. A repetition with the same id starts nothing twice.
            RecordAltered: as of `_record`.
        """
        record = await self._stored(exec_id)
        if record is None:
            raise self._lost(exec_id)
        return record

    def _lost(self, exec_id: str) -> Unavailable:
        """Return the error of a call whose execution's record was lost while it ran."""
        return Unavailable(
            f"Redis lost the record of {exec_id} during this call; call again with the same id",
            metadata={"id": exec_id},
        )

    async def _stored(self, exec_id: str) -> Record | None:
        """Return the record of an execution; None if the ledger has none. Raises RecordAltered as `_record`."""
        concerns(exec_id)
        await self._parts.completions.recorded(exec_id)
        try:
            return await self._parts.ledger.record(exec_id) if exec_id else None
        except RecordAltered as error:
            await self._parts.evidence.altered(exec_id, str(error))
            raise

    async def _resolve_if_ended(self, exec_id: str) -> None:
        """Resolve the waiting calls of an execution that ended before they began to wait.

        Raises:
            RecordAltered: the ledger's result is not the one that the agent signed.
        """
        record = await self._parts.ledger.record(exec_id)
        if record is not None:
            await self._resolve_if_terminal(record)

    async def _resolve_if_terminal(self, record: Record) -> None:
        """Resolve the waiting calls of an execution if its record has a final state. Raises as `_resolve_if_ended`."""
        if record.state.terminal:
            final = await self._parts.evidence.final_state(record)
            self._parts.completions.deliver(final, record.order_sha256)
            final.response()
