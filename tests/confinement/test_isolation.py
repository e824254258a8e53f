"""Executions cannot reach each other, nor the agent: what each level denies, and what it allows."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from host import Host, python, read_all, read_line

from tachikoma.vocabulary.isolation import Isolation, TmpScope
from tachikoma.vocabulary.requests import Terminal
from tachikoma_worker.confinement.isolation.enclosures import Enclosures
from tachikoma_worker.confinement.refusals import Refused

ALICE, BOB = "spiffe://x/user/alice", "spiffe://x/user/bob"
ISOLATED = [Isolation.PRIVATE, Isolation.SEALED]
#: No user is named, so that requesters get users of their own where commands are isolated.
NO_USER = {"settings": {"user": ""}}


pytestmark = pytest.mark.usefixtures("isolating")


# --- executions of two requesters -------------------------------------------------------------------------------------

#: Holds a secret in each place where another process might look for it, and says where.
VICTIM = """
import ctypes, json, os, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
secret = ctypes.create_string_buffer(b"hush" + b"-hush", 64)
stay = True
path = f"/tmp/victim-{os.getpid()}"
handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
os.write(handle, b"hush")
with open("/dev/shm/victim", "w") as file:
    file.write("hush")
libc.shmget.restype = ctypes.c_int
segment = libc.shmget(0x7ac1, 4096, 0o1600)
libc.syscall.restype = ctypes.c_long
libc.syscall(KEYCTL_ADD, b"user", b"victim", b"hush", 4, -4)
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0tachikoma-victim")
listener.listen()
pid = int(os.readlink("/proc/self"))
print(json.dumps({"path": path, "handle": handle, "address": ctypes.addressof(secret), "own": pid}), flush=True)
while stay:
    # An event for those who watch the folder.
    os.utime(path)
    time.sleep(0.02)
