"""Commands of root: what they reach of the host and the agent, at each level, and with `hostAccess`."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from calls import numbers
from host import Host, a_host, becomes_true, python, read_all, read_line

from processes import cgroups_named
from tachikoma.vocabulary.isolation import Isolation, TmpScope
from tachikoma_worker.confinement import launch
from tachikoma_worker.confinement.isolation.abilities import Abilities
from tachikoma_worker.confinement.isolation.enclosures import OPEN_SOCKETS
from tachikoma_worker.confinement.refusals import Refused
from tachikoma_worker.confinement.spawner import Spawner

LEVELS = [None, Isolation.PRIVATE, Isolation.SEALED]

pytestmark = pytest.mark.usefixtures("isolating")


#: Each tries to do something to the host or the agent, and prints what it did.
ROOT_WAYS = """
import ctypes, glob, json, os, socket, stat, sys
data, asked = sys.argv[1], json.loads(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)

def write(path, text="x"):
    with open(path, "w") as file:
        file.write(text)

def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")

def connect(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)

def one_of(way, places):
    # Succeed if it works with any of the places.
    done = 0
    for place in places:
        try:
            way(place)
            done = 1
        except OSError:
            pass
    check(done - 1)

def hierarchies():
    # The root of each one, and some of what is below.
    paths = glob.glob("/sys/fs/cgroup/cgroup.procs") + glob.glob("/sys/fs/cgroup/*/cgroup.procs")
    return paths + glob.glob("/sys/fs/cgroup/**/cgroup.procs", recursive=True)[:50]

def parameters():
    paths = glob.glob("/sys/module/*/parameters/*")
    return [path for path in paths if os.stat(path).st_mode & 0o200][:50]

WAYS = {
    "agent key": lambda: open(f"{data}/secret").read(),
    "agent key by the first process": lambda: open(f"/proc/1/root{data}/secret").read(),
    "agent key by the worker": lambda: open(f"/proc/{asked['process']}/root{data}/secret").read(),
    "spawner": lambda: connect(f"{data}/spawner.sock"),
    "cgroups": lambda: one_of(lambda path: write(path, "0"), hierarchies()),
    "new cgroup": lambda: os.mkdir(glob.glob("/sys/fs/cgroup/*/")[0] + "escape"),
    "core_pattern": lambda: open("/proc/sys/kernel/core_pattern", "w").close(),
    "module parameters": lambda: one_of(lambda path: os.open(path, os.O_WRONLY), parameters()),
    "power": lambda: open("/sys/power/state", "w").close(),
    "cron": lambda: write("/etc/cron.d/escape"),
    "etc": lambda: write("/etc/tachikoma-escape"),
    "programs": lambda: write("/usr/bin/tachikoma-escape"),
    "kernel messages": lambda: write("/dev/kmsg"),
    "memory": lambda: open("/dev/mem", "rb").read(1),
    "disks": lambda: [open(path, "rb").read(1) for path in glob.glob("/dev/[vs]d[a-z]")][0],
    "mknod": lambda: os.mknod("/tmp/disk", stat.S_IFBLK | 0o600, os.makedev(254, 0)),
    "mount": lambda: check(libc.mount(b"none", b"/mnt", b"tmpfs", 0, None)),
    "remount": lambda: check(libc.mount(None, b"/", None, 32, None)),
    "uncover": lambda: check(libc.umount2(data.encode(), 2)),
    "uncover tmp": lambda: check(libc.umount2(b"/tmp", 2)),
    "host mounts": lambda: check(libc.setns(os.open("/proc/1/ns/mnt", os.O_RDONLY), 0)),
    "modules": lambda: check(libc.syscall(asked["calls"]["finit_module"], os.open("/bin/true", os.O_RDONLY), b"", 0)),
    "unshare": lambda: check(libc.unshare(0x20000)),
    "kexec": lambda: check(libc.syscall(asked["calls"]["kexec_load"], 0, 0, None, 0)),
    "sockets": lambda: one_of(connect, asked["sockets"]),
    "abstract": lambda: connect("\\0" + asked["abstract"]),
    "spawner's process": lambda: os.kill(asked["spawner"], 0),
    "another process": lambda: os.kill(asked["process"], 0),
    "all processes": lambda: os.listdir(f"/proc/{asked['spawner']}"),
}
for name, way in WAYS.items():
    try:
        way()
    except (OSError, IndexError):
        continue
    print(name)
