"""Starting and ending commands, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tachikoma.models import MAX_COMMAND_BYTES, MAX_ENVIRONMENT_BYTES, MAX_STDIN_BYTES, ExecRequest
from tachikoma_worker.spawner import PATH, CannotExecute, LocalSpawner, Process, Refused, find_executable

ROOT = os.getuid() == 0
#: Bounded, but no measure of anything.
PATIENCE_SECONDS = 30
#: Runs Python in a child without anything that would open files of its own.
PYTHON = [sys.executable, "-I", "-S", "-c"]


def own_account() -> tuple[str, str]:
    """Name and home of whoever runs the tests."""
    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        return str(os.getuid()), "/"
    return entry.pw_name, entry.pw_dir


def request(*command: str, **values: Any) -> ExecRequest:
    return ExecRequest(agent_id="a", command=command, **values)


def start(*command: str, default_user: str = "", **values: Any) -> Process:
    return LocalSpawner(default_user).start(request(*command, **values), [command[0]])


async def read_all(descriptor: int) -> bytes:
    """Everything until the last writer has closed."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    content = b""
    try:
        while True:
            await asyncio.wait_for(readable.wait(), PATIENCE_SECONDS)
            readable.clear()
            try:
                data = os.read(descriptor, 1 << 20)
            except BlockingIOError:
                continue
            if not data:
                return content
            content += data
    finally:
        loop.remove_reader(descriptor)


async def read_line(descriptor: int) -> bytes:
    """One line."""
    loop = asyncio.get_running_loop()
    line = b""
    while not line.endswith(b"\n"):
        readable = asyncio.Event()
        loop.add_reader(descriptor, readable.set)
        try:
            await asyncio.wait_for(readable.wait(), PATIENCE_SECONDS)
        finally:
            loop.remove_reader(descriptor)
        data = os.read(descriptor, 1)
        assert data, "the command ended without a word"
        line += data
    return line


@asynccontextmanager
async def running(*command: str, **values: Any) -> AsyncIterator[Process]:
    """A command that is ended and reaped whatever happens."""
    process = start(*command, **values)
    try:
        yield process
    finally:
        process.signal_group(signal.SIGKILL)
        await asyncio.wait_for(process.exited, PATIENCE_SECONDS)
        process.close()


async def run(*command: str, **values: Any) -> tuple[int, bytes, bytes]:
    """Run to the end: status, output, error output."""
    async with running(*command, **values) as process:
        out, err = await asyncio.gather(read_all(process.stdout), read_all(process.stderr))
        return await asyncio.wait_for(asyncio.shield(process.exited), PATIENCE_SECONDS), out, err


async def ask(code: str, **values: Any) -> Any:
    """What a child in Python prints as JSON."""
    status, out, err = await run(*PYTHON, f"import json, os, sys\nprint(json.dumps({code}))", **values)
    assert (status, err) == (0, b"")
    return json.loads(out)


def wait_until_stopped(process: Process) -> None:
    """Until SIGSTOP has done its work."""
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def reaped(process: Process) -> bool:
    """Whether nobody has to wait for it any more."""
    try:
        os.waitpid(process.pid, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def executable(path: Path, content: str, mode: int = 0o755) -> str:
    path.write_text(content)
    path.chmod(mode)
    return str(path)


# --- how a command ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 7, 126, 127, 128, 255])
async def test_an_exit_code_is_told_as_it_is(code: int) -> None:
    assert await run("/bin/sh", "-c", f"exit {code}") == (code, b"", b"")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGUSR1])
async def test_a_signal_is_told_as_a_negative_number(number: signal.Signals) -> None:
    status, _, _ = await run("/bin/sh", "-c", f"kill -{number.value} $$")
    assert status == -number


async def test_both_outputs_come_through_separately_and_unchanged() -> None:
    code = "import os; os.write(1, bytes(range(256))); os.write(2, b'\\xff\\0err')"
    assert await run(*PYTHON, code) == (0, bytes(range(256)), b"\xff\0err")


async def test_the_argv_arrives_as_it_was_sent() -> None:
    arguments = ["", " ", "a b", "$(id)", "*", "-x", "ä€😀", "'\"\\", "\n", ";", "\x7f"]
    status, out, _ = await run(*PYTHON, "import json, sys; print(json.dumps(sys.argv[1:]))", *arguments)
    assert (status, json.loads(out)) == (0, arguments)


