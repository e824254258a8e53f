"""cgroup v2 on files as the kernel writes them. What the kernel does with them is tested in tests/confinement."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tachikoma.vocabulary.limits import ResourceLimits, ResourceUsage
from tachikoma_worker.cgroups.v2 import UnifiedCgroup, UnifiedHierarchy


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(content)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tree whose controllers are enabled already, as systemd leaves it."""
    for folder in (tmp_path, tmp_path / "test", tmp_path / "test" / "a"):
        write(folder, cgroup_controllers="memory pids cpuset", cgroup_subtree_control="memory pids")
    return tmp_path


def test_usage_is_read_from_the_kernels_files(tmp_path: Path) -> None:
    write(
        tmp_path,
        cpu_stat="usage_usec 1500000\nuser_usec 1\n",
        memory_peak="4096\n",
        pids_peak="3\n",
        io_stat="8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n",
        memory_events="low 0\noom 1\noom_kill 2\n",
    )
    cgroup = UnifiedCgroup(tmp_path)
    assert cgroup.usage() == ResourceUsage(
        cpu_seconds=1.5, peak_memory=4096, peak_pids=3, io_read=11, io_written=22, oom_kills=2
    )
    cgroup.close()


def test_values_that_a_kernel_does_not_report_are_none(tmp_path: Path) -> None:
    cgroup = UnifiedCgroup(tmp_path)
    assert cgroup.usage() == ResourceUsage()
    assert not cgroup.populated()
    cgroup.close()


def test_it_is_populated_as_the_kernel_says(tmp_path: Path) -> None:
    cgroup = UnifiedCgroup(write(tmp_path, cgroup_events="populated 1\nfrozen 0\n"))
    assert cgroup.populated()
    cgroup.close()


def test_a_removed_cgroup_opens_as_an_empty_one(base: Path) -> None:
    """The worker that removed it was killed before it delivered the receipt."""
    host = UnifiedHierarchy(base, "test", "a")
    cgroup = host.open("gone")
    assert (cgroup.fds, cgroup.populated(), cgroup.usage(), cgroup.remove()) == ((), False, ResourceUsage(), True)


def test_only_limits_of_enabled_controllers_are_written(base: Path) -> None:
    host = UnifiedHierarchy(base, "test", "a")
    assert host.controllers == {"memory", "pids"}
    assert host.missing(ResourceLimits(pids=1, cpus=1, io_read="1MiB")) == ["cpu", "io"]
    assert host.warnings == ("limits of cpu, io cannot be enforced: no such cgroup controller here",)
    cgroup = host.make("job-7", ResourceLimits(memory="64MiB", pids=5, cpus=1))
    folder = base / "test" / "a" / "job-7"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"memory.max": "67108864", "pids.max": "5"}
    assert host.leftovers() == ["job-7"]
    cgroup.close()


def test_a_limit_that_the_kernel_refuses_leaves_nothing_behind(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = UnifiedHierarchy(base, "test", "a")

    def refuse(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OSError, match="Invalid argument"):
        host.make("job-7", ResourceLimits(pids=5))
    assert host.leftovers() == []


def test_descriptors_are_closed_with_the_cgroup(tmp_path: Path) -> None:
    (tmp_path / "job-7").mkdir()
    cgroup = UnifiedCgroup(tmp_path / "job-7")
    [fd] = cgroup.fds
    assert cgroup.remove()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
