"""The authority that issues members' certificates, and the identity that a member receives from it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tachikoma.errors import ConfigurationError, FailedPrecondition, ServerError
from tachikoma.identity.authority import CertificateAuthority, new_key
from tachikoma.identity.spiffe import InvalidIdentity, Member, SpiffeId, agent_id
from tachikoma.identity.svid import Svid

__all__ = ["Authority", "AuthoritySource", "IssuedIdentity", "required"]


@dataclass(frozen=True, slots=True)
class IssuedIdentity:
    """A new certificate with everything that its owner needs to use it."""

    #: The certificate and its intermediates, PEM.
    chain_pem: bytes
    #: Roots of the trust domain, PEM.
    bundle_pem: bytes
    #: host:port of the orchestrator that renews the certificate.
    renew_address: str
    #: Time from which the certificate is accepted. It is in the future only shortly after a revocation.
    valid_from: datetime
    #: Password of the agent's Redis user; empty after a renewal, and when the orchestrator manages no Redis users.
    redis_password: str = ""
    #: URL of Redis as agents reach it, without credentials; empty if it is not known, and after a renewal.
    redis_url: str = ""


@dataclass(frozen=True, slots=True)
class Authority:
    """Issues members' certificates and knows where members reach the orchestrator."""

    ca: CertificateAuthority
    #: Lifetime of the certificates of agents and services.
    lifetime: timedelta
    #: host:port where hosts and people join.
    join_address: str
    #: host:port of the main server, where certificates are renewed.
    renew_address: str
    #: DNS name in the orchestrator's certificate, which joining members check.
    server_name: str
    #: Lifetime of the certificates of people.
    user_lifetime: timedelta = timedelta(days=7)
    #: URL of Redis as agents reach it, without credentials; empty if it is not known.
    redis_url: str = ""

    def check(self, svid: Svid) -> None:
        """Issue a certificate on trial.

        Raises:
            ConfigurationError: the orchestrator's own bundle does not trust the authority, so no agent could join.
        """
        try:
            self.issue(new_key().public_key(), agent_id(svid.spiffe_id.trust_domain, "probe"), svid)
        except (InvalidIdentity, ServerError) as error:
            raise ConfigurationError(
                f"the orchestrator's own bundle would not trust what its certificate authority issues: {error}"
            ) from None

    def issue(
        self, key: ec.EllipticCurvePublicKey, spiffe_id: SpiffeId, svid: Svid, earliest: datetime | None = None
    ) -> x509.Certificate:
        """Issue a certificate and verify it like any other.

        Args:
            key: public key of the owner.
            spiffe_id: SPIFFE ID of the owner.
            svid: identity of the orchestrator, whose bundle must trust the certificate.
            earliest: the certificate does not begin before this time; None for no such bound.

        Raises:
            ServerError: the bundle does not trust the certificate.
        """
        member = Member.of(spiffe_id)
        lifetime = self.lifetime if member is None or member.is_agent else self.user_lifetime
        leaf = self.ca.sign(key, spiffe_id, lifetime=lifetime, earliest=earliest)
        sent = x509.load_pem_x509_certificates(self.ca.chain(leaf))
        try:
            svid.bundle.verify(leaf, sent[1:], max(datetime.now(UTC), leaf.not_valid_before_utc))
        except InvalidIdentity as error:
            raise ServerError(f"the certificate authority is no longer trusted: {error}") from None
        return leaf

    def identity(
        self, leaf: x509.Certificate, svid: Svid, redis_password: str = "", redis_url: str = ""
    ) -> IssuedIdentity:
        """Return an issued certificate with its chain, the bundle and the address for renewals."""
        return IssuedIdentity(
            chain_pem=self.ca.chain(leaf),
            bundle_pem=svid.bundle.pem,
            renew_address=self.renew_address,
            valid_from=leaf.not_valid_before_utc,
            redis_password=redis_password,
            redis_url=redis_url,
        )


class AuthoritySource(Protocol):
    """An authority that may be replaced while the process runs."""

    @property
    def current(self) -> Authority:
        """The active authority. A caller uses the same one for a certificate and its chain."""


def required(authority: AuthoritySource | None) -> Authority:
    """Return the active authority.

    Raises:
        FailedPrecondition: this orchestrator has none.
    """
    if authority is None:
        raise FailedPrecondition(
            "no host can join here: this orchestrator has no certificate authority "
            "(set TACHIKOMA_CA and TACHIKOMA_JOIN_LISTEN)"
        )
    return authority.current
