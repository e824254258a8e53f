"""Where a process gets its own X.509-SVID and its trust bundles from.

An `SvidSource` has an identity at every moment, and takes a new one by itself. There are two: files, as spiffe-helper
and the development CA write them, and the SPIFFE Workload API (`workload_api.py`); `identity.py` picks one.

Certificate and bundles are renewed apart. A certificate with its key is taken when they fit each other, it is valid now
and the bundle trusts it; until then the one before is kept. Bundles are taken as soon as they can be read, also when
they trust one's own certificate no more: a root that was removed must not live on where a renewal hangs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Annotated, Protocol, TypeAlias

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from joserfc.jwk import ECKey
from pydantic import AfterValidator

from tachikoma.errors import ConfigurationError
from tachikoma.identity.spiffe import (
    MAX_FEDERATED,
    InvalidIdentity,
    SpiffeId,
    TrustBundle,
    TrustBundles,
    check_trust_domain,
    id_of,
)

__all__ = [
    "BUNDLE_FILE",
    "CERTIFICATE_FILE",
    "FEDERATED_FOLDER",
    "KEY_FILE",
    "FileSvidSource",
    "IdentityPlace",
    "Svid",
    "SvidSource",
    "renewed",
]

CERTIFICATE_FILE = "svid.pem"
KEY_FILE = "svid_key.pem"
BUNDLE_FILE = "svid_bundle.pem"
#: Folder beside them with a bundle for each federated trust domain: `<trust domain>.pem`.
FEDERATED_FOLDER = "federated"

#: How often the files are looked at, at most.
CHECK_SECONDS = 1.0

log = structlog.get_logger(__name__)


def _place(value: str | Path) -> str | Path:
    return value if str(value).startswith("unix:") else Path(value)


#: Setting that says where an identity comes from: a folder, or `unix:///path` of the Workload API.
IdentityPlace: TypeAlias = Annotated[str | Path, AfterValidator(_place)]


@dataclass(frozen=True, eq=False)
class Svid:
    """An identity: certificate chain, key, and the bundles it is used with."""

    spiffe_id: SpiffeId
    chain: tuple[x509.Certificate, ...]
    certificate_pem: bytes
    # Not in `repr`: an identity may be logged, its key must not.
    key_pem: bytes = field(repr=False)
    #: Of its own trust domain, and of those federated with.
    bundles: TrustBundles
    #: The key as joserfc takes it.
    signing_key: ECKey = field(repr=False)

    @classmethod
    def load(
        cls,
        certificate_pem: bytes,
        key_pem: bytes,
        bundle_pem: bytes,
        federated_pem: Mapping[str, bytes] | None = None,
    ) -> Svid:
        """Build an identity from PEM; federated bundles by trust domain.

        Raises:
            InvalidIdentity: a part cannot be read, or they do not fit each other. Expiry is not looked at here.
        """
        try:
            chain = x509.load_pem_x509_certificates(certificate_pem)
            key = load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError) as error:
            raise InvalidIdentity(f"not PEM: {error}") from None
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
            signing_key=ECKey.import_key(key_pem),
        )

    @property
    def bundle(self) -> TrustBundle:
        """The bundle of its own trust domain."""
        return self.bundles.own

    @property
    def not_after(self) -> datetime:
        """The first end in its chain."""
        return min(certificate.not_valid_after_utc for certificate in self.chain)

    def verify(self) -> None:
        """Check that the identity can be used now.

        Raises:
            InvalidIdentity: it is expired, not yet valid, or not trusted by its own bundle.
        """
        self.bundle.verify(self.chain[0], list(self.chain[1:]))


def load_bundles(trust_domain: str, bundle_pem: bytes, federated_pem: Mapping[str, bytes]) -> TrustBundles:
    """Trust bundles from PEM.

    Raises:
        InvalidIdentity: one cannot be read.
    """

    def load(name: str, pem: bytes) -> TrustBundle:
        try:
            return TrustBundle(check_trust_domain(name), x509.load_pem_x509_certificates(pem))
        except InvalidIdentity:
            raise
        except ValueError as error:
            raise InvalidIdentity(f"not PEM: the bundle of trust domain {name}: {error}") from None

    federated = {name: load(name, pem) for name, pem in federated_pem.items()}
    return TrustBundles(load(trust_domain, bundle_pem), federated)


def renewed(
    old: Svid, certificate_pem: bytes, key_pem: bytes, bundle_pem: bytes, federated_pem: Mapping[str, bytes]
) -> tuple[Svid, str]:
    """What to go on with after an identity that was in use, and what of the new material cannot be used, or nothing."""
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
        problem = f"the new bundle is in force, but does not trust this process itself: {error}"
    return kept, problem


class SvidSource(Protocol):
    """Has an identity at every moment, and takes a new one by itself. Safe to use from several threads."""

    #: Where it comes from, for people.
    place: str

    def current(self) -> Svid:
        """The newest identity that can be used."""

    def close(self) -> None:
        """Let go of what it holds."""


class FileSvidSource:
    """An identity in a folder, read again when its files change. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        """Read the files.

        Raises:
            ConfigurationError: a file is missing or they do not fit each other.
        """
        self.place = str(folder)
        self._paths = tuple(folder / name for name in (CERTIFICATE_FILE, KEY_FILE, BUNDLE_FILE))
        self._federated = folder / FEDERATED_FOLDER
        self._lock = Lock()
        self._checked = time.monotonic()
        try:
            self._seen = self._signature()
            self._svid = Svid.load(*self._read())
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

    def close(self) -> None:
        """Nothing is held."""

    def _reload(self) -> None:
        old = self._svid
        try:
            signature = self._signature()
            if signature == self._seen:
                return
            material = self._read()
            if self._signature() != signature:
                # Somebody writes at this moment: look again next time.
                return
        except (OSError, InvalidIdentity) as error:
            # Perhaps between two of the writes: look again next time, and use what is there until then.
            log.warning("svid.kept", reason=str(error), spiffe_id=str(old.spiffe_id))
            return
        self._svid, problem = renewed(old, *material)
        if problem:
            log.warning("svid.kept", reason=problem, spiffe_id=str(old.spiffe_id))
        else:
            self._seen = signature
        if self._svid is not old:
            until = self._svid.not_after.isoformat()
            log.info("svid.changed", spiffe_id=str(self._svid.spiffe_id), until=until)

    def _files(self) -> list[Path]:
        federated: list[Path] = []
        if self._federated.is_dir():
            federated = sorted(path for path in self._federated.iterdir() if path.suffix == ".pem")
        if len(federated) > MAX_FEDERATED:
            raise InvalidIdentity(f"{self._federated} holds {len(federated)} bundles; at most {MAX_FEDERATED} are read")
        return [*self._paths, *federated]

    def _signature(self) -> tuple[tuple[str, int, int, int], ...]:
        stats = [(path.name, path.stat()) for path in self._files()]
        return tuple((name, stat.st_mtime_ns, stat.st_ino, stat.st_size) for name, stat in stats)

    def _read(self) -> tuple[bytes, bytes, bytes, dict[str, bytes]]:
        certificate, key, bundle, *federated = self._files()
        return (
            certificate.read_bytes(),
            key.read_bytes(),
            bundle.read_bytes(),
            {path.stem: path.read_bytes() for path in federated},
        )
