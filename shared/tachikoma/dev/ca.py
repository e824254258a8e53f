"""A certificate authority for one machine: enough to have mTLS and SPIFFE identities from the first minute.

Its key lies in a file that only its owner can read. Do not use it for more than one host.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from tachikoma.errors import ConfigurationError
from tachikoma.identity.authority import CertificateAuthority, new_key, private_pem
from tachikoma.identity.files import write_identity
from tachikoma.identity.spiffe import SpiffeId

__all__ = ["SVID_LIFETIME", "DevelopmentCA"]

CA_LIFETIME = timedelta(days=365)
#: A CA that ends sooner is replaced.
CA_MARGIN = timedelta(days=30)
SVID_LIFETIME = timedelta(hours=24)


class DevelopmentCA:
    """Signs X.509-SVIDs of one trust domain; its key and certificate live in a folder."""

    def __init__(self, folder: Path, trust_domain: str) -> None:
        """Take the CA in the folder, or make one where there is none or it ends soon."""
        self.trust_domain = trust_domain
        try:
            authority = CertificateAuthority.load(folder)
            usable = authority.not_after - CA_MARGIN > datetime.now(UTC) and authority.trust_domain == trust_domain
        except ConfigurationError:
            usable = False
        if not usable:
            name = "Tachikoma development CA"
            authority = CertificateAuthority.create(folder, trust_domain, name=name, lifetime=CA_LIFETIME)
        self._authority = authority
        self.certificate = authority.certificate

    @property
    def bundle_pem(self) -> bytes:
        """What verifiers need to trust it."""
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
        """Write a fresh key, its certificate and the bundle into a folder, named as spiffe-helper names them."""
        key = new_key()
        certificate = self._authority.sign(
            key.public_key(), spiffe_id, lifetime=lifetime, dns_names=dns_names, not_before=not_before
        )
        write_identity(
            folder,
            key_pem=private_pem(key),
            certificate_pem=self._authority.chain(certificate),
            bundle_pem=self.bundle_pem,
        )
