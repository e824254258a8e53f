"""The authority with which an orchestrator issues certificates to agents that join."""

from __future__ import annotations

from tachikoma.errors import ConfigurationError
from tachikoma.identity.authority import CertificateAuthority
from tachikoma.identity.certificates import dns_names
from tachikoma.identity.svid import Svid
from tachikoma.redis.access import without_credentials
from tachikoma.vocabulary.addresses import HostPort
from tachikoma_orchestrator.agents.authority import Authority
from tachikoma_orchestrator.processes.listening import reachable
from tachikoma_orchestrator.processes.settings import OrchestratorSettings

__all__ = ["open_authority"]


def open_authority(settings: OrchestratorSettings, svid: Svid, *, joins: HostPort, listens: HostPort) -> Authority:
    """Open the certificate authority of the settings, and check that what it issues is trusted.

    Args:
        settings: with a certificate authority.
        svid: the orchestrator's own identity.
        joins: address on which hosts join.
        listens: address of the main server, where agents renew their certificates.

    Raises:
        ConfigurationError: the authority or an address cannot be used.
    """
    assert settings.ca is not None
    names = dns_names(svid.chain[0])
    if not names:
        raise ConfigurationError(
            "the orchestrator's certificate has no DNS name, which agents that join must verify; see docs/identity.md"
        )
    authority = Authority(
        ca=CertificateAuthority.load(settings.ca),
        lifetime=settings.svid_lifetime,
        join_address=str(reachable(settings.join_address, joins, "TACHIKOMA_JOIN_ADDRESS")),
        renew_address=str(reachable(settings.renew_address, listens, "TACHIKOMA_RENEW_ADDRESS")),
        server_name=names[0],
        user_lifetime=settings.user_svid_lifetime,
        redis_url=settings.agents_redis_url or without_credentials(settings.redis_url),
    )
    authority.check(svid)
    return authority