"""


@contextmanager
def services(host: Host) -> Iterator[dict[str, Any]]:
    """Services of the host, as root has them: what a command of root looks for, by name."""
    # As those of D-Bus, of root's own systemd, and of a terminal multiplexer.
    folders = [Path("/run", host.name), Path("/run/user", host.name), Path("/tmp", host.name)]
    with ExitStack() as stack:
        for folder in folders:
            stack.callback(shutil.rmtree, folder)
            folder.mkdir(parents=True)
            stack.enter_context(listening(str(folder / "private")))
        stack.enter_context(listening(f"\0{host.name}"))
        assert host.spawner._started is not None
        yield {
            "sockets": [str(folder / "private") for folder in folders], "abstract": host.name,
            "spawner": host.spawner._started.pid, "process": os.getpid(),
            "calls": numbers("finit_module", "kexec_load"),
        }  # fmt: skip


@contextmanager
def listening(path: str) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        yield


@pytest.mark.parametrize("level", LEVELS)
async def test_root_reaches_neither_the_agent_nor_the_host(host: Host, level: Isolation | None) -> None:
    (host.folder / "secret").write_text("key")
    with services(host) as asked:
        command = python(ROOT_WAYS, str(host.folder), json.dumps(asked))
        status, out, err = await host.run(*command, user="root", host_access=False, isolation=level)
    open_ways = ["abstract"] if host.abilities.scopes and level is not Isolation.SEALED else []
    assert (status, err, out.decode().splitlines()) == (0, b"", open_ways)


@pytest.mark.parametrize("level", LEVELS)
async def test_with_host_access_root_changes_the_host_but_not_the_agent(host: Host, level: Isolation | None) -> None:
    (host.folder / "secret").write_text("key")
    path = Path("/etc/tachikoma-escape")
    ways = ROOT_WAYS.replace('"cron"', '"cron.d"').replace("/etc/cron.d/escape", "/etc/cron.d/tachikoma-escape")
    # What reboots or suspends the host is not tried.
    ways = "\n".join(
        line for line in ways.splitlines() if not any(word in line for word in ("power", "core_", "kexec"))
    )
    try:
        with services(host) as asked:
            command = python(ways, str(host.folder), json.dumps(asked))
            status, out, err = await host.run(*command, user="root", isolation=level)
        assert (status, err, path.exists()) == (0, b"", True)
    finally:
        for left in (path, Path("/etc/cron.d/tachikoma-escape"), Path("/usr/bin/tachikoma-escape")):
            left.unlink(missing_ok=True)
    done = set(out.decode().splitlines())
    assert done >= {"etc", "programs", "sockets", "module parameters"}
    agent = {
        "agent key", "agent key by the first process", "agent key by the worker", "spawner", "cgroups", "new cgroup",
        "uncover", "unshare",
    }  # fmt: skip
    if level or not host.abilities.scopes:
        agent |= {"spawner's process", "another process"}
    if level:
        agent |= {"all processes"}
    assert not done & agent


#: Tries to connect to each place after a line of input, and prints those where it could.
LATER = """
import socket, sys
print("ready", flush=True)
sys.stdin.readline()
for path in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            continue
    print(path)
"""


@pytest.mark.any_kernel
@pytest.mark.parametrize("level", LEVELS)
async def test_sockets_that_appear_while_a_command_of_root_runs_are_out_of_its_reach(
    host: Host, level: Isolation | None
) -> None:
    present, later = Path("/run", host.name), Path("/run", f"{host.name}-later")
    present.mkdir()
    paths = [str(present / "socket"), str(later / "socket")]
    values: dict[str, Any] = {"user": "root", "host_access": False, "isolation": level, "interactive": True}
    try:
        async with host.running(*python(LATER, *paths), **values) as it:
            assert await read_line(it.process.stdout) == b"ready\n"
            later.mkdir()
            with ExitStack() as stack:
                for path in paths:
                    stack.enter_context(listening(path))
                await it.process.feed(0, b"\n")
                assert await read_all(it.process.stdout) == b""
                assert (await it.exit()).status == 0
    finally:
        for folder in (present, later):
            shutil.rmtree(folder, ignore_errors=True)


#: Reads a file again after each line of input, and prints what it got.
READER = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    try:
        print(open(sys.argv[1]).read(), flush=True)
    except OSError:
        print("nothing", flush=True)
"""


