"""What a command gets and what it does not, with real processes started by the real spawner."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from host import CONTAINER, PATIENCE_SECONDS, ROOT, Host, a_host, order, read_all, read_line

from processes import cgroups_named, processes_named
from tachikoma.vocabulary.grants import GrantedExecutable
from tachikoma.vocabulary.request_rules import MAX_COMMAND_BYTES, MAX_ENVIRONMENT_BYTES, MAX_STDIN_BYTES
from tachikoma_worker.confinement.account import account
from tachikoma_worker.confinement.environment import PATH
from tachikoma_worker.confinement.prepare import prepare
from tachikoma_worker.confinement.refusals import CannotExecute, Refused
from tachikoma_worker.confinement.start import start

#: Runs Python in a child without anything that would open files of its own.
PYTHON = [sys.executable, "-I", "-S", "-c"]


def own_account() -> tuple[str, str]:
    """Name and home of whoever runs the tests."""
    entry = pwd.getpwuid(os.getuid())
    return entry.pw_name, entry.pw_dir


async def ask(host: Host, code: str, **values: Any) -> Any:
    """What a child in Python prints as JSON."""
    status, out, err = await host.run(*PYTHON, f"import json, os, sys\nprint(json.dumps({code}))", **values)
    assert (status, err) == (0, b"")
    return json.loads(out)


def executable(path: Path, content: str, mode: int = 0o755) -> str:
    path.write_text(content)
    path.chmod(mode)
    return str(path)


# --- how a command ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 7, 126, 127, 128, 255])
async def test_an_exit_code_is_told_as_it_is(host: Host, code: int) -> None:
    assert await host.run("/bin/sh", "-c", f"exit {code}") == (code, b"", b"")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGSEGV])
async def test_a_signal_is_told_and_makes_128_and_its_number(host: Host, number: signal.Signals) -> None:
    async with host.running("/bin/sh", "-c", f"kill -{number.value} $$") as it:
        end = await it.exit()
    assert (end.signal, end.exit_code) == (number, 128 + number)


async def test_both_outputs_come_through_separately_and_unchanged(host: Host) -> None:
    code = "import os; os.write(1, bytes(range(256))); os.write(2, b'\\xff\\0err')"
    assert await host.run(*PYTHON, code) == (0, bytes(range(256)), b"\xff\0err")


async def test_the_argv_arrives_as_it_was_sent(host: Host) -> None:
    arguments = ["", " ", "a b", "$(id)", "*", "-x", "ä€😀", "'\"\\", "\n", ";", "\x7f"]
    status, out, _ = await host.run(*PYTHON, "import json, sys; print(json.dumps(sys.argv[1:]))", *arguments)
    assert (status, json.loads(out)) == (0, arguments)


async def test_the_program_sees_the_name_it_was_called_by(host: Host) -> None:
    granted = [GrantedExecutable(path="/nowhere/sh"), GrantedExecutable(path="/bin/sh")]
    assert await host.run("sh", "-c", "echo $0", executables=granted) == (0, b"sh\n", b"")


async def test_the_largest_command_and_environment_can_be_started(host: Host) -> None:
    longest = "x" * (MAX_COMMAND_BYTES - len("/bin/true") - 2)
    environment = {"A": "x" * (MAX_ENVIRONMENT_BYTES - len("A") - 2)}
    assert await host.run("/bin/true", longest, environment=environment) == (0, b"", b"")


async def test_as_many_arguments_as_a_request_may_have(host: Host) -> None:
    status, out, _ = await host.run("/bin/echo", *["x"] * 1023, environment={f"V{n}": "" for n in range(256)})
    assert (status, len(out.split())) == (0, 1023)


async def test_many_commands_at_once_each_end_as_they_should(host: Host) -> None:
    results = await asyncio.gather(*(host.run("/bin/sh", "-c", f"exit {code}") for code in range(40)))
    assert [status for status, _, _ in results] == list(range(40))


# --- what cannot be executed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paths", [["/nowhere/x"], ["/nowhere/x", "/bin/nowhere"], ["/bin/true/x"]])
async def test_a_program_that_does_not_exist_is_127(host: Host, paths: list[str]) -> None:
    with pytest.raises(CannotExecute, match=r"^x: command not found$") as caught:
        host.prepare("x", executables=[GrantedExecutable(path=path) for path in paths])
    assert caught.value.exit_code == 127


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o000])
async def test_a_file_that_may_not_be_executed_is_126(host: Host, tmp_path: Path, mode: int) -> None:
    with pytest.raises(CannotExecute, match="x: permission denied") as caught:
        host.prepare(executable(tmp_path / "x", "#!/bin/sh\n", mode))
    assert caught.value.exit_code == 126


async def test_a_directory_is_126_and_told_as_one(host: Host, tmp_path: Path) -> None:
    with pytest.raises(CannotExecute, match="is a directory") as caught:
        host.prepare(str(tmp_path))
    assert caught.value.exit_code == 126


async def test_a_device_is_126(host: Host) -> None:
    with pytest.raises(CannotExecute) as caught:
        host.prepare("/dev/null")
    assert caught.value.exit_code == 126


async def test_a_script_runs_with_its_interpreter_and_its_own_path(host: Host, tmp_path: Path) -> None:
    path = executable(tmp_path / "x", '#!/bin/sh -e\necho "$0" "$@"\nfalse\necho not reached\n')
    assert await host.run(path, "a", "b c") == (1, f"{path} a b c\n".encode(), b"")


async def test_a_script_may_be_interpreted_by_a_script(host: Host, tmp_path: Path) -> None:
    inner = executable(tmp_path / "inner", "#!/bin/sh\necho inner $# $1 $2\n")
    outer = executable(tmp_path / "outer", f"#! {inner} option with spaces\n")
    assert (await host.run(outer, "last"))[1] == f"inner 3 option with spaces {outer}\n".encode()


async def test_scripts_that_interpret_each_other_come_to_an_end(host: Host, tmp_path: Path) -> None:
    path = executable(tmp_path / "x", f"#!{tmp_path}/x\n")
    with pytest.raises(CannotExecute, match="interpret each other"):
        host.prepare(path)


async def test_a_script_whose_interpreter_is_missing_is_127_and_says_why(host: Host, tmp_path: Path) -> None:
    with pytest.raises(CannotExecute, match="interpreter it names was not found: /nowhere/interpreter") as caught:
        host.prepare(executable(tmp_path / "x", "#!/nowhere/interpreter\n"))
    assert caught.value.exit_code == 127


@pytest.mark.parametrize("content", ["", "echo no shell guesses what this is\n", "\x7fELF and no more"])
async def test_what_is_no_program_is_126(host: Host, tmp_path: Path, content: str) -> None:
    with pytest.raises(CannotExecute) as caught:
        await host.run(executable(tmp_path / "x", content))
    assert caught.value.exit_code == 126


async def test_the_first_that_can_be_executed_is_taken(host: Host, tmp_path: Path) -> None:
    plain, good = executable(tmp_path / "plain", "", 0o644), executable(tmp_path / "good", "#!/bin/sh\necho good\n")
    granted = [GrantedExecutable(path=path) for path in ("/nowhere/x", str(tmp_path), plain, good)]
    assert (await host.run("x", executables=granted))[1] == b"good\n"


async def test_a_failed_start_leaves_no_descriptor_open(host: Host, tmp_path: Path) -> None:
    path = executable(tmp_path / "x", "no program")

    async def fail() -> None:
        with pytest.raises(CannotExecute):
            await host.run(path, stdin=b"x" * 100_000)

    await fail()
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await fail()
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- who may have put it there ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
async def test_a_file_that_others_can_write_is_refused(host: Host, tmp_path: Path, mode: int) -> None:
    with pytest.raises(Refused, match="can be written by group or others"):
        host.prepare(executable(tmp_path / "x", "#!/bin/sh\n", mode))


async def test_a_file_in_a_folder_that_others_can_write_is_refused(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    path = executable(folder / "x", "#!/bin/sh\n")
    folder.chmod(0o777)
    with pytest.raises(Refused, match=f"{folder} can be written by group or others"):
        host.prepare(path)
    # Where only the owner of an entry can exchange it, that is not so.
    folder.chmod(0o1777)
    assert (await host.run(path))[0] == 0


async def test_a_hard_link_in_a_folder_that_others_can_write_is_refused(host: Host, tmp_path: Path) -> None:
    """Its content is root's, but the name is anybody's to give to another file."""
    folder = tmp_path / "open"
    folder.mkdir()
    original = executable(tmp_path / "x", "#!/bin/sh\n")
    os.link(original, folder / "x")
    folder.chmod(0o777)
    assert (await host.run(original))[0] == 0
    with pytest.raises(Refused, match="can be written by group or others"):
        host.prepare(str(folder / "x"))


async def test_a_symbolic_link_through_a_folder_that_others_can_write_is_refused(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    (folder / "link").symlink_to("/bin/true")
    (tmp_path / "outer").symlink_to(folder / "link")
    assert (await host.run(str(tmp_path / "outer")))[0] == 0
    folder.chmod(0o777)
    with pytest.raises(Refused, match="can be written by group or others"):
        host.prepare(str(tmp_path / "outer"))


async def test_links_that_lead_in_circles_end(host: Host, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(CannotExecute):
        host.prepare(str(tmp_path / "a"))


async def test_another_users_file_and_interpreter_are_refused(host: Host, root: None, tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    path = executable(tmp_path / "x", "#!/bin/sh\n")
    script = executable(tmp_path / "script", f"#!{path}\n")
    os.chown(path, nobody.pw_uid, nobody.pw_gid)
    for command in (path, script):
        with pytest.raises(Refused, match="belongs to nobody"):
            host.prepare(command)


async def test_a_file_that_changes_its_user_must_be_named(host: Host, root: None, tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    path = tmp_path / "x"
    path.write_bytes(Path("/usr/bin/id").read_bytes())
    path.chmod(0o4755)
    tmp_path.chmod(0o755)
    assert (await host.run(str(path), "-un", user="root"))[1] == b"root\n"
    for folder in tmp_path.parents:
        # Those that pytest made for this run.
        if folder.name.startswith(("pytest-", "popen-")):
            folder.chmod(0o755)
    with pytest.raises(Refused, match="made to change its user"):
        host.prepare(str(path), "-u", user="nobody")
    # Named it runs, and stays who it is: no_new_privs.
    granted = [GrantedExecutable(path=str(path), named=True)]
    assert (await host.run(str(path), "-u", user="nobody", executables=granted))[1] == b"%d\n" % nobody.pw_uid


async def test_a_pinned_file_must_have_that_content(host: Host, tmp_path: Path) -> None:
    import hashlib

    path = executable(tmp_path / "x", "#!/bin/sh\necho one\n")
    pin = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    granted = [GrantedExecutable(path=path, sha256=("0" * 64, pin))]
    assert (await host.run(path, executables=granted))[1] == b"one\n"
    Path(path).write_text("#!/bin/sh\necho two\n")
    with pytest.raises(Refused, match="policy pins other content"):
        host.prepare(path, executables=granted)


async def test_a_program_exchanged_after_the_check_does_not_run(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(Path("/bin/true").read_bytes())
    path.chmod(0o755)
    prepared = host.prepare(str(path))
    try:
        evil = tmp_path / "evil"
        evil.write_bytes(Path("/bin/false").read_bytes())
        evil.chmod(0o755)
        evil.rename(path)
        with pytest.raises(Refused, match="exchanged while it was checked"):
            await start(prepared, host.spawner)
    finally:
        prepared.discard()


async def test_a_link_to_what_policy_denies_is_refused(host: Host, tmp_path: Path) -> None:
    for name, target in (("innocent", "/bin/rm"), ("tool", "/bin/sh")):
        (tmp_path / name).symlink_to(target)
    with pytest.raises(Refused, match=r"innocent leads to .*/bin/rm, and policy denies 'rm'"):
        host.prepare(str(tmp_path / "innocent"), denied=("rm",))
    work_order = order(str(tmp_path / "tool"), "-c", "id")
    strict = work_order.grant.model_copy(update={"interpreters": False})
    with pytest.raises(Refused, match="which runs any code that it is given"):
        prepare(
            work_order.model_copy(update={"grant": strict}),
            host.settings(),
            host.spawner.uid,
            host.cgroups,
            host.enclosures(),
        )


# --- standard input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"x", b"\0", bytes(range(256)), b"no line end", b"\xff" * 70_000, bytes(range(256)) * (MAX_STDIN_BYTES // 256)],
    ids=lambda content: f"{len(content)} bytes",
)
async def test_input_arrives_exactly(host: Host, content: bytes) -> None:
    assert await host.run("/bin/cat", stdin=content) == (0, content, b"")


async def test_without_input_the_command_reads_its_end(host: Host) -> None:
    assert await host.run("/bin/cat") == (0, b"", b"")
    # Not by its name: the descriptor is from outside of the command's mount namespace.
    assert await ask(host, "os.fstat(0).st_rdev") == os.stat("/dev/null").st_rdev


async def test_input_of_one_command_does_not_reach_the_next(host: Host) -> None:
    results = await asyncio.gather(*(host.run("/bin/cat", stdin=b"%d" % number) for number in range(10)))
    assert results == [(0, b"%d" % number, b"") for number in range(10)]


# --- environment ------------------------------------------------------------------------------------------------------


async def test_the_environment_is_what_is_promised_and_nothing_else(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TACHIKOMA_SECRET", "hunter2")
    name, home = own_account()
    promised = {"PATH": PATH, "HOME": home, "USER": name, "LOGNAME": name, "LANG": "C", "APP": "a=b\nc", "EMPTY": ""}
    _, raw, _ = await host.run("/usr/bin/env", "-0", environment={"APP": "a=b\nc", "EMPTY": "", "LANG": "C"})
    assert dict(entry.split("=", 1) for entry in raw.decode().split("\0") if entry) == promised


@pytest.mark.parametrize("name", ["PATH", "HOME", "LD_PRELOAD", "BASH_ENV", "LD_LIBRARY_PATH", "BASH_FUNC_ls%%", "x"])
async def test_what_is_never_let_through_is_refused_whatever_the_order_says(host: Host, name: str) -> None:
    with pytest.raises(Refused, match="environment: "):
        host.prepare("/bin/true", environment={name: "/x"})


# --- working directory ------------------------------------------------------------------------------------------------


async def test_a_command_runs_in_the_users_home_unless_told_otherwise(host: Host, tmp_path: Path) -> None:
    _, home = own_account()
    assert await ask(host, "os.getcwd()") == str(Path(home).resolve())
    assert await ask(host, "os.getcwd()", work_dir=str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("path", ["/nowhere", "/bin/true", "/bin/true/x"])
async def test_a_directory_that_is_not_there_is_refused(host: Host, path: str) -> None:
    with pytest.raises(Refused, match="cannot enter the directory"):
        await host.run("/bin/true", work_dir=path)


async def test_a_link_that_stays_beneath_is_followed_and_one_that_leads_out_is_not(host: Host, tmp_path: Path) -> None:
    (tmp_path / "root" / "releases").mkdir(parents=True)
    (tmp_path / "root" / "current").symlink_to("releases")
    for target in ("/etc", "../..", "../../etc", "/proc/self/cwd"):
        link = tmp_path / "root" / f"out-{target.replace('/', '_')}"
        link.symlink_to(target)
        with pytest.raises(Refused, match=r"leads out of the directory|cannot enter"):
            await host.run("/bin/true", work_dir=str(link), work_dir_root=str(tmp_path / "root"))
    inside = str(tmp_path / "root" / "current")
    assert await ask(host, "os.getcwd()", work_dir=inside, work_dir_root=str(tmp_path / "root")) == str(
        tmp_path / "root" / "releases"
    )


async def test_a_directory_exchanged_for_a_link_after_the_decision_leads_nowhere(host: Host, tmp_path: Path) -> None:
    wanted = tmp_path / "work"
    wanted.mkdir()
    prepared = host.prepare("/bin/pwd", work_dir=str(wanted), work_dir_root=str(tmp_path))
    try:
        wanted.rmdir()
        wanted.symlink_to("/etc")
        with pytest.raises(Refused, match="leads out of the directory"):
            await start(prepared, host.spawner)
    finally:
        prepared.discard()


async def test_a_directory_the_user_cannot_come_to_is_refused(host: Host) -> None:
    closed = Path(tempfile.mkdtemp(prefix="tk-"))
    user = "nobody" if ROOT else own_account()[0]
    try:
        (closed / "inner").mkdir(mode=0o777)
        closed.chmod(0o700 if ROOT else 0)
        for path in (closed, closed / "inner"):
            with pytest.raises(Refused, match=r"cannot enter the directory .*Permission denied"):
                await host.run("/bin/true", work_dir=str(path), user=user)
    finally:
        closed.chmod(0o700)
        (closed / "inner").rmdir()
        closed.rmdir()


async def test_a_program_the_user_cannot_come_to_is_126(host: Host, root: None, tmp_path: Path) -> None:
    path = executable(tmp_path / "x", "#!/bin/sh\n")
    program = tmp_path / "true"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    tmp_path.chmod(0o700)
    with pytest.raises(CannotExecute, match="Permission denied for nobody") as caught:
        await host.run(str(program), user="nobody")
    assert caught.value.exit_code == 126
    # A script's interpreter is what cannot come to it.
    status, _, err = await host.run(path, user="nobody")
    assert status != 0
    assert b"denied" in err.lower() or b"can't open" in err.lower()


# --- user -------------------------------------------------------------------------------------------------------------


async def test_a_user_that_does_not_exist_is_refused(host: Host) -> None:
    with pytest.raises(Refused, match="there is no user 'nobody-of-that-name'"):
        host.prepare("/bin/true", user="nobody-of-that-name")
    with pytest.raises(Refused, match="there is no user"):
        host.prepare("/bin/true", settings={"user": "nobody-of-that-name"})


async def test_another_user_is_become_with_all_its_groups(host: Host, root: None) -> None:
    other = pwd.getpwnam("nobody")
    script = "id -u; id -ru; id -g; id -G; echo $HOME $USER"
    status, out, err = await host.run("/bin/sh", "-c", script, user="nobody")
    groups = " ".join(str(group) for group in os.getgrouplist(other.pw_name, other.pw_gid))
    expected = f"{other.pw_uid}\n{other.pw_uid}\n{other.pw_gid}\n{groups}\n{other.pw_dir} nobody\n"
    assert (status, out.decode(), err) == (0, expected, b"")


async def test_without_a_word_it_is_nobody_and_root_only_where_root_is_named(host: Host, root: None) -> None:
    assert (await host.run("/usr/bin/id", "-un", settings={"user": ""}))[1] == b"nobody\n"
    assert (await host.run("/usr/bin/id", "-un", settings={"user": ""}, user="root"))[1] == b"root\n"
    assert (await host.run("/usr/bin/id", "-un", settings={"user": "daemon"}))[1] == b"daemon\n"


def test_without_root_there_is_nobody_else_to_become() -> None:
    me = pwd.getpwnam("nobody").pw_uid
    assert account("", "", me).name == "nobody"
    with pytest.raises(Refused, match="runs as nobody and cannot become root"):
        account("root", "", me)


# --- privileges and inheritance ---------------------------------------------------------------------------------------


async def status_of(host: Host, **values: Any) -> dict[str, str]:
    _, out, _ = await host.run("/bin/cat", "/proc/self/status", **values)
    return dict(line.split(":\t", 1) for line in out.decode().splitlines() if ":\t" in line)


@pytest.mark.parametrize("user", ["nobody", "root"])
async def test_no_command_has_a_capability(host: Host, root: None, user: str) -> None:
    status = await status_of(host, user=user)
    entry = pwd.getpwnam(user)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    assert status["Uid"].split() == [str(entry.pw_uid)] * 4
    assert status["Gid"].split() == [str(entry.pw_gid)] * 4


async def test_root_keeps_the_capabilities_that_policy_and_agent_grant_and_nobody_none(root: None) -> None:
    async with a_host(capabilities=0b1011) as host:
        status = await status_of(host, user="root", capabilities=0b1001)
        assert (int(status["CapBnd"], 16), int(status["CapEff"], 16)) == (0b1001, 0b1001)
        for values in ({"user": "nobody", "capabilities": 0b1001}, {"user": "root"}):
            status = await status_of(host, **values)
            assert (int(status["CapBnd"], 16), int(status["CapEff"], 16)) == (0, 0)
        with pytest.raises(Refused, match="this agent lets no command keep CAP_DAC_READ_SEARCH;"):
            await host.run("/bin/true", user="root", capabilities=0b101)


async def test_only_three_descriptors_are_open_in_the_command(host: Host) -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(read_end, True)
    try:
        code = "[n for n in range(256) if os.path.exists(f'/proc/self/fd/{n}')]"
        assert await ask(host, code) == [0, 1, 2]
        assert await ask(host, code, stdin=b"x") == [0, 1, 2]
    finally:
        os.close(read_end)
        os.close(write_end)


async def test_a_command_has_a_session_and_a_group_of_its_own_and_no_terminal(host: Host) -> None:
    async with host.running(*PYTHON, "import os; print(os.getpid(), os.getsid(0), os.getpgid(0))") as it:
        numbers = (await read_all(it.process.stdout)).split()
        assert numbers == [b"%d" % it.process.pid] * 3
    assert (await host.run("/bin/sh", "-c", ": < /dev/tty"))[0] != 0


async def test_files_are_made_with_the_usual_rights(host: Host, tmp_path: Path) -> None:
    await host.run("/bin/sh", "-c", "echo > made", work_dir=str(tmp_path))
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o644


async def test_no_signal_is_ignored_or_blocked_in_the_command(host: Host) -> None:
    _, out, _ = await host.run("/bin/cat", "/proc/self/status")
    masks = {line.split()[0]: int(line.split()[1], 16) for line in out.decode().splitlines() if line[:3] == "Sig"
             and line[3:6] in ("Blk", "Ign", "Cgt")}  # fmt: skip
    assert masks == {"SigBlk:": 0, "SigIgn:": 0, "SigCgt:": 0}


async def test_no_core_is_dumped_and_the_limit_of_descriptors_is_the_usual(host: Host) -> None:
    code = "[__import__('resource').getrlimit(n) for n in (__import__('resource').RLIMIT_CORE,)]"
    import resource

    assert await ask(host, code) == [[0, 0]]
    code = "__import__('resource').getrlimit(__import__('resource').RLIMIT_NOFILE)"
    assert await ask(host, code) == list(resource.getrlimit(resource.RLIMIT_NOFILE))


# --- the spawner's own end --------------------------------------------------------------------------------------------


async def test_commands_and_their_output_outlive_the_worker(host: Host) -> None:
    """Another connection finds what runs, reads on where the first stopped, and is told of the end."""
    from tachikoma_worker.confinement.spawner import Spawner

    prepared = host.prepare("/bin/sh", "-c", "echo one; read x < /dev/null; echo two; sleep 0.05; echo three; exit 7")
    process = await start(prepared, host.spawner)
    first = await read_line(process.stdout)
    host.spawner._processes.clear()
    os.close(process.stdout)
    os.close(process.stderr)
    second = Spawner.connect(host.folder / "spawner.sock")
    try:
        second.attach()
        [held] = await second.held()
        assert (held.name, held.pid) == (prepared.order.jti, process.pid)
        taken = await second.take(held)
        assert first + await read_all(taken.stdout) == b"one\ntwo\nthree\n"
        assert (await asyncio.wait_for(taken.exited, PATIENCE_SECONDS)).exit_code == 7
        [held] = await second.held()
        assert held.exit is not None
        assert held.exit.exit_code == 7
        await taken.close()
        assert await second.held() == []
    finally:
        second.close()
        prepared.discard()


async def test_a_stranger_is_not_served(host: Host, root: None) -> None:
    code = (
        "import os, socket, sys\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(10)\n"
        "s.connect(sys.argv[1]); s.sendall(bytes([0] * 4 + [1] + [0] * 11))\n"
        "print(s.recv(100))\n"
    )
    os.chmod(host.folder, 0o755)
    os.chmod(host.folder / "spawner.sock", 0o777)
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", code, host.folder / "spawner.sock",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(done.communicate(), PATIENCE_SECONDS)
    assert out == b"b''\n" or b"ConnectionResetError" in err or b"BrokenPipeError" in err


async def test_a_name_that_is_taken_is_refused(host: Host) -> None:
    work_order = order("/bin/sleep", "1000")
    settings, uid = host.settings(), host.spawner.uid
    prepared = prepare(work_order, settings, uid, host.cgroups, host.enclosures())
    process = await start(prepared, host.spawner)
    try:
        with pytest.raises(Refused):
            await start(prepared, host.spawner)
    finally:
        assert await process.kill_all() == []
        await process.close()
        prepared.discard()
    assert not processes_named(work_order.jti)


async def test_a_host_that_cannot_limit_says_so_and_runs_what_asks_for_nothing(host: Host) -> None:
    """A container that may not write its cgroups, and an ordinary user."""
    if CONTAINER != "read-only" and ROOT:
        pytest.skip("cgroups may be written here")
    [warning] = host.cgroups.warnings
    assert warning.startswith("commands run without cgroups, so without limits: /sys/fs/cgroup")
    assert (await host.run("/bin/true"))[0] == 0
    with pytest.raises(Refused, match="cannot enforce the limits of pids"):
        host.prepare("/bin/true", limits={"pids": 5})


#: What a worker does with a spawner that root runs for it; prints what came of it.
WORKER = """
import asyncio, os, sys
from pathlib import Path
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.limits import ResourceLimits
from tachikoma.vocabulary.requests import ExecRequest
from tachikoma_worker.cgroups.detect import detect
from tachikoma_worker.confinement.isolation.abilities import Abilities
from tachikoma_worker.confinement.isolation.enclosures import Enclosures
from tachikoma_worker.confinement.prepare import prepare
from tachikoma_worker.confinement.start import start
from tachikoma_worker.settings import WorkerSettings
from tachikoma_worker.confinement.spawner import Spawner

