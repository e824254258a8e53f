"""Limits and killing, as the kernel enforces them: the same tests on cgroup v1 and v2."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from host import PATIENCE_SECONDS, Host, Running, read_line

from processes import cgroups_named, processes_named
from tachikoma.vocabulary.limits import DEFAULT_OPEN_FILES, ResourceLimits
from tachikoma_worker.cgroups.hierarchy import Hierarchy, NoHierarchy, block_devices
from tachikoma_worker.cgroups.v2 import UnifiedHierarchy
from tachikoma_worker.confinement.refusals import Refused

pytestmark = pytest.mark.usefixtures("limits")
PYTHON = [sys.executable, "-I", "-S", "-c"]


def read(it: Running, *names: str) -> str:
    """The first of some files that one of the command's cgroups has, through the directories the spawner got."""
    for descriptor in it.cgroup.fds:
        for name in names:
            with suppress(OSError):
                return Path(f"/proc/self/fd/{descriptor}/{name}").read_text().strip()
    raise AssertionError(f"none of {names} is there")


@pytest.fixture
def mark() -> str:
    """A word by which a test finds its processes anywhere on the machine."""
    return f"mark-{uuid.uuid4().hex}"


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_limits_are_what_the_kernel_has(host: Host) -> None:
    limits = {"memory": "64MiB", "swap": 0, "cpus": 0.5, "cpuWeight": 50, "pids": 17}
    async with host.running("/bin/sleep", "1000", limits=limits) as it:
        assert read(it, "memory.max", "memory.limit_in_bytes") == str(64 * 1024 * 1024)
        assert read(it, "cpu.max", "cpu.cfs_quota_us").split()[0] == "50000"
        assert read(it, "cpu.weight", "cpu.shares") in ("50", "512")
        assert read(it, "pids.max") == "17"
        # And the command is in all of them.
        for descriptor in it.cgroup.fds:
            assert str(it.process.pid) in Path(f"/proc/self/fd/{descriptor}/cgroup.procs").read_text().split()


async def test_defaults_count_where_policy_and_request_have_no_limit(host: Host) -> None:
    settings = {"default_memory": "96MiB", "default_pids": 23, "default_cpu_weight": 50}
    values = {"limits": {"memory": "64MiB"}, "settings": settings}
    async with host.running("/bin/sleep", "1000", **values) as it:
        assert read(it, "memory.max", "memory.limit_in_bytes") == str(64 * 1024 * 1024)
        assert read(it, "pids.max") == "23"
        assert read(it, "cpu.weight", "cpu.shares") in ("50", "512")
    async with host.running("/bin/sleep", "1000") as it:
        assert read(it, "pids.max") == "4096"
        assert 0 < int(read(it, "memory.max", "memory.limit_in_bytes")) < psutil.virtual_memory().total
    async with host.running("/bin/sleep", "1000", settings={"default_memory": "none", "default_pids": 0}) as it:
        # v1 has no word for no limit, but a number that no host has.
        assert read(it, "memory.max", "memory.limit_in_bytes") in ("max", str(2**63 - 4096))


async def test_open_files_are_limited(host: Host) -> None:
    show = "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    _, default, _ = await host.run(*PYTHON, show)
    soft, hard = (int(number) for number in default.split())
    assert soft <= hard <= DEFAULT_OPEN_FILES
    assert await host.run(*PYTHON, show, limits={"openFiles": 64}) == (0, b"64 64\n", b"")
    many = "files = [open('/dev/null') for _ in range(100)]"
    status, _, err = await host.run(*PYTHON, many, limits={"openFiles": 64})
    assert (status, b"Too many open files" in err) == (1, True)
    # Policy gives no more than the agent's service has.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    _, given, _ = await host.run(*PYTHON, show, limits={"openFiles": 1_048_576})
    assert int(given.split()[1]) == (most if 0 < most < 1_048_576 else 1_048_576)


async def test_rates_of_disks_are_what_the_kernel_has(host: Host, need: Callable[[bool, str], None]) -> None:
    devices = block_devices()
    if not devices or "io" not in host.cgroups.controllers:
        pytest.skip("needs a disk")
    async with host.running("/bin/sleep", "1000", limits={"ioRead": "1MiB", "ioWrite": "2MiB"}) as it:
        text = read(it, "io.max", "blkio.throttle.read_bps_device")
        assert text.split()[0] in devices
        assert "1048576" in text


