"""The parts that v1 and v2 share, and the stand-in for hosts without cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.vocabulary.limits import ResourceLimits, ResourceUsage
from tachikoma_worker.cgroups import hierarchy as module
from tachikoma_worker.cgroups.hierarchy import (
    NoHierarchy,
    block_devices,
    keyed_number,
    lacking_controllers,
    number,
    open_directory,
    read_text,
    remove_tree,
)


@pytest.mark.parametrize(
    ("text", "value"), [("12\n", 12), ("0", 0), ("max\n", None), ("", None), ("-1", None), ("²", None), ("1 2", None)]
)
def test_a_number_is_read_and_nothing_else(text: str, value: int | None) -> None:
    assert number(text) == value


@given(st.text())
def test_no_content_of_a_file_raises(text: str) -> None:
    assert number(text) is None or text.strip().isdecimal()
    assert keyed_number(text, "name") is None or "name " in text


def test_a_number_is_found_by_its_name() -> None:
    text = "populated 1\nfrozen 0\npopulated_twice 7\n"
    assert (keyed_number(text, "populated"), keyed_number(text, "frozen"), keyed_number(text, "gone")) == (1, 0, None)


def test_a_missing_file_is_empty(tmp_path: Path) -> None:
    assert read_text(tmp_path / "none") == ""


def test_a_tree_is_removed_from_its_leaves(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    assert remove_tree(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert remove_tree(tmp_path / "a")


def test_a_tree_that_stays_occupied_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMOVE_SECONDS", 0.02)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").touch()
    assert remove_tree(tmp_path / "a") is False


def test_only_a_directory_can_be_opened_as_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        open_directory(tmp_path / "file")


def test_disks_are_numbers_and_not_made_of_memory() -> None:
    for device in block_devices():
        major, minor = device.split(":")
        assert major.isdecimal()
        assert minor.isdecimal()


def test_what_cannot_be_limited_is_named() -> None:
    assert lacking_controllers(frozenset({"memory", "cpu", "pids", "io"})) == ()
    [warning] = lacking_controllers(frozenset({"memory", "cpu"}))
    assert warning == "limits of pids, io cannot be enforced: no such cgroup controller here"


def test_without_cgroups_every_limit_is_missing_and_nothing_is_made() -> None:
    host = NoHierarchy("a test")
    assert host.missing(ResourceLimits(pids=1, memory=2**20)) == ["memory", "pids"]
    cgroup = host.make("job-7", ResourceLimits())
    assert (cgroup.fds, cgroup.populated(), cgroup.usage(), cgroup.remove()) == ((), False, ResourceUsage(), True)
    assert host.open("job-7").fds == ()
    assert host.leftovers() == []
    host.give_to(0, 0)
    host.close()
