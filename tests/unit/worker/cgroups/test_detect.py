"""Which cgroups an agent uses, from the text of /proc files of real hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachikoma_worker.cgroups import detect as module
from tachikoma_worker.cgroups.detect import Mount, base_of, detect, own_directory, parse_mounts
from tachikoma_worker.cgroups.hierarchy import NoHierarchy

V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = (
    "33 25 0:29 / /sys/fs/cgroup/memory rw,nosuid shared:10 - cgroup cgroup rw,memory\n"
    "34 25 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:11 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 25 0:31 / /sys/fs/cgroup/systemd rw,nosuid shared:12 - cgroup cgroup rw,xattr,name=systemd"
)
OTHER = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"


def mount(point: Path, kind: str = "cgroup2", root: str = "/", *options: str) -> Mount:
    return Mount(root, point, kind, frozenset(options))


def test_only_mounts_of_cgroups_are_found() -> None:
    found = parse_mounts("\n".join((OTHER, V2, V1)))
    assert [(item.kind, str(item.point)) for item in found] == [
        ("cgroup2", "/sys/fs/cgroup"),
        ("cgroup", "/sys/fs/cgroup/memory"),
        ("cgroup", "/sys/fs/cgroup/cpu,cpuacct"),
        ("cgroup", "/sys/fs/cgroup/systemd"),
    ]
    assert {"cpu", "cpuacct"} <= found[2].options


def test_escapes_in_a_mount_point_are_resolved() -> None:
    [found] = parse_mounts(r"29 23 0:26 / /mnt/two\040words rw - cgroup2 cgroup2 rw")
    assert found.point == Path("/mnt/two words")


@pytest.mark.parametrize("text", ["", OTHER, "29 23 0:26 / /x rw - tmpfs tmpfs rw"])
def test_without_cgroups_there_are_no_mounts(text: str) -> None:
    assert parse_mounts(text) == []


def test_the_own_directory_of_v2_is_on_the_line_without_controllers(tmp_path: Path) -> None:
    (tmp_path / "system.slice" / "worker.service").mkdir(parents=True)
    text = "12:memory:/elsewhere\n0::/system.slice/worker.service\n"
    assert own_directory(mount(tmp_path), text) == tmp_path / "system.slice" / "worker.service"


def test_the_own_directory_of_v1_is_on_the_line_of_its_controllers(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    tree = mount(tmp_path, "cgroup", "/", "rw", "cpu", "cpuacct")
    assert own_directory(tree, "3:memory:/b\n4:cpu,cpuacct:/a\n0::/b\n") == tmp_path / "a"


@pytest.mark.parametrize("path", ["/gone", "/../../outside", "/"])
def test_a_directory_that_is_not_visible_is_the_mount_point(tmp_path: Path, path: str) -> None:
    assert own_directory(mount(tmp_path), f"0::{path}\n") == tmp_path


def test_in_a_container_the_part_above_the_mounted_root_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    assert own_directory(mount(tmp_path, "cgroup2", "/docker/abc"), "0::/docker/abc/inner\n") == tmp_path / "inner"


def test_the_base_is_the_top_the_own_directory_or_a_named_one(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    tree = mount(tmp_path)
    assert base_of(tree, "top", "0::/own\n") == tmp_path
    assert base_of(tree, "own", "0::/own\n") == tmp_path / "own"
    assert base_of(tree, "/some.service", "0::/own\n") == tmp_path / "some.service"


def test_a_v1_tree_without_the_named_directory_is_used_from_its_top(tmp_path: Path) -> None:
    assert base_of(mount(tmp_path, "cgroup"), "/some.service", "") == tmp_path


def test_a_host_without_usable_cgroups_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "parse_mounts", lambda _: [])
    found = detect("a", name="test", where="top")
    assert isinstance(found, NoHierarchy)
    assert found.warnings == ("commands run without cgroups, so without limits: none is mounted here",)
    monkeypatch.setattr(module, "parse_mounts", lambda _: [mount(tmp_path)])
    [warning] = detect("a", name="test", where="top").warnings
    assert f"{tmp_path}: No such file or directory" in warning
