"""The client profile."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from tachikoma.client.profile import PROFILE_VARIABLE, Profile, check_writable, default_profile_path
from tachikoma.errors import ConfigurationError


def profile(folder: Path) -> Profile:
    return Profile(address="localhost:4711", server_name="orchestrator.tachikoma.local", identity=folder / "identity")


def test_a_saved_profile_loads_as_it_was(tmp_path: Path) -> None:
    made, path = profile(tmp_path), tmp_path / "some" / "where" / "profile.json"
    made.save(path)
    assert Profile.load(path) == made
    assert json.loads(path.read_text())["serverName"] == "orchestrator.tachikoma.local"


def test_saving_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text("{}")
    profile(tmp_path).save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["profile.json"]
    assert Profile.load(path) == profile(tmp_path)


def test_the_profile_is_where_the_variable_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROFILE_VARIABLE, str(tmp_path / "mine.json"))
    profile(tmp_path).save(tmp_path / "mine.json")
    assert default_profile_path() == tmp_path / "mine.json"
    assert Profile.load() == profile(tmp_path)


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_it_is_in_the_users_configuration(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    if value is None:
        monkeypatch.delenv(PROFILE_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(PROFILE_VARIABLE, value)
    assert default_profile_path() == tmp_path / "tachikoma" / "profile.json"


def test_a_missing_profile_is_told_with_its_path_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no client profile at .*none\.json; log in .*`tachikoma login`"):
        Profile.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "object"),
        (b"{}", "address"),
        (b'{"address": "x:1", "identity": "/i"}', "serverName"),
        (b'{"address": "x:1", "serverName": "s", "identity": "/i", "adress": 1}', "adress"),
        (b'{"address": 1, "serverName": "s", "identity": "/i"}', "address"),
    ],
)
def test_a_wrong_profile_is_told_with_path_and_field(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=rf"profile\.json.*{told}"):
        Profile.load(path)


def test_a_profile_that_is_no_text_is_told_like_any_wrong_one(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(ConfigurationError, match=r"profile\.json"):
        Profile.load(path)


def test_a_folder_in_its_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        Profile.load(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below, folder = tmp_path / "file" / "profile.json", tmp_path / "folder"
    folder.mkdir()
    for use in (check_writable, profile(tmp_path).save):
        with pytest.raises(ConfigurationError, match=f"^cannot write the client profile {below}: (Not|File)"):
            use(below)
        with pytest.raises(ConfigurationError, match=f"^cannot write the client profile {folder}: Is a directory"):
            use(folder)
    check_writable(tmp_path / "new" / "profile.json")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_profile_cannot_be_changed(tmp_path: Path) -> None:
    made = profile(tmp_path)
    with pytest.raises(FrozenInstanceError):
        made.address = "elsewhere:1"  # type: ignore[misc]
