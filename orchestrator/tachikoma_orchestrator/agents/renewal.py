"""Renewal: an agent that joined replaces its certificate before it expires, over mTLS."""

from __future__ import annotations

import structlog

from tachikoma.errors import InvalidRequest, PermissionDenied
from tachikoma.identity.authority import check_request
from tachikoma.identity.join_token import agent_of
from tachikoma.identity.spiffe import InvalidIdentity
from tachikoma.identity.svid import SvidSource
from tachikoma_orchestrator.agents.authority import Authority, IssuedIdentity, required
from tachikoma_orchestrator.agents.revocations import Revocations
from tachikoma_orchestrator.caller import Peer

__all__ = ["Renewals"]

log = structlog.get_logger(__name__)


class Renewals:
    """Renews the certificates of agents that joined here."""

    def __init__(self, identity: SvidSource, revocations: Revocations, authority: Authority | None) -> None:
        """Prepare it.

        Args:
            identity: the orchestrator's own.
            revocations: the revoked agents.
            authority: issues the certificates; None if hosts cannot join here.
        """
        self._identity = identity
        self._revocations = revocations
        self._authority = authority

    async def renew(self, peer: Peer, csr: bytes) -> IssuedIdentity:
        """Issue the next certificate of the calling agent. The guard has checked that the agent is not revoked.

        Args:
            peer: the caller.
            csr: its certificate signing request, PKCS #10 in DER.

        Raises:
            FailedPrecondition: hosts cannot join here.
            PermissionDenied: the caller is not an agent that joined here.
            InvalidRequest: the certificate request is invalid or asks for another identity.
        """
        authority, svid = required(self._authority), self._identity.current()
        agent = agent_of(peer.spiffe_id)
        if not agent or peer.spiffe_id.trust_domain != svid.spiffe_id.trust_domain:
            raise PermissionDenied(f"{peer} is no agent of {svid.spiffe_id.trust_domain}; only agents renew here")
        if peer.certificate is None or not authority.ca.issued(peer.certificate):
            raise PermissionDenied(f"{peer} did not join here; renew its certificate with the authority that issued it")
        try:
            key = check_request(csr, peer.spiffe_id)
        except InvalidIdentity as error:
            raise InvalidRequest(str(error)) from None
        leaf = authority.issue(key, peer.spiffe_id, svid, self._revocations.accepted_from(agent))
        log.info("agent.renewed", agent=agent, serial=f"{leaf.serial_number:x}", until=str(leaf.not_valid_after_utc))
        return authority.identity(leaf, svid)
