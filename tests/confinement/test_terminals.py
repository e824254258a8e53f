"""Terminals and input that arrives while a command runs, with real processes started by the real spawner."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from host import PATIENCE_SECONDS, Host, read_all, read_some

from processes import processes_named
from tachikoma.vocabulary.requests import Terminal, WindowSize
from tachikoma_worker.confinement.process import Process
from tachikoma_worker.confinement.protocol import (
    INPUT_BYTES,
    NO_WINDOW,
    Exit,
    InputMode,
    InputStatus,
    SpawnFailed,
    Step,
)
from tachikoma_worker.confinement.spawn_request import SpawnRequest
from tachikoma_worker.confinement.spawner import Spawner

BASH = ("/bin/bash", "--norc", "--noprofile", "--noediting", "-i")
SIZE = WindowSize(33, 99, 640, 480)


class Session:
    """A command with streamed input, as the person at its terminal uses it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.output = b""
        self._offset = 0

    async def type(self, content: bytes) -> None:
        await self.process.feed(self._offset, content)
        self._offset += len(content)

    async def until(self, expected: bytes) -> bytes:
        """Return the output up to a text; it must come."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while expected not in self.output:
                data = await read_some(self.process.stdout)
                assert data, self.output
                self.output += data
        before, _, self.output = self.output.partition(expected)
        return before

    async def reports(self, expected: Callable[[InputStatus], bool]) -> None:
        """Return when the spawner has reported such a status; it comes on another channel than the output."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not expected(self.process.input):  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.01)

    async def rest(self) -> bytes:
        return self.output + await read_all(self.process.stdout)


def request(name: str, argv: tuple[str, ...], executable: int, mode: InputMode) -> SpawnRequest:
    return SpawnRequest(
        name=name, uid=os.getuid(), gid=os.getgid(), groups=(), capabilities=0, work_dir_root="/", work_dir="",
        executable=argv[0], executable_fd=executable, argv=argv, input=mode,
        environment={"PATH": "/usr/bin:/bin", "TERM": "xterm", "PS1": "$ "},
        terminal=SIZE if mode is InputMode.TERMINAL else NO_WINDOW,
    )  # fmt: skip


@asynccontextmanager
async def session(
    host: Host, *argv: str, mode: InputMode = InputMode.TERMINAL, name: str = "job-1"
) -> AsyncIterator[Session]:
    executable = os.open(argv[0], os.O_PATH)
    try:
        process = await host.spawner.spawn(request(name, argv, executable, mode))
    finally:
        os.close(executable)
    try:
        yield Session(process)
    finally:
        await process.kill_all()
        await asyncio.wait_for(asyncio.shield(process.exited), PATIENCE_SECONDS)
        await process.close()


async def test_the_first_program_finds_its_terminal_with_owner_size_and_control(host: Host) -> None:
    script = (
        'stty size; tty; stat -c %u "$(tty)"; ps -o tpgid=,pgid= -p $$; test -t 0 -a -t 1 -a -t 2; echo $? >/dev/tty'
    )
    async with session(host, "/bin/sh", "-c", script) as it:
        size, name, owner, groups, last = (await it.rest()).decode().split("\r\n")[:-1]
        assert size == "33 99"
        assert name.startswith("/dev/pts/")
        assert int(owner) == os.getuid()
        foreground, own = groups.split()
        assert foreground == own
        assert last == "0"
        await it.reports(lambda status: status.size == SIZE)
        assert await read_all(it.process.stderr) == b""


async def test_job_control_and_keys_work_as_on_a_real_terminal(host: Host) -> None:
    async with session(host, *BASH) as it:
        await it.until(b"$ ")
        await it.type(b"cat\n")
        await it.until(b"cat\r\n")
        await it.type(b"hello\n")
        await it.until(b"hello\r\nhello\r\n")
        await it.type(b"\x1a")
        await it.until(b"Stopped")
        await it.until(b"$ ")
        await it.type(b"fg\n")
        await it.until(b"fg\r\ncat\r\n")
        await it.type(b"back\n")
        await it.until(b"back\r\nback\r\n")
        await it.type(b"\x03")
        await it.until(b"^C")
        await it.until(b"$ ")
        await it.type(b"echo status $?\n")
        await it.until(b"status 130\r\n")
        await it.type(b"exit 7\n")
        assert (await asyncio.wait_for(it.process.exited, PATIENCE_SECONDS)).exit_code == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
