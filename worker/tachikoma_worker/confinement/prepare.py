"""What an agent checks and decides between a genuine order and the start of its command.

User by name, environment from empty, working directory beneath one that policy names, and an executable that nobody but
root can have put there. What is checked here is what runs: the file by its descriptor, the directory by the kernel.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import pwd
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from tachikoma.errors import PermissionDenied
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.policy.decide import PolicySet
from tachikoma.policy.environment import forbidden
from tachikoma.policy.interpreters import is_interpreter
from tachikoma.policy.narrowing import narrow
from tachikoma.policy.patterns import CommandPattern
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma.vocabulary.limits import CAPABILITIES
from tachikoma_worker.cgroups.cgroups import Cgroup, Hierarchy
from tachikoma_worker.confinement.spawner import Process, Spawner, SpawnFailed, SpawnRequest, Step
from tachikoma_worker.settings import WorkerSettings

__all__ = [
    "Account",
    "CannotExecute",
    "Executable",
    "Prepared",
    "Refused",
    "account",
    "environment",
    "narrowed",
    "open_executable",
    "prepare",
    "start",
]

log = structlog.get_logger(__name__)

#: What the agent itself puts into the environment.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: As many symbolic links on one path as the kernel follows (path_resolution(7)).
MAX_LINKS = 40
#: How many scripts may stand between a program and what interprets it, and how long its first line may be (execve(2)).
MAX_INTERPRETERS = 4
FIRST_LINE_BYTES = 256


class Refused(Exception):
    """The agent will not run the order; the message says why. Nothing was started."""


class CannotExecute(Exception):
    """The program does not exist (127) or may not be executed (126), as shells tell it."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this host."""

    name: str
    uid: int
    gid: int
    home: str
    groups: tuple[int, ...]

    def may_execute(self, found: os.stat_result) -> bool:
        """Whether the permission bits of a file let this user execute it (or enter it, for a directory)."""
        if self.uid == 0:
            return bool(found.st_mode & 0o111)
        if found.st_uid == self.uid:
            return bool(found.st_mode & 0o100)
        if found.st_gid == self.gid or found.st_gid in self.groups:
            return bool(found.st_mode & 0o010)
        return bool(found.st_mode & 0o001)


