"""A small certificate authority of one trust domain, for the development stack and for agents that join with a token.

Its key and certificate are in a folder: `ca.pem` (its own certificate, then those between it and the root, if any) and
`ca_key.pem`. The caller decides which host gets a certificate, and the ID in it; only the public key is taken from a
certificate request.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tachikoma.errors import ConfigurationError
from tachikoma.identity.certificates import uris
from tachikoma.identity.files import write_private
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId, check_trust_domain
from tachikoma.identity.svid import Svid

__all__ = [
    "CERTIFICATE_FILE",
    "KEY_FILE",
    "RETIRED_FILE",
    "CertificateAuthority",
    "authority_files",
    "check_request",
    "issued_at",
    "key_usage",
    "make_request",
    "new_key",
    "private_pem",
]

#: Names of the files in the folder.
CERTIFICATE_FILE, KEY_FILE = "ca.pem", "ca_key.pem"
#: File with the certificates of previous authorities, whose agents may still renew at this one.
RETIRED_FILE = "retired.pem"
#: An authority is due for replacement at the latest this long before it ends, or at a quarter of its life if that is
#: shorter.
WARN_BEFORE = timedelta(days=60)
#: Certificates begin this long in the past, since clocks differ; those with a shorter lifetime, by their lifetime.
BACKDATE = timedelta(minutes=5)
#: Largest number of bytes of a certificate request; usual are about 300.
MAX_REQUEST_BYTES = 8 * 1024

_USAGE_NONE = {
    "digital_signature": False,
    "content_commitment": False,
    "key_encipherment": False,
    "data_encipherment": False,
    "key_agreement": False,
    "key_cert_sign": False,
    "crl_sign": False,
    "encipher_only": False,
    "decipher_only": False,
}


def authority_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of an authority."""
    return folder / CERTIFICATE_FILE, folder / KEY_FILE, folder / RETIRED_FILE


def key_usage(*names: str) -> x509.KeyUsage:
    """Return a key usage with exactly these bits."""
    return x509.KeyUsage(**{**_USAGE_NONE, **dict.fromkeys(names, True)})


def new_key() -> ec.EllipticCurvePrivateKey:
    """Generate an EC key on P-256, the kind that all identities use."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as PEM (PKCS #8, not encrypted)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def issued_at(certificate: x509.Certificate) -> datetime:
    """Return the approximate time at which `CertificateAuthority.sign` issued a certificate."""
    whole = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_before_utc + (BACKDATE if whole >= 2 * BACKDATE else whole / 2)


# --- requests ---------------------------------------------------------------------------------------------------------


def make_request(key: ec.EllipticCurvePrivateKey, spiffe_id: SpiffeId) -> bytes:
    """Return a certificate request (PKCS #10, DER) that contains an ID and nothing else."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe_id))])
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=True)
    return request.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def check_request(der: bytes, spiffe_id: SpiffeId) -> ec.EllipticCurvePublicKey:
    """Check a certificate request and return its public key.

    Nothing else of the request is used. A request for another ID, or for more, does not come from a Tachikoma agent.

    Raises:
        InvalidIdentity: the request is not acceptable; the message names the reason.
    """
    if len(der) > MAX_REQUEST_BYTES:
        raise InvalidIdentity(f"the certificate request has {len(der)} bytes; at most {MAX_REQUEST_BYTES} are allowed")
    try:
        request = x509.load_der_x509_csr(der)
        extensions = list(request.extensions)
        key = request.public_key()
        genuine = request.is_signature_valid
    except (ValueError, InvalidSignature) as error:
        raise InvalidIdentity(f"this is not a certificate request: {error}") from None
    except Exception as error:
        # The errors that hostile requests cause in the parser have no common class; each means a wrong request.
        raise InvalidIdentity(f"the certificate request cannot be read: {type(error).__name__}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidIdentity("the key is not an EC key on P-256, which orders and receipts are signed with")
    if not genuine:
        raise InvalidIdentity("the certificate request is not signed with its key")
    wanted = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe_id))])
    if [extension.value for extension in extensions] != [wanted]:
        raise InvalidIdentity(f"the certificate request asks for something else than the ID {spiffe_id}")
    return key


