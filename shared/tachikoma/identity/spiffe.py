"""SPIFFE identities: IDs, X.509-SVIDs and trust bundles (SPIFFE-ID and X509-SVID standards).

Everything that decides whose certificate something is stands in this module; gRPC peers, work orders and receipts use
it alike. TLS alone is not enough: it accepts two URI SANs, CA leaves, and any ID under any configured root.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

__all__ = [
    "InvalidIdentity",
    "SpiffeId",
    "TrustBundle",
    "TrustBundles",
    "agent_id",
    "check_trust_domain",
    "dns_names",
    "key_digest",
    "schedule_id",
    "service_id",
    "user_id",
]

#: Longest URI the standard allows.
MAX_ID_BYTES = 2048
#: Certificates whose verification is remembered.
MAX_CACHED = 4096
#: Trust domains one process federates with.
MAX_FEDERATED = 256

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


class InvalidIdentity(ValueError):
    """An ID or a certificate that breaks the SPIFFE standards or is not trusted; the message says which rule."""


def check_trust_domain(text: str) -> str:
    """Return the name if it is one of a trust domain (SPIFFE-ID section 2.1).

    Raises:
        InvalidIdentity: it is not.
    """
    if not _TRUST_DOMAIN.fullmatch(text):
        raise InvalidIdentity(f"{text[:100]!r} is not a trust domain")
    return text


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """`spiffe://<trust_domain>/<path>`; the path has at least one segment."""

    trust_domain: str
    path: str

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Read an ID by the strict rules of SPIFFE-ID section 2.

        Raises:
            InvalidIdentity: the text is no SPIFFE ID.
        """
        if len(text.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
            raise InvalidIdentity(f"a SPIFFE ID is at most {MAX_ID_BYTES} bytes long")
        scheme, found, rest = text.partition("://")
        if scheme != "spiffe" or not found:
            raise InvalidIdentity(f"{text[:100]!r} is not a SPIFFE ID: it does not begin with spiffe://")
        trust_domain, slash, path = rest.partition("/")
        check_trust_domain(trust_domain)
        if not slash or not path:
            raise InvalidIdentity(f"{text[:100]!r} has no path and so names nobody")
        for segment in path.split("/"):
            if segment in (".", "..") or not _SEGMENT.fullmatch(segment):
                raise InvalidIdentity(f"{segment[:100]!r} is not a path segment of a SPIFFE ID")
        return cls(trust_domain, "/" + path)

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}{self.path}"


def agent_id(trust_domain: str, agent: str) -> SpiffeId:
    """The ID of an agent."""
    return SpiffeId.parse(f"spiffe://{trust_domain}/agent/{agent}")


def is_agent(spiffe_id: SpiffeId) -> bool:
    """Whether it is an agent's; agents take orders and give none."""
    return spiffe_id.path.startswith("/agent/")


def service_id(trust_domain: str, name: str) -> SpiffeId:
    """The ID of a service, for instance `orchestrator`."""
    return SpiffeId.parse(f"spiffe://{trust_domain}/service/{name}")


def user_id(trust_domain: str, name: str) -> SpiffeId:
    """The ID of a person."""
    return SpiffeId.parse(f"spiffe://{trust_domain}/user/{name}")


def schedule_id(trust_domain: str, name: str) -> SpiffeId:
    """The ID a schedule submits as."""
    return SpiffeId.parse(f"spiffe://{trust_domain}/schedule/{name}")


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        return certificate.extensions
    except Exception as error:
        # An extension twice, a name of a kind nobody knows, …: what a hostile certificate makes the parser raise has no
        # common class, and whatever it is, the certificate is wrong.
        raise InvalidIdentity(f"the certificate cannot be read: {error}") from None


def id_of(certificate: x509.Certificate) -> SpiffeId:
    """The SPIFFE ID a certificate names.

    Raises:
        InvalidIdentity: it does not name exactly one (X509-SVID section 2).
    """
    try:
        names = _extensions(certificate).get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise InvalidIdentity("the certificate has no subject alternative name") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise InvalidIdentity(f"an X.509-SVID has exactly one URI name, this certificate has {len(uris)}")
    return SpiffeId.parse(uris[0])


