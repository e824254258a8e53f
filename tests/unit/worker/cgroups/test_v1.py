"""cgroup v1 on files as the kernel writes them. What the kernel does with them is tested in tests/confinement."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachikoma.vocabulary.limits import ResourceLimits, ResourceUsage
from tachikoma_worker.cgroups.v1 import TREES, LegacyHierarchy


@pytest.fixture
def bases(tmp_path: Path) -> dict[str, Path]:
    """One directory for each tree."""
    for tree in TREES:
        (tmp_path / tree).mkdir()
    return {tree: tmp_path / tree for tree in TREES}


def test_an_execution_joins_only_the_trees_that_it_needs(bases: dict[str, Path]) -> None:
    host = LegacyHierarchy(bases, "test", "a")
    assert host.controllers == {"memory", "cpu", "pids", "io"}
    assert host.warnings == ()
    cgroup = host.make("job-7", ResourceLimits(pids=5))
    there = {tree for tree in TREES if (bases[tree] / "test" / "a" / "job-7").is_dir()}
    assert there == {"freezer", "memory", "cpuacct", "pids"}
    assert (bases["pids"] / "test" / "a" / "job-7" / "pids.max").read_text() == "5"
    assert len(cgroup.fds) == 4
    assert host.leftovers() == ["job-7"]
    cgroup.close()


def test_controllers_that_are_mounted_together_share_a_directory(bases: dict[str, Path]) -> None:
    """As cpu and cpuacct do on Debian and Ubuntu."""
    host = LegacyHierarchy({**bases, "cpu": bases["cpuacct"]}, "test", "a")
    cgroup = host.make("job-7", ResourceLimits(cpu_weight=50))
    assert (bases["cpuacct"] / "test" / "a" / "job-7" / "cpu.shares").read_text() == "512"
    assert len(cgroup.fds) == 3
    for tree in ("freezer", "memory", "cpuacct"):
        for file in (bases[tree] / "test" / "a" / "job-7").iterdir():
            file.unlink()
    assert cgroup.remove()
    assert host.leftovers() == []


def test_the_freezer_comes_first(bases: dict[str, Path]) -> None:
    """It is the tree that is killed as a whole."""
    assert TREES[0] == "freezer"
    host = LegacyHierarchy(bases, "test", "a")
    cgroup = host.make("job-7", ResourceLimits(pids=5))
    assert Path(f"/proc/self/fd/{cgroup.fds[0]}").readlink() == bases["freezer"] / "test" / "a" / "job-7"
    cgroup.close()


def test_lacking_trees_are_named(bases: dict[str, Path]) -> None:
    del bases["freezer"], bases["blkio"]
    limits, freezer = LegacyHierarchy(bases, "test", "a").warnings
    assert limits == "limits of io cannot be enforced: no such cgroup controller here"
    assert "no freezer cgroup here" in freezer


def test_usage_is_read_from_the_kernels_files(bases: dict[str, Path]) -> None:
    host = LegacyHierarchy(bases, "test", "a")
    cgroup = host.make("job-7", ResourceLimits(io_read="1MiB"))
    files = {
        ("cpuacct", "cpuacct.usage"): "1500000000\n",
        ("memory", "memory.max_usage_in_bytes"): "4096\n",
        ("memory", "memory.oom_control"): "oom_kill_disable 0\noom_kill 2\n",
        ("blkio", "blkio.throttle.io_service_bytes"): "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n",
    }
    for tree in ("blkio", "cpuacct", "memory"):
        (bases[tree] / "test" / "a" / "job-7").mkdir(exist_ok=True)
    for (tree, name), content in files.items():
        (bases[tree] / "test" / "a" / "job-7" / name).write_text(content)
    cgroup.close()
    cgroup = host.open("job-7")
    assert cgroup.usage() == ResourceUsage(cpu_seconds=1.5, peak_memory=4096, io_read=10, io_written=20, oom_kills=2)
    cgroup.close()


def test_a_removed_cgroup_opens_as_an_empty_one(bases: dict[str, Path]) -> None:
    cgroup = LegacyHierarchy(bases, "test", "a").open("gone")
    assert (cgroup.fds, cgroup.populated(), cgroup.usage(), cgroup.remove()) == ((), False, ResourceUsage(), True)


def test_an_execution_whose_cgroup_exists_already_leaves_the_others_alone(bases: dict[str, Path]) -> None:
    host = LegacyHierarchy(bases, "test", "a")
    (bases["memory"] / "test" / "a" / "job-7").mkdir()
    with pytest.raises(FileExistsError):
        host.make("job-7", ResourceLimits())
    assert not (bases["freezer"] / "test" / "a" / "job-7").exists()
    assert (bases["memory"] / "test" / "a" / "job-7").exists()


def test_closing_removes_the_agents_own_directories(bases: dict[str, Path]) -> None:
    LegacyHierarchy(bases, "test", "a").close()
    assert not [path for tree in bases.values() for path in tree.iterdir()]
