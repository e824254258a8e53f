"""Certificates of X.509-SVIDs: names, and the checks of a leaf."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from tachikoma.identity.certificates import check_leaf, dns_names, id_of, key_digest, uris
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId

ALICE = "spiffe://tachikoma.local/user/alice"


def test_names_are_read(authority: Any) -> None:
    leaf, _ = authority.leaf(ALICE, dns=["a.example", "b.example"])
    assert id_of(leaf) == SpiffeId.parse(ALICE)
    assert uris(leaf) == [ALICE]
    assert dns_names(leaf) == ["a.example", "b.example"]


def test_a_certificate_without_names_has_none(authority: Any) -> None:
    assert (uris(authority.certificate), dns_names(authority.certificate)) == ([], [])
    with pytest.raises(InvalidIdentity, match="has no subject alternative name"):
        id_of(authority.certificate)


@pytest.mark.parametrize("names", [(), (ALICE, f"{ALICE}2")])
def test_an_identity_is_exactly_one_uri(authority: Any, names: tuple[str, ...]) -> None:
    leaf, _ = authority.leaf(*names, dns=["a.example"])
    with pytest.raises(InvalidIdentity, match=f"exactly one URI name, this certificate has {len(names)}"):
        id_of(leaf)


def test_a_leaf_is_checked_and_a_ca_is_none(authority: Any) -> None:
    check_leaf(authority.leaf(ALICE)[0])
    check_leaf(authority.leaf(ALICE, extended=None)[0])
    for wrong, message in (
        (authority.leaf(ALICE, ca=True), "is a CA, not a leaf"),
        (authority.leaf(ALICE, usage=None), "has no key usage"),
        (authority.leaf(ALICE, usage_critical=False), "must be critical"),
        (authority.leaf(ALICE, extended=(ExtendedKeyUsageOID.CLIENT_AUTH,)), "must allow both"),
    ):
        with pytest.raises(InvalidIdentity, match=message):
            check_leaf(wrong[0])


def test_a_key_has_one_digest_in_every_certificate(authority: Any) -> None:
    one, key = authority.leaf(ALICE)
    again, _ = authority.leaf(ALICE, key=key)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    assert key_digest(one) == key_digest(again) == digest.finalize().hex()
    assert key_digest(authority.leaf(ALICE)[0]) != key_digest(one)
