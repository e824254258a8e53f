"""A certificate authority for one machine: mTLS and SPIFFE identities without a set-up.

Its key is in a file that only its owner can read. Do not use it for more than one host.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from tachikoma.errors import ConfigurationError
from tachikoma.identity.authority import CertificateAuthority
from tachikoma.identity.spiffe import SpiffeId

__all__ = ["SVID_LIFETIME", "DevelopmentCA"]

CA_NAME = "Tachikoma development CA"
CA_LIFETIME = timedelta(days=365)
#: A CA with less of its lifetime left is replaced.
CA_MARGIN = timedelta(days=30)
SVID_LIFETIME = timedelta(hours=24)


class DevelopmentCA:
    """The signer of X.509-SVIDs of one trust domain, with its key and certificate in a folder."""

    def __init__(self, folder: Path, trust_domain: str) -> None:
        """Load the CA in the folder; create one if it is missing, ends soon, or is of another trust domain."""
        self.trust_domain = trust_domain
        self._authority = self._load(folder) or CertificateAuthority.create(
            folder, trust_domain, name=CA_NAME, lifetime=CA_LIFETIME
        )
        self.certificate = self._authority.certificate

    def _load(self, folder: Path) -> CertificateAuthority | None:
        """Return the CA in the folder; None if the folder has no usable CA."""
        try:
            authority = CertificateAuthority.load(folder)
        except ConfigurationError:
            return None
        usable = authority.not_after - CA_MARGIN > datetime.now(UTC) and authority.trust_domain == self.trust_domain
        return authority if usable else None

    @property
    def bundle_pem(self) -> bytes:
        """The roots with which its certificates are verified, PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        spiffe_id: SpiffeId,
        folder: Path,
        *,
        dns_names: tuple[str, ...] = (),
        lifetime: timedelta = SVID_LIFETIME,
        not_before: datetime | None = None,
    ) -> None:
        """Write a new key, its certificate and the bundle into a folder, with the file names of spiffe-helper.

        Args:
            spiffe_id: the identity.
            folder: where the three files are written.
            dns_names: further names in the certificate.
            lifetime: lifetime of the certificate.
            not_before: beginning of its lifetime; None for the authority's default, shortly before now.
        """
        self._authority.issue(
            spiffe_id, bundle_pem=self.bundle_pem, lifetime=lifetime, dns_names=dns_names, not_before=not_before
        ).write(folder)
