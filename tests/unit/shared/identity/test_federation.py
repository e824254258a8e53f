"""Several trust domains: whose root vouches for whom, and where bundles come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authority import Authority
from tachikoma.errors import ConfigurationError
from tachikoma.identity.bundles import MAX_FEDERATED, TrustBundle, TrustBundles
from tachikoma.identity.certificates import key_digest
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.files import BUNDLE_FILE, FEDERATED_FOLDER
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId
from tachikoma.identity.svid import Svid

OWN, PARTNER, OTHER = "tachikoma.local", "partner.example", "other.example"
ALICE, GUEST = f"spiffe://{OWN}/user/alice", f"spiffe://{PARTNER}/user/guest"


@pytest.fixture(scope="module")
def partner() -> Authority:
    return Authority(PARTNER)


@pytest.fixture(scope="module")
def bundles(authority: Authority, partner: Authority) -> TrustBundles:
    federated = {PARTNER: TrustBundle(PARTNER, [partner.certificate])}
    return TrustBundles(TrustBundle(OWN, [authority.certificate]), federated)


def look_again(source: FileSvidSource) -> Svid:
    source._checked = float("-inf")
    return source.current()


def federate(folder: Path, **bundles: bytes) -> None:
    (folder / FEDERATED_FOLDER).mkdir(exist_ok=True)
    for name, pem in bundles.items():
        (folder / FEDERATED_FOLDER / f"{name.replace('_', '.')}.pem").write_bytes(pem)


# --- whose root vouches for whom --------------------------------------------------------------------------------------


def test_each_domain_vouches_for_its_own(bundles: TrustBundles, authority: Authority, partner: Authority) -> None:
    assert bundles.verify(authority.leaf(ALICE)[0], []) == SpiffeId.parse(ALICE)
    assert bundles.verify(partner.leaf(GUEST)[0], []) == SpiffeId.parse(GUEST)


def test_no_domain_vouches_for_another(bundles: TrustBundles, authority: Authority, partner: Authority) -> None:
    for root, name in ((partner, ALICE), (authority, GUEST)):
        with pytest.raises(InvalidIdentity, match="not trusted"):
            bundles.verify(root.leaf(name)[0], [root.certificate])


def test_a_domain_without_a_bundle_is_nobody(bundles: TrustBundles, authority: Authority) -> None:
    with pytest.raises(InvalidIdentity, match=rf"no bundle of trust domain {OTHER}"):
        bundles.verify(authority.leaf(f"spiffe://{OTHER}/user/x")[0], [])


def test_a_federated_bundle_cannot_stand_in_for_the_own(authority: Authority, stranger: Authority) -> None:
    with pytest.raises(InvalidIdentity, match="own trust domain"):
        TrustBundles(TrustBundle(OWN, [authority.certificate]), {OWN: TrustBundle(OWN, [stranger.certificate])})


def test_federation_is_bounded(authority: Authority) -> None:
    root = TrustBundle(OWN, [authority.certificate])
    with pytest.raises(InvalidIdentity, match=str(MAX_FEDERATED)):
        TrustBundles(root, {f"d{number}.example": root for number in range(MAX_FEDERATED + 1)})


def test_a_root_that_says_whose_it_is_is_taken_for_nobody_elses(tmp_path: Path) -> None:
    """As where a helper writes federated bundles into the own file."""
    from tachikoma.dev.ca import DevelopmentCA

    foreign = DevelopmentCA(tmp_path, PARTNER).certificate
    assert TrustBundle(PARTNER, [foreign]).roots == (foreign,)
    with pytest.raises(InvalidIdentity, match=rf"contains a root of 'spiffe://{PARTNER}'"):
        TrustBundle(OWN, [foreign])


def test_a_certificate_is_good_until_its_chain_ends_and_of_the_root_that_vouches(
    bundles: TrustBundles, authority: Authority
) -> None:
    leaf, _ = authority.leaf(ALICE)
    assert bundles.verify_until(leaf, []) == (SpiffeId.parse(ALICE), leaf.not_valid_after_utc)
    assert bundles.own.root_of(leaf, []) == key_digest(authority.certificate)


@given(st.text(max_size=30), st.text(max_size=30))
def test_what_parses_is_what_was_made_and_nothing_gets_in_by_joining(domain: str, name: str) -> None:
    """No trust domain and no name can together be read as another trust domain or another kind of identity."""
    try:
        parsed = SpiffeId.parse(f"spiffe://{domain}/user/{name}")
    except InvalidIdentity:
        return
    assert parsed.trust_domain == domain.partition("/")[0]
    assert "/" in domain or parsed.path == f"/user/{name}"


# --- files ------------------------------------------------------------------------------------------------------------


def test_federated_bundles_are_read_from_their_folder(authority: Any, partner: Authority, tmp_path: Path) -> None:
    authority.write(tmp_path, ALICE)
    federate(tmp_path, partner_example=partner.pem)
    svid = FileSvidSource(tmp_path).current()
    assert [bundle.trust_domain for bundle in svid.bundles] == [OWN, PARTNER]
    assert svid.bundles.verify(partner.leaf(GUEST)[0], []) == SpiffeId.parse(GUEST)
    assert svid.bundles.pem == authority.pem + partner.pem


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("partner_example", b"x", "partner.example"),
        ("NO", None, "'NO' is not a trust domain"),
        ("tachikoma_local", None, "own"),
    ],
)
def test_a_federated_bundle_that_is_wrong_is_told(
    authority: Any, tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    authority.write(tmp_path, ALICE)
    federate(tmp_path, **{name: authority.pem if content is None else content})
    with pytest.raises(ConfigurationError, match=told):
        FileSvidSource(tmp_path)


def test_federation_begins_and_ends_while_the_process_runs(authority: Any, partner: Authority, tmp_path: Path) -> None:
    authority.write(tmp_path, ALICE)
    source = FileSvidSource(tmp_path)
    guest, _ = partner.leaf(GUEST)
    federate(tmp_path, partner_example=partner.pem)
    assert look_again(source).bundles.verify(guest, []) == SpiffeId.parse(GUEST)
    (tmp_path / FEDERATED_FOLDER / f"{PARTNER}.pem").unlink()
    with pytest.raises(InvalidIdentity, match="not federated"):
        look_again(source).bundles.verify(guest, [])


def test_a_root_that_moves_to_another_domain_is_seen(authority: Any, partner: Authority, tmp_path: Path) -> None:
    authority.write(tmp_path, ALICE)
    federate(tmp_path, partner_example=partner.pem)
    source = FileSvidSource(tmp_path)
    (tmp_path / FEDERATED_FOLDER / f"{PARTNER}.pem").rename(tmp_path / FEDERATED_FOLDER / f"{OTHER}.pem")
    with pytest.raises(InvalidIdentity, match="not federated"):
        look_again(source).bundles.verify(partner.leaf(GUEST)[0], [])


def test_a_removed_root_is_removed_though_the_own_certificate_stands_on_it(
    authority: Any, new_authority: Any, tmp_path: Path
) -> None:
    """Otherwise a root that was lost would be trusted as long as a renewal hangs."""
    authority.write(tmp_path, ALICE)
    source = FileSvidSource(tmp_path)
    old, new = source.current(), new_authority()
    (tmp_path / BUNDLE_FILE).write_bytes(new.pem)
    svid = look_again(source)
    assert svid.chain == old.chain
    with pytest.raises(InvalidIdentity, match="not trusted"):
        svid.verify()
    with pytest.raises(InvalidIdentity, match="not trusted"):
        svid.bundles.verify(authority.leaf(f"spiffe://{OWN}/user/bob")[0], [])
    new.write(tmp_path, ALICE)
    look_again(source).verify()


def test_bundles_are_taken_while_certificate_and_key_are_between_two_writes(
    authority: Any, new_authority: Any, tmp_path: Path
) -> None:
    authority.write(tmp_path, ALICE)
    source = FileSvidSource(tmp_path)
    new = new_authority()
    (tmp_path / BUNDLE_FILE).write_bytes(authority.pem + new.pem)
    (tmp_path / "svid_key.pem").write_bytes(authority.files(ALICE)["svid_key.pem"])
    svid = look_again(source)
    assert len(svid.bundle.roots) == 2
    svid.verify()
