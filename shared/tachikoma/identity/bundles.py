"""Trust bundles: the roots of trust domains, and the verification of certificates against them.

gRPC peers, work orders and receipts are all verified here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from tachikoma.identity.certificates import check_leaf, id_of, key_digest, uris
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId, check_trust_domain

__all__ = ["MAX_FEDERATED", "TrustBundle", "TrustBundles", "load_bundles"]

#: Largest number of certificates whose verification is cached.
MAX_CACHED = 4096
#: Largest number of trust domains that one process federates with.
MAX_FEDERATED = 256


@dataclass(frozen=True, slots=True)
class _Verified:
    """A verified chain."""

    spiffe_id: SpiffeId
    not_before: datetime
    not_after: datetime
    #: `key_digest` of the root at the end of the chain.
    root: str = ""

    def check_time(self, now: datetime) -> None:
        if not self.not_before <= now <= self.not_after:
            raise InvalidIdentity(
                f"the certificate of {self.spiffe_id} is valid from {self.not_before:%Y-%m-%d %H:%M:%S} "
                f"to {self.not_after:%Y-%m-%d %H:%M:%S} UTC, not now"
            )


class TrustBundle:
    """The roots of one trust domain, and the verification of certificates against them.

    Results are cached by the hash of leaf and chain; the validity of the chain is checked at every call.
    Safe to use from several threads.
    """

    def __init__(self, trust_domain: str, roots: list[x509.Certificate]) -> None:
        """Build a bundle.

        Raises:
            InvalidIdentity: there is no root, or a root names another trust domain.
        """
        if not roots:
            raise InvalidIdentity(f"the bundle of trust domain {trust_domain} contains no certificate")
        for root in roots:
            for uri in uris(root):
                scheme, _, rest = uri.partition("://")
                # In a file with the roots of several trust domains, each could issue IDs of this one.
                if scheme == "spiffe" and rest.partition("/")[0] != trust_domain:
                    raise InvalidIdentity(f"the bundle of trust domain {trust_domain} contains a root of {uri[:300]!r}")
        self.trust_domain = trust_domain
        self.roots = tuple(roots)
        self.pem = b"".join(root.public_bytes(Encoding.PEM) for root in roots)
        self._store = Store(roots)
        self._lock = Lock()
        self._cache: OrderedDict[bytes, _Verified] = OrderedDict()

    def verify(
        self, leaf: x509.Certificate, intermediates: list[x509.Certificate], at: datetime | None = None
    ) -> SpiffeId:
        """Return the SPIFFE ID of a certificate after every check of the X509-SVID standard.

        Args:
            leaf: the certificate.
            intermediates: the certificates between it and a root.
            at: time at which it must be valid; None for now.

        Raises:
            InvalidIdentity: a check failed; the message names it.
        """
        return self._known(leaf, intermediates, at or datetime.now(UTC)).spiffe_id

    def verify_until(self, leaf: x509.Certificate, intermediates: list[x509.Certificate]) -> tuple[SpiffeId, datetime]:
        """Return as `verify` does, and the time from which on the certificate is refused.

        That is the first expiry in its chain, root included.
        """
        known = self._known(leaf, intermediates, datetime.now(UTC))
        return known.spiffe_id, known.not_after

    def root_of(self, leaf: x509.Certificate, intermediates: list[x509.Certificate]) -> str:
        """Return the `key_digest` of the root of a certificate's chain. Raises as `verify` does."""
        return self._known(leaf, intermediates, datetime.now(UTC)).root

    def _known(self, leaf: x509.Certificate, intermediates: list[x509.Certificate], now: datetime) -> _Verified:
        digest = hashes.Hash(hashes.SHA256())
        for certificate in (leaf, *intermediates):
            digest.update(certificate.fingerprint(hashes.SHA256()))
        key = digest.finalize()
        with self._lock:
            known = self._cache.get(key)
            if known is not None:
                self._cache.move_to_end(key)
        if known is None:
            known = self._verify(leaf, intermediates, now)
            with self._lock:
                self._cache[key] = known
                while len(self._cache) > MAX_CACHED:
                    self._cache.popitem(last=False)
        known.check_time(now)
        return known

    def _verify(self, leaf: x509.Certificate, intermediates: list[x509.Certificate], now: datetime) -> _Verified:
        spiffe_id = id_of(leaf)
        if spiffe_id.trust_domain != self.trust_domain:
            raise InvalidIdentity(f"{spiffe_id} is not of trust domain {self.trust_domain}")
        check_leaf(leaf)
        # The verifier would refuse it too, but its message would lack the validity.
        _Verified(spiffe_id, leaf.not_valid_before_utc, leaf.not_valid_after_utc).check_time(now)
        verifier = PolicyBuilder().store(self._store).time(now.replace(tzinfo=None)).build_client_verifier()
        try:
            chain = verifier.verify(leaf, intermediates).chain
        except VerificationError as error:
            raise InvalidIdentity(f"the certificate of {spiffe_id} is not trusted: {error}") from None
        # The cached result is valid as long as every certificate of the chain.
        return _Verified(
            spiffe_id,
            max(certificate.not_valid_before_utc for certificate in chain),
            min(certificate.not_valid_after_utc for certificate in chain),
            key_digest(chain[-1]),
        )


