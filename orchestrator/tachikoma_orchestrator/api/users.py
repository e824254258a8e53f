"""The RPCs about people: their tokens, their list, and their revocation; and the renewal of every other certificate."""

from __future__ import annotations

from tachikoma.client import wire
from tachikoma.exec.v1 import remote_execution_pb2 as pb
from tachikoma.identity.spiffe import Member
from tachikoma.vocabulary.users import UserEnrolment
from tachikoma_orchestrator.admission.approvals import checked_reason
from tachikoma_orchestrator.api.guard import current_peer
from tachikoma_orchestrator.api.service import Service
from tachikoma_orchestrator.api.times import duration_of

__all__ = ["UserCalls"]


class UserCalls(Service):
    """`EnrollUser`, `ListUsers`, `RevokeUser` and `RenewIdentity`."""

    async def EnrollUser(self, request: pb.EnrollUserRequest, context: object) -> pb.EnrollUserResponse:  # noqa: N802
        peer = self._operator("enroll people")
        self._parts.trail.check()
        token, expires = await self._parts.membership.enrolments.enroll(
            Member.user(request.name), duration_of(request.ttl, "ttl"), peer
        )
        return wire.user_enrolment_to_pb(UserEnrolment(name=request.name, token=token, expires=expires))

    async def ListUsers(self, request: pb.ListUsersRequest, context: object) -> pb.ListUsersResponse:  # noqa: N802
        self._operator("list people")
        users = await self._parts.membership.users.describe()
        return pb.ListUsersResponse(users=[wire.user_to_pb(user) for user in users])

    async def RevokeUser(self, request: pb.RevokeUserRequest, context: object) -> pb.User:  # noqa: N802
        # Without `trail.check()`: a revocation only takes rights away, so it does not wait for an audit sink.
        peer = self._operator("revoke people")
        await self._parts.membership.revoker.revoke_user(request.name, checked_reason(request.reason), peer)
        return wire.user_to_pb(await self._parts.membership.users.info(request.name))

    async def RenewIdentity(  # noqa: N802
        self, request: pb.RenewIdentityRequest, context: object
    ) -> pb.RenewIdentityResponse:
        certificate = await self._parts.membership.renewals.renew(current_peer(), request.csr)
        return pb.RenewIdentityResponse(
            certificate_chain=certificate.chain_pem,
            bundle=certificate.bundle_pem,
            renew_address=certificate.renew_address,
        )