@dataclass(frozen=True, slots=True)
class Executable:
    """A file that was checked, and is to be executed by its descriptor."""

    path: str
    #: Of the program that was asked for (not of its interpreter), with all symbolic links resolved.
    real_path: str
    #: Open without any right but to be executed; the holder closes it.
    fd: int
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was checked and made for one order."""

    order: WorkOrder
    user: Account
    environment: dict[str, str]
    executable: Executable
    cgroup: Cgroup

    def discard(self) -> None:
        """Give it all back. Blocks while the kernel removes the cgroup."""
        os.close(self.executable.fd)
        if not self.cgroup.remove():
            log.warning("cgroup.not_removed", id=self.order.jti)


def narrowed(order: WorkOrder, policies: PolicySet, labels: Mapping[str, str]) -> WorkOrder:
    """The order as far as the agent's own policy lets it be.

    Raises:
        Refused: it does not.
    """
    folders = [posixpath.dirname(executable.path) for executable in order.grant.executables]
    try:
        local = policies.decide(order.request, order.sub, folders, labels, order.client_ip)
        grant = narrow(order.grant, local)
    except PermissionDenied as error:
        raise Refused(str(error)) from None
    if local.approvers and not local.approvable_by(order.approved_by, order.sub):
        who = order.approved_by or "nobody"
        raise Refused(
            f"the agent's own policy requires an approval by {' or '.join(local.approvers)}, and {who} gave one"
        )
    return order.model_copy(update={"grant": grant})


def prepare(order: WorkOrder, settings: WorkerSettings, spawner_uid: int, cgroups: Hierarchy) -> Prepared:
    """Check what is to run, and make its cgroup. Blocks.

    Raises:
        Refused, CannotExecute: it must not, or cannot, run here.
    """
    request, grant = order.request, order.grant
    lacking = cgroups.missing(grant.limits)
    if lacking and settings.limits == "enforce":
        raise Refused(f"this agent cannot enforce the limits of {', '.join(lacking)}: no such cgroup controller")
    user = account(request.user, settings.user, spawner_uid)
    variables = environment(request.environment, user)
    executable = open_executable(request.command, grant.executables, user, frozenset({0, spawner_uid}))
    try:
        check_real_path(executable.real_path, request.command, grant)
    except BaseException:
        os.close(executable.fd)
        raise
    try:
        cgroup = cgroups.make(order.jti, grant.limits)
    except OSError as error:
        os.close(executable.fd)
        raise Refused(f"cannot make its cgroup: {error}") from error
    return Prepared(order, user, variables, executable, cgroup)


async def start(prepared: Prepared, spawner: Spawner) -> Process:
    """Start what was prepared.

    Raises:
        Refused, CannotExecute: a step failed; nothing was started.
        SpawnerGone: whether it was started nobody knows.
    """
    order, user = prepared.order, prepared.user
    if user.uid == 0 and (beyond := order.grant.capabilities & ~spawner.capabilities):
        names = [name for number, name in enumerate(CAPABILITIES) if beyond >> number & 1]
        raise Refused(f"this agent lets no command keep {', '.join(names)}; see its setting capabilities")
    root, beneath = _work_dir(order, user)
    stdin = _stdin(order.request.stdin)
    try:
        return await spawner.spawn(
            SpawnRequest(
                name=order.jti,
                uid=user.uid,
                gid=user.gid,
                groups=user.groups,
                capabilities=order.grant.capabilities,
                work_dir_root=root,
                work_dir=beneath,
                executable=prepared.executable.path,
                executable_fd=prepared.executable.fd,
                argv=prepared.executable.argv,
                environment=prepared.environment,
                stdin_fd=stdin,
                cgroup_fds=prepared.cgroup.fds,
                unified=prepared.cgroup.unified,
            )
        )
    except SpawnFailed as failure:
        raise _explain(failure, prepared.executable.path, order.request.work_dir or root, user) from None
    finally:
        if stdin is not None:
            os.close(stdin)


def _work_dir(order: WorkOrder, user: Account) -> tuple[str, str]:
    """The directory that policy or the account names, and the way from there to the working directory."""
    wanted, root = order.request.work_dir, order.grant.work_dir_root
    if not wanted:
        return (user.home if os.path.isdir(user.home) else "/"), ""  # noqa: PTH112
    return root, wanted.removeprefix(root).strip("/")


def _stdin(content: bytes) -> int | None:
    """A memory file with what the command reads, so that nothing has to be fed while it runs."""
    if not content:
        return None
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def account(wanted: str, default: str, spawner_uid: int) -> Account:
    """The user a command runs as.

    Args:
        wanted: what the request names, or empty.
        default: what the agent's operator configured, or empty.
        spawner_uid: whom the spawner runs as; only 0 can become another.

    Raises:
        Refused: there is no such user, or the spawner cannot become it.
    """
    name = wanted or default
    if not name and spawner_uid == 0:
        name = "nobody"
    try:
        entry = pwd.getpwnam(name) if name else pwd.getpwuid(spawner_uid)
    except KeyError:
        if name:
            raise Refused(f"there is no user {name!r} on this agent") from None
        return Account(str(spawner_uid), spawner_uid, os.getgid(), "/", tuple(os.getgroups()))
    if spawner_uid not in (0, entry.pw_uid):
        raise Refused(f"this agent runs as {user_name(spawner_uid)} and cannot become {entry.pw_name}")
    if entry.pw_uid == 0 and entry.pw_name not in (wanted, default):
        raise Refused("commands run as root only where root is named")
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir, groups)


def user_name(uid: int) -> str:
    """A user's name, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def environment(asked: dict[str, str], user: Account) -> dict[str, str]:
    """The whole environment of a command.

    Raises:
        Refused: a variable is asked for that is never let through.
    """
    for name, value in asked.items():
        if why := forbidden(name, value):
            raise Refused(f"environment: {why}")
    return {
        "LANG": "C.UTF-8",
        **asked,
        "PATH": PATH,
        "HOME": user.home,
        "USER": user.name,
        "LOGNAME": user.name,
    }


