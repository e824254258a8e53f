"""Compact JWS (RFC 7515) with one algorithm, ES256 (RFC 7518, section 3.4), and the signer's chain in `x5c`.

The general library does more than these messages need, at several times the cost: a new header and a new key object for
each message. It still checks each header that was not seen before, and tests compare both.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature as WrongSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from joserfc import jws
from joserfc.util import urlsafe_b64decode

__all__ = ["Header", "Message", "WrongHeader", "parse", "sign_payload"]

#: Largest number of bytes of a signed payload: 4 MiB of standard input as base64, and the rest.
MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
#: Largest number of certificates in the chain of a signer.
MAX_CHAIN = 8
#: Largest number of bytes of a header.
MAX_HEADER_BYTES = 16 * 1024
#: Largest number of characters of a message: header and payload in base64, two dots, and a signature of 64 bytes.
MAX_CHARS = (MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES) * 4 // 3 + 100
#: Bytes of each of the two numbers in a signature.
NUMBER_BYTES = 32

_ES256 = ec.ECDSA(hashes.SHA256())
_registry = jws.JWSRegistry(algorithms=["ES256"])


@dataclass(frozen=True, slots=True)
class Header:
    """A header that was checked. Parsing its chain establishes no trust."""

    #: The signer's certificate, then those between it and the root.
    chain: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class Message:
    """A message whose signature was not verified yet."""

    header: Header
    payload: bytes
    #: The signed bytes, and the signature as it stands in the message.
    signed: bytes
    signature: bytes

    def check_signature(self) -> None:
        """Verify the signature with the key of the signer's certificate. Raises ValueError."""
        raw = urlsafe_b64decode(self.signature)
        if len(raw) != 2 * NUMBER_BYTES:
            raise ValueError("the signature has another length")
        first, second = (int.from_bytes(part, "big") for part in (raw[:NUMBER_BYTES], raw[NUMBER_BYTES:]))
        try:
            self.header.key.verify(encode_dss_signature(first, second), self.signed, _ES256)
        except WrongSignature:
            raise ValueError("the signature is wrong") from None


def sign_payload(payload: bytes, typ: str, chain: tuple[x509.Certificate, ...], key: ec.EllipticCurvePrivateKey) -> str:
    """Sign bytes and return a compact JWS.

    Args:
        payload: the bytes.
        typ: the kind of message.
        chain: the signer's certificate, then those between it and the root.
        key: the key of that certificate, on P-256.
    """
    signed = _own_header(typ, chain) + b"." + _encode(payload)
    numbers = decode_dss_signature(key.sign(signed, _ES256))
    raw = b"".join(number.to_bytes(NUMBER_BYTES, "big") for number in numbers)
    return (signed + b"." + _encode(raw)).decode("ascii")


class WrongHeader(ValueError):
    """A header that no message of this kind has; the message says why."""


def parse(token: str, typ: str) -> Message:
    """Parse a compact JWS of one kind. Its signature is not verified.

    Raises:
        WrongHeader: the header names another kind or algorithm, or has no chain.
        Exception: the text is no compact JWS, or its chain cannot be read; the error is that of the parser.
    """
    if len(token) > MAX_CHARS:
        raise ValueError("the message is too long")
    raw = token.encode("ascii")
    header, payload, signature = raw.split(b".")
    return Message(
        _parse_header(header, typ), urlsafe_b64decode(payload), raw[: len(raw) - len(signature) - 1], signature
    )


@lru_cache(maxsize=64)
def _own_header(typ: str, chain: tuple[x509.Certificate, ...]) -> bytes:
    x5c = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode() for certificate in chain]
    return _encode(json.dumps({"alg": "ES256", "typ": typ, "x5c": x5c}, separators=(",", ":")).encode())


@lru_cache(maxsize=2048)
def _parse_header(segment: bytes, typ: str) -> Header:
    """Parse and check a header. Each signer uses few, so they are remembered; one that is refused is not."""
    if len(segment) > MAX_HEADER_BYTES * 4 // 3 + 4:
        raise ValueError("the header is too long")
    header: Any = json.loads(urlsafe_b64decode(segment))
    if not isinstance(header, dict):
        raise WrongHeader("has a header that is not an object")
    if header.get("typ") != typ or header.get("alg") != "ES256":
        raise WrongHeader(f"is a {str(header.get('typ'))[:60]!r}, not a {typ!r}")
    if "crit" in header or "b64" in header:
        raise ValueError("the header requires an extension")
    _registry.check_header(header)
    chain = _parse_chain(header.get("x5c"))
    key = chain[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the signer's key is not on P-256")
    return Header(chain, key)


def _parse_chain(x5c: Any) -> tuple[x509.Certificate, ...]:
    if not isinstance(x5c, list) or not 1 <= len(x5c) <= MAX_CHAIN or not all(isinstance(item, str) for item in x5c):
        raise WrongHeader("carries no certificate chain")
    return tuple(x509.load_der_x509_certificate(base64.b64decode(item, validate=True)) for item in x5c)


def _encode(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