async def main(path, name, limits, where):
    cgroups = detect("a", name=name, where=where)
    spawner = Spawner.connect(Path(path))
    spawner.attach()
    request = ExecRequest(agent_id="a", command=["/usr/bin/id", "-un"], user="daemon")
    limits = ResourceLimits.model_validate_json(limits)
    grant = Grant(executables=[GrantedExecutable(path="/usr/bin/id")], limits=limits)
    order = WorkOrder(iss="", iat=0, aud="", sub="", exp=0, jti=request.id, policy="", request=request, grant=grant)
    settings = WorkerSettings(agent_id="a", redis_url="x", identity="/", data="/")
    prepared = prepare(order, settings, spawner.uid, cgroups, Enclosures(settings, Abilities()))
    process = await start(prepared, spawner)
    end = await process.exited
    print(os.getuid(), os.read(process.stdout, 100).decode().strip(), end.exit_code, prepared.cgroup.usage().oom_kills)
    await process.kill_all()
    await process.close()
    prepared.discard()
    print(cgroups.leftovers())

asyncio.run(main(*sys.argv[1:]))
"""


#: Longest wait for whole programs. An emulated machine needs half a minute to import one.
PROGRAM_SECONDS = 5 * PATIENCE_SECONDS


async def test_a_worker_that_is_not_root_uses_a_spawner_that_is_and_that_ones_cgroup(root: None, need: Any) -> None:
    if CONTAINER:
        pytest.skip("a matter of hosts")
    python = os.environ.get("TACHIKOMA_TEST_EVERYBODYS_PYTHON", sys.executable)
    try:
        probe = await asyncio.create_subprocess_exec(
            python,
            "-c",
            "import tachikoma_worker.engine.engine",
            user="nobody",
            cwd="/",
            stderr=asyncio.subprocess.DEVNULL,
        )
        able = await probe.wait() == 0
    except PermissionError:
        able = False
    need(able, f"a Python with Tachikoma that every user may run, not {python}")
    folder = Path(tempfile.mkdtemp(prefix="tk-"))
    folder.chmod(0o755)
    name = f"tachikoma-test-{folder.name}"
    # As systemd makes a unit's: of v1 not for the freezer, of v2 with controllers passed on to it.
    where, top = f"/{name}.service", Path("/sys/fs/cgroup")
    trees = [tree for tree in (top / "memory", top / "pids") if tree.exists()]
    services = [tree / where[1:] for tree in trees or [top]]
    if not trees:
        (top / "cgroup.subtree_control").write_text("+memory +pids")
    for service in services:
        service.mkdir()
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tachikoma", "spawner", "--agent-id", "a", "--socket", str(folder / "s")),
        *("--worker-user", "nobody", "--cgroup-name", name, "--cgroup", where),
    )
    try:
        async with asyncio.timeout(PROGRAM_SECONDS):
            while not (folder / "s").exists():  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.01)
        worker = await asyncio.create_subprocess_exec(
            *(python, "-c", WORKER, str(folder / "s"), name, '{"memory": "64MiB", "pids": 5}', where),
            user="nobody", group="nogroup", extra_groups=[], cwd="/", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await asyncio.wait_for(worker.communicate(), PROGRAM_SECONDS)
        assert out.decode() == f"{pwd.getpwnam('nobody').pw_uid} daemon 0 0\n[]\n"
        assert program.returncode is None
        assert all((service / name / "a").is_dir() for service in services)
    finally:
        program.terminate()
        await program.wait()
        for path in sorted(cgroups_named(name), reverse=True):
            for inner in (*path.glob("*/"), path):
                if inner.is_dir():
                    inner.rmdir()
        for service in services:
            service.rmdir()
        (folder / "s").unlink(missing_ok=True)
        folder.rmdir()