async def test_a_signal_reaches_the_foreground_and_not_the_shell(host: Host, number: signal.Signals) -> None:
    async with session(host, *BASH) as it:
        await it.until(b"$ ")
        await it.type(b"sh -c 'echo $((40 + 2)); exec cat'\n")
        await it.until(b"42\r\n")
        await it.process.signal_foreground(number)
        await it.until(b"$ ")
        await it.type(b"echo status $?\n")
        await it.until(f"status {128 + number}\r\n".encode())


async def test_stop_and_continue_reach_the_foreground(host: Host) -> None:
    async with session(host, *BASH) as it:
        await it.until(b"$ ")
        await it.type(b"sh -c 'echo $((40 + 2)); exec cat'\n")
        await it.until(b"42\r\n")
        await it.process.signal_foreground(signal.SIGTSTP)
        await it.until(b"Stopped")
        await it.type(b"fg\n")
        await it.until(b"fg\r\n")
        await it.until(b"exec cat'\r\n")
        await it.process.signal_foreground(signal.SIGCONT)
        await it.type(b"on\n")
        await it.until(b"on\r\non\r\n")


async def test_a_new_size_is_reported_to_the_program(host: Host) -> None:
    async with session(host, *BASH) as it:
        await it.until(b"$ ")
        await it.type(b"trap 'stty size' WINCH\n")
        await it.until(b"$ ")
        await it.process.resize(WindowSize(50, 120))
        await it.type(b"\n")
        await it.until(b"50 120\r\n")
        (held,) = await host.spawner.held()
        assert held.input.size == WindowSize(50, 120)


async def test_a_password_prompt_is_seen_without_echo(host: Host) -> None:
    async with session(
        host, "/bin/sh", "-c", "echo visible; stty -echo; printf Password:; read x; stty echo; echo got"
    ) as it:
        await it.until(b"Password:")
        await it.reports(lambda status: status.canonical and not status.echo)
        await it.type(b"secret\n")
        assert b"secret" not in await it.rest()


async def test_a_large_paste_of_short_lines_arrives_whole_and_once(host: Host) -> None:
    content = b"".join(b"%063d\n" % number for number in range(32_000))
    async with session(host, "/bin/sh", "-c", "stty -echo; echo ready; sha256sum") as it:
        await it.until(b"ready\r\n")
        await it.type(content)
        await it.process.end_input(len(content))
        assert (await it.rest()).split()[0].decode() == hashlib.sha256(content).hexdigest()


async def test_a_line_beyond_the_kernels_bound_does_not_block_what_follows(host: Host) -> None:
    async with session(host, "/bin/sh", "-c", "stty -echo; echo ready; cat") as it:
        await it.until(b"ready\r\n")
        await it.type(b"x" * 500_000)
        await it.type(b"\nshort\n")
        await it.until(b"short\r\n")


async def test_an_incomplete_line_and_the_end_reach_the_program(host: Host) -> None:
    async with session(host, "/bin/sh", "-c", "stty -echo; echo ready; cat; echo over") as it:
        await it.until(b"ready\r\n")
        await it.type(b"no newline")
        await it.process.end_input(10)
        assert await it.rest() == b"no newlineover\r\n"
        with pytest.raises(SpawnFailed) as caught:
            await it.process.feed(10, b"more")
        assert (caught.value.step, caught.value.errno) == (Step.INPUT, errno.EPIPE)


async def test_a_pipe_takes_input_of_any_size_and_its_end(host: Host) -> None:
    content = os.urandom(1 << 20) * 8
    async with session(host, "/usr/bin/sha256sum", mode=InputMode.PIPE) as it:
        await it.type(content)
        assert it.process.input.offset == len(content)
        await it.process.end_input(len(content))
        await it.process.end_input(len(content))
        assert (await it.rest()).split()[0].decode() == hashlib.sha256(content).hexdigest()


