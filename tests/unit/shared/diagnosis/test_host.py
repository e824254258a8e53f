"""Checks of this host."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from tachikoma.diagnosis import host
from tachikoma.diagnosis.host import check_folder, check_secret, check_units

#: What `shutil.disk_usage` returns.
Usage = namedtuple("Usage", ["total", "used", "free"])


def test_a_secret_is_private(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    (finding,) = check_secret(secret)
    assert finding.what == "cannot be read: No such file or directory"
    secret.touch(0o600)
    assert list(check_secret(secret)) == []
    for mode in (0o640, 0o604, 0o620, 0o666):
        secret.chmod(mode)
        (finding,) = check_secret(secret)
        assert f"(mode {mode:o})" in finding.what
        assert finding.remedy == f"run: chmod 600 {secret}"


def test_a_folder_that_does_not_exist_yet_is_checked_by_its_parent(tmp_path: Path) -> None:
    assert list(check_folder(tmp_path / "a" / "b", "the journal")) == []


def test_a_file_in_the_place_of_a_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    (finding,) = check_folder(tmp_path / "data", "the journal")
    assert finding.what == f"the journal cannot be written to {tmp_path}/data"


def test_a_full_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 << 30, 100 << 30, 10 << 20))
    (finding,) = check_folder(tmp_path, "the journal")
    assert finding.what == "its disk has 10 MiB free of 102400 MiB; the journal will soon fail"


@pytest.mark.parametrize(("state", "findings"), [("failed", ["a.service"]), ("active", []), ("inactive", [])])
def test_failed_units_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, findings: list[str]
) -> None:
    """A stand-in for systemctl(1), since systemd does not run everywhere."""
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\necho {state}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(host, "SYSTEMD", tmp_path)
    assert [finding.where for finding in check_units("a.service")] == findings


def test_without_systemd_no_unit_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "SYSTEMD", tmp_path / "missing")
    assert list(check_units("a.service")) == []