async def test_a_memory_hog_is_killed_and_told(host: Host) -> None:
    status, _, _, usage = await host.measure(*PYTHON, "x = bytearray(10**9)", limits={"memory": "32MiB"})
    assert status == -9
    assert usage.oom_kills is not None
    assert usage.oom_kills >= 1


async def test_a_child_that_hogs_memory_is_told_too(host: Host) -> None:
    script = f"{sys.executable} -I -S -c 'x = bytearray(10**9)'; echo $?"
    _, _, _, usage = await host.measure("/bin/sh", "-c", script, limits={"memory": "32MiB"})
    assert usage.oom_kills


async def test_memory_within_the_limit_is_measured(host: Host) -> None:
    status, _, _, usage = await host.measure(*PYTHON, "x = b'x' * (20 * 2**20)", limits={"memory": "128MiB"})
    assert (status, usage.oom_kills) == (0, 0)
    if usage.peak_memory is not None:
        assert 20 * 2**20 < usage.peak_memory < 128 * 2**20


async def test_a_cpu_hog_gets_its_share(host: Host) -> None:
    """As the kernel counts it: in most periods it wanted more than it got."""
    code = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    # Less than it would get of a busy machine, or it would never want more; enough to start Python in an emulated one.
    async with host.running(*PYTHON, code, limits={"cpus": 0.1}) as it:
        assert (await it.exit()).exit_code == 0
        stat = dict(line.split() for line in read(it, "cpu.stat").splitlines())
        if "nr_throttled" not in stat:
            stat = dict(line.split() for fd in it.cgroup.fds for line in _stat(fd))
        # 0.2 s of work in slices of 10 ms are 20 periods.
        assert int(stat["nr_throttled"]) >= 8
        usage = it.cgroup.usage()
    assert usage.cpu_seconds is not None
    assert 0.2 <= usage.cpu_seconds < 3


def _stat(descriptor: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/self/fd/{descriptor}/cpu.stat").read_text().splitlines()
    return []


async def test_a_fork_bomb_is_held_and_then_gone(host: Host, mark: str) -> None:
    code = (
        "import os, sys, time\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    try: os.fork()\n"
        "    except OSError: time.sleep(0.01)\n"
    )
    async with host.running(*PYTHON, code, mark, limits={"pids": 40}) as it:
        await read_line(it.process.stdout)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while int(read(it, "pids.current")) < 40:  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.01)
        assert 1 <= len(processes_named(mark)) <= 40
        assert await it.process.kill(0) == []
    assert processes_named(mark) == []


async def test_a_limit_that_cannot_be_enforced_is_refused_unless_told_otherwise(host: Host) -> None:
    host.cgroups = NoHierarchy("a test")
    with pytest.raises(Refused, match="cannot enforce the limits of memory, pids: no such cgroup controller"):
        host.prepare("/bin/true", limits={"memory": "64MiB", "pids": 5})
    assert (await host.run("/bin/true", limits={"pids": 5}, settings={"limits": "best-effort"}))[0] == 0


# --- killing ----------------------------------------------------------------------------------------------------------

DAEMON = (
    "import os, signal, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "if os.fork() == 0:\n"
    "    os.setsid()\n"
    "    if os.fork() == 0:\n"
    "        for number in (0, 1, 2): os.close(number)\n"
    "        time.sleep(1000)\n"
    "    os._exit(0)\n"
    "os.wait()\n"
    "print('ready', flush=True)\n"
    "time.sleep(1000)\n"
)


async def test_killing_takes_who_left_the_session_forked_twice_and_ignores_it(host: Host, mark: str) -> None:
    async with host.running(*PYTHON, DAEMON, mark) as it:
        await read_line(it.process.stdout)
        assert len(processes_named(mark)) == 2
        assert await it.process.kill(0.05) == []
        assert (await it.exit()).signal == 9
    assert processes_named(mark) == []


