"""A forked start is as a real one: what the tests of everything else rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import gone, wait_until

from patience import PATIENCE_SECONDS
from pty_process import PtyProcess
from tachikoma.dev.part import WITH_PARENT
from warm_start import WarmPopen, interruptible, run

PROGRAM = [sys.executable, "-m", "tachikoma"]
#: Waits for the end of its input.
WAITING = [*PROGRAM, "policy", "check", "/dev/stdin"]
#: A test process that starts the waiting one and is killed.
SUPERVISOR = f"""
import subprocess, sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from warm_start import WITH_PARENT, WarmPopen
print(WarmPopen([*WITH_PARENT, *{WAITING!r}], stdin=subprocess.PIPE).pid, flush=True)
time.sleep(600)
"""


def forked(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process is a fork, which has the command line of the process that forked it."""
    return any("warm_process" in word for word in psutil.Process(process.pid).cmdline())


@contextmanager
def waiting(kind: type[subprocess.Popen[bytes]], *prefix: str, **values: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for the end of its input."""
    pipe = subprocess.PIPE
    with kind([*prefix, *WAITING], **{"stdin": pipe, "stdout": pipe, "stderr": pipe, **values}) as process:
        try:
            yield process
        finally:
            process.kill()


def reads(process: subprocess.Popen[bytes]) -> bool:
    """Whether a waiting process has opened its input a second time."""
    folder = Path(f"/proc/{process.pid}/fd")
    opened = []
    for descriptor in folder.iterdir():
        with suppress(FileNotFoundError):
            opened.append(os.readlink(descriptor))
    return opened.count(os.readlink(folder / "0")) == 2


def described(process: subprocess.Popen[bytes]) -> dict[str, object]:
    """Everything about a waiting process that is set before the program runs."""
    seen = psutil.Process(process.pid)
    wait_until(lambda: reads(process), "it reads")
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {
        "parent": seen.ppid(), "session of its own": os.getsid(process.pid) == process.pid, "folder": seen.cwd(),
        "descriptors": sorted(os.listdir(f"/proc/{process.pid}/fd"), key=int), "program": seen.exe(),
        "name": seen.name(), "limits": [line for line in status if line.startswith(("SigBlk", "Umask", "Uid"))],
        "ignored": [line for line in status if line.startswith("SigIgn")], "nice": seen.nice(),
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [("no-such-command",), ("policy", "check", "/dev/null"), ("config", "check", "worker")]
)
def test_output_and_exit_code_are_those_of_a_real_start(arguments: tuple[str, ...]) -> None:
    environment = {**os.environ, "TACHIKOMA_AGENT_ID": "web-1"}
    real = subprocess.run([*PROGRAM, *arguments], capture_output=True, env=environment, check=False)
    fork = run([*PROGRAM, *arguments], env=environment, timeout=PATIENCE_SECONDS)
    assert (fork.returncode, fork.stdout, fork.stderr) == (real.returncode, real.stdout, real.stderr)


@pytest.mark.parametrize(("prefix", "session"), [((), False), (WITH_PARENT, True)])
def test_a_fork_has_the_surroundings_of_a_real_start(prefix: tuple[str, ...], session: bool, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    values = {"pass_fds": (writing,), "start_new_session": session, "cwd": tmp_path}
    with waiting(subprocess.Popen, *prefix, **values) as real, waiting(WarmPopen, *prefix, **values) as fork:
        assert (forked(real), forked(fork)) == (False, True)
        assert described(fork) == described(real)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_fork_as_a_real_start(number: signal.Signals) -> None:
    codes, errors = set(), set()
    for kind in (subprocess.Popen, WarmPopen):
        with waiting(kind, start_new_session=True, preexec_fn=interruptible) as process:
            described(process)
            process.send_signal(number)
            codes.add(process.wait(PATIENCE_SECONDS))
            assert process.stderr is not None
            errors.add(process.stderr.read())
    assert len(codes) == len(errors) == 1, (codes, errors)


def test_a_part_ends_with_the_process_that_started_it() -> None:
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR], stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        assert psutil.Process(pid).ppid() == supervisor.pid
        supervisor.kill()
    wait_until(lambda: gone(pid), "the part ends")


def test_a_fork_has_a_terminal_of_its_own() -> None:
    with PtyProcess(WAITING, env=dict(os.environ)) as there:
        assert forked(there.process)
        there.type(b"\x03")
        # 130 from the program, the signal from an interpreter that has not come to it.
        assert there.wait() in (130, -signal.SIGINT)


@pytest.mark.parametrize("name", ["LD_PRELOAD", "COVERAGE_PROCESS_CONFIG"])
def test_a_variable_that_is_read_at_the_start_makes_a_real_one(name: str) -> None:
    with waiting(WarmPopen, env={**os.environ, name: ""}) as process:
        wait_until(lambda: psutil.Process(process.pid).cmdline()[1:3] == ["-m", "tachikoma"], "it is started")
