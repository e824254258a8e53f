"""A small certificate authority of one trust domain: that of the development stack, and the one that agents join with.

Its key and certificate lie in a folder: `ca.pem` (its own certificate, then those between it and the root, if any) and
`ca_key.pem`. Who gets a certificate, and which ID stands in it, is decided by whoever calls it; of a request for one
nothing is taken but the public key.
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
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tachikoma.errors import ConfigurationError
from tachikoma.identity.files import write_private
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId, check_trust_domain

__all__ = [
    "CERTIFICATE_FILE",
    "KEY_FILE",
    "CertificateAuthority",
    "check_request",
    "issued_at",
    "key_usage",
    "make_request",
    "new_key",
    "private_pem",
]

CERTIFICATE_FILE, KEY_FILE = "ca.pem", "ca_key.pem"
#: Certificates of authorities before this one, whose agents may still renew at this one.
RETIRED_FILE = "retired.pem"
#: Certificates begin so much in the past, for clocks that differ; those that last for less, by what they last.
BACKDATE = timedelta(minutes=5)
#: Largest request for a certificate that is looked at; ours have about 300 bytes.
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


def key_usage(*names: str) -> x509.KeyUsage:
    """A key usage with these bits and no other."""
    return x509.KeyUsage(**{**_USAGE_NONE, **dict.fromkeys(names, True)})


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key as all identities have it: EC on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A key as it lies in a file."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def issued_at(certificate: x509.Certificate) -> datetime:
    """When one of `CertificateAuthority.sign` was made, about."""
    whole = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_before_utc + (BACKDATE if whole >= 2 * BACKDATE else whole / 2)


# --- requests ---------------------------------------------------------------------------------------------------------


def make_request(key: ec.EllipticCurvePrivateKey, spiffe_id: SpiffeId) -> bytes:
    """A request for a certificate (PKCS #10, DER) that names an ID and nothing else."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe_id))])
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=True)
    return request.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def check_request(der: bytes, spiffe_id: SpiffeId) -> ec.EllipticCurvePublicKey:
    """The public key of a request for a certificate.

    Nothing else of it is used; but one that asks for another ID, or for more, is not made by an agent of ours.

    Raises:
        InvalidIdentity: it is no such request; the message says why.
    """
    if len(der) > MAX_REQUEST_BYTES:
        raise InvalidIdentity(f"the request for a certificate has {len(der)} bytes; at most {MAX_REQUEST_BYTES} fit")
    try:
        request = x509.load_der_x509_csr(der)
        extensions = list(request.extensions)
        key = request.public_key()
        genuine = request.is_signature_valid
    except (ValueError, InvalidSignature) as error:
        raise InvalidIdentity(f"this is no request for a certificate: {error}") from None
    except Exception as error:
        # What a hostile one makes the parser raise has no common class, and whatever it is, the request is wrong.
        raise InvalidIdentity(f"the request for a certificate cannot be read: {type(error).__name__}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidIdentity("the key is not an EC key on P-256, which orders and receipts are signed with")
    if not genuine:
        raise InvalidIdentity("the request for a certificate is not signed with its key")
    wanted = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe_id))])
    if [extension.value for extension in extensions] != [wanted]:
        raise InvalidIdentity(f"the request for a certificate asks for something else than to be {spiffe_id}")
    return key


# --- the authority ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CertificateAuthority:
    """Signs X.509-SVIDs of one trust domain."""

    trust_domain: str
    certificate: x509.Certificate
    #: Those between it and the root; the root itself is in everybody's bundle.
    intermediates: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePrivateKey
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
        """Make one, in place of what the folder holds: a root, or one under another.

        Raises:
            InvalidIdentity: that is no name of a trust domain, or the other one is of another.
            OSError: the folder cannot be written.
        """
        check_trust_domain(trust_domain)
        if under is not None and under.trust_domain != trust_domain:
            raise InvalidIdentity(f"the authority above is of {under.trust_domain}, not of {trust_domain}")
        key = new_key()
        subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
        above, signer = (subject, key) if under is None else (under.certificate.subject, under.key)
        now = datetime.now(UTC)
        end = now + lifetime
        if under is not None:
            end = min(end, under.not_after)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(above)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(end)
            # A root may have one below it, that one none.
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
        """Take the one in a folder.

        Raises:
            ConfigurationError: there is none, it cannot be used, or others can read its key.
        """
        try:
            mode = (folder / KEY_FILE).stat().st_mode
            if mode & (stat.S_IROTH | stat.S_IWOTH):
                raise ConfigurationError(f"everybody on this host can use {folder / KEY_FILE}; chmod 600 it")
            certificates = x509.load_pem_x509_certificates((folder / CERTIFICATE_FILE).read_bytes())
            key = load_pem_private_key((folder / KEY_FILE).read_bytes(), password=None)
            retired: list[x509.Certificate] = []
            if (folder / RETIRED_FILE).exists():
                retired = x509.load_pem_x509_certificates((folder / RETIRED_FILE).read_bytes())
        except OSError as error:
            raise ConfigurationError(
                f"cannot read the certificate authority in {folder}: {error}; `tachikoma identity ca init` makes one"
            ) from error
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"the certificate authority in {folder} is not PEM: {error}") from None
        certificate, *others = certificates
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigurationError(f"the key and the first certificate in {folder} do not belong together")
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        except x509.ExtensionNotFound:
            uris = []
        if len(uris) != 1 or not uris[0].startswith("spiffe://"):
            raise ConfigurationError(f"{folder / CERTIFICATE_FILE} does not name its trust domain, as spiffe://…")
        below_root = [other for other in others if not _is_root(other)]
        return cls(uris[0].removeprefix("spiffe://").strip("/"), certificate, tuple(below_root), key, tuple(retired))

    @property
    def not_after(self) -> datetime:
        """When it ends, and with it all that it signed."""
        return min(item.not_valid_after_utc for item in (self.certificate, *self.intermediates))

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
        """An X.509-SVID, as the standard wants it.

        Args:
            public_key: of its holder.
            spiffe_id: who that is.
            lifetime: how long it lasts; it never outlives the authority.
            dns_names: further names.
            not_before: when it begins; by default somewhat in the past, for clocks that differ.
            earliest: it does not begin before that.
        """
        now = datetime.now(UTC)
        # One that has ended already, which tests need, lasted for as long as any.
        begin = not_before or now - (min(BACKDATE, lifetime) if lifetime > timedelta(0) else BACKDATE)
        if earliest is not None:
            begin = max(begin, earliest)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(spiffe_id))]
        names += [x509.DNSName(name) for name in dns_names]
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tachikoma")]))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(min((not_before or now) + lifetime, self.not_after))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage("digital_signature"), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def chain(self, leaf: x509.Certificate) -> bytes:
        """What the holder of a certificate shows: it, and what stands between it and the root. PEM."""
        own = () if _is_root(self.certificate) else (self.certificate,)
        return _pem(leaf, *own, *self.intermediates)

    def issued(self, certificate: x509.Certificate) -> bool:
        """Whether a certificate is one of this authority, or of one that it came after."""
        return any(_issued(certificate, authority) for authority in (self.certificate, *self.retired))


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _is_root(certificate: x509.Certificate) -> bool:
    # Not by its names: two authorities may have the same.
    return _issued(certificate, certificate)


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
