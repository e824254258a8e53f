"""Checks of this host."""

from __future__ import annotations

import resource
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from tachikoma.diagnosis import host
from tachikoma.diagnosis.host import check_folder, check_open_files, check_secret, check_units

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


@pytest.mark.parametrize(
    ("load", "active", "enabled", "own", "companion"),
    [
        ("loaded", "failed", "disabled", "the unit has failed", "the unit has failed"),
        ("loaded", "inactive", "enabled", "the unit does not run", "the unit does not run"),
        ("loaded", "inactive", "disabled", "the unit does not run", ""),
        ("loaded", "active", "enabled", "", ""),
        ("loaded", "activating", "enabled", "", ""),
        ("not-found", "inactive", "", "", ""),
    ],
)
def test_units_that_do_not_run_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: str, active: str, enabled: str, own: str, companion: str
) -> None:
    """A stand-in for systemctl(1), since systemd does not run everywhere."""
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\necho LoadState={load}\necho ActiveState={active}\necho UnitFileState={enabled}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(host, "SYSTEMD", tmp_path)
    expected = [(unit, what) for unit, what in (("a.service", own), ("b.service", companion)) if what]
    assert [(found.where, found.what) for found in check_units("a.service", companions=("b.service",))] == expected


def test_a_limit_of_open_files_that_is_too_low_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    (finding,) = check_open_files("TACHIKOMA_CONNECTIONS", 1000, 25)
    assert finding.what == "a limit of 1024 open files is too low for 1000 connections"
    assert list(check_open_files("TACHIKOMA_CONNECTIONS", 1000, 24)) == []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert list(check_open_files("TACHIKOMA_CONNECTIONS", 10_000, 24)) == []


def test_without_systemd_no_unit_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "SYSTEMD", tmp_path / "missing")
    assert list(check_units("a.service")) == []