"""

#: Tries each way, given the victim's process and its places, and prints those that lead to it.
ATTACKER = """
import ctypes, json, os, select, signal, socket, sys, time
pid, places = int(sys.argv[1]), json.loads(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = libc.ptrace.restype = ctypes.c_long

def environ():
    return b"hush" in open(f"/proc/{pid}/environ", "rb").read()

def descriptor():
    return os.read(os.open(f"/proc/{pid}/fd/{places['handle']}", os.O_RDONLY), 4) == b"hush"

def file():
    return open(places["path"]).read() == "hush"

def memory():
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        memory.seek(places["address"])
        return memory.read(4) == b"hush"

def trace():
    return libc.ptrace(16, pid, None, None) == 0

def signals():
    os.kill(pid, 0)
    return True

def keys():
    found = libc.syscall(KEYCTL_REQUEST, b"user", b"victim", None, 0)
    if found < 0:
        raise OSError
    return True

def shared_memory():
    return open("/dev/shm/victim").read() == "hush"

def system_v():
    if libc.shmget(0x7ac1, 0, 0) < 0:
        raise OSError
    return True

def listing():
    return str(pid) in os.listdir("/proc")

def abstract():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\\0tachikoma-victim")
    return True

def watch():
    # The victim touches its file all the time, so the wait is long enough for many events.
    queue = libc.inotify_init1(os.O_NONBLOCK)
    if queue < 0 or libc.inotify_add_watch(queue, b"/tmp", 0x4) < 0:
        raise OSError
    name, end = os.path.basename(places["path"]).encode(), time.monotonic() + 2
    while time.monotonic() < end:
        if select.select([queue], [], [], 0.1)[0] and name in os.read(queue, 65536):
            return True
    return False

def names():
    return os.path.basename(places["path"]) in os.listdir("/tmp")

def attempt(way):
    try:
        return way()
    except OSError:
        return False

# `trace` stops the victim, so `watch` comes before.
ways = watch, environ, descriptor, file, memory, trace, signals, keys, shared_memory, system_v, listing, abstract, names
print(json.dumps([way.__name__ for way in ways if attempt(way)]))
"""
#: add_key and request_key, of x86-64 and of AArch64.
KEY_CALLS = {"x86_64": ("248", "249"), "aarch64": ("217", "218")}
WAYS = {
    "environ", "descriptor", "file", "memory", "trace", "signals", "keys", "shared_memory", "system_v", "listing",
    "abstract", "watch", "names",
}  # fmt: skip
#: Those that depend on the host also at `shared`: on Yama, and on what its keyrings are linked with.
VARYING = {"descriptor", "memory", "trace", "keys", "abstract"}


def for_this_machine(code: str) -> str:
    add, request = KEY_CALLS[os.uname().machine]
    return code.replace("KEYCTL_ADD", add).replace("KEYCTL_REQUEST", request)


async def ways_to_the_other(host: Host, level: Isolation | None, user: dict[str, Any] = NO_USER) -> set[str]:
    """Start a command of Alice and return the ways in which one of Bob reaches it."""
    victim = python(for_this_machine(VICTIM))
    values: dict[str, Any] = {"isolation": level, **user}
    async with host.running(*victim, requester=ALICE, environment={"SECRET": "hush"}, **values) as it:
        places = json.loads(await read_line(it.process.stdout))
        attacker = python(for_this_machine(ATTACKER), str(it.process.pid), json.dumps(places))
        status, out, err = await host.run(*attacker, requester=BOB, **values)
        assert (status, err) == (0, b"")
        return set(json.loads(out))


async def test_at_shared_only_the_user_separates_executions(host: Host) -> None:
    segment = "import ctypes; ctypes.CDLL(None).shmctl(ctypes.CDLL(None).shmget(0x7ac1, 0, 0), 0, None)"
    try:
        found = await ways_to_the_other(host, None)
    finally:
        # It outlives its execution, which is a part of what `shared` allows.
        await host.run(*python(segment), **NO_USER)
        Path("/dev/shm/victim").unlink(missing_ok=True)
        for left in Path("/tmp").glob("victim-*"):
            left.unlink()
    assert found >= WAYS - VARYING


@pytest.mark.parametrize("user", [NO_USER, {"user": "nobody"}], ids=["own-user", "same-user"])
@pytest.mark.parametrize("level", ISOLATED)
async def test_no_way_leads_to_another_execution(host: Host, level: Isolation, user: dict[str, Any]) -> None:
    open_ways = {"abstract"} if host.abilities.scopes and level is Isolation.PRIVATE else set()
    assert await ways_to_the_other(host, level, user) == open_ways


@pytest.mark.any_kernel
async def test_nothing_outlives_an_isolated_execution_but_the_temporary_folders(host: Host) -> None:
    victim = for_this_machine(VICTIM).replace("stay = True", "stay = False")
    look = "import os, ctypes; print(sorted(os.listdir('/tmp')), ctypes.CDLL(None).shmget(0x7ac1, 0, 0))"
    values: dict[str, Any] = {"isolation": Isolation.PRIVATE, **NO_USER}
    assert (await host.run(*python(victim), requester=ALICE, **values))[0] == 0
    assert await host.run(*python(look), requester=ALICE, **values) == (0, b"['victim-2'] -1\n", b"")
    assert await host.run(*python(look), requester=BOB, **values) == (0, b"[] -1\n", b"")


# --- temporary folders ------------------------------------------------------------------------------------------------


@pytest.mark.any_kernel
@pytest.mark.parametrize(
    ("scope", "same", "other"),
    [(TmpScope.EXECUTION, b"", b""), (None, b"mark\n", b""), (TmpScope.REQUESTER, b"mark\n", b"")],
)
async def test_temporary_folders_are_those_of_the_requester_or_of_the_execution(
    host: Host, scope: TmpScope | None, same: bytes, other: bytes
) -> None:
    values: dict[str, Any] = {"isolation": Isolation.PRIVATE, "tmp": scope, **NO_USER}
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        assert await host.run("/bin/touch", f"{folder}/mark", requester=ALICE, **values) == (0, b"", b"")
        assert await host.run("/bin/ls", folder, requester=ALICE, **values) == (0, same, b"")
        assert await host.run("/bin/ls", folder, requester=BOB, **values) == (0, other, b"")
        assert not Path(folder, "mark").exists()


@pytest.mark.any_kernel
async def test_temporary_folders_of_the_host_are_given_where_policy_says_so(host: Host) -> None:
    path = Path(f"/tmp/{host.name}")
    status, _, err = await host.run("/bin/touch", str(path), isolation=Isolation.PRIVATE, tmp=TmpScope.HOST)
    assert (status, err, path.exists()) == (0, b"", True)
    path.unlink()


@pytest.mark.any_kernel
@pytest.mark.parametrize("scope", [TmpScope.REQUESTER, TmpScope.EXECUTION])
async def test_temporary_folders_are_bounded(host: Host, scope: TmpScope) -> None:
    small = {"settings": {"user": "", "tmp_bytes": 1024 * 1024, "tmp_inodes": 1000}}
    values: dict[str, Any] = {"isolation": Isolation.PRIVATE, "tmp": scope, **small}
    status, _, err = await host.run("/bin/dd", "if=/dev/zero", "of=/tmp/x", "bs=1M", "count=3", **values)
    assert status == 1
    assert b"No space left on device" in err
    many = "for number in range(2000): open(f'/var/tmp/{number}', 'x')"
    status, _, err = await host.run(*python(many), **values)
    assert (status, b"No space left" in err) == (1, True)


@pytest.mark.any_kernel
async def test_unused_temporary_folders_are_removed_at_once(host: Host) -> None:
    enclosures = host.enclosures(user="", tmp_age="1s")
    values: dict[str, Any] = {"isolation": Isolation.PRIVATE, **NO_USER}
    assert (await host.run("/bin/touch", "/tmp/mark", **values))[0] == 0
    [folder] = (host.folder / "tmp").iterdir()
    assert enclosures.unused() == []
    enclosures._used[str(folder)] -= 2
    assert enclosures.unused() == [str(folder)]
    await host.spawner.drop_tmp(str(folder))
    assert list((host.folder / "tmp").iterdir()) == []
    assert await host.run("/bin/ls", "/tmp", **values) == (0, b"", b"")


# --- users ------------------------------------------------------------------------------------------------------------


@pytest.mark.any_kernel
async def test_each_requester_has_a_user_of_its_own_that_stays_the_same(host: Host) -> None:
    values: dict[str, Any] = {"isolation": Isolation.PRIVATE, **NO_USER}
    show = "import os, pwd; print(os.getuid(), os.getgid(), os.getgroups(), pwd.getpwuid(os.getuid()).pw_name)"
    first = await host.run(*python(show), requester=ALICE, **values)
    assert first == (0, b"70000 70000 [] tachikoma70000\n", b"")
    assert await host.run(*python(show), requester=BOB, **values) == (0, b"70001 70001 [] tachikoma70001\n", b"")
    assert await host.run(*python(show), requester=ALICE, **values) == first
    assert await host.run("/usr/bin/whoami", requester=BOB, **values) == (0, b"tachikoma70001\n", b"")
    # A user that the request names is that of the host.
    named = await host.run("/usr/bin/id", "-un", requester=ALICE, user="nobody", **values)
    assert named == (0, b"nobody\n", b"")


@pytest.mark.any_kernel
async def test_a_range_that_is_used_up_refuses_new_requesters(host: Host) -> None:
    settings = {"settings": {"user": "", "uid_range": "70000-70000"}}
    values: dict[str, Any] = {"isolation": Isolation.PRIVATE, **settings}
    assert (await host.run("/bin/true", requester=ALICE, **values))[0] == 0
    with pytest.raises(Refused, match="all 1 users for requesters are in use; extend the agent's setting uid_range"):
        await host.run("/bin/true", requester=BOB, **values)


# --- sealed -----------------------------------------------------------------------------------------------------------


async def test_a_sealed_command_has_a_network_of_its_own(host: Host) -> None:
    code = (
        "import socket, os; a = socket.create_server(('127.0.0.1', 0)); socket.create_connection(a.getsockname());"
        "print(sorted(name for _, name in socket.if_nameindex()), os.listdir('/proc/self/net') != [])"
    )
    assert await host.run(*python(code), isolation=Isolation.SEALED, **NO_USER) == (0, b"['lo'] True\n", b"")
    listener = __import__("socket").create_server(("127.0.0.1", 0))
    connect = f"import socket; socket.create_connection(('127.0.0.1', {listener.getsockname()[1]}))"
    with listener:
        assert (await host.run(*python(connect), isolation=Isolation.PRIVATE, **NO_USER))[0] == 0
        status, _, err = await host.run(*python(connect), isolation=Isolation.SEALED, **NO_USER)
    assert (status, b"ConnectionRefusedError" in err) == (1, True)


# --- what goes on working ---------------------------------------------------------------------------------------------

#: Processes that are hard to end: daemons, a frozen group, children that ignore everything.
ZOO = """
import os, signal, sys, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
for kind in range(6):
    if os.fork() == 0:
        if kind % 2:
            os.setsid()
        if kind > 1 and os.fork():
            os._exit(0)
        if kind > 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(600)
os.write(1, b"ready\\n")
time.sleep(600)
"""


@pytest.mark.parametrize("level", [None, *ISOLATED])
async def test_everything_of_a_command_is_killed(host: Host, level: Isolation | None) -> None:
    async with host.running(*python(ZOO), isolation=level, **NO_USER) as it:
        assert await read_line(it.process.stdout) == b"ready\n"
        assert await it.process.kill(0.1) == []
        end = await it.exit()
        assert (end.signal, end.exit_code) == (9, 137)
        assert not it.cgroup.populated()


@pytest.mark.any_kernel
@pytest.mark.parametrize("level", ISOLATED)
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import os; os.kill(os.getpid(), 9)", -9), ("import os; os.abort()", -6), ("import sys; sys.exit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15),
        ("import os, signal, time; signal.alarm(1); time.sleep(600)", -14),
    ],
)  # fmt: skip
async def test_a_command_ends_as_it_does_without_isolation(
    host: Host, level: Isolation, code: str, status: int
) -> None:
    assert (await host.run(*python(code), isolation=level, **NO_USER))[0] == status


@pytest.mark.any_kernel
@pytest.mark.parametrize("level", ISOLATED)
async def test_orphans_do_not_stay_zombies(host: Host, level: Isolation) -> None:
    code = (
        "import os, time\n"
        "for _ in range(20):\n"
        "    if os.fork() == 0:\n        os.fork()\n        os._exit(0)\n    os.wait()\n"
        "while len([pid for pid in os.listdir('/proc') if pid.isdigit()]) > 2: time.sleep(0.01)\n"
        "print('clean')"
    )
    assert await host.run(*python(code), isolation=level, **NO_USER) == (0, b"clean\n", b"")


@pytest.mark.any_kernel
@pytest.mark.parametrize("level", ISOLATED)
@pytest.mark.parametrize("host_access", [True, False])
async def test_a_terminal_works(host: Host, level: Isolation, host_access: bool) -> None:
    script = "stty size; tty; read line; echo got $line; exec 3<>/dev/tty && echo controlling"
    values: dict[str, Any] = {"interactive": True, "tty": True, "terminal": Terminal(rows=33, columns=99)}
    command = ("/bin/sh", "-c", script)
    async with host.running(*command, isolation=level, host_access=host_access, user="root", **values) as it:
        await it.process.feed(0, b"hello\r")
        shown = await read_all(it.process.stdout)
        assert (await it.exit()).status == 0
    assert b"33 99" in shown
    assert b"/dev/pts/" in shown
    assert b"got hello" in shown
    assert b"controlling" in shown


@pytest.mark.any_kernel
@pytest.mark.parametrize("level", ISOLATED)
async def test_input_streams_to_an_isolated_command(host: Host, level: Isolation) -> None:
    async with host.running("/bin/cat", isolation=level, interactive=True, **NO_USER) as it:
        await it.process.feed(0, b"one")
        await it.process.feed(3, b" two")
        await it.process.end_input(7)
        assert await read_all(it.process.stdout) == b"one two"
        assert (await it.exit()).exit_code == 0


#: Everyday commands; each must succeed in isolation as it does without. `$T` is a folder for files.
TOOLS = (
    "ls -la /tmp", "ps ax", "df -h", "free", "uptime", "mount", "uname -a", "hostname", "date", "env", "id", "whoami",
    "cat /proc/meminfo /proc/self/status", "find /etc -maxdepth 1", "tar cf $T/x.tar /etc/hostname",
    "gzip -c /etc/hostname", "sort /etc/passwd", "awk 1 /etc/passwd", "sed -n 1p /etc/passwd", "grep root /etc/passwd",
    "head -1 /etc/passwd", "wc /etc/passwd", "stat /etc/passwd", "du -s /etc/init.d", "top -bn1", "git init $T/repo",
    "python3 -c 'import multiprocessing as m; m.Lock(); print(m.cpu_count())'", "perl -e 'print 1'",
    "bash -c 'cat <(echo x)'", "mktemp -p $T", "timeout 5 true", "echo x | xargs echo", "openssl rand -hex 8",
    "echo 'int main(void) {return 0;}' | gcc -x c - -o $T/a && $T/a", "curl -s file:///etc/hostname",
    "ssh -G localhost", "rsync /etc/hostname $T/h", "nice true", "setsid true", "getent passwd root",
)  # fmt: skip


async def statuses(host: Host, folder: str, **values: Any) -> dict[str, str]:
    """The exit status of each tool. A few at a time: none of them writes anything that would show its progress."""
    script = 'for tool in "$@"; do sh -c "$tool" >/dev/null 2>&1; echo $? "$tool"; done'
    found: dict[str, str] = {}
    for begin in range(0, len(TOOLS), 5):
        command = ("/bin/sh", "-c", script, "sh", *TOOLS[begin : begin + 5])
        _, out, _ = await host.run(*command, environment={"T": folder}, **values)
        found |= {tool: status for status, tool in (line.split(" ", 1) for line in out.decode().splitlines())}
    return found


@pytest.mark.any_kernel
@pytest.mark.parametrize("user", ["nobody", "root"])
async def test_usual_tools_run_in_isolation_as_they_do_without(host: Host, user: str) -> None:
    if "cgroup_no_v1=all" in Path("/proc/cmdline").read_text():
        pytest.skip("the virtual machine's emulated processor takes minutes for forty programs")
    # One that every user may enter, which that of `tmp_path` is not.
    with tempfile.TemporaryDirectory(prefix="tk-tools-") as folder:
        Path(folder).chmod(0o1777)
        plain = await statuses(host, folder, isolation=Isolation.SHARED, user=user)
    named = {"user": "root", "host_access": False} if user == "root" else NO_USER
    isolated = await statuses(host, "/tmp", isolation=Isolation.PRIVATE, tmp=TmpScope.EXECUTION, **named)
    assert set(isolated) == set(plain) == set(TOOLS)
    assert {tool for tool, status in plain.items() if status == "0" and isolated[tool] != "0"} == set()
    assert len([tool for tool, status in isolated.items() if status == "0"]) >= 25


# --- evidence and demands ---------------------------------------------------------------------------------------------


@pytest.mark.any_kernel
@pytest.mark.parametrize(
    ("policy", "asked", "floor", "level"),
    [
        (None, None, "shared", Isolation.SHARED),
        (None, None, "private", Isolation.PRIVATE),
        (None, Isolation.SEALED, "private", Isolation.SEALED),
        (Isolation.SEALED, Isolation.SHARED, "shared", Isolation.SEALED),
        (Isolation.SHARED, Isolation.SHARED, "private", Isolation.PRIVATE),
    ],
)
async def test_the_strongest_demand_of_policy_request_and_agent_counts(
    host: Host, policy: Isolation | None, asked: Isolation | None, floor: str, level: Isolation
) -> None:
    prepared = host.prepare("/bin/true", isolation=policy, asked=asked, settings={"user": "nobody", "isolation": floor})
    prepared.discard()
    assert prepared.enclosure.level is level
    report = prepared.enclosure.report()
    assert (report.level if report else Isolation.SHARED) is level


def test_the_agents_files_are_masked_once(host: Host) -> None:
    enclosures = Enclosures(host.settings(identity="unix:///run/spire/agent.sock"), host.abilities)
    assert set(enclosures._secrets) == {str(host.folder), "/run/spire"}
    within = Enclosures(host.settings(identity=host.folder / "identity"), host.abilities)
    assert within._secrets == (str(host.folder),)
