"""An identity in files, and its replacement while a process runs."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from patience import PATIENCE_SECONDS
from tachikoma.dev.ca import DevelopmentCA
from tachikoma.errors import ConfigurationError
from tachikoma.identity import file_source as module
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.files import BUNDLE_FILE, CERTIFICATE_FILE, KEY_FILE
from tachikoma.identity.spiffe import InvalidIdentity, SpiffeId, user_id
from tachikoma.identity.svid import Svid

DOMAIN = "tachikoma.local"
ALICE = f"spiffe://{DOMAIN}/user/alice"
BOB = f"spiffe://{DOMAIN}/user/bob"
FILES = (CERTIFICATE_FILE, KEY_FILE, BUNDLE_FILE)


def look_again(source: FileSvidSource) -> Svid:
    """The current identity, as if the second between two looks had passed."""
    source._checked = float("-inf")
    return source.current()


def serial(svid: Svid) -> int:
    return svid.chain[0].serial_number


# --- reading ----------------------------------------------------------------------------------------------------------


def test_an_identity_is_read_from_its_three_files(authority: Any, tmp_path: Path) -> None:
    authority.write(tmp_path, ALICE)
    svid = FileSvidSource(tmp_path).current()
    assert svid.spiffe_id == SpiffeId.parse(ALICE)
    assert svid.bundle.trust_domain == DOMAIN
    assert svid.certificate_pem == (tmp_path / CERTIFICATE_FILE).read_bytes()
    svid.verify()


def test_an_identity_that_is_being_renewed_is_read_when_its_files_match(
    authority: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEWAL_SECONDS", PATIENCE_SECONDS)
    authority.write(tmp_path / "new", ALICE)
    authority.write(tmp_path / "here", ALICE)
    (tmp_path / "new" / CERTIFICATE_FILE).replace(tmp_path / "here" / CERTIFICATE_FILE)
    looks = []

    def renewed_at_the_third_look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            (tmp_path / "new" / KEY_FILE).replace(tmp_path / "here" / KEY_FILE)

    monkeypatch.setattr(module.time, "sleep", renewed_at_the_third_look)
    FileSvidSource(tmp_path / "here").current().verify()
    assert len(looks) == 3
    # Old files that do not match are a mistake, which is reported at once.
    authority.write(tmp_path / "other", ALICE)
    (tmp_path / "other" / KEY_FILE).replace(tmp_path / "here" / KEY_FILE)
    for name in FILES:
        os.utime(tmp_path / "here" / name, (0, 0))
    with pytest.raises(ConfigurationError, match="does not belong"):
        FileSvidSource(tmp_path / "here")
    assert len(looks) == 3


def test_the_development_authority_writes_such_files(tmp_path: Path) -> None:
    DevelopmentCA(tmp_path / "ca", DOMAIN).issue(user_id(DOMAIN, "alice"), tmp_path / "alice")
    svid = FileSvidSource(tmp_path / "alice").current()
    assert svid.spiffe_id == SpiffeId.parse(ALICE)
    svid.verify()
    assert (tmp_path / "alice" / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_an_identity_may_come_with_an_intermediate(new_authority: Any, authority: Any, tmp_path: Path) -> None:
    authority.write(tmp_path, ALICE, via=new_authority(parent=authority))
    svid = FileSvidSource(tmp_path).current()
    assert len(svid.chain) == 2
    svid.verify()


@pytest.mark.parametrize("missing", FILES)
def test_a_missing_file_is_told_by_name(authority: Any, tmp_path: Path, missing: str) -> None:
    authority.write(tmp_path, ALICE)
    (tmp_path / missing).unlink()
    with pytest.raises(ConfigurationError, match=missing):
        FileSvidSource(tmp_path)


def test_a_missing_folder_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        FileSvidSource(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"x", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\n"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_pem_is_refused(authority: Any, tmp_path: Path, name: str, content: bytes) -> None:
    authority.write(tmp_path, ALICE)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"cannot be used: .* is not PEM"):
        FileSvidSource(tmp_path)


def test_a_key_that_does_not_fit_is_refused(authority: Any, tmp_path: Path) -> None:
    authority.write(tmp_path, ALICE)
    (tmp_path / KEY_FILE).write_bytes(authority.files(ALICE)[KEY_FILE])
    with pytest.raises(ConfigurationError, match="does not belong to the certificate"):
        FileSvidSource(tmp_path)


@pytest.mark.parametrize(
    "key",
    [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())],
    ids=["RSA", "P-384"],
)
def test_a_key_that_cannot_sign_orders_is_refused(authority: Any, tmp_path: Path, key: Any) -> None:
    authority.write(tmp_path, ALICE, key=key)
    with pytest.raises(ConfigurationError, match="P-256"):
        FileSvidSource(tmp_path)


def test_a_key_with_a_pass_phrase_is_refused(authority: Any, tmp_path: Path) -> None:
    certificate, key = authority.leaf(ALICE)
    authority.write(tmp_path, ALICE)
    (tmp_path / CERTIFICATE_FILE).write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / KEY_FILE).write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    )
    with pytest.raises(ConfigurationError, match="cannot be used"):
        FileSvidSource(tmp_path)


def test_an_expired_identity_loads_but_does_not_verify(authority: Any, tmp_path: Path) -> None:
    end = datetime.now(UTC) - timedelta(minutes=1)
    authority.write(tmp_path, ALICE, begin=end - timedelta(days=1), end=end)
    svid = FileSvidSource(tmp_path).current()
    with pytest.raises(InvalidIdentity, match="not now"):
        svid.verify()


# --- replacement ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(authority: Any, tmp_path: Path) -> Path:
    """A folder with an identity."""
    authority.write(tmp_path, ALICE)
    return tmp_path


def test_a_replaced_identity_is_taken(authority: Any, folder: Path) -> None:
    source = FileSvidSource(folder)
    old = source.current()
    authority.write(folder, BOB)
    new = look_again(source)
    assert (old.spiffe_id, new.spiffe_id) == (SpiffeId.parse(ALICE), SpiffeId.parse(BOB))
    assert source.current() is new


def test_files_that_did_not_change_are_not_read_again(folder: Path) -> None:
    source = FileSvidSource(folder)
    assert look_again(source) is source.current()


def test_the_files_are_not_looked_at_for_every_use(authority: Any, folder: Path) -> None:
    source = FileSvidSource(folder)
    old = look_again(source)
    authority.write(folder, BOB)
    source._checked = float("inf")  # looked just now
    assert source.current() is old


@pytest.mark.parametrize("first", [CERTIFICATE_FILE, KEY_FILE])
def test_between_two_writes_the_old_identity_stays(authority: Any, folder: Path, first: str) -> None:
    source = FileSvidSource(folder)
    old = source.current()
    files = authority.files(BOB)
    second = KEY_FILE if first == CERTIFICATE_FILE else CERTIFICATE_FILE
    (folder / first).write_bytes(files[first])
    assert look_again(source) is old
    # Twice: what could not be used is looked at again, not taken for seen.
    assert look_again(source) is old
    (folder / second).write_bytes(files[second])
    assert look_again(source).spiffe_id == SpiffeId.parse(BOB)


@pytest.mark.parametrize("name", FILES)
def test_a_half_written_file_keeps_the_old_identity(authority: Any, folder: Path, name: str) -> None:
    source = FileSvidSource(folder)
    old = source.current()
    whole = authority.files(BOB)
    for other, content in whole.items():
        (folder / other).write_bytes(content if other != name else content[: len(content) // 2])
    assert look_again(source) is old
    (folder / name).write_bytes(whole[name])
    assert look_again(source).spiffe_id == SpiffeId.parse(BOB)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_vanishes_keeps_the_old_identity(authority: Any, folder: Path, name: str) -> None:
    source = FileSvidSource(folder)
    old = source.current()
    (folder / name).unlink()
    assert look_again(source) is old
    authority.write(folder, BOB)
    assert look_again(source).spiffe_id == SpiffeId.parse(BOB)


@pytest.mark.parametrize("days", [-2, 2], ids=["expired", "not yet valid"])
def test_an_identity_that_is_not_valid_now_is_not_taken(authority: Any, folder: Path, days: int) -> None:
    source = FileSvidSource(folder)
    old = source.current()
    begin = datetime.now(UTC) + timedelta(days=days)
    authority.write(folder, BOB, begin=begin, end=begin + timedelta(days=1))
    assert look_again(source) is old


def test_an_identity_of_an_authority_outside_the_bundle_is_not_taken(stranger: Any, folder: Path) -> None:
    source = FileSvidSource(folder)
    old = source.current()
    files = stranger.files(ALICE)
    (folder / CERTIFICATE_FILE).write_bytes(files[CERTIFICATE_FILE])
    (folder / KEY_FILE).write_bytes(files[KEY_FILE])
    assert look_again(source) is old
    # With its bundle it is another matter: whoever may write all three decides.
    (folder / BUNDLE_FILE).write_bytes(files[BUNDLE_FILE])
    assert serial(look_again(source)) != serial(old)


def test_a_changed_bundle_alone_is_taken(new_authority: Any, authority: Any, folder: Path) -> None:
    source = FileSvidSource(folder)
    other = new_authority()
    (folder / BUNDLE_FILE).write_bytes(authority.pem + other.pem)
    svid = look_again(source)
    assert len(svid.bundle.roots) == 2
    assert svid.bundle.verify(other.leaf(BOB)[0], []) == SpiffeId.parse(BOB)


def test_a_replacement_of_the_same_size_and_time_is_seen_by_its_inode(authority: Any, folder: Path) -> None:
    source = FileSvidSource(folder)
    old = source.current()
    for name, content in authority.files(ALICE).items():
        path, new = folder / name, folder / f".{name}"
        new.write_bytes(content)
        stat = path.stat()
        os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        new.replace(path)
    assert serial(look_again(source)) != serial(old)
