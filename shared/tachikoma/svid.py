"""Where a process gets its own X.509-SVID and the trust bundle from.

The one source so far is a set of files, named as spiffe-helper names them. They may be replaced at any time; the
three writes are not one, so a set is taken only when key and certificate fit each other and the chain is trusted, and
the set before it is kept until then.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from joserfc.jwk import ECKey

from tachikoma.errors import ConfigurationError
from tachikoma.spiffe import InvalidIdentity, SpiffeId, TrustBundle, id_of

__all__ = ["BUNDLE_FILE", "CERTIFICATE_FILE", "KEY_FILE", "FileSvidSource", "Svid"]

CERTIFICATE_FILE = "svid.pem"
KEY_FILE = "svid_key.pem"
BUNDLE_FILE = "svid_bundle.pem"

#: How often the files are looked at, at most.
CHECK_SECONDS = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class Svid:
    """An identity: certificate chain, key, and the bundle of its trust domain."""

    spiffe_id: SpiffeId
    chain: tuple[x509.Certificate, ...]
    certificate_pem: bytes
    # Not in `repr`: an identity may be logged, its key must not.
    key_pem: bytes = field(repr=False)
    bundle_pem: bytes
    bundle: TrustBundle
    #: The key as joserfc takes it.
    signing_key: ECKey = field(repr=False)

    @classmethod
    def load(cls, certificate_pem: bytes, key_pem: bytes, bundle_pem: bytes) -> Svid:
        """Build an identity from PEM.

        Raises:
            InvalidIdentity: a part cannot be read, or they do not fit each other. Expiry is not looked at here.
        """
        try:
            chain = x509.load_pem_x509_certificates(certificate_pem)
            roots = x509.load_pem_x509_certificates(bundle_pem)
            key = load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError) as error:
            raise InvalidIdentity(f"not PEM: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise InvalidIdentity("the key is not an EC key on P-256, which orders and receipts are signed with")
        spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if key.public_key().public_bytes(*spki) != chain[0].public_key().public_bytes(*spki):
            raise InvalidIdentity("the key does not belong to the certificate")
        spiffe_id = id_of(chain[0])
        bundle = TrustBundle(spiffe_id.trust_domain, roots)
        return cls(
            spiffe_id=spiffe_id,
            chain=tuple(chain),
            certificate_pem=certificate_pem,
            key_pem=key_pem,
            bundle_pem=bundle_pem,
            bundle=bundle,
            signing_key=ECKey.import_key(key_pem),
        )

    def verify(self) -> None:
        """Check that the identity can be used now.

        Raises:
            InvalidIdentity: it is expired, not yet valid, or not trusted by its own bundle.
        """
        self.bundle.verify(self.chain[0], list(self.chain[1:]))


class FileSvidSource:
    """An identity in a folder, read again when its files change. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        """Read the files.

        Raises:
            ConfigurationError: a file is missing or they do not fit each other.
        """
        self._paths = tuple(folder / name for name in (CERTIFICATE_FILE, KEY_FILE, BUNDLE_FILE))
        self._lock = Lock()
        self._checked = time.monotonic()
        try:
            self._seen = self._signature()
            self._svid = self._load()
        except OSError as error:
            raise ConfigurationError(f"cannot read the identity in {folder}: {error}") from error
        except InvalidIdentity as error:
            raise ConfigurationError(f"the identity in {folder} cannot be used: {error}") from error

    def current(self) -> Svid:
        """The newest identity that can be used."""
        with self._lock:
            now = time.monotonic()
            if now - self._checked >= CHECK_SECONDS:
                self._checked = now
                self._reload()
            return self._svid

    def _reload(self) -> None:
        try:
            signature = self._signature()
            if signature == self._seen:
                return
            svid = self._load()
            svid.verify()
        except (OSError, InvalidIdentity) as error:
            # Perhaps between two of the three writes: look again next time, and use what is there until then.
            log.warning("svid.kept", reason=str(error), spiffe_id=str(self._svid.spiffe_id))
            return
        self._seen = signature
        self._svid = svid
        log.info("svid.changed", spiffe_id=str(svid.spiffe_id), until=svid.chain[0].not_valid_after_utc.isoformat())

    def _signature(self) -> tuple[tuple[int, int, int], ...]:
        stats = [path.stat() for path in self._paths]
        return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats)

    def _load(self) -> Svid:
        return Svid.load(*(path.read_bytes() for path in self._paths))
