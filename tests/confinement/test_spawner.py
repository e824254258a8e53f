"""Duties of the spawner itself: it collects the processes that commands leave, and shares no protection of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from host import Host, a_host, becomes_true, read_all, read_line

PYTHON = [sys.executable, "-I", "-S", "-c"]
#: Start a process that outlives this one, and print its number; `{}` is the body of that process.
LEAVE = """
import os, time
if os.fork() == 0:
    {}
    os._exit(0)
"""


def spawner_of(host: Host) -> psutil.Process:
    program = host.spawner._started
    assert program is not None
    return psutil.Process(program.pid)


def zombies(of: psutil.Process) -> list[int]:
    found = []
    for child in of.children():
        try:
            if child.status() == psutil.STATUS_ZOMBIE:
                found.append(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found


# --- processes that commands leave ------------------------------------------------------------------------------------


async def test_a_process_that_a_command_leaves_has_the_spawner_as_its_parent(host: Host) -> None:
    code = LEAVE.format("os.setsid(); os.write(1, b'%d\\n' % os.getpid()); time.sleep(600)")
    async with host.running(*PYTHON, code) as it:
        left = psutil.Process(int(await read_line(it.process.stdout)))
        await it.exit()
        spawner = spawner_of(host)
        await becomes_true(lambda: left.ppid() == spawner.pid)
        left.kill()
        await becomes_true(lambda: not left.is_running())
        # The command itself stays until it is released.
        assert zombies(spawner) == [it.process.pid]


@pytest.mark.parametrize(
    "body",
    [
        "pass",
        "os.setsid()",
        "time.sleep(0.05)",
        "os.fork() or os.fork()",
        "os.kill(os.getpid(), 9)",
    ],
)
async def test_nothing_that_a_command_leaves_stays_a_zombie(host: Host, body: str) -> None:
    code = LEAVE.format(body)
    async with host.running(*PYTHON, f"for _ in range(30):\n{_indented(code)}") as it:
        await it.exit()
        spawner = spawner_of(host)
        await becomes_true(lambda: zombies(spawner) == [it.process.pid])
        assert (await it.exit()).exit_code == 0


async def test_exit_codes_are_reported_while_many_processes_are_collected(host: Host) -> None:
    async def one(number: int) -> int:
        status, _, _ = await host.run("/bin/sh", "-c", f"(sleep 0.01 &); (true &); exit {number}")
        return status

    assert await asyncio.gather(*(one(number) for number in range(40))) == list(range(40))
    await becomes_true(lambda: spawner_of(host).children() == [])


async def test_a_command_gets_the_default_action_for_the_end_of_a_child(host: Host) -> None:
    code = "import signal; print(signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL, signal.pthread_sigmask(0, []))"
    assert await host.run(*PYTHON, code) == (0, b"True set()\n", b"")


# --- protection from the kernel's choice ------------------------------------------------------------------------------


@pytest.fixture
def adjusted() -> Iterator[None]:
    """Put this process's value back."""
    before = Path("/proc/self/oom_score_adj").read_text()
    yield
    Path("/proc/self/oom_score_adj").write_text(before)


@pytest.mark.parametrize(("agent", "command"), [(-1000, 0), (-500, 0), (-1, 0), (0, 0), (1, 1), (300, 300)])
@pytest.mark.parametrize("user", ["root", "nobody"])
async def test_a_command_is_not_protected_as_its_agent_is(
    root: None, adjusted: None, agent: int, command: int, user: str
) -> None:
    try:
        Path("/proc/self/oom_score_adj").write_text(str(agent))
    except PermissionError:
        # The virtual machine of `make test-cgroup2` has it.
        pytest.skip("this machine's root has no CAP_SYS_RESOURCE, so its agent cannot be protected")
    async with a_host() as host:
        assert Path(f"/proc/{spawner_of(host).pid}/oom_score_adj").read_text() == f"{agent}\n"
        async with host.running("/bin/cat", "/proc/self/oom_score_adj", user=user) as it:
            assert await read_all(it.process.stdout) == f"{command}\n".encode()


def _indented(code: str) -> str:
    return "\n".join(f"    {line}" for line in code.splitlines())
