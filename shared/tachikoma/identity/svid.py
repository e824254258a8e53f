"""An X.509-SVID with its key and trust bundles, and its replacement by newer material.

Certificate and bundles are renewed separately. A certificate with its key is accepted when they match each other, it
is valid now and the bundle trusts it; until then the previous one is retained. Bundles are accepted as soon as they can
be read, also when they no longer trust the own certificate: a removed root must not stay trusted while a renewal hangs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from tachikoma.identity.bundles import TrustBundle, TrustBundles, load_bundles
from tachikoma.identity.certificates import id_of
from tachikoma.identity.files import write_identity
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId

__all__ = ["Svid", "SvidSource", "renewed"]


@dataclass(frozen=True, eq=False)
class Svid:
    """An identity: certificate chain, key, and trust bundles."""

    #: The ID that the leaf names.
    spiffe_id: SpiffeId
    #: The leaf, then the certificates between it and the root.
    chain: tuple[x509.Certificate, ...]
    #: The chain as PEM.
    certificate_pem: bytes
    #: The key as PEM; not in `repr`, since an identity may be logged.
    key_pem: bytes = field(repr=False)
    #: The bundles of its own trust domain and of federated ones.
    bundles: TrustBundles

    @classmethod
    def load(
        cls,
        certificate_pem: bytes,
        key_pem: bytes,
        bundle_pem: bytes,
        federated_pem: Mapping[str, bytes] | None = None,
    ) -> Svid:
        """Build an identity from PEM; federated bundles by trust domain. Expiry is checked by `verify`, not here.

        Raises:
            InvalidIdentity: a part cannot be read, or the parts do not match each other.
        """
        try:
            chain = x509.load_pem_x509_certificates(certificate_pem)
            key = load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError) as error:
            raise InvalidIdentity(f"the certificate or the key is not PEM: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise InvalidIdentity("the key is not an EC key on P-256, which orders and receipts are signed with")
        spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if key.public_key().public_bytes(*spki) != chain[0].public_key().public_bytes(*spki):
            raise InvalidIdentity("the key does not belong to the certificate")
        spiffe_id = id_of(chain[0])
        return cls(
            spiffe_id=spiffe_id,
            chain=tuple(chain),
            certificate_pem=certificate_pem,
            key_pem=key_pem,
            bundles=load_bundles(spiffe_id.trust_domain, bundle_pem, federated_pem or {}),
        )

    @cached_property
    def signing_key(self) -> ec.EllipticCurvePrivateKey:
        """The key, with which messages are signed."""
        key = load_pem_private_key(self.key_pem, password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    @property
    def bundle(self) -> TrustBundle:
        """The bundle of its own trust domain."""
        return self.bundles.own

    @property
    def not_after(self) -> datetime:
        """The first expiry in its chain, root excluded."""
        return min(certificate.not_valid_after_utc for certificate in self.chain)

    def verify(self) -> None:
        """Check that the identity can be used now.

        Raises:
            InvalidIdentity: the certificate is expired, not yet valid, or not trusted by its own bundle.
        """
        self.bundle.verify(self.chain[0], list(self.chain[1:]))

    def write(self, folder: Path) -> None:
        """Store certificate, key and own bundle in a folder, as `write_identity` does. Raises OSError."""
        write_identity(folder, key_pem=self.key_pem, certificate_pem=self.certificate_pem, bundle_pem=self.bundle.pem)


def renewed(
    old: Svid, certificate_pem: bytes, key_pem: bytes, bundle_pem: bytes, federated_pem: Mapping[str, bytes]
) -> tuple[Svid, str]:
    """Replace an identity by newer material as far as that can be used.

    Args:
        old: the identity in use.
        certificate_pem, key_pem, bundle_pem, federated_pem: the newer material, as `Svid.load` takes it.

    Returns:
        The identity to use from now on, and why a part of the new material cannot be used, or "".
    """
    problem = ""
    bundles = old.bundles
    try:
        new_bundles = load_bundles(old.spiffe_id.trust_domain, bundle_pem, federated_pem)
        if new_bundles != old.bundles:
            bundles = new_bundles
    except InvalidIdentity as error:
        problem = str(error)
    if certificate_pem != old.certificate_pem or key_pem != old.key_pem:
        try:
            new = Svid.load(certificate_pem, key_pem, bundle_pem, federated_pem)
            new.verify()
        except InvalidIdentity as error:
            problem = problem or str(error)
        else:
            return new, ""
    if bundles is old.bundles:
        return old, problem
    kept = replace(old, bundles=bundles)
    try:
        kept.verify()
    except InvalidIdentity as error:
        problem = f"the new bundle is active, but does not trust this process itself: {error}"
    return kept, problem


class SvidSource(Protocol):
    """A source of a current identity, renewed automatically. Safe to use from several threads."""

    #: Folder or address that the identity comes from, for people.
    place: str

    def current(self) -> Svid:
        """Return the most recent valid identity."""

    def close(self) -> None:
        """Release files, connections and threads."""