def _check_leaf(leaf: x509.Certificate) -> None:
    """X509-SVID sections 4.1 to 4.4, for a leaf."""
    extensions = _extensions(leaf)
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise InvalidIdentity("the certificate is a CA, not a leaf")
    except x509.ExtensionNotFound:
        pass
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound:
        raise InvalidIdentity("the certificate has no key usage") from None
    if not usage.critical or not usage.value.digital_signature:
        raise InvalidIdentity("the certificate's key usage must be critical and allow digital signatures")
    if usage.value.key_cert_sign or usage.value.crl_sign:
        raise InvalidIdentity("a leaf's key must not sign certificates or revocation lists")
    try:
        extended = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} <= extended:
        raise InvalidIdentity("the certificate's extended key usage must allow both server and client authentication")


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = _extensions(certificate).get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def dns_names(certificate: x509.Certificate) -> list[str]:
    """The DNS names in a certificate."""
    try:
        names = _extensions(certificate).get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def key_digest(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate's public key, in hexadecimal: what tells roots apart, also one that was signed anew."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex()


@dataclass(frozen=True, slots=True)
class _Verified:
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

    Results are remembered by the hash of leaf and chain; the times of the leaf are checked at every call.
    Safe to use from several threads.
    """

    def __init__(self, trust_domain: str, roots: list[x509.Certificate]) -> None:
        if not roots:
            raise InvalidIdentity(f"the bundle of trust domain {trust_domain} holds no certificate")
        for root in roots:
            for uri in _uris(root):
                scheme, _, rest = uri.partition("://")
                # Bundles of several trust domains in one file would let each of them mint this one's IDs.
                if scheme == "spiffe" and rest.partition("/")[0] != trust_domain:
                    raise InvalidIdentity(f"the bundle of trust domain {trust_domain} holds a root of {uri[:300]!r}")
        self.trust_domain = trust_domain
        self.roots = tuple(roots)
        self.pem = b"".join(root.public_bytes(Encoding.PEM) for root in roots)
        self._store = Store(roots)
        self._lock = Lock()
        self._cache: OrderedDict[bytes, _Verified] = OrderedDict()

    def verify(
        self, leaf: x509.Certificate, intermediates: list[x509.Certificate], at: datetime | None = None
    ) -> SpiffeId:
        """The SPIFFE ID of a certificate, after every check of the X509-SVID standard.

        Raises:
            InvalidIdentity: a check failed; the message says which.
        """
        return self._known(leaf, intermediates, at or datetime.now(UTC)).spiffe_id

    def verify_until(self, leaf: x509.Certificate, intermediates: list[x509.Certificate]) -> tuple[SpiffeId, datetime]:
        """As `verify`; and when it will be refused: at the first end in its chain, root included."""
        known = self._known(leaf, intermediates, datetime.now(UTC))
        return known.spiffe_id, known.not_after

    def root_of(self, leaf: x509.Certificate, intermediates: list[x509.Certificate]) -> str:
        """`key_digest` of the root that vouches for a certificate. Raises as `verify`."""
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
        _check_leaf(leaf)
        # The verifier would refuse it too, but not say when it was valid.
        _Verified(spiffe_id, leaf.not_valid_before_utc, leaf.not_valid_after_utc).check_time(now)
        verifier = PolicyBuilder().store(self._store).time(now.replace(tzinfo=None)).build_client_verifier()
        try:
            chain = verifier.verify(leaf, intermediates).chain
        except VerificationError as error:
            raise InvalidIdentity(f"the certificate of {spiffe_id} is not trusted: {error}") from None
        # What is remembered ends with the first certificate of the chain that ends.
        return _Verified(
            spiffe_id,
            max(certificate.not_valid_before_utc for certificate in chain),
            min(certificate.not_valid_after_utc for certificate in chain),
            key_digest(chain[-1]),
        )


class TrustBundles:
    """The bundles of one's own trust domain and of those it federates with.

    A certificate is verified against the bundle of its ID's own trust domain and no other, so no federated domain can
    name anybody of another.
    """

    def __init__(self, own: TrustBundle, federated: Mapping[str, TrustBundle] | None = None) -> None:
        """Put bundles together; the federated ones by their trust domain.

        Raises:
            InvalidIdentity: there are too many, or one of them is of the own trust domain.
        """
        federated = federated or {}
        if len(federated) > MAX_FEDERATED:
            raise InvalidIdentity(f"there are {len(federated)} federated bundles; at most {MAX_FEDERATED} are taken")
        if own.trust_domain in federated:
            raise InvalidIdentity(f"a federated bundle is of {own.trust_domain}, which is the own trust domain")
        self.own = own
        self._bundles = {own.trust_domain: own, **federated}

    def __eq__(self, other: object) -> bool:
        """Whether the same roots are trusted for the same trust domains."""
        if not isinstance(other, TrustBundles):
            return NotImplemented
        mine, others = self._bundles, other._bundles
        return mine.keys() == others.keys() and all(mine[name].pem == others[name].pem for name in mine)

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[TrustBundle]:
        """The own bundle first."""
        return iter(self._bundles.values())

    def of(self, trust_domain: str) -> TrustBundle:
        """The bundle of a trust domain.

        Raises:
            InvalidIdentity: there is none.
        """
        bundle = self._bundles.get(trust_domain)
        if bundle is None:
            raise InvalidIdentity(f"there is no bundle of trust domain {trust_domain}; it is not federated with")
        return bundle

    def verify(
        self, leaf: x509.Certificate, intermediates: list[x509.Certificate], at: datetime | None = None
    ) -> SpiffeId:
        """The SPIFFE ID of a certificate, verified against the bundle of that ID's trust domain.

        Raises:
            InvalidIdentity: a check failed; the message says which.
        """
        return self.of(id_of(leaf).trust_domain).verify(leaf, intermediates, at)

    def verify_until(self, leaf: x509.Certificate, intermediates: list[x509.Certificate]) -> tuple[SpiffeId, datetime]:
        """As `verify`; and when it will be refused."""
        return self.of(id_of(leaf).trust_domain).verify_until(leaf, intermediates)

    @property
    def pem(self) -> bytes:
        """All roots. For TLS, which cannot tell trust domains apart; what it let in is to be verified again."""
        return b"".join(bundle.pem for bundle in self)
