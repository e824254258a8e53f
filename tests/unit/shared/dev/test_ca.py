"""The development CA: kept between starts, replaced in time, and readable by its owner only."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tachikoma.dev import ca
from tachikoma.dev.ca import DevelopmentCA
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.spiffe import user_id


def test_it_is_kept_between_starts(tmp_path: Path) -> None:
    first = DevelopmentCA(tmp_path / "ca", "example.org")
    assert DevelopmentCA(tmp_path / "ca", "example.org").bundle_pem == first.bundle_pem


def test_another_trust_domain_gets_another_ca(tmp_path: Path) -> None:
    first = DevelopmentCA(tmp_path / "ca", "example.org")
    second = DevelopmentCA(tmp_path / "ca", "example.com")
    assert second.bundle_pem != first.bundle_pem
    assert second.trust_domain == "example.com"


def test_one_that_expires_soon_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca, "CA_LIFETIME", ca.CA_MARGIN - timedelta(days=1))
    first = DevelopmentCA(tmp_path / "ca", "example.org")
    assert DevelopmentCA(tmp_path / "ca", "example.org").bundle_pem != first.bundle_pem


def test_damaged_files_are_replaced(tmp_path: Path) -> None:
    first = DevelopmentCA(tmp_path / "ca", "example.org")
    for file in (tmp_path / "ca").iterdir():
        file.write_bytes(b"damaged")
    assert DevelopmentCA(tmp_path / "ca", "example.org").bundle_pem != first.bundle_pem


def test_only_the_owner_may_read_keys(tmp_path: Path) -> None:
    DevelopmentCA(tmp_path / "ca", "example.org").issue(user_id("example.org", "one"), tmp_path / "one")
    secret = [path for path in tmp_path.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert len(secret) == 2
    assert [stat.S_IMODE(path.stat().st_mode) for path in secret] == [0o600, 0o600]


def test_an_issued_identity_can_be_used_at_once(tmp_path: Path) -> None:
    authority = DevelopmentCA(tmp_path / "ca", "example.org")
    authority.issue(user_id("example.org", "one"), tmp_path / "one", lifetime=timedelta(hours=2))
    found = FileSvidSource(tmp_path / "one").current()
    assert str(found.spiffe_id) == "spiffe://example.org/user/one"
    left = found.not_after - datetime.now(UTC)
    assert timedelta(hours=1, minutes=50) < left <= timedelta(hours=2)
