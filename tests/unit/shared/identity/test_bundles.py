"""The verification of X.509-SVIDs against trust bundles."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from tachikoma.identity.bundles import MAX_CACHED, TrustBundle
from tachikoma.identity.certificates import id_of
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId

DOMAIN = "tachikoma.local"
ALICE = f"spiffe://{DOMAIN}/user/alice"
#: Like "alice", but its first letter is Cyrillic.
CYRILLIC = "\u0430lice"

# --- certificates: those that are accepted ----------------------------------------------------------------------------


@pytest.fixture
def bundle(authority: Any) -> TrustBundle:
    return TrustBundle(DOMAIN, [authority.certificate])


def test_a_right_certificate_tells_who_it_is(authority: Any, bundle: TrustBundle) -> None:
    leaf, _ = authority.leaf(ALICE)
    assert bundle.verify(leaf, []) == SpiffeId.parse(ALICE)
    assert id_of(leaf) == SpiffeId.parse(ALICE)


def test_a_dns_name_beside_the_id_does_no_harm(authority: Any, bundle: TrustBundle) -> None:
    leaf, _ = authority.leaf(ALICE, dns=["orchestrator.tachikoma.local"])
    assert bundle.verify(leaf, []) == SpiffeId.parse(ALICE)


def test_extended_key_usage_may_be_absent(authority: Any, bundle: TrustBundle) -> None:
    leaf, _ = authority.leaf(ALICE, extended=None)
    assert bundle.verify(leaf, []) == SpiffeId.parse(ALICE)


def test_an_rsa_key_is_an_identity_as_well(authority: Any, bundle: TrustBundle) -> None:
    leaf, _ = authority.leaf(ALICE, key=rsa.generate_private_key(65537, 2048))
    assert bundle.verify(leaf, []) == SpiffeId.parse(ALICE)


def test_an_intermediate_may_stand_between(new_authority: Any, authority: Any, bundle: TrustBundle) -> None:
    between = new_authority(parent=authority)
    leaf, _ = between.leaf(ALICE)
    assert bundle.verify(leaf, [between.certificate]) == SpiffeId.parse(ALICE)
    with pytest.raises(InvalidIdentity, match="not trusted"):
        bundle.verify(leaf, [])


def test_any_root_of_the_bundle_will_do(new_authority: Any, authority: Any) -> None:
    old = new_authority()
    both = TrustBundle(DOMAIN, [old.certificate, authority.certificate])
    for root in (old, authority):
        assert both.verify(root.leaf(ALICE)[0], []) == SpiffeId.parse(ALICE)


# --- certificates: those that are not ---------------------------------------------------------------------------------


def refused(bundle: TrustBundle, leaf: x509.Certificate, match: str | None = None) -> None:
    """It is refused, and just as much when it comes again."""
    for _ in range(2):
        with pytest.raises(InvalidIdentity, match=match):
            bundle.verify(leaf, [])


def test_two_ids_in_one_certificate_are_refused(authority: Any, bundle: TrustBundle) -> None:
    refused(bundle, authority.leaf(ALICE, f"spiffe://{DOMAIN}/user/bob")[0], "exactly one URI name.*has 2")
    refused(bundle, authority.leaf(ALICE, ALICE)[0], "has 2")
    refused(bundle, authority.leaf(ALICE, "https://example.org/")[0], "has 2")


def test_a_certificate_without_an_id_is_refused(authority: Any, bundle: TrustBundle) -> None:
    refused(bundle, authority.leaf()[0], "no subject alternative name")
    refused(bundle, authority.leaf(dns=["orchestrator.tachikoma.local"])[0], "has 0")


@pytest.mark.parametrize(
    "uri", ["https://tachikoma.local/user/alice", f"spiffe://{DOMAIN}", f"spiffe://{DOMAIN}/user/../x", ALICE + "?x"]
)
def test_a_name_that_is_no_spiffe_id_is_refused(authority: Any, bundle: TrustBundle, uri: str) -> None:
    refused(bundle, authority.leaf(uri)[0], "SPIFFE ID|names no workload")


def test_a_ca_is_nobodys_identity(authority: Any, bundle: TrustBundle) -> None:
    refused(bundle, authority.leaf(ALICE, ca=True)[0], "is a CA")


def test_a_certificate_without_key_usage_is_refused(authority: Any, bundle: TrustBundle) -> None:
    refused(bundle, authority.leaf(ALICE, usage=None)[0], "no key usage")


@pytest.mark.parametrize(
    ("bits", "match"),
    [
        (("key_encipherment",), "allow digital signatures"),
        (("digital_signature", "key_cert_sign"), "must not sign certificates"),
        (("digital_signature", "crl_sign"), "must not sign certificates or revocation lists"),
    ],
)
def test_a_wrong_key_usage_is_refused(authority: Any, bundle: TrustBundle, bits: tuple[str, ...], match: str) -> None:
    refused(bundle, authority.leaf(ALICE, usage=authority.key_usage(*bits))[0], match)


def test_a_key_usage_that_is_not_critical_is_refused(authority: Any, bundle: TrustBundle) -> None:
    refused(bundle, authority.leaf(ALICE, usage_critical=False)[0], "must be critical")


@pytest.mark.parametrize(
    "extended",
    [
        [ExtendedKeyUsageOID.SERVER_AUTH],
        [ExtendedKeyUsageOID.CLIENT_AUTH],
        [ExtendedKeyUsageOID.CODE_SIGNING],
        [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE],
    ],
)
def test_an_extended_key_usage_for_one_side_only_is_refused(
    authority: Any, bundle: TrustBundle, extended: list[x509.ObjectIdentifier]
) -> None:
    refused(bundle, authority.leaf(ALICE, extended=extended)[0], "both server and client authentication")


def test_an_expired_certificate_is_refused_and_told_its_time(authority: Any, bundle: TrustBundle) -> None:
    end = datetime(2025, 6, 1, 12, tzinfo=UTC)
    leaf, _ = authority.leaf(ALICE, begin=end - timedelta(days=1), end=end)
    refused(bundle, leaf, r"2025-05-31 12:00:00 to 2025-06-01 12:00:00")


def test_a_certificate_that_is_not_yet_valid_is_refused(authority: Any, bundle: TrustBundle) -> None:
    begin = datetime.now(UTC) + timedelta(days=1)
    refused(bundle, authority.leaf(ALICE, begin=begin, end=begin + timedelta(days=1))[0], "valid from")


def test_a_foreign_root_is_not_trusted(stranger: Any, bundle: TrustBundle) -> None:
    refused(bundle, stranger.leaf(ALICE)[0], "not trusted")


def test_a_foreign_root_sent_along_is_not_trusted_either(stranger: Any, bundle: TrustBundle) -> None:
    leaf, _ = stranger.leaf(ALICE)
    with pytest.raises(InvalidIdentity, match="not trusted"):
        bundle.verify(leaf, [stranger.certificate])


def test_a_foreign_root_of_the_same_name_is_not_trusted(
    new_authority: Any, authority: Any, bundle: TrustBundle
) -> None:
    double = new_authority()
    double.name = authority.name
    refused(bundle, double.leaf(ALICE)[0], "not trusted")


def test_our_root_cannot_name_somebody_of_another_trust_domain(authority: Any, bundle: TrustBundle) -> None:
    refused(bundle, authority.leaf("spiffe://elsewhere.example/user/alice")[0], "is not of trust domain")
    refused(bundle, authority.leaf("spiffe://tachikoma.local.evil/user/alice")[0], "is not of trust domain")


def test_a_leaf_cannot_issue_another(new_authority: Any, authority: Any, bundle: TrustBundle) -> None:
    issuer, key = authority.leaf(ALICE)
    impostor = new_authority()
    impostor.key, impostor.name = key, issuer.subject
    leaf, _ = impostor.leaf(f"spiffe://{DOMAIN}/user/root")
    with pytest.raises(InvalidIdentity, match="not trusted"):
        bundle.verify(leaf, [issuer])


def test_a_changed_certificate_is_refused(authority: Any, bundle: TrustBundle) -> None:
    der = bytearray(authority.leaf(ALICE)[0].public_bytes(Encoding.DER))
    at = der.index(b"/user/alice")
    der[at + 6 : at + 11] = b"malic"
    refused(bundle, x509.load_der_x509_certificate(bytes(der)), "not trusted")


def test_an_empty_bundle_is_no_bundle() -> None:
    with pytest.raises(InvalidIdentity, match="contains no certificate"):
        TrustBundle(DOMAIN, [])


def _doubled(authority: Any) -> x509.Certificate:
    """A certificate with the same extension twice, which no builder makes."""
    first, second = (x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.2.3.4.{n}"), b"\x05\x00") for n in (5, 6))
    der = authority.leaf(ALICE, extra=[first, second])[0].public_bytes(Encoding.DER)
    return x509.load_der_x509_certificate(der.replace(b"\x06\x04\x2a\x03\x04\x06", b"\x06\x04\x2a\x03\x04\x05"))


def _strangely_named(authority: Any) -> x509.Certificate:
    """A certificate with a kind of name (x400Address) that the library does not read."""
    name = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x30\x04\xa3\x02\x05\x00")
    return authority.leaf(extra=[name])[0]


def _garbled(authority: Any) -> x509.Certificate:
    """A certificate whose names are no ASN.1."""
    name = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\xff\xff")
    return authority.leaf(extra=[name])[0]


@pytest.mark.parametrize("make", [_doubled, _strangely_named, _garbled], ids=lambda make: make.__name__.strip("_"))
def test_a_certificate_that_cannot_be_read_is_refused_like_any_wrong_one(
    make: Any, authority: Any, bundle: TrustBundle
) -> None:
    refused(bundle, make(authority))


# --- the cache --------------------------------------------------------------------------------------------------------


def test_what_is_remembered_does_not_outlive_the_certificate(authority: Any, bundle: TrustBundle) -> None:
    begin, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    leaf, _ = authority.leaf(ALICE, begin=begin, end=end)
    assert bundle.verify(leaf, [], begin) == SpiffeId.parse(ALICE)
    assert bundle.verify(leaf, [], end) == SpiffeId.parse(ALICE)
    with pytest.raises(InvalidIdentity, match="not now"):
        bundle.verify(leaf, [], end + timedelta(seconds=1))
    with pytest.raises(InvalidIdentity, match="not now"):
        bundle.verify(leaf, [], begin - timedelta(seconds=1))
    # And is still good inside.
    assert bundle.verify(leaf, [], begin + timedelta(hours=1)) == SpiffeId.parse(ALICE)


def test_what_is_remembered_does_not_outlive_the_authority(new_authority: Any) -> None:
    root = new_authority()
    bundle = TrustBundle(DOMAIN, [root.certificate])
    far = root.certificate.not_valid_after_utc + timedelta(days=365)
    leaf, _ = root.leaf(ALICE, end=far)
    assert bundle.verify(leaf, []) == SpiffeId.parse(ALICE)
    with pytest.raises(InvalidIdentity, match="not now"):
        bundle.verify(leaf, [], root.certificate.not_valid_after_utc + timedelta(days=1))


def test_a_refusal_is_not_remembered_for_another_time(authority: Any, bundle: TrustBundle) -> None:
    begin = datetime.now(UTC) + timedelta(days=1)
    leaf, _ = authority.leaf(ALICE, begin=begin, end=begin + timedelta(days=1))
    refused(bundle, leaf, "not now")
    assert bundle.verify(leaf, [], begin + timedelta(hours=1)) == SpiffeId.parse(ALICE)


def test_a_leaf_known_with_its_chain_is_not_thereby_known_without(
    new_authority: Any, authority: Any, bundle: TrustBundle
) -> None:
    between = new_authority(parent=authority)
    leaf, _ = between.leaf(ALICE)
    bundle.verify(leaf, [between.certificate])
    refused(bundle, leaf, "not trusted")


@pytest.mark.slow
def test_what_is_remembered_is_bounded(authority: Any, bundle: TrustBundle) -> None:
    leaf, _ = authority.leaf(ALICE)
    # Any certificates will do as intermediates: each makes another entry.
    others = [authority.leaf(f"spiffe://{DOMAIN}/user/u{n}")[0] for n in range(8)]
    for number in range(MAX_CACHED + 100):
        bundle.verify(leaf, [others[bit] for bit in range(8) if number % 255 >> bit & 1] + others[:1] * (number // 255))
    assert len(bundle._cache) == MAX_CACHED
