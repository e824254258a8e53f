"""Certificates of X.509-SVIDs (X509-SVID standard): the ID that one names, and the checks of a leaf.

TLS alone is not enough: it accepts two URI names, CA certificates as leaves, and any ID under any configured root.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId

__all__ = ["check_leaf", "dns_names", "id_of", "key_digest", "uris"]


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        return certificate.extensions
    except Exception as error:
        # A repeated extension, a name of an unknown kind, …: the errors that hostile certificates cause in the parser
        # have no common class, and each of them means that the certificate is wrong.
        raise InvalidIdentity(f"the certificate cannot be read: {error}") from None


def id_of(certificate: x509.Certificate) -> SpiffeId:
    """Return the SPIFFE ID that a certificate names.

    Raises:
        InvalidIdentity: the certificate does not name exactly one (X509-SVID section 2).
    """
    try:
        names = _extensions(certificate).get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise InvalidIdentity("the certificate has no subject alternative name") from None
    found = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(found) != 1:
        raise InvalidIdentity(f"an X.509-SVID has exactly one URI name, this certificate has {len(found)}")
    return SpiffeId.parse(found[0])


def check_leaf(leaf: x509.Certificate) -> None:
    """Check a leaf by X509-SVID sections 4.1 to 4.4.

    Raises:
        InvalidIdentity: a rule is broken; the message names it.
    """
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


def uris(certificate: x509.Certificate) -> list[str]:
    """Return the URI names of a certificate."""
    try:
        names = _extensions(certificate).get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def dns_names(certificate: x509.Certificate) -> list[str]:
    """Return the DNS names of a certificate."""
    try:
        names = _extensions(certificate).get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def key_digest(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate's public key, in hexadecimal.

    It identifies a root, also after the root was signed again with the same key.
    """
    digest = hashes.Hash(hashes.SHA256())
    digest.update(certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex()
