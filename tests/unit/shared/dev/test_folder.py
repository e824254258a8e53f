"""The places of a stack."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachikoma.dev.folder import FORMAT, StackFolder
from tachikoma.errors import ConfigurationError


def test_every_place_is_under_the_data_folder_and_no_two_are_the_same() -> None:
    data = Path("/data")
    folder = StackFolder(data)
    places = [
        folder.ca, folder.identity("user"), folder.identity("agent-1"), folder.agent("agent-1"), folder.log("agent-1"),
        folder.policy, folder.audit_log, folder.audit_key, folder.redis, folder.redis_passwords.path("x"),
        folder.flower_users,
    ]  # fmt: skip
    assert all(data in place.parents for place in places)
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("before", [None, "", "0\n", f"{FORMAT}\n"])
def test_a_folder_of_this_or_an_earlier_version_is_used(tmp_path: Path, before: str | None) -> None:
    if before is not None:
        (tmp_path / "format").write_text(before)
    StackFolder(tmp_path).check_format()
    assert (tmp_path / "format").read_text() == f"{FORMAT}\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (f"{FORMAT + 1}\n".encode(), rf"a later version .*\(format {FORMAT + 1}; this version reads formats up to"),
        (b"9" * 9, "a later version"),
        (b"9" * 5000, "contains no number"),
        ("\u00b2".encode(), "contains no number"),
        (b"two", "contains no number"),
        (b"-1", "contains no number"),
        (b"\xff", "cannot read"),
    ],
)
def test_a_folder_of_a_later_version_is_left_alone(tmp_path: Path, content: bytes, told: str) -> None:
    note = tmp_path / "format"
    note.write_bytes(content)
    with pytest.raises(ConfigurationError, match=told):
        StackFolder(tmp_path).check_format()
    assert note.read_bytes() == content


def test_what_is_no_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "format").mkdir()
    with pytest.raises(ConfigurationError, match="cannot read"):
        StackFolder(tmp_path).check_format()