async def test_the_program_sees_the_name_it_was_called_by() -> None:
    process = LocalSpawner("").start(request("sh", "-c", "echo $0"), ["/nowhere/sh", "/bin/sh"])
    try:
        assert await read_all(process.stdout) == b"sh\n"
        assert process.executable == "/bin/sh"
        assert await asyncio.wait_for(process.exited, PATIENCE_SECONDS) == 0
    finally:
        process.close()


async def test_the_largest_command_and_environment_can_be_started() -> None:
    longest = "x" * (MAX_COMMAND_BYTES - len("/bin/true") - 2)
    environment = {"A": "x" * (MAX_ENVIRONMENT_BYTES - len("A") - 2)}
    assert await run("/bin/true", longest, environment=environment) == (0, b"", b"")


# --- what cannot be executed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("candidates", [["/nowhere/x"], ["/nowhere/x", "/bin/nowhere"], ["/bin/true/x"], []])
def test_a_program_that_does_not_exist_is_127(candidates: list[str]) -> None:
    with pytest.raises(CannotExecute, match=r"^x: command not found$") as caught:
        LocalSpawner("").start(request("x"), candidates)
    assert caught.value.exit_code == 127


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o000])
def test_a_file_that_may_not_be_executed_is_126(tmp_path: Path, mode: int) -> None:
    path = executable(tmp_path / "x", "#!/bin/sh\n", mode)
    with pytest.raises(CannotExecute, match="x: permission denied") as caught:
        start(path)
    assert caught.value.exit_code == 126


def test_a_directory_is_126_and_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(CannotExecute, match="is a directory") as caught:
        start(str(tmp_path))
    assert caught.value.exit_code == 126


def test_a_device_is_126() -> None:
    with pytest.raises(CannotExecute) as caught:
        start("/dev/null")
    assert caught.value.exit_code == 126


async def test_a_script_whose_interpreter_is_missing_is_127_and_says_why(tmp_path: Path) -> None:
    path = executable(tmp_path / "x", "#!/nowhere/interpreter\n")
    with pytest.raises(CannotExecute, match="interpreter") as caught:
        start(path)
    assert caught.value.exit_code == 127


async def test_a_text_without_interpreter_is_126(tmp_path: Path) -> None:
    path = executable(tmp_path / "x", "echo no shell guesses what this is\n")
    with pytest.raises(CannotExecute, match="format") as caught:
        start(path)
    assert caught.value.exit_code == 126


async def test_an_empty_file_is_126(tmp_path: Path) -> None:
    with pytest.raises(CannotExecute) as caught:
        start(executable(tmp_path / "x", ""))
    assert caught.value.exit_code == 126


def test_the_first_that_can_be_executed_is_taken(tmp_path: Path) -> None:
    plain, good = executable(tmp_path / "plain", "", 0o644), executable(tmp_path / "good", "#!/bin/sh\n")
    other = executable(tmp_path / "other", "#!/bin/sh\n")
    assert find_executable("x", ["/nowhere/x", str(tmp_path), plain, good, other]) == good