async def test_input_that_no_process_reads_waits_and_is_bounded(host: Host) -> None:
    async with session(host, "/bin/sleep", "60", mode=InputMode.PIPE) as it:
        feeding = asyncio.ensure_future(it.process.feed(0, bytes(4 << 20)))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while it.process.input.room or not it.process.input.offset:  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.02)
        # More would come by now.
        done, _ = await asyncio.wait((feeding,), timeout=0.3)
        assert not done
        # A pipe of 1 MiB or less, and the spawner's buffer.
        assert 0 < it.process.input.offset <= (1 << 20) + INPUT_BYTES
        assert it.process.input.room == 0
        feeding.cancel()


@pytest.mark.parametrize("mode", [InputMode.PIPE, InputMode.TERMINAL])
async def test_input_for_a_command_that_ends_is_dropped_and_counted(host: Host, mode: InputMode) -> None:
    async with session(host, "/bin/sh", "-c", "sleep 0.3", mode=mode) as it:
        await asyncio.wait_for(it.process.feed(0, b"x\n" * (1 << 20)), PATIENCE_SECONDS)
        assert it.process.input.offset == 2 << 20
        assert it.process.input.broken


@pytest.mark.parametrize("mode", [InputMode.PIPE, InputMode.TERMINAL])
async def test_a_gap_in_the_input_is_refused(host: Host, mode: InputMode) -> None:
    async with session(host, "/bin/cat", mode=mode) as it:
        await it.type(b"abc\n")
        for attempt in (it.process.feed(5, b"x"), it.process.end_input(3), it.process.end_input(5)):
            with pytest.raises(SpawnFailed) as caught:
                await attempt
            assert (caught.value.step, caught.value.errno) == (Step.INPUT, errno.EINVAL)


async def test_a_command_without_streamed_input_refuses_it(host: Host) -> None:
    async with session(host, "/bin/sleep", "60", mode=InputMode.NULL) as it:
        with pytest.raises(SpawnFailed) as caught:
            await it.process.feed(0, b"x")
        assert (caught.value.step, caught.value.errno) == (Step.INPUT, errno.ENOTCONN)
        with pytest.raises(SpawnFailed) as caught:
            await host.spawner.hang_up("job-1")
        assert (caught.value.step, caught.value.errno) == (Step.TERMINAL, errno.ENOTTY)


async def test_the_output_of_a_terminal_waits_for_its_reader_without_loss(host: Host) -> None:
    async with session(host, "/bin/sh", "-c", "stty -opost; seq 200000; echo over") as it:
        # The pipe is full long before that.
        await asyncio.sleep(0.3)
        assert not it.process.exited.done()
        expected = "".join(f"{number}\n" for number in range(1, 200_001)).encode() + b"over\n"
        assert await it.rest() == expected


async def test_the_output_ends_with_the_shell_although_a_job_holds_the_terminal(host: Host) -> None:
    async with session(host, "/bin/sh", "-c", "trap '' HUP; sleep 300 & echo last; exit 4") as it:
        assert await it.rest() == b"last\r\n"
        assert await asyncio.wait_for(it.process.exited, PATIENCE_SECONDS) == Exit(
            4, 0, it.process.exited.result().cpu_seconds
        )


async def test_a_program_that_closes_the_terminal_before_its_exit_ends_as_it_wants(host: Host) -> None:
    """Many programs close all that they have open, and then exit. A hang-up in between would be their end."""
    script = "exec </dev/null >/dev/null 2>&1; sleep 0.3; exit 3"
    async with session(host, "/bin/sh", "-c", script) as it:
        found = await asyncio.wait_for(asyncio.shield(it.process.exited), PATIENCE_SECONDS)
        assert found == Exit(3, 0, found.cpu_seconds)
        assert await it.rest() == b""


