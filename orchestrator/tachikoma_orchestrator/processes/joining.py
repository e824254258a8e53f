"""The authority with which an orchestrator issues certificates to agents that join."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from tachikoma.config.file_watch import FileWatch
from tachikoma.errors import ConfigurationError
from tachikoma.identity.authority import CertificateAuthority, authority_files
from tachikoma.identity.certificates import dns_names
from tachikoma.identity.svid import SvidSource
from tachikoma.redis.access import without_credentials
from tachikoma.vocabulary.addresses import HostPort
from tachikoma_orchestrator import metrics
from tachikoma_orchestrator.agents.authority import Authority
from tachikoma_orchestrator.processes.listening import reachable
from tachikoma_orchestrator.processes.settings import OrchestratorSettings

__all__ = ["WatchedAuthority", "open_authority"]

log = structlog.get_logger(__name__)

#: Delay between two checks of the authority's files, in seconds.
CHECK_SECONDS = 1.0


class WatchedAuthority:
    """The authority of the settings, replaced when the files in its folder change and the own bundle trusts it."""

    def __init__(self, watch: FileWatch[CertificateAuthority], current: Authority, identity: SvidSource) -> None:
        """Watch the files of an authority that was checked.

        Args:
            watch: its files.
            current: the authority.
            identity: the orchestrator's own.
        """
        self._watch, self._identity = watch, identity
        #: The active authority.
        self.current = current
        self._measure()

    async def run(self) -> None:
        """Check the files regularly, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self.reload()

    def reload(self) -> None:
        """Activate the authority in the folder if it changed and is valid; else the previous one stays active."""
        changed = self._watch.reload()
        problem = self._watch.error
        found = replace(self.current, ca=self._watch.current)
        if not problem and found.ca is not self.current.ca:
            try:
                # The own bundle may trust it later, so a refused authority is checked again.
                found.check(self._identity.current())
            except ConfigurationError as error:
                problem = str(error)
            else:
                self.current = found
                self._measure()
                log.info("authority.changed", until=found.ca.not_after.isoformat())
        if changed and problem:
            log.warning("authority.kept", reason=problem)

    def _measure(self) -> None:
        metrics.CERTIFICATE_EXPIRES.labels("authority").set(self.current.ca.not_after.timestamp())
        metrics.AUTHORITY_LIFETIME.set(self.current.ca.lifetime.total_seconds())


def open_authority(
    settings: OrchestratorSettings, identity: SvidSource, *, joins: HostPort, listens: HostPort
) -> WatchedAuthority:
    """Open the certificate authority of the settings, and check that what it issues is trusted.

    Args:
        settings: with a certificate authority.
        identity: the orchestrator's own.
        joins: address on which hosts join.
        listens: address of the main server, where agents renew their certificates.

    Raises:
        ConfigurationError: the authority or an address cannot be used.
    """
    assert settings.ca is not None
    svid = identity.current()
    names = dns_names(svid.chain[0])
    if not names:
        raise ConfigurationError(
            "the orchestrator's certificate has no DNS name, which agents that join must verify; see docs/identity.md"
        )
    watch = FileWatch(settings.ca, CertificateAuthority, authority_files)
    authority = Authority(
        ca=watch.current,
        lifetime=settings.svid_lifetime,
        join_address=str(reachable(settings.join_address, joins, "TACHIKOMA_JOIN_ADDRESS")),
        renew_address=str(reachable(settings.renew_address, listens, "TACHIKOMA_RENEW_ADDRESS")),
        server_name=names[0],
        user_lifetime=settings.user_svid_lifetime,
        redis_url=settings.agents_redis_url or without_credentials(settings.redis_url),
    )
    authority.check(svid)
    return WatchedAuthority(watch, authority, identity)
