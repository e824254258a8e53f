"""Starting and ending commands: argv without a shell, own session, own pipes, no inherited descriptor.

A command's end is seen through a pidfd, in the engine's own loop. Standard input is a sealed memory file, so nothing
has to be fed while the command runs. Killing goes to the whole process group: TERM, a grace, KILL.
"""

from __future__ import annotations

import asyncio
import errno
import os
import pwd
import signal
import stat
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tachikoma.models import ExecRequest

__all__ = ["CannotExecute", "LocalSpawner", "Process", "Refused"]

#: Size asked for each pipe; the kernel's default of 64 KiB costs throughput.
PIPE_BYTES = 1024 * 1024
#: What the agent itself puts into the environment.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: After KILL, how long to wait for the process to be gone before saying that it is not.
KILL_SECONDS = 5.0


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


class Process:
    """A running command, and the parent's ends of its pipes."""

    def __init__(self, popen: subprocess.Popen[bytes], executable: str) -> None:
        self._popen = popen
        self.pid = popen.pid
        self.executable = executable
        assert popen.stdout is not None
        assert popen.stderr is not None
        self.stdout = popen.stdout.fileno()
        self.stderr = popen.stderr.fileno()
        loop = asyncio.get_running_loop()
        #: The exit status as `subprocess` tells it: -n after signal n.
        self.exited: asyncio.Future[int] = loop.create_future()
        self._pidfd = os.pidfd_open(popen.pid)
        loop.add_reader(self._pidfd, self._on_exit)

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        # Not reaped yet: while it is a zombie its number names this process group and no other.
        info = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
        if not self.exited.done() and info is not None:
            signalled = info.si_code != os.CLD_EXITED
            self.exited.set_result(-info.si_status if signalled else info.si_status)

    def signal_group(self, number: int) -> None:
        """Send a signal to the whole process group."""
        # PermissionError: some members became another user; the others got it.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def kill(self, grace_seconds: float) -> bool:
        """End the command and its process group: TERM, the grace, KILL.

        Returns:
            Whether the command itself is gone.
        """
        self.signal_group(signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.exited), grace_seconds)
        self.signal_group(signal.SIGKILL)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.exited), KILL_SECONDS)
        return self.exited.done()

    def close(self) -> None:
        """Close the pipes, and reap the command if it has ended."""
        if self.exited.done():
            self._popen.wait()
            os.close(self._pidfd)
        for stream in (self._popen.stdout, self._popen.stderr):
            if stream is not None:
                stream.close()