def open_executable(
    command: Sequence[str], granted: Sequence[GrantedExecutable], user: Account, trusted: frozenset[int]
) -> Executable:
    """Find, check and open the program of a command.

    A script is executed by its interpreter, which is checked in the same way and gets the script's path: nobody who is
    not trusted can put another file there, since that is what was checked of all folders on the way.

    Args:
        command: the argv.
        granted: what the program may be; the first that can be executed is.
        user: who will execute it.
        trusted: who may own it and the folders on the way to it.

    Raises:
        CannotExecute: there is no such program, or it may not be executed.
        Refused: somebody who is not trusted could have put it there, or it changes its user.
    """
    name, argv = command[0], tuple(command)
    grant = _first(name, granted)
    path = grant.path
    real_path = ""
    for depth in range(MAX_INTERPRETERS + 1):
        fd = _open_checked(path, user, trusted, named=grant.named and not depth)
        try:
            if grant.sha256 and not depth:
                _check_content(path, fd, grant.sha256)
            real_path = real_path or os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
            line = _first_line(path)
        except BaseException:
            os.close(fd)
            raise
        if line is None:
            return Executable(path, real_path, fd, argv)
        os.close(fd)
        interpreter, _, argument = line.partition(" ")
        argument = argument.strip()
        argv = (interpreter, *((argument,) if argument else ()), path, *argv[1:])
        if not interpreter.startswith("/"):
            raise CannotExecute(126, f"{path}: its interpreter is not an absolute path: {interpreter!r}")
        if not os.path.exists(interpreter):  # noqa: PTH110 (as everything here)
            raise CannotExecute(127, f"{path}: the interpreter it names was not found: {interpreter}")
        path = interpreter
    raise CannotExecute(126, f"{name}: scripts interpret each other more than {MAX_INTERPRETERS} times")


def check_real_path(real_path: str, command: Sequence[str], grant: Grant) -> None:
    """See that a granted path is no other name for what policy denies. What a path leads to only the agent knows.

    Raises:
        Refused: it is.
    """
    if not grant.interpreters and is_interpreter(real_path):
        raise Refused(
            f"{command[0]} leads to {real_path}, which runs whatever it is told to; policy does not allow that"
        )
    for text in grant.denied:
        if CommandPattern(text, deny=True).matches(real_path, command[1:]):
            raise Refused(f"{command[0]} leads to {real_path}, and policy denies {text!r}")


def _first(name: str, granted: Sequence[GrantedExecutable]) -> GrantedExecutable:
    found = ""
    for grant in granted:
        path = grant.path
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116 (one system call on the way of every command)
        except OSError as error:
            if error.errno == errno.EACCES:
                found = found or path
            continue
        if stat.S_ISREG(mode) and mode & 0o111:
            return grant
        found = found or path
    if not found:
        raise CannotExecute(127, f"{name}: command not found")
    what = "is a directory" if os.path.isdir(found) else "permission denied"  # noqa: PTH112
    raise CannotExecute(126, f"{found}: {what}")


def _open_checked(path: str, user: Account, trusted: frozenset[int], *, named: bool) -> int:
    _check_way(path, trusted)
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise CannotExecute(126, f"{path}: {error.strerror}") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise CannotExecute(126, f"{path}: is no regular file")
        if why := _untrusted(found, trusted):
            raise Refused(f"will not execute {path}: it {why}")
        changes = (found.st_mode & stat.S_ISUID and found.st_uid != user.uid) or (
            found.st_mode & stat.S_ISGID and found.st_gid != user.gid
        )
        if changes and not named:
            raise Refused(
                f"will not execute {path}: it is made to change its user or group, and policy has it by a wildcard"
            )
        if not user.may_execute(found):
            raise CannotExecute(126, f"{path}: permission denied for {user.name}")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_content(path: str, fd: int, pins: Sequence[str]) -> None:
    with open(f"/proc/self/fd/{fd}", "rb") as file:  # noqa: PTH123 (the very file that was opened)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest not in pins:
        raise Refused(f"will not execute {path}: policy pins its content, and this is another (SHA-256 {digest})")


