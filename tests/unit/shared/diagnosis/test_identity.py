"""Checks of a part's own identity."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from authority import Authority
from tachikoma.diagnosis.findings import Finding
from tachikoma.diagnosis.identity import check_identity, is_overdue
from tachikoma.identity.files import KEY_FILE

NOW = dt.datetime.now(dt.UTC)
URI = "spiffe://tachikoma.local/agent/web-1"


def found(folder: Path) -> list[Finding]:
    return list(check_identity(folder, "TACHIKOMA_IDENTITY"))


def private(folder: Path) -> None:
    (folder / KEY_FILE).chmod(0o600)


def test_a_usable_identity_has_no_finding(tmp_path: Path) -> None:
    Authority().write(tmp_path, URI)
    private(tmp_path)
    assert found(tmp_path) == []


def test_a_missing_identity_is_found(tmp_path: Path) -> None:
    (finding,) = found(tmp_path / "missing")
    assert finding.where == "TACHIKOMA_IDENTITY"
    assert "missing" in finding.what


def test_an_expired_identity_is_found(tmp_path: Path) -> None:
    Authority().write(tmp_path, URI, begin=NOW - dt.timedelta(days=2), end=NOW - dt.timedelta(days=1))
    (finding,) = found(tmp_path)
    assert finding.what.startswith("the identity cannot be used: ")
    assert "docs/identity.md" in finding.remedy


@pytest.mark.parametrize(("left", "overdue"), [(1, True), (9, False)])
def test_an_identity_that_was_not_renewed_in_time_is_found(tmp_path: Path, left: int, overdue: bool) -> None:
    authority = Authority()
    times = {"begin": NOW - dt.timedelta(hours=10 - left), "end": NOW + dt.timedelta(hours=left)}
    authority.write(tmp_path, URI, **times)
    private(tmp_path)
    assert ["should have been renewed" in finding.what for finding in found(tmp_path)] == [True] * overdue
    assert is_overdue(authority.svid(URI, **times)) is overdue


def test_a_key_that_others_may_read_is_found(tmp_path: Path) -> None:
    Authority().write(tmp_path, URI)
    (tmp_path / KEY_FILE).chmod(0o644)
    (finding,) = found(tmp_path)
    assert (finding.where, finding.remedy) == (str(tmp_path / KEY_FILE), f"run: chmod 600 {tmp_path / KEY_FILE}")