@pytest.mark.any_kernel
@pytest.mark.parametrize("host_access", [True, False])
@pytest.mark.parametrize("level", LEVELS)
async def test_a_mask_holds_when_the_host_replaces_the_agents_file(
    host: Host, level: Isolation | None, host_access: bool
) -> None:
    folder = Path("/etc", host.name)
    password, new = folder / "password", folder / "new"
    values: dict[str, Any] = {
        "user": "root", "host_access": host_access, "isolation": level, "interactive": True,
        "settings": {"redis_password_file": password},
    }  # fmt: skip
    folder.mkdir()
    try:
        password.write_text("hush")
        async with host.running(*python(READER, str(password)), **values) as it:
            assert await read_line(it.process.stdout) == b"ready\n"
            await it.process.feed(0, b"\n")
            assert await read_line(it.process.stdout) == b"nothing\n"
            new.write_text("hush again")
            new.replace(password)
            await it.process.feed(1, b"\n")
            assert await read_line(it.process.stdout) == b"nothing\n"
            password.unlink()
            password.write_text("once more")
            await it.process.feed(2, b"\n")
            assert await read_line(it.process.stdout) == b"nothing\n"
    finally:
        shutil.rmtree(folder)


#: Leaves processes that have left its session, and says so.
LEAVER = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        time.sleep(600)
    os.wait()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("level", "host_access"), [(level, access) for level in LEVELS for access in (True, False) if level or not access]
)
async def test_no_process_of_root_survives_by_leaving_its_cgroup(
    host: Host, limits: None, level: Isolation | None, host_access: bool
) -> None:
    values: dict[str, Any] = {"user": "root", "host_access": host_access, "isolation": level}
    async with host.running(*python(LEAVER), **values) as it:
        assert await read_line(it.process.stdout) == b"ready\n"
        members = members_of(host.name)
        assert len(members) >= 4
        # The command cannot do this by itself, so the host does it.
        top = Path("/sys/fs/cgroup")
        unified = (top / "cgroup.procs").exists()
        for path in [top / "cgroup.procs"] if unified else list(top.glob("*/cgroup.procs")):
            for pid in members:
                path.write_text(str(pid))
        assert members_of(host.name) == []
        assert await it.process.kill(0.1) == []
        await it.exit()
        await becomes_true(lambda: not any(alive(pid) for pid in members))


def members_of(name: str) -> list[int]:
    """The processes in the cgroups of a test."""
    folders = [path for top in cgroups_named(name) for path in (top, *top.rglob("*")) if path.is_dir()]
    found = {int(line) for folder in folders for line in (folder / "cgroup.procs").read_text().split()}
    return sorted(found)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.any_kernel
@pytest.mark.parametrize(
    ("user", "host_access", "level", "tags"),
    [
        ("root", False, None, set()), ("root", False, Isolation.SEALED, set()),
        ("nobody", False, Isolation.PRIVATE, set()), ("nobody", False, Isolation.SEALED, set()),
        ("root", True, None, {"master"}), ("root", True, Isolation.PRIVATE, {"master"}),
    ],
)  # fmt: skip
async def test_mounts_that_the_host_makes_later_appear_only_with_host_access(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str, host_access: bool, level: Isolation | None,
    tags: set[str],
) -> None:  # fmt: skip
    # A namespace whose mounts are shared, as systemd makes them on a host.
    shared = tmp_path / "spawner"
    shared.write_text(f'#!/bin/sh\nexec unshare --mount --propagation shared {launch.PROGRAM} "$@"\n')
    shared.chmod(0o755)
    monkeypatch.setattr(launch, "PROGRAM", shared)
    async with a_host() as host:
        command = ("/bin/cat", "/proc/self/mountinfo")
        status, out, err = await host.run(*command, user=user, host_access=host_access, isolation=level)
    assert (status, err) == (0, b"")
    # Optional fields, before the hyphen (proc_pid_mountinfo(5)): `shared:1`, `master:1`.
    fields = [field for line in out.decode().splitlines() for field in line.split(" - ")[0].split()[6:]]
    assert {field.partition(":")[0] for field in fields} == tags


@pytest.mark.any_kernel
async def test_root_has_the_files_of_run_that_usual_tools_read(host: Host) -> None:
    listing = "import os; print(sorted(os.path.join(d, f) for d, _, fs in os.walk('/run') for f in fs))"
    wanted = Path("/run/reboot-required")
    made = not wanted.exists()
    if made:
        wanted.write_text("yes")
    try:
        status, out, err = await host.run(*python(listing), user="root", host_access=False)
        assert (status, err) == (0, b"")
        found = json.loads(out.decode().replace("'", '"'))
        assert str(wanted) in found
        assert all(Path(path).is_file() and not path.endswith("/private") for path in found)
        _, out, _ = await host.run("/bin/cat", str(wanted), user="root", host_access=False)
        assert out.decode() == wanted.read_text()
        write = "open('/run/x', 'w')"
        status, _, err = await host.run(*python(write), user="root", host_access=False)
        assert (status, b"Read-only file system" in err) == (1, True)
    finally:
        if made:
            wanted.unlink()