def _untrusted(found: os.stat_result, trusted: frozenset[int]) -> str:
    if found.st_uid not in trusted:
        return f"belongs to {user_name(found.st_uid)}"
    # In a sticky folder only its owner and that of an entry can change the entry, and both are trusted.
    sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if found.st_mode & 0o022 and not stat.S_ISLNK(found.st_mode) and not sticky:
        return "can be written by group or others"
    return ""


def _check_way(path: str, trusted: frozenset[int]) -> None:
    """See that each folder and symbolic link on the way to a file is in nobody's hands but those of the trusted.

    Raises:
        Refused: it is not.
        CannotExecute: the way ends nowhere.
    """
    left = [part for part in path.split("/") if part][::-1]
    here = "/"
    links = 0
    while True:
        try:
            found = os.lstat(here)
        except OSError as error:
            raise CannotExecute(126, f"{path}: {error.strerror}: {here}") from None
        if why := _untrusted(found, trusted):
            raise Refused(f"will not execute {path}: {here} {why}")
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > MAX_LINKS:
                raise CannotExecute(126, f"{path}: too many symbolic links")
            target = os.readlink(here)  # noqa: PTH115
            left += [part for part in target.split("/") if part][::-1]
            here = "/" if target.startswith("/") else os.path.dirname(here)  # noqa: PTH120
            continue
        if not left:
            return
        part = left.pop()
        if part == "..":
            here = os.path.dirname(here)  # noqa: PTH120
        elif part != ".":
            here = os.path.join(here, part)  # noqa: PTH118


def _first_line(path: str) -> str | None:
    """What stands behind `#!`; None in a program."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError:
        # A file that may be executed and not read is no script.
        return None
    except OSError as error:
        raise CannotExecute(126, f"{path}: {error.strerror}") from None
    try:
        head = os.read(fd, FIRST_LINE_BYTES)
    finally:
        os.close(fd)
    if not head.startswith(b"#!"):
        return None
    line, newline, _ = head[2:].partition(b"\n")
    if not newline and len(head) == FIRST_LINE_BYTES:
        raise CannotExecute(126, f"{path}: its first line is longer than {FIRST_LINE_BYTES} bytes")
    words = os.fsdecode(line.replace(b"\t", b" ").strip())
    if not words:
        raise CannotExecute(126, f"{path}: names no interpreter")
    return words


def _explain(error: SpawnFailed, path: str, work_dir: str, user: Account) -> Exception:
    """A failed step of the spawner, as what it means for the order."""
    why = os.strerror(error.errno)
    match error.step:
        case Step.WORK_DIR_ROOT | Step.WORK_DIR:
            if error.errno == errno.EXDEV:
                why = "it leads out of the directory that policy names"
            return Refused(f"cannot enter the directory {work_dir!r} as {user.name}: {why}")
        case Step.REACH:
            return CannotExecute(126, f"{path}: {why} for {user.name}")
        case Step.SWAPPED:
            return Refused(f"will not execute {path}: it was exchanged while it was checked")
        case Step.EXECUTE if error.errno == errno.ENOENT:
            # The file is there, so it is its dynamic loader that is missing.
            return CannotExecute(127, f"{path}: the interpreter it names was not found")
        case Step.EXECUTE if error.errno in (errno.EACCES, errno.ENOEXEC, errno.EISDIR, errno.ELIBBAD):
            return CannotExecute(126, f"{path}: {why}")
        case Step.EXECUTE if error.errno == errno.E2BIG:
            return Refused(f"{path}: arguments and environment are too long for this host")
        case Step.CGROUP:
            return Refused(f"cannot join the cgroup: {why}")
        case Step.USER | Step.GROUPS:
            return Refused(f"cannot become {user.name}: {why}")
        case Step.CAPABILITIES:
            return Refused(f"cannot give up capabilities: {why}")
        case _:
            return Refused(f"cannot be started: {error}")