def test_a_program_out_of_reach_is_126_not_127(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    path = executable(folder / "x", "#!/bin/sh\n", 0o644)
    folder.chmod(0)
    try:
        # root looks through the closed folder and finds a file that cannot be executed: the same answer.
        with pytest.raises(CannotExecute) as caught:
            find_executable("x", [path])
    finally:
        folder.chmod(0o700)
    assert caught.value.exit_code == 126


async def test_a_failed_start_leaves_no_descriptor_open(tmp_path: Path) -> None:
    path = executable(tmp_path / "x", "no program")
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(CannotExecute):
            start(path, stdin=b"x" * 100_000)
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- standard input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"x", b"\0", bytes(range(256)), b"no line end", b"\xff" * 70_000, bytes(range(256)) * (MAX_STDIN_BYTES // 256)],
    ids=lambda content: f"{len(content)} bytes",
)
async def test_input_arrives_exactly(content: bytes) -> None:
    assert await run("/bin/cat", stdin=content) == (0, content, b"")


async def test_without_input_the_command_reads_its_end() -> None:
    assert await run("/bin/cat") == (0, b"", b"")
    assert await ask("os.readlink('/proc/self/fd/0')") == "/dev/null"


async def test_a_command_that_reads_no_input_does_not_keep_it() -> None:
    assert await run("/bin/true", stdin=bytes(MAX_STDIN_BYTES)) == (0, b"", b"")


async def test_input_of_one_command_does_not_reach_the_next() -> None:
    results = await asyncio.gather(*(run("/bin/cat", stdin=b"%d" % number) for number in range(10)))
    assert results == [(0, b"%d" % number, b"") for number in range(10)]


# --- environment, directory, user -------------------------------------------------------------------------------------


async def test_the_environment_is_what_is_promised_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACHIKOMA_SECRET", "hunter2")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    name, home = own_account()
    promised = {"PATH": PATH, "HOME": home, "USER": name, "LOGNAME": name, "LANG": "C.UTF-8"}
    promised |= {"APP": "1", "EMPTY": "", "ODD%%": "a=b\nc"}
    _, raw, _ = await run("/usr/bin/env", "-0", environment={"APP": "1", "EMPTY": "", "ODD%%": "a=b\nc"})
    assert dict(entry.split("=", 1) for entry in raw.decode().split("\0") if entry) == promised


async def test_a_request_may_choose_the_language_but_not_what_the_agent_sets() -> None:
    chosen = {"LANG": "C", "PATH": "/evil", "HOME": "/evil", "USER": "evil", "LOGNAME": "evil"}
    _, raw, _ = await run("/usr/bin/env", "-0", environment=chosen)
    environment = dict(entry.split("=", 1) for entry in raw.decode().split("\0") if entry)
    assert environment["LANG"] == "C"
    assert environment["PATH"] == PATH
    assert "evil" not in " ".join(environment.values())


async def test_a_command_runs_in_the_users_home_unless_told_otherwise(tmp_path: Path) -> None:
    _, home = own_account()
    assert await ask("os.getcwd()") == (str(Path(home).resolve()) if Path(home).is_dir() else "/")
    assert await ask("os.getcwd()", work_dir=str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("path", ["/nowhere", "/bin/true", "/bin/true/x"])
def test_a_directory_that_is_not_there_is_refused(path: str) -> None:
    with pytest.raises(Refused, match="there is no directory"):
        start("/bin/true", work_dir=path)


def test_a_user_that_does_not_exist_is_refused() -> None:
    with pytest.raises(Refused, match="there is no user 'nobody-of-that-name'"):
        start("/bin/true", user="nobody-of-that-name")
    with pytest.raises(Refused, match="there is no user"):
        start("/bin/true", default_user="nobody-of-that-name")


async def test_another_user_is_become_by_root_and_refused_to_others() -> None:
    """Both ways of it, whoever runs the tests."""
    other = pwd.getpwnam("nobody" if own_account()[0] != "nobody" else "root")
    if not ROOT:
        with pytest.raises(Refused, match=f"cannot become {other.pw_name}"):
            start("/bin/true", user=other.pw_name)
        return
    status, out, err = await run("/bin/sh", "-c", "id -u; id -ru; id -g; id -G; echo $HOME $USER", user=other.pw_name)
    groups = " ".join(str(group) for group in os.getgrouplist(other.pw_name, other.pw_gid))
    expected = f"{other.pw_uid}\n{other.pw_uid}\n{other.pw_gid}\n{groups}\n{other.pw_dir} {other.pw_name}\n"
    assert (status, out.decode(), err) == (0, expected, b"")


async def test_the_configured_user_is_the_one_of_requests_that_name_none() -> None:
    name = own_account()[0]
    if name.isdigit():
        assert LocalSpawner("").account("").name == name
        return
    assert LocalSpawner(name).account("").name == name
    if ROOT:
        assert (await run("/usr/bin/id", "-un", default_user="nobody"))[1] == b"nobody\n"
        assert (await run("/usr/bin/id", "-un", default_user="nobody", user="root"))[1] == b"root\n"


async def test_a_directory_closed_to_the_user_is_refused() -> None:
    folder = tempfile.mkdtemp(prefix="tk-")
    try:
        os.chmod(folder, 0o700 if ROOT else 0)
        with pytest.raises(Refused, match=r"cannot enter the directory .*denied"):
            await run("/bin/true", work_dir=folder, user="nobody" if ROOT else "")
    finally:
        os.rmdir(folder)


async def test_a_directory_behind_a_closed_one_is_refused() -> None:
    """Whoever the command runs as could not have come there by itself."""
    closed = Path(tempfile.mkdtemp(prefix="tk-"))
    try:
        (closed / "inner").mkdir(mode=0o777)
        closed.chmod(0o700 if ROOT else 0)
        with pytest.raises(Refused):
            await run("/bin/true", work_dir=str(closed / "inner"), user="nobody" if ROOT else "")
    finally:
        closed.chmod(0o700)
        (closed / "inner").rmdir()
        closed.rmdir()


def test_warnings_say_what_is_not_enforced() -> None:
    warnings = LocalSpawner("").warnings()
    assert any("cgroup" in warning for warning in warnings)
    assert any("the worker is not root" in warning for warning in warnings) != ROOT


# --- what a command inherits ------------------------------------------------------------------------------------------


async def test_only_three_descriptors_are_open_in_the_command() -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(read_end, True)
    try:
        code = "[n for n in range(256) if os.path.exists(f'/proc/self/fd/{n}')]"
        assert await ask(code) == [0, 1, 2]
        assert await ask(code, stdin=b"x") == [0, 1, 2]
    finally:
        os.close(read_end)
        os.close(write_end)


async def test_a_command_has_a_session_and_a_group_of_its_own() -> None:
    async with running(*PYTHON, "import os; print(os.getpid(), os.getsid(0), os.getpgid(0))") as process:
        numbers = (await read_all(process.stdout)).split()
        assert numbers == [b"%d" % process.pid] * 3
    assert os.getsid(0) != process.pid


async def test_a_command_has_no_terminal() -> None:
    status, _, _ = await run("/bin/sh", "-c", ": < /dev/tty")
    assert status != 0


async def test_files_are_made_with_the_usual_rights(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        await run("/bin/sh", "-c", "echo > made", work_dir=str(tmp_path))
    finally:
        os.umask(old)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o644


async def test_no_signal_is_ignored_or_blocked_in_the_command() -> None:
    status = (await ask("open('/proc/self/status').read()")).splitlines()
    masks = {line.split(":")[0]: int(line.split()[1], 16) for line in status if line.startswith(("SigBlk", "SigIgn"))}
    # Python itself ignores SIGPIPE and SIGXFSZ; 32 and 33 are the C library's own, and come from whoever ran the tests.
    own = sum(1 << (number - 1) for number in (signal.SIGPIPE, signal.SIGXFSZ, 32, 33))
    assert masks["SigBlk"] == 0
    assert masks["SigIgn"] & ~own == 0


# --- ending -----------------------------------------------------------------------------------------------------------


async def test_a_command_is_asked_to_end_first() -> None:
    async with running(
        "/bin/sh", "-c", "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done"
    ) as process:
        await read_line(process.stdout)
        assert await process.kill(PATIENCE_SECONDS) is True
        assert process.exited.result() == 3
        assert await read_all(process.stdout) == b"bye\n"


async def test_a_command_that_ignores_the_request_is_killed() -> None:
    async with running("/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done") as process:
        await read_line(process.stdout)
        assert await process.kill(0.05) is True
        assert process.exited.result() == -signal.SIGKILL


async def test_a_stopped_command_is_killed() -> None:
    async with running("/bin/sh", "-c", "kill -STOP $$") as process:
        wait_until_stopped(process)
        assert await process.kill(0.05) is True
        assert process.exited.result() == -signal.SIGKILL


async def test_killing_takes_the_whole_group_with_it() -> None:
    script = "trap '' TERM; (sleep 1000 & sleep 1000 & echo ready; wait) & wait"
    async with running("/bin/sh", "-c", script) as process:
        await read_line(process.stdout)
        assert await process.kill(0.05) is True
        # The pipe ends when its last holder is dead.
        assert await read_all(process.stdout) == b""


async def test_a_leftover_of_a_command_that_has_ended_is_killed() -> None:
    async with running("/bin/sh", "-c", "trap '' TERM; sleep 1000 & exit 5") as process:
        assert await asyncio.wait_for(asyncio.shield(process.exited), PATIENCE_SECONDS) == 5
        assert await process.kill(PATIENCE_SECONDS) is True
        assert process.exited.result() == 5
        assert await read_all(process.stdout) == b""


async def test_killing_twice_and_killing_what_is_gone_does_no_harm() -> None:
    async with running("/bin/true") as process:
        await asyncio.wait_for(asyncio.shield(process.exited), PATIENCE_SECONDS)
        assert await process.kill(0) is True
        assert await process.kill(0) is True
        assert process.exited.result() == 0


async def test_closing_reaps_the_command_and_gives_its_descriptors_back() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    process = start("/bin/true", stdin=b"x")
    await asyncio.wait_for(process.exited, PATIENCE_SECONDS)
    process.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert reaped(process)


async def test_many_commands_at_once_each_end_as_they_should() -> None:
    async def one(code: int) -> int:
        return (await run("/bin/sh", "-c", f"exit {code}"))[0]

    assert await asyncio.gather(*(one(code) for code in range(40))) == list(range(40))
