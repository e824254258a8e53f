"""A certificate authority that also makes what a verifier must refuse."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tachikoma.identity.authority import key_usage
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE
from tachikoma.identity.svid import Svid

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


class Authority:
    """Signs certificates of one trust domain, right and wrong ones."""

    key_usage = staticmethod(key_usage)

    def __init__(self, trust_domain: str = "tachikoma.local", parent: Authority | None = None) -> None:
        self.trust_domain = trust_domain
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA {x509.random_serial_number()}")])
        signer = parent or self
        #: Backwards in time as well, so that expired leaves have a CA that is valid throughout.
        begin, end = dt.datetime(2020, 1, 1, tzinfo=dt.UTC), dt.datetime(2090, 1, 1, tzinfo=dt.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(signer.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(key_usage("key_cert_sign", "crl_sign"), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), critical=False)
            .sign(signer.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def leaf(
        self,
        *uris: str,
        key: PrivateKey | None = None,
        ca: bool = False,
        usage: x509.KeyUsage | None = key_usage("digital_signature"),  # noqa: B008 (immutable)
        usage_critical: bool = True,
        extended: Sequence[x509.ObjectIdentifier] | None = _BOTH,
        dns: Sequence[str] = (),
        begin: dt.datetime | None = None,
        end: dt.datetime | None = None,
        extra: Sequence[x509.ExtensionType] = (),
    ) -> tuple[x509.Certificate, PrivateKey]:
        """A certificate and its key; None leaves an extension out."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tachikoma")]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # Tests sign as of when their module was loaded, which in a long run is a while ago.
            .not_valid_before(begin or now - dt.timedelta(hours=1))
            .not_valid_after(end or now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if usage is not None:
            builder = builder.add_extension(usage, critical=usage_critical)
        if extended is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        names += [x509.DNSName(name) for name in dns]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        for extension in extra:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self.key, hashes.SHA256()), key

    def files(self, uri: str, *, via: Authority | None = None, **options: object) -> dict[str, bytes]:
        """The three files of an identity, by name. With `via`, signed by that intermediate."""
        certificate, key = (via or self).leaf(uri, **options)  # type: ignore[arg-type]
        chain = certificate.public_bytes(Encoding.PEM) + (via.pem if via else b"")
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return {CERTIFICATE_FILE: chain, KEY_FILE: pem, BUNDLE_FILE: self.pem}

    def svid(self, uri: str, *, via: Authority | None = None, **options: object) -> Svid:
        """An identity."""
        files = self.files(uri, via=via, **options)
        return Svid.load(files[CERTIFICATE_FILE], files[KEY_FILE], files[BUNDLE_FILE])

    def write(self, folder: Path, uri: str, **options: object) -> None:
        """Write an identity's files into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files(uri, **options).items():  # type: ignore[arg-type]
            (folder / name).write_bytes(content)


class NoIdentity:
    """The source of a part that neither signs nor verifies anything in a test."""

    place = "nowhere"

    def current(self) -> Svid:
        """Fail: the part was not to use it."""
        raise AssertionError("an identity is used")

    def close(self) -> None:
        """Release nothing."""
