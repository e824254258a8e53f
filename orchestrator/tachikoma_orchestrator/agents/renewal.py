"""Renewal: an agent, a person or a service replaces its certificate before it expires, over mTLS."""

from __future__ import annotations

import structlog

from tachikoma.errors import InvalidRequest, PermissionDenied
from tachikoma.identity.authority import check_request
from tachikoma.identity.spiffe import InvalidIdentity, Member
from tachikoma.identity.svid import SvidSource
from tachikoma_orchestrator.agents.authority import AuthoritySource, IssuedIdentity, required
from tachikoma_orchestrator.agents.revocations import Revocations
from tachikoma_orchestrator.caller import Peer

__all__ = ["Renewals"]

log = structlog.get_logger(__name__)


class Renewals:
    """Renews certificates that were issued here."""

    def __init__(self, identity: SvidSource, revocations: Revocations, authority: AuthoritySource | None) -> None:
        """Prepare the renewal of certificates.

        Args:
            identity: the orchestrator's own.
            revocations: the revoked agents.
            authority: issues the certificates; None if hosts cannot join here.
        """
        self._identity = identity
        self._revocations = revocations
        self._authority = authority

    async def renew(self, peer: Peer, csr: bytes) -> IssuedIdentity:
        """Issue the next certificate of the caller. The guard has checked that the caller is not revoked.

        Args:
            peer: the caller.
            csr: its certificate signing request, PKCS #10 in DER.

        Raises:
            FailedPrecondition: this orchestrator has no certificate authority.
            PermissionDenied: the certificate of the caller was not issued here, or is an orchestrator's.
            InvalidRequest: the certificate request is invalid or asks for another identity.
        """
        authority, svid = required(self._authority), self._identity.current()
        if peer.spiffe_id.trust_domain != svid.spiffe_id.trust_domain:
            raise PermissionDenied(f"{peer} is not of {svid.spiffe_id.trust_domain}; only its members renew here")
        if peer.spiffe_id == svid.spiffe_id:
            raise PermissionDenied(f"{peer} is an orchestrator, which renews its certificate itself")
        if peer.certificate is None or not authority.ca.issued(peer.certificate):
            raise PermissionDenied(f"{peer} did not join here; renew its certificate with the authority that issued it")
        try:
            key = check_request(csr, peer.spiffe_id)
        except InvalidIdentity as error:
            raise InvalidRequest(str(error)) from None
        member = Member.of(peer.spiffe_id)
        earliest = None if member is None else self._revocations.accepted_from(member.key)
        leaf = authority.issue(key, peer.spiffe_id, svid, earliest)
        log.info(
            "identity.renewed", owner=str(peer), serial=f"{leaf.serial_number:x}", until=str(leaf.not_valid_after_utc)
        )
        return authority.identity(leaf, svid)
