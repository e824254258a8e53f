"""A certificate authority for one machine: enough to have mTLS and SPIFFE identities from the first minute.

Its key lies in a file that only its owner can read. Do not use it for more than one host.
"""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tachikoma.spiffe import SpiffeId
from tachikoma.svid import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE

__all__ = ["SVID_LIFETIME", "DevelopmentCA"]

CA_LIFETIME = timedelta(days=365)
#: A CA that ends sooner is replaced.
CA_MARGIN = timedelta(days=30)
SVID_LIFETIME = timedelta(hours=24)
#: Certificates begin a little in the past, for clocks that differ.
BACKDATE = timedelta(minutes=5)

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


def write_private(path: Path, content: bytes) -> None:
    """Replace a file as a whole, readable by its owner only."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class DevelopmentCA:
    """Signs X.509-SVIDs of one trust domain; its key and certificate live in a folder."""

    def __init__(self, folder: Path, trust_domain: str) -> None:
        """Take the CA in the folder, or make one where there is none or it ends soon."""
        self.trust_domain = trust_domain
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        certificate_path, key_path = folder / "ca.pem", folder / "ca_key.pem"
        if certificate_path.exists() and key_path.exists():
            certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
            key = load_pem_private_key(key_path.read_bytes(), password=None)
            uri = f"spiffe://{trust_domain}"
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            usable = certificate.not_valid_after_utc - CA_MARGIN > datetime.now(UTC)
            same = names.get_values_for_type(x509.UniformResourceIdentifier) == [uri]
            if usable and same and isinstance(key, ec.EllipticCurvePrivateKey):
                self.certificate, self._key = certificate, key
                return
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign_itself()
        write_private(key_path, _key_pem(self._key))
        write_private(certificate_path, self.bundle_pem)

    @property
    def bundle_pem(self) -> bytes:
        """What verifiers need to trust it."""
        return self.certificate.public_bytes(Encoding.PEM)

    def _sign_itself(self) -> x509.Certificate:
        now = datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tachikoma development CA")])
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(now + CA_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(**{**_USAGE_NONE, "key_cert_sign": True, "crl_sign": True}), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{self.trust_domain}")]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

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
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        begin = not_before or datetime.now(UTC) - BACKDATE
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(spiffe_id))]
        names += [x509.DNSName(name) for name in dns_names]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tachikoma")]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after((not_before or datetime.now(UTC)) + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**{**_USAGE_NONE, "digital_signature": True}), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        write_private(folder / KEY_FILE, _key_pem(key))
        write_private(folder / BUNDLE_FILE, self.bundle_pem)
        write_private(folder / CERTIFICATE_FILE, certificate.public_bytes(Encoding.PEM))
