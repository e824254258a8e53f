"""Renewal of the orchestrator's own identity, by the certificate authority that it uses for its members.

An identity that another authority issued, SPIRE's for instance, is renewed by that authority.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import structlog

from tachikoma.errors import ConfigurationError, Unavailable
from tachikoma.identity.authority import CertificateAuthority
from tachikoma.identity.certificates import dns_names
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.files import finish_writing
from tachikoma.identity.renewal import HALF, IdentityRenewal, due, renewal_lock
from tachikoma.identity.spiffe import InvalidIdentity
from tachikoma.identity.svid import Svid, SvidSource
from tachikoma_orchestrator.processes.settings import OrchestratorSettings

__all__ = ["OwnRenewal", "renew_at_start"]

log = structlog.get_logger(__name__)


class OwnRenewal(IdentityRenewal):
    """Renews the identity in a folder with an authority that this process has."""

    remedy = "issue it again: `tachikoma identity ca issue`"

    def __init__(self, folder: Path, ca: Path, lifetime: timedelta, identity: SvidSource) -> None:
        """Prepare the renewal.

        Args:
            folder: the folder of the identity.
            ca: the folder of the authority, which is read at each renewal: it may have been replaced since.
            lifetime: lifetime of each certificate.
            identity: the identity as the process uses it, which reads the folder by itself.
        """
        super().__init__(identity)
        self._folder, self._ca, self._lifetime = folder, ca, lifetime

    @classmethod
    def of(cls, settings: OrchestratorSettings, identity: SvidSource) -> OwnRenewal | None:
        """Return the renewal that the settings allow.

        None if there is no authority, or it did not issue the identity.

        Raises:
            ConfigurationError: the authority cannot be used.
        """
        if settings.ca is None or not isinstance(settings.identity, Path):
            return None
        if not CertificateAuthority.load(settings.ca).issued(identity.current().chain[0]):
            return None
        return cls(settings.identity, settings.ca, settings.svid_lifetime, identity)

    async def _renew(self, svid: Svid) -> Svid:
        return await asyncio.to_thread(self._issue, svid)

    def _issue(self, svid: Svid) -> Svid:
        with renewal_lock(self._folder) as free:
            if not free:
                raise Unavailable("another process renews it now")
            return self.issue_next(svid)

    def issue_next(self, svid: Svid) -> Svid:
        """Issue the next certificate of an identity, with a new key and the same names, and store it.

        Raises:
            ConfigurationError: the authority cannot be used, or the bundle of the identity does not trust it.
            OSError: the folder cannot be written.
        """
        ca, names = CertificateAuthority.load(self._ca), tuple(dns_names(svid.chain[0]))
        try:
            new = ca.issue(svid.spiffe_id, bundle_pem=svid.bundle.pem, lifetime=self._lifetime, dns_names=names)
            new.verify()
        except InvalidIdentity as error:
            raise ConfigurationError(f"the bundle in {self._folder} does not trust its authority: {error}") from None
        new.write(self._folder)
        return new


def renew_at_start(settings: OrchestratorSettings) -> None:
    """Renew the identity before it is opened, if it is due or ended while no orchestrator ran.

    Raises:
        ConfigurationError: the identity or the authority cannot be used.
    """
    if settings.ca is None or not isinstance(settings.identity, Path):
        return
    folder = settings.identity
    try:
        with renewal_lock(folder) as free:
            if not free:
                return
            finish_writing(folder)
            source = FileSvidSource(folder)
            renewal = OwnRenewal.of(settings, source)
            svid = source.current()
            if renewal is None or due(svid, HALF) > timedelta(0):
                return
            new = renewal.issue_next(svid)
    except OSError as error:
        # It may still be valid for hours; the renewal while the process runs reports the same.
        log.warning("svid.not_renewed", reason=str(error), folder=str(folder))
        return
    log.info("svid.renewed", spiffe_id=str(new.spiffe_id), until=new.not_after.isoformat())