class TrustBundles:
    """The bundles of the own trust domain and of federated ones.

    A certificate is verified only against the bundle of its ID's trust domain. So a federated domain cannot issue IDs
    of another one.
    """

    def __init__(self, own: TrustBundle, federated: Mapping[str, TrustBundle] | None = None) -> None:
        """Combine bundles; the federated ones by their trust domain.

        Raises:
            InvalidIdentity: there are too many, or a federated one is of the own trust domain.
        """
        federated = federated or {}
        if len(federated) > MAX_FEDERATED:
            raise InvalidIdentity(f"there are {len(federated)} federated bundles; at most {MAX_FEDERATED} are allowed")
        if own.trust_domain in federated:
            raise InvalidIdentity(f"a federated bundle is of {own.trust_domain}, which is the own trust domain")
        self.own = own
        self._bundles = {own.trust_domain: own, **federated}

    def __eq__(self, other: object) -> bool:
        """Return True if the same roots are trusted for the same trust domains."""
        if not isinstance(other, TrustBundles):
            return NotImplemented
        mine, others = self._bundles, other._bundles
        return mine.keys() == others.keys() and all(mine[name].pem == others[name].pem for name in mine)

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[TrustBundle]:
        """Return all bundles, the own one first."""
        return iter(self._bundles.values())

    def of(self, trust_domain: str) -> TrustBundle:
        """Return the bundle of a trust domain.

        Raises:
            InvalidIdentity: the trust domain is neither the own one nor federated.
        """
        bundle = self._bundles.get(trust_domain)
        if bundle is None:
            raise InvalidIdentity(f"there is no bundle of trust domain {trust_domain}; it is not federated")
        return bundle

    def verify(
        self, leaf: x509.Certificate, intermediates: list[x509.Certificate], at: datetime | None = None
    ) -> SpiffeId:
        """Return the SPIFFE ID of a certificate, verified against the bundle of that ID's trust domain.

        Raises:
            InvalidIdentity: a check failed; the message names it.
        """
        return self.of(id_of(leaf).trust_domain).verify(leaf, intermediates, at)

    def verify_until(self, leaf: x509.Certificate, intermediates: list[x509.Certificate]) -> tuple[SpiffeId, datetime]:
        """Return as `verify` does, and the time from which on the certificate is refused."""
        return self.of(id_of(leaf).trust_domain).verify_until(leaf, intermediates)

    @property
    def pem(self) -> bytes:
        """All roots as PEM, for TLS. TLS does not distinguish trust domains, so its peers must be verified again."""
        return b"".join(bundle.pem for bundle in self)


def load_bundles(trust_domain: str, bundle_pem: bytes, federated_pem: Mapping[str, bytes]) -> TrustBundles:
    """Load trust bundles from PEM; the federated ones by their trust domain.

    Raises:
        InvalidIdentity: a bundle cannot be read.
    """

    def load(name: str, pem: bytes) -> TrustBundle:
        try:
            return TrustBundle(check_trust_domain(name), x509.load_pem_x509_certificates(pem))
        except InvalidIdentity:
            raise
        except ValueError as error:
            raise InvalidIdentity(f"the bundle of trust domain {name} is not PEM: {error}") from None

    federated = {name: load(name, pem) for name, pem in federated_pem.items()}
    return TrustBundles(load(trust_domain, bundle_pem), federated)