@pytest.mark.any_kernel
async def test_temporary_files_of_root_are_not_those_of_the_host(host: Host) -> None:
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        path = Path(folder, host.name)
        values: dict[str, Any] = {"user": "root", "host_access": False}
        assert await host.run("/bin/touch", str(path), **values) == (0, b"", b"")
        assert not path.exists()
        status, _, _ = await host.run("/bin/touch", str(path), tmp=TmpScope.HOST, **values)
        assert (status, path.exists()) == (0, True)
        path.unlink()


@pytest.mark.any_kernel
async def test_the_receipt_of_root_names_what_holds_and_what_does_not(host: Host) -> None:
    for host_access, level in ((False, Isolation.PRIVATE), (True, Isolation.SHARED)):
        prepared = host.prepare(
            "/bin/true", user="root", host_access=host_access, settings={"redis_password_file": "/etc/tk-password"}
        )
        report = prepared.enclosure.report()
        prepared.discard()
        assert report is not None
        assert (report.level, report.host_access) == (level, host_access)
        assert {"agent files", "cgroup files"} <= set(report.parts)
        assert ("processes" in report.parts) is not host_access
        assert ("signals" in report.parts) is not bool(host_access and host.abilities.scopes)
        assert ({"host files", "devices", "sockets in /run"} <= set(report.parts)) is not host_access
        assert (OPEN_SOCKETS in report.missing) is not host_access


async def test_root_has_temporary_folders_terminals_and_devices(host: Host) -> None:
    code = (
        "import os, pty; m, s = pty.openpty(); os.write(s, b'x'); print(os.read(m, 1), sorted(os.listdir('/dev')));"
        "open('/dev/null', 'w').write('x'); open('/tmp/root-x', 'w').close(); os.unlink('/tmp/root-x')"
    )
    status, out, err = await host.run(*python(code), user="root", host_access=False)
    assert (status, err) == (0, b"")
    assert b"b'x'" in out
    assert b"'kmsg'" not in out


async def test_where_root_cannot_be_kept_from_the_host_policy_must_allow_it(host: Host) -> None:
    host.abilities = Abilities.none("a test")
    with pytest.raises(Refused, match="set hostAccess in the policy"):
        host.prepare("/bin/true", user="root", host_access=False)
    with pytest.raises(Refused, match="cannot isolate commands at private: a test"):
        host.prepare("/bin/true", isolation=Isolation.PRIVATE)
    prepared = host.prepare("/bin/true", user="root")
    report = prepared.enclosure.report()
    prepared.discard()
    assert report is not None
    assert report.missing == ("agent files and processes: a test",)


#: The spawner's unit.
UNIT = Path(__file__).parents[2] / "packaging/systemd/tachikoma-spawner.service"


async def test_the_capabilities_of_the_unit_are_enough_for_each_level(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "TACHIKOMA_TEST_CGROUPS" in os.environ:
        pytest.skip("a container has capabilities of its own")
    lines = [line for line in UNIT.read_text().splitlines() if line.startswith("CapabilityBoundingSet=")]
    names = [name.removeprefix("CAP_").lower() for line in lines for name in line.partition("=")[2].split()]
    # systemd adds the lines up; as it, no program of the spawner can gain more.
    limited = tmp_path / "spawner"
    limited.write_text(
        f'#!/bin/sh\nexec setpriv --no-new-privs --bounding-set=-all,+{",+".join(names)} {launch.PROGRAM} "$@"\n'
    )
    limited.chmod(0o755)
    monkeypatch.setattr(launch, "PROGRAM", limited)
    spawner = Spawner.connect(host.folder / "limited.sock")
    # Often, since a start may depend on which of two processes is quicker.
    found = [spawner.abilities() for _ in range(50)]
    spawner.attach()
    await spawner.stop()
    for abilities in found:
        assert (abilities.levels, abilities.masks, abilities.read_only) == (
            host.abilities.levels, host.abilities.masks, host.abilities.read_only,
        )  # fmt: skip