# --- the authority ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CertificateAuthority:
    """A certificate authority for the X.509-SVIDs of one trust domain."""

    #: Name of the trust domain.
    trust_domain: str
    #: The authority's own certificate.
    certificate: x509.Certificate
    #: The certificates between it and the root; the root itself is in every bundle.
    intermediates: tuple[x509.Certificate, ...]
    #: The authority's key.
    key: ec.EllipticCurvePrivateKey
    #: Certificates of previous authorities.
    retired: tuple[x509.Certificate, ...] = ()

    @classmethod
    def create(
        cls,
        folder: Path,
        trust_domain: str,
        *,
        name: str,
        lifetime: timedelta,
        under: CertificateAuthority | None = None,
    ) -> CertificateAuthority:
        """Create an authority in a folder, replacing the one there: a root, or one below another authority.

        Args:
            folder: where its key and certificate are written.
            trust_domain: name of the trust domain.
            name: organization name in its certificate.
            lifetime: how long its certificate is valid, at most as long as the authority above.
            under: the authority above; None for a root.

        Raises:
            InvalidIdentity: the name of the trust domain is invalid, or the authority above has another one.
            OSError: the folder cannot be written.
        """
        check_trust_domain(trust_domain)
        if under is not None and under.trust_domain != trust_domain:
            raise InvalidIdentity(f"the authority above has the trust domain {under.trust_domain}, not {trust_domain}")
        key = new_key()
        certificate = _authority_certificate(key, trust_domain, name, lifetime, under)
        intermediates: tuple[x509.Certificate, ...] = ()
        if under is not None and not _is_root(under.certificate):
            intermediates = (under.certificate, *under.intermediates)
        made = cls(trust_domain, certificate, intermediates, key)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(folder / KEY_FILE, private_pem(key))
        write_private(folder / CERTIFICATE_FILE, _pem(certificate, *intermediates))
        return made

    @classmethod
    def load(cls, folder: Path) -> CertificateAuthority:
        """Load the authority in a folder.

        Raises:
            ConfigurationError: the files are missing or invalid, or other users of the host can read the key.
        """
        certificates, key, retired = _read_folder(folder)
        certificate, *others = certificates
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigurationError(f"the key and the first certificate in {folder} do not belong together")
        names = uris(certificate)
        if len(names) != 1 or not names[0].startswith("spiffe://"):
            raise ConfigurationError(f"{folder / CERTIFICATE_FILE} does not name its trust domain as spiffe://…")
        below_root = [other for other in others if not _is_root(other)]
        return cls(names[0].removeprefix("spiffe://").strip("/"), certificate, tuple(below_root), key, tuple(retired))

    @property
    def not_after(self) -> datetime:
        """The expiry of the authority, and the latest expiry of certificates that it signs."""
        return min(item.not_valid_after_utc for item in (self.certificate, *self.intermediates))

    @property
    def lifetime(self) -> timedelta:
        """The lifetime of the authority's own certificate."""
        return self.certificate.not_valid_after_utc - self.certificate.not_valid_before_utc

    @property
    def ends_soon(self) -> bool:
        """True if the authority should have been replaced before now."""
        return self.not_after - datetime.now(UTC) < min(WARN_BEFORE, self.lifetime / 4)

    def issue(
        self,
        spiffe_id: SpiffeId,
        *,
        bundle_pem: bytes,
        lifetime: timedelta,
        dns_names: tuple[str, ...] = (),
        not_before: datetime | None = None,
    ) -> Svid:
        """Issue an identity with a new key. `Svid.verify` says whether its bundle trusts this authority.

        Args:
            spiffe_id: its ID.
            bundle_pem: the roots that it trusts, PEM.
            lifetime, dns_names, not_before: as `sign` takes them.

        Raises:
            InvalidIdentity: the bundle cannot be read.
        """
        key = new_key()
        leaf = self.sign(key.public_key(), spiffe_id, lifetime=lifetime, dns_names=dns_names, not_before=not_before)
        return Svid.load(self.chain(leaf), private_pem(key), bundle_pem)

    def sign(
        self,
        public_key: ec.EllipticCurvePublicKey,
        spiffe_id: SpiffeId,
        *,
        lifetime: timedelta,
        dns_names: tuple[str, ...] = (),
        not_before: datetime | None = None,
        earliest: datetime | None = None,
    ) -> x509.Certificate:
        """Issue an X.509-SVID by the standard.

        Args:
            public_key: the public key of the holder.
            spiffe_id: the ID of the holder.
            lifetime: how long the certificate is valid; it never outlives the authority.
            dns_names: further names.
            not_before: beginning of its validity; None for a time shortly before now, since clocks differ.
            earliest: earliest beginning of its validity.
        """
        now = datetime.now(UTC)
        begin = not_before or _shortly_before(now, lifetime)
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        names = [x509.UniformResourceIdentifier(str(spiffe_id)), *map(x509.DNSName, dns_names)]
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tachikoma")]))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin if earliest is None else max(begin, earliest))
            .not_valid_after(min((not_before or now) + lifetime, self.not_after))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage("digital_signature"), critical=True)
            .add_extension(usage, critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def chain(self, leaf: x509.Certificate) -> bytes:
        """Return a certificate and those between it and the root, as PEM."""
        own = () if _is_root(self.certificate) else (self.certificate,)
        return _pem(leaf, *own, *self.intermediates)

    def issued(self, certificate: x509.Certificate) -> bool:
        """Return True if this authority or a previous one issued a certificate."""
        return any(_issued(certificate, authority) for authority in (self.certificate, *self.retired))


def _authority_certificate(
    key: ec.EllipticCurvePrivateKey,
    trust_domain: str,
    name: str,
    lifetime: timedelta,
    under: CertificateAuthority | None,
) -> x509.Certificate:
    """Issue the certificate of a new authority, signed by itself or by the authority above."""
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
    above, signer = (subject, key) if under is None else (under.certificate.subject, under.key)
    now = datetime.now(UTC)
    end = now + lifetime
    if under is not None:
        end = min(end, under.not_after)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(above)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(end)
        # A root may have one authority below it, which has none below.
        .add_extension(x509.BasicConstraints(ca=True, path_length=1 if under is None else 0), critical=True)
        .add_extension(key_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )


def _read_folder(folder: Path) -> tuple[list[x509.Certificate], PrivateKeyTypes, list[x509.Certificate]]:
    """Read certificates, key and retired certificates of an authority. Raises ConfigurationError."""
    try:
        mode = (folder / KEY_FILE).stat().st_mode
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            raise ConfigurationError(f"all users of this host can use {folder / KEY_FILE}; run chmod 600 on it")
        certificates = x509.load_pem_x509_certificates((folder / CERTIFICATE_FILE).read_bytes())
        key = load_pem_private_key((folder / KEY_FILE).read_bytes(), password=None)
        retired: list[x509.Certificate] = []
        if (folder / RETIRED_FILE).exists():
            retired = x509.load_pem_x509_certificates((folder / RETIRED_FILE).read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the certificate authority in {folder}: {error}; `tachikoma identity ca init` creates one"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"the certificate authority in {folder} is not PEM: {error}") from None
    return certificates, key, retired


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _shortly_before(now: datetime, lifetime: timedelta) -> datetime:
    """Return when a certificate of now begins: somewhat earlier, since clocks differ."""
    # Tests issue expired certificates: their lifetime is negative, so it cannot bound the backdating.
    return now - (min(BACKDATE, lifetime) if lifetime > timedelta(0) else BACKDATE)


def _is_root(certificate: x509.Certificate) -> bool:
    # By its signature, not by its names: two authorities may have the same names.
    return _issued(certificate, certificate)


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
