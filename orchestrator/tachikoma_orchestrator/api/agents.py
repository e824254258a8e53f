"""The RPCs about agents: who they are, whether they take executions, and their membership."""

from __future__ import annotations

from tachikoma.client import wire
from tachikoma.errors import NotFound
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.identity.spiffe import Member
from tachikoma.vocabulary.agents import Enrolment
from tachikoma.vocabulary.labels import LabelChange
from tachikoma_orchestrator.admission.approvals import checked_reason
from tachikoma_orchestrator.api.guard import current_peer
from tachikoma_orchestrator.api.service import Service
from tachikoma_orchestrator.api.times import duration_of

__all__ = ["AgentCalls"]


class AgentCalls(Service):
    """`ListAgents`, `DrainAgent`, `ResumeAgent`, `LabelAgent`, `EnrollAgent`, `RevokeAgent` and `RenewAgent`."""

    async def ListAgents(self, request: pb.ListAgentsRequest, context: object) -> pb.ListAgentsResponse:  # noqa: N802
        agents = await self._parts.registry.describe()
        return pb.ListAgentsResponse(agents=[wire.agent_to_pb(agent) for agent in agents])

    async def DrainAgent(self, request: pb.DrainAgentRequest, context: object) -> pb.Agent:  # noqa: N802
        peer = self._operator("drain agents")
        self._parts.trail.check()
        await self._parts.registry.drain(request.id, by=str(peer), reason=checked_reason(request.reason))
        return await self._agent(request.id)

    async def ResumeAgent(self, request: pb.ResumeAgentRequest, context: object) -> pb.Agent:  # noqa: N802
        peer = self._operator("resume agents")
        self._parts.trail.check()
        await self._parts.registry.resume(request.id, by=str(peer))
        return await self._agent(request.id)

    async def LabelAgent(self, request: pb.LabelAgentRequest, context: object) -> pb.Agent:  # noqa: N802
        peer = self._operator("change the labels of agents")
        self._parts.trail.check()
        change = LabelChange(dict(request.labels), tuple(request.remove))
        await self._parts.registry.bound.change(request.id, change, peer)
        return await self._agent(request.id)

    async def EnrollAgent(  # noqa: N802
        self, request: pb.EnrollAgentRequest, context: object
    ) -> pb.EnrollAgentResponse:
        peer = self._operator("enroll agents")
        self._parts.trail.check()
        token, expires = await self._parts.membership.enrolments.enroll(
            Member.agent(request.id), duration_of(request.ttl, "ttl"), peer, labels=dict(request.labels)
        )
        return wire.enrolment_to_pb(Enrolment(agent_id=request.id, token=token, expires=expires))

    async def RevokeAgent(  # noqa: N802
        self, request: pb.RevokeAgentRequest, context: object
    ) -> pb.RevokeAgentResponse:
        # Without `trail.check()`: a revocation only takes rights away, so it does not wait for an audit sink.
        peer = self._operator("revoke agents")
        revocation = await self._parts.membership.revoker.revoke(request.id, checked_reason(request.reason), peer)
        return wire.revocation_to_pb(revocation)

    async def RenewAgent(self, request: pb.RenewAgentRequest, context: object) -> pb.RenewAgentResponse:  # noqa: N802
        certificate = await self._parts.membership.renewals.renew(current_peer(), request.csr)
        return pb.RenewAgentResponse(
            certificate_chain=certificate.chain_pem,
            bundle=certificate.bundle_pem,
            renew_address=certificate.renew_address,
        )

    async def _agent(self, agent: str) -> pb.Agent:
        found = await self._parts.registry.describe([agent])
        if not found:
            raise NotFound(f"the agent {agent!r} is gone")
        return wire.agent_to_pb(found[0])
