"""An X.509-SVID with its key and bundles, and its replacement by newer material."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE
from tachikoma.identity.spiffe import InvalidIdentity
from tachikoma.identity.svid import Svid, renewed

DOMAIN = "tachikoma.local"
ALICE = f"spiffe://{DOMAIN}/user/alice"

Material = tuple[bytes, bytes, bytes, dict[str, bytes]]


def material(files: dict[str, bytes], bundle: bytes | None = None) -> Material:
    return files[CERTIFICATE_FILE], files[KEY_FILE], files[BUNDLE_FILE] if bundle is None else bundle, {}


def test_a_certificate_that_names_nobody_is_refused(authority: Any) -> None:
    files = authority.files("https://example.org/")
    with pytest.raises(InvalidIdentity, match="SPIFFE ID"):
        Svid.load(files[CERTIFICATE_FILE], files[KEY_FILE], files[BUNDLE_FILE])


def test_an_identity_its_own_bundle_does_not_trust_does_not_verify(authority: Any, stranger: Any) -> None:
    files = authority.files(ALICE)
    svid = Svid.load(files[CERTIFICATE_FILE], files[KEY_FILE], stranger.pem)
    with pytest.raises(InvalidIdentity, match="not trusted"):
        svid.verify()


def test_the_key_is_not_shown_where_an_identity_is(authority: Any) -> None:
    """In a log, a traceback with variables, a failed assertion."""
    assert "PRIVATE KEY" not in repr(authority.svid(ALICE))


# --- replacement ------------------------------------------------------------------------------------------------------


def test_the_same_material_changes_nothing(authority: Any) -> None:
    parts = material(authority.files(ALICE))
    old = Svid.load(*parts)
    assert renewed(old, *parts) == (old, "")


def test_a_new_certificate_is_accepted(authority: Any) -> None:
    old = authority.svid(ALICE)
    parts = material(authority.files(ALICE))
    new, problem = renewed(old, *parts)
    assert (new.certificate_pem, problem) == (parts[0], "")


def test_a_certificate_without_its_key_is_not_accepted(authority: Any) -> None:
    files = authority.files(ALICE)
    old = Svid.load(*material(files))
    mixed = {**files, CERTIFICATE_FILE: authority.files(ALICE)[CERTIFICATE_FILE]}
    assert renewed(old, *material(mixed)) == (old, "the key does not belong to the certificate")


def test_an_expired_certificate_is_not_accepted(authority: Any) -> None:
    old = authority.svid(ALICE)
    end = datetime.now(UTC) - timedelta(minutes=1)
    kept, problem = renewed(old, *material(authority.files(ALICE, begin=end - timedelta(days=1), end=end)))
    assert kept is old
    assert "not now" in problem


def test_a_new_bundle_is_accepted_although_it_does_not_trust_the_own_certificate(authority: Any, stranger: Any) -> None:
    files = authority.files(ALICE)
    old = Svid.load(*material(files))
    new, problem = renewed(old, *material(files, stranger.pem))
    assert new.certificate_pem == old.certificate_pem
    assert new.bundle.pem == stranger.pem
    assert problem.startswith("the new bundle is active, but does not trust this process itself: ")


def test_a_bundle_that_cannot_be_read_is_not_accepted(authority: Any) -> None:
    files = authority.files(ALICE)
    old = Svid.load(*material(files))
    kept, problem = renewed(old, *material(files, b"x"))
    assert kept is old
    assert "is not PEM" in problem