async def test_what_a_command_leaves_behind_is_killed_with_its_cgroup(host: Host, mark: str) -> None:
    async with host.running(*PYTHON, DAEMON.replace("time.sleep(1000)\n", "sys.exit(0)\n", 2)
                            .replace("sys.exit(0)", "time.sleep(1000)", 1), mark) as it:  # fmt: skip
        assert (await it.exit()).exit_code == 0
        assert len(processes_named(mark)) == 1
        assert it.cgroup.populated()
        assert await it.process.kill_all() == []
        assert not it.cgroup.populated()
    assert processes_named(mark) == []


async def test_a_command_is_asked_to_end_first(host: Host) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done"
    async with host.running("/bin/sh", "-c", script) as it:
        await read_line(it.process.stdout)
        assert await it.process.kill(PATIENCE_SECONDS) == []
        assert (await it.exit()).exit_code == 3
        assert await read_line(it.process.stdout) == b"bye\n"


async def test_a_stopped_command_is_killed(host: Host) -> None:
    async with host.running("/bin/sh", "-c", "kill -STOP $$") as it:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while psutil.Process(it.process.pid).status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await it.process.kill(0.05) == []


async def test_killing_twice_and_killing_what_is_gone_does_no_harm(host: Host) -> None:
    async with host.running("/bin/true") as it:
        await it.exit()
        assert await it.process.kill(0) == []
        assert await it.process.kill(0) == []
        assert (await it.exit()).exit_code == 0


async def test_who_cannot_be_killed_is_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen from above, a process of v1 dies only when it is thawed, as one that waits uninterruptibly."""
    if isinstance(host.cgroups, UnifiedHierarchy):
        pytest.skip("v2 kills the frozen")
    monkeypatch.setattr("tachikoma_worker.confinement.process.KILL_SECONDS", 0.1)
    [cgroup] = cgroups_named(host.name, "/sys/fs/cgroup/freezer")
    state = cgroup / "freezer.state"
    async with host.running("/bin/sleep", "1000") as it:
        state.write_text("FROZEN")
        try:
            assert await it.process.kill(0) == [it.process.pid]
        finally:
            state.write_text("THAWED")
        assert await it.process.kill(PATIENCE_SECONDS) == []


async def test_leftovers_are_found_and_swept_up(host: Host, mark: str) -> None:
    """As after the death of worker and spawner: nobody knows the command, its cgroup is all there is."""
    prepared = host.prepare(*PYTHON, DAEMON, mark)
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", 'read x; exec "$@"', "sh", *PYTHON, DAEMON, mark),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    for descriptor in prepared.cgroup.fds:
        Path(f"/proc/self/fd/{descriptor}/cgroup.procs").write_text(str(process.pid))
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\n")
    await process.stdout.readline()
    assert host.cgroups.leftovers() == [prepared.order.jti]
    cgroup = host.cgroups.open(prepared.order.jti)
    assert await host.spawner.sweep(cgroup.fds) == []
    await process.wait()
    assert cgroup.remove()
    assert processes_named(mark) == []
    assert host.cgroups.leftovers() == []
    os.close(prepared.executable.fd)
    for descriptor in prepared.cgroup.fds:
        os.close(descriptor)


async def test_a_cgroup_that_cannot_be_joined_is_told_as_that(host: Host) -> None:
    prepared = host.prepare("/bin/true")
    fds = prepared.cgroup.fds
    plain = os.open("/tmp", os.O_PATH | os.O_DIRECTORY)
    prepared.cgroup.fds = (plain,)
    from tachikoma_worker.confinement.start import start

    try:
        with pytest.raises(Refused, match="cannot join the cgroup"):
            await start(prepared, host.spawner)
    finally:
        os.close(plain)
        prepared.cgroup.fds = fds
        prepared.discard()


def test_effective_limits_are_the_lower_of_each() -> None:
    policy = ResourceLimits(memory="1GiB", cpus=2)
    asked = ResourceLimits(memory="2GiB", cpus=0.5, pids=10)
    assert policy.lowered_by(asked) == ResourceLimits(memory="1GiB", cpus=0.5, pids=10)
    assert policy.lowered_by(None) == policy


def test_a_hierarchy_names_what_it_lacks(host: Host) -> None:
    hierarchy: Hierarchy = NoHierarchy("a test")
    assert hierarchy.missing(ResourceLimits()) == []
    assert hierarchy.missing(ResourceLimits(cpus=1, ioRead="1MiB", swap=0)) == ["cpu", "io", "memory"]