async def test_a_program_may_open_its_terminal_again(host: Host) -> None:
    away = "exec </dev/null >/dev/null 2>&1; sleep 0.3"
    script = f"echo one; {away}; echo two >/dev/tty; sleep 0.3; exec >/dev/tty; echo three"
    async with session(host, "/bin/sh", "-c", script) as it:
        assert await it.rest() == b"one\r\ntwo\r\nthree\r\n"


async def test_a_hang_up_ends_the_shell_and_its_foreground(host: Host) -> None:
    async with session(host, *BASH) as it:
        await it.until(b"$ ")
        await it.type(b"sh -c 'echo $((40 + 2)); exec cat'\n")
        await it.until(b"42\r\n")
        await it.process.hang_up()
        await it.rest()
        assert (await asyncio.wait_for(it.process.exited, PATIENCE_SECONDS)).signal == signal.SIGHUP
        assert it.process.input.broken


#: Processes that try to outlive their session, each named by the mark in its arguments.
ZOO = """
mark=$1
nohup sleep 300 "$mark" >/dev/null 2>&1 &
setsid sleep 300 "$mark" &
(trap '' HUP TERM INT; sleep 300 "$mark") &
(setsid sh -c "trap '' HUP TERM; sleep 300 $mark" &) &
sleep 300 "$mark" & kill -STOP $!
sh -c "trap '' HUP TERM; while :; do sleep 300 $mark; done" </dev/null >/dev/null 2>&1 &
setsid script -qc "sleep 300 $mark" /dev/null >/dev/null 2>&1 </dev/null &
trap '' HUP TERM
echo zoo
sleep 300 "$mark"
"""


async def test_nothing_of_a_session_outlives_its_kill(host: Host, limits: None, tmp_path: Path) -> None:
    mark = f"3{os.getpid()}.5"
    script = tmp_path / "zoo"
    script.write_text(ZOO)
    script.chmod(0o755)
    command = ("/bin/bash", str(script), mark)
    async with host.running(*command, interactive=True, tty=True, terminal=Terminal(rows=33, columns=99)) as it:
        process = it.process
        assert process.input.mode is InputMode.TERMINAL
        output = b""
        while b"zoo" not in output:
            output += await asyncio.wait_for(read_some(process.stdout), PATIENCE_SECONDS)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(processes_named(mark)) < 8:  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.02)
        assert await process.kill(0.1) == []
        assert processes_named(mark) == []
        assert (await it.exit()).exit_code == 137
        assert it.cgroup.populated() is False


async def test_another_worker_continues_a_session_at_the_accepted_byte(host: Host) -> None:
    content = b"".join(b"%063d\n" % number for number in range(24_000))
    async with session(host, "/bin/sh", "-c", "stty -echo; echo ready; sha256sum") as it:
        await it.until(b"ready\r\n")
        first = asyncio.ensure_future(it.process.feed(0, content))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while it.process.input.offset < len(content) // 3:  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0)
        first.cancel()
        second = Spawner.connect(host.folder / "spawner.sock")
        second.attach()
        try:
            (held,) = await second.held()
            process = await second.take(held)
            assert process.input.mode is InputMode.TERMINAL
            assert process.input.size == SIZE
            assert process.input.offset >= len(content) // 3
            # The client does not know what was accepted last, and sends more than is missing.
            begin = process.input.offset - 1000
            await process.feed(begin, content[begin:])
            await process.end_input(len(content))
            assert (await read_all(process.stdout)).split()[0].decode() == hashlib.sha256(content).hexdigest()
            process.leave()
        finally:
            second.close()


async def test_many_terminals_at_once_keep_their_bytes_apart(host: Host) -> None:
    async def one(number: int) -> None:
        async with session(host, "/bin/sh", "-c", "stty -echo -opost; echo ready; cat", name=f"job-{number}") as it:
            await it.until(b"ready\n")
            lines = b"".join(b"%d %d\n" % (number, line) for line in range(2000))
            await it.type(lines)
            await it.process.end_input(len(lines))
            assert await it.rest() == lines

    await asyncio.gather(*(one(number) for number in range(12)))