class LocalSpawner:
    """Starts commands as children of this process."""

    def __init__(self, default_user: str) -> None:
        self._default_user = default_user
        self._own_uid = os.getuid()

    def warnings(self) -> list[str]:
        """What this host, or this version, cannot enforce."""
        found = ["commands run without cgroup limits"]
        if self._own_uid != 0:
            found.append(f"commands run as {self._own_name()} only: the worker is not root")
        return found

    def _own_name(self) -> str:
        try:
            return pwd.getpwuid(self._own_uid).pw_name
        except KeyError:
            return str(self._own_uid)

    def account(self, name: str) -> Account:
        """The user a command runs as.

        Raises:
            Refused: there is no such user, or the worker cannot become it.
        """
        wanted = name or self._default_user
        try:
            entry = pwd.getpwnam(wanted) if wanted else pwd.getpwuid(self._own_uid)
        except KeyError:
            if wanted:
                raise Refused(f"there is no user {wanted!r} on this agent") from None
            return Account(str(self._own_uid), self._own_uid, os.getgid(), "/")
        if self._own_uid not in (0, entry.pw_uid):
            raise Refused(f"this agent runs as {self._own_name()} and cannot become {entry.pw_name}")
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)

    def start(self, request: ExecRequest, executables: Sequence[str]) -> Process:
        """Start a command.

        Args:
            request: what to run.
            executables: absolute paths its program may be; the first that can be executed is.

        Raises:
            Refused: user or working directory cannot be had.
            CannotExecute: there is no such program, or it may not be executed.
        """
        account = self.account(request.user)
        work_dir = request.work_dir or (account.home if Path(account.home).is_dir() else "/")
        if not Path(work_dir).is_dir():
            raise Refused(f"there is no directory {work_dir!r} on this agent")
        if account.uid != self._own_uid:
            check_way(work_dir, account)
        executable = find_executable(request.command[0], executables)
        environment = {
            "LANG": "C.UTF-8",
            **request.environment,
            "PATH": PATH,
            "HOME": account.home,
            "USER": account.name,
            "LOGNAME": account.name,
        }
        switch: dict[str, object] = {}
        if account.uid != self._own_uid:
            groups = os.getgrouplist(account.name, account.gid)
            switch = {"user": account.uid, "group": account.gid, "extra_groups": groups}
        stdin = _stdin(request.stdin)
        try:
            popen = subprocess.Popen(  # type: ignore[call-overload]
                request.command,
                executable=executable,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pipesize=PIPE_BYTES if self._own_uid == 0 else -1,
                bufsize=0,
                cwd=work_dir,
                env=environment,
                start_new_session=True,
                close_fds=True,
                umask=0o022,
                **switch,
            )
        except OSError as error:
            raise _explain(error, request.command[0], executable, work_dir, account) from error
        finally:
            if stdin != subprocess.DEVNULL:
                os.close(stdin)
        process = Process(popen, executable)
        os.set_blocking(process.stdout, False)
        os.set_blocking(process.stderr, False)
        return process


def check_way(path: str, account: Account) -> None:
    """Whether a user could come to a directory by itself: the child enters it before it becomes that user.

    Looks at owners, groups and modes; access lists of the file system can only take away what this allows.

    Raises:
        Refused: it could not.
    """
    groups = {account.gid, *os.getgrouplist(account.name, account.gid)}
    resolved = Path(path).resolve()
    for folder in (resolved, *resolved.parents):
        found = folder.stat()
        if found.st_uid == account.uid:
            allowed = found.st_mode & 0o100
        elif found.st_gid in groups:
            allowed = found.st_mode & 0o010
        else:
            allowed = found.st_mode & 0o001
        if not allowed and account.uid != 0:
            raise Refused(f"cannot enter the directory {path!r} as {account.name}: permission denied at {folder}")


def find_executable(name: str, executables: Sequence[str]) -> str:
    """The first path that is a file somebody may execute.

    Raises:
        CannotExecute: 127 when none exists, 126 when one does but is no executable file.
    """
    found = ""
    for path in executables:
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116 (one system call on the way of every command)
        except OSError as error:
            if error.errno == errno.EACCES:
                found = found or path
            continue
        if stat.S_ISREG(mode) and mode & 0o111:
            return path
        found = found or path
    if not found:
        raise CannotExecute(127, f"{name}: command not found")
    what = "is a directory" if Path(found).is_dir() else "permission denied"
    raise CannotExecute(126, f"{found}: {what}")


def _stdin(content: bytes) -> int:
    if not content:
        return subprocess.DEVNULL
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _explain(error: OSError, name: str, executable: str, work_dir: str, account: Account) -> Exception:
    if error.filename == work_dir and executable != work_dir:
        return Refused(f"cannot enter the directory {work_dir!r} as {account.name}: {error.strerror}")
    if error.errno == errno.ENOENT:
        # The file is there, so it is its interpreter that is missing.
        return CannotExecute(127, f"{executable}: the interpreter it names was not found")
    if error.errno in (errno.EACCES, errno.ENOEXEC, errno.EISDIR):
        return CannotExecute(126, f"{executable}: {error.strerror}")
    if error.errno == errno.E2BIG:
        return Refused(f"{name}: arguments and environment are too long for this host")
    return Refused(f"{name}: cannot be started: {error.strerror}")
