"""TLS to Redis with certificates that change."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from authority import Authority
from tachikoma.errors import ConfigurationError
from tachikoma.redis.tls import Tls


def write(folder: Path, authority: Authority) -> tuple[Path, tuple[Path, Path]]:
    """CA, certificate and key of an authority, in files."""
    ca, certificate, key = (folder / name for name in ("ca.pem", "tls.pem", "tls.key"))
    ca.write_bytes(authority.pem)
    certificate.write_bytes(authority.pem)
    key.write_bytes(authority.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return ca, (certificate, key)


def test_only_the_given_ca_is_trusted(tmp_path: Path, authority: Authority) -> None:
    context = Tls(*write(tmp_path, authority), None).get()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert [dict(part[0] for part in found["subject"]) for found in context.get_ca_certs()] == [
        {"commonName": authority.name.rfc4514_string().removeprefix("CN=")}
    ]


def test_a_changed_file_is_loaded_for_the_next_connection(
    tmp_path: Path, authority: Authority, new_authority: type[Authority]
) -> None:
    tls = Tls(*write(tmp_path, authority), None)
    first = tls.get()
    assert tls.get() is first
    write(tmp_path, new_authority())
    assert tls.get() is not first


def test_a_broken_pair_keeps_the_previous_one(
    tmp_path: Path, authority: Authority, new_authority: type[Authority]
) -> None:
    ca, pair = write(tmp_path, authority)
    tls = Tls(ca, pair, None)
    first = tls.get()
    # Between the two writes of a renewal: a new certificate, and still the old key.
    pair[0].write_bytes(new_authority().pem)
    assert tls.get() is first
    pair[1].unlink()
    assert tls.get() is first


def test_files_that_cannot_be_used_are_refused(tmp_path: Path, authority: Authority) -> None:
    ca, pair = write(tmp_path, authority)
    with pytest.raises(ConfigurationError, match="needs an identity"):
        Tls(ca, None, None)
    ca.write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match=r"cannot use the certificates for Redis: .*the CA file is not PEM"):
        Tls(ca, pair, None)
