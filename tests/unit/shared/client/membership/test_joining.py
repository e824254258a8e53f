"""Joining, up to the point where the token is used. The whole of it is tested in tests/security."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from authority import Authority
from tachikoma.client.membership.joining import REJOIN, _prepare_folders
from tachikoma.errors import ConfigurationError
from tachikoma.identity.spiffe import agent_id
from tachikoma_worker.settings import PASSWORD_FILE

WEB_1, WEB_2 = agent_id("tachikoma.local", "web-1"), agent_id("tachikoma.local", "web-2")


def test_folders_are_created_for_their_owner_only(tmp_path: Path) -> None:
    _prepare_folders(tmp_path / "a" / "identity", tmp_path / "b" / "secrets", WEB_1)
    for path in (tmp_path / "a" / "identity", tmp_path / "b" / "secrets"):
        assert path.stat().st_mode & 0o777 == 0o700


def test_an_agent_may_join_again_and_no_other_in_its_place(tmp_path: Path, authority: Authority) -> None:
    authority.write(tmp_path, str(WEB_1))
    _prepare_folders(tmp_path, tmp_path, WEB_1)
    with pytest.raises(ConfigurationError, match=r"has the identity of .*web-1; name another folder for .*web-2"):
        _prepare_folders(tmp_path, tmp_path, WEB_2)


def test_a_certificate_that_cannot_be_read_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "svid.pem").write_bytes(b"nonsense")
    _prepare_folders(tmp_path, tmp_path, WEB_1)


def test_a_file_in_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, secrets in ((tmp_path / "file", tmp_path), (tmp_path, tmp_path / "file" / "x")):
        with pytest.raises(ConfigurationError, match="cannot write the identity"):
            _prepare_folders(folder, secrets, WEB_1)


def test_a_folder_that_may_not_be_written_is_told_before_the_token_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed: list[Any] = []
    monkeypatch.setattr(os, "access", lambda place, mode: bool(allowed.append(place)))
    with pytest.raises(ConfigurationError, match=f"{tmp_path} cannot be written"):
        _prepare_folders(tmp_path, tmp_path, WEB_1)
    assert allowed == [tmp_path]


def test_the_remedy_names_the_two_commands() -> None:
    assert "tachikoma agents enroll" in REJOIN
    assert "tachikoma worker join" in REJOIN
    assert "/" not in PASSWORD_FILE
