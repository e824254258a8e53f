"""Limits as pairs of file and value: exact where they are written down, and in bounds whatever is asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.vocabulary.limits import ResourceLimits
from tachikoma_worker.cgroups.limits import (
    CONTROLLERS,
    CPU_LEAST_US,
    LEAST_SHARES,
    OPTIONAL_FILES,
    needed,
    settings_v1,
    settings_v2,
)

MIB = 1024 * 1024
ALL = ResourceLimits(memory=64 * MIB, swap=MIB, cpus=0.5, cpu_weight=50, pids=17, io_read=MIB, io_write=2 * MIB)
DEVICES = ["8:0", "259:1"]

LIMITS = st.builds(
    ResourceLimits,
    memory=st.none() | st.integers(MIB, 2**53 - 1),
    swap=st.none() | st.integers(0, 2**53 - 1),
    cpus=st.none() | st.floats(0.01, 4096),
    cpu_weight=st.none() | st.integers(1, 10_000),
    pids=st.none() | st.integers(1, 4_000_000),
    io_read=st.none() | st.integers(4096, 2**53 - 1),
    io_write=st.none() | st.integers(4096, 2**53 - 1),
    open_files=st.none() | st.integers(16, 2**20),
    oom_group=st.none() | st.booleans(),
)


def test_all_limits_of_v2() -> None:
    assert [(item.controller, item.file, item.value) for item in settings_v2(ALL, DEVICES)] == [
        ("memory", "memory.max", "67108864"),
        ("memory", "memory.oom.group", "1"),
        ("memory", "memory.swap.max", "1048576"),
        ("cpu", "cpu.max", "50000 100000"),
        ("cpu", "cpu.weight", "50"),
        ("pids", "pids.max", "17"),
        ("io", "io.max", "8:0 rbps=1048576 wbps=2097152"),
        ("io", "io.max", "259:1 rbps=1048576 wbps=2097152"),
    ]


def test_all_limits_of_v1() -> None:
    assert [(item.controller, item.file, item.value) for item in settings_v1(ALL, DEVICES[:1])] == [
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("memory", "memory.memsw.limit_in_bytes", "68157440"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.shares", "512"),
        ("pids", "pids.max", "17"),
        ("blkio", "blkio.throttle.read_bps_device", "8:0 1048576"),
        ("blkio", "blkio.throttle.write_bps_device", "8:0 2097152"),
    ]


def test_without_limits_nothing_is_written() -> None:
    assert settings_v1(ResourceLimits(), DEVICES) == settings_v2(ResourceLimits(), DEVICES) == []
    assert needed(ResourceLimits()) == frozenset()


def test_limited_memory_has_no_swap_unless_it_is_granted() -> None:
    limits = ResourceLimits(memory=64 * MIB)
    assert [item.value for item in settings_v2(limits, []) if item.file == "memory.swap.max"] == ["0"]
    assert [item.value for item in settings_v1(limits, []) if item.file == "memory.memsw.limit_in_bytes"] == [
        str(64 * MIB)
    ]


@pytest.mark.parametrize(("asked", "written"), [(None, "1"), (True, "1"), (False, "0")])
def test_a_command_without_memory_is_killed_as_a_whole_unless_policy_says_otherwise(
    asked: bool | None, written: str
) -> None:
    limits = ResourceLimits(memory=64 * MIB, oom_group=asked)
    assert [item.value for item in settings_v2(limits, []) if item.file == "memory.oom.group"] == [written]


def test_the_smallest_shares_are_those_that_the_kernel_takes() -> None:
    limits = ResourceLimits(cpus=0.01, cpu_weight=1)
    assert [item.value for item in settings_v1(limits, [])][1:] == [str(CPU_LEAST_US), "10"]
    assert LEAST_SHARES <= 10


@given(LIMITS, st.lists(st.sampled_from(["8:0", "8:16", "254:0"]), unique=True))
def test_exactly_the_needed_controllers_are_written(limits: ResourceLimits, devices: list[str]) -> None:
    v2 = {item.controller for item in settings_v2(limits, devices)}
    v1 = {"io" if item.controller == "blkio" else item.controller for item in settings_v1(limits, devices)}
    wanted = needed(limits)
    assert wanted <= set(CONTROLLERS)
    # Rates are written for each disk, and a host may have none. v1 limits swap only together with memory.
    assert v2 == wanted - (set() if devices else {"io"})
    assert v1 - {"memory"} == v2 - {"memory"}
    assert ("memory" in v1) == (limits.memory is not None)


@given(LIMITS)
def test_every_value_is_one_that_the_kernel_reads(limits: ResourceLimits) -> None:
    for item in (*settings_v1(limits, ["8:0"]), *settings_v2(limits, ["8:0"])):
        words = item.value.replace("rbps=", "").replace("wbps=", "").replace("8:0", "").split()
        assert words
        assert all(word.isdecimal() for word in words)
    quotas = [int(item.value) for item in settings_v1(limits, []) if item.file == "cpu.cfs_quota_us"]
    assert all(quota >= CPU_LEAST_US for quota in quotas)


@given(LIMITS)
def test_memory_is_written_before_memory_and_swap(limits: ResourceLimits) -> None:
    files = [item.file for item in settings_v1(limits, [])]
    if "memory.memsw.limit_in_bytes" in files:
        assert files.index("memory.limit_in_bytes") < files.index("memory.memsw.limit_in_bytes")


def test_optional_files_are_written_by_one_of_the_versions() -> None:
    written = {item.file for item in (*settings_v1(ALL, DEVICES), *settings_v2(ALL, DEVICES))}
    assert written >= OPTIONAL_FILES
