"""The program of a command: found, checked and opened, so that the file that was checked is the file that runs.

A trusted user owns the file, every folder and every symbolic link on the way to it, and no other user can write to
them. So no other user can put another file in its place.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from tachikoma.policy.denials import DeniedArguments, DeniedCommand
from tachikoma.policy.effort import Effort, TooMuchWork
from tachikoma.policy.hazards.installed import installed_kind
from tachikoma.policy.hazards.programs import ProgramKind
from tachikoma.vocabulary.grants import Grant, GrantedExecutable
from tachikoma_worker.confinement.account import Account, user_name
from tachikoma_worker.confinement.refusals import CannotExecute, Refused

__all__ = ["Executable", "check_real_path", "open_executable"]

#: Symbolic links that are followed on one path, as many as the kernel follows (path_resolution(7)).
MAX_LINKS = 40
#: Scripts between a program and the interpreter that is not a script (execve(2)).
MAX_INTERPRETERS = 4
#: Longest first line of a script (execve(2)).
FIRST_LINE_BYTES = 256


@dataclass(frozen=True, slots=True)
class Executable:
    """A checked file that is to be executed by its descriptor."""

    #: Path of the file: the program, or the interpreter of a script.
    path: str
    #: Path of the program in the request (not of its interpreter), with all symbolic links resolved.
    real_path: str
    #: Open for execution only (O_PATH); the holder closes it.
    fd: int
    argv: tuple[str, ...]


def open_executable(
    command: Sequence[str], granted: Sequence[GrantedExecutable], user: Account, trusted: frozenset[int]
) -> Executable:
    """Find, check and open the program of a command.

    A script is executed by its interpreter, which is checked in the same way and receives the script's path.

    Args:
        command: the argv.
        granted: files that the program may be; the first one that can be executed is used.
        user: the user that executes it.
        trusted: the users that may own it and the folders on the way to it.

    Raises:
        CannotExecute: there is no such program, or it may not be executed.
        Refused: an untrusted user could have put it there, or it changes its user.
    """
    name, argv = command[0], tuple(command)
    grant = _first_executable(name, granted)
    path = grant.path
    real_path = ""
    for depth in range(MAX_INTERPRETERS + 1):
        fd = _open_checked(path, user, trusted, named=grant.named and not depth)
        try:
            if grant.sha256 and not depth:
                _check_content(path, fd, grant.sha256)
            real_path = real_path or os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
            line = _interpreter_line(path)
        except BaseException:
            os.close(fd)
            raise
        if line is None:
            return Executable(path, real_path, fd, argv)
        os.close(fd)
        path, argv = _interpreted(path, line, argv)
    raise CannotExecute(126, f"{name}: scripts interpret each other more than {MAX_INTERPRETERS} times")


def check_real_path(real_path: str, command: Sequence[str], grant: Grant, work_dir: str) -> None:
    """Check that a granted path is not another name for a program that policy denies.

    Only the agent knows where a path leads, and in which directory a command starts.

    Args:
        real_path: the program's path with all symbolic links resolved.
        command: the argv in the request.
        grant: the decision of policy.
        work_dir: the directory that the command starts in; relative arguments are resolved there.

    Raises:
        Refused: policy denies the program under its real path, or in this directory.
    """
    if not grant.interpreters and installed_kind(real_path) is ProgramKind.RUNNER:
        raise Refused(
            f"{command[0]} leads to {real_path}, which runs any code that it is given; policy does not allow that"
        )
    if not grant.denied:
        return
    paths = {real_path, *(executable.path for executable in grant.executables)}
    effort = Effort()
    try:
        arguments = DeniedArguments(command[1:], (work_dir,), effort)
        for text in grant.denied:
            pattern = DeniedCommand(text)
            for path in sorted(paths, key=lambda path: path != real_path):
                if pattern.denies(path, arguments, effort):
                    raise Refused(f"{command[0]} leads to {path}, and policy denies {text!r}")
    except TooMuchWork:
        raise Refused(f"{command[0]} has arguments that are too long to compare with the denied commands") from None


def _first_executable(name: str, granted: Sequence[GrantedExecutable]) -> GrantedExecutable:
    """Return the first granted file that can be executed by any user."""
    found = ""
    for grant in granted:
        path = grant.path
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116 (one system call for each command)
        except OSError as error:
            if error.errno == errno.EACCES:
                found = found or path
            continue
        if stat.S_ISREG(mode) and mode & 0o111:
            return grant
        found = found or path
    if not found:
        raise CannotExecute(127, f"{name}: command not found")
    problem = "is a directory" if os.path.isdir(found) else "permission denied"  # noqa: PTH112
    raise CannotExecute(126, f"{found}: {problem}")


def _open_checked(path: str, user: Account, trusted: frozenset[int], *, named: bool) -> int:
    """Open a file after checking the way to it and the file itself.

    Args:
        path: the file.
        user: the user that executes it.
        trusted: the users that may own it.
        named: whether policy names exactly this path, which a file that changes its user needs.
    """
    _check_path(path, trusted)
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise CannotExecute(126, f"{path}: {error.strerror}") from None
    try:
        _check_file(path, os.fstat(fd), user, trusted, named=named)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_file(path: str, found: os.stat_result, user: Account, trusted: frozenset[int], *, named: bool) -> None:
    """Check kind, owner and permissions of a file; arguments as in `_open_checked`."""
    if not stat.S_ISREG(found.st_mode):
        raise CannotExecute(126, f"{path}: is no regular file")
    if why := _untrusted(found, trusted):
        raise Refused(f"will not execute {path}: it {why}")
    changes = (found.st_mode & stat.S_ISUID and found.st_uid != user.uid) or (
        found.st_mode & stat.S_ISGID and found.st_gid != user.gid
    )
    if changes and not named:
        raise Refused(
            f"will not execute {path}: it is made to change its user or group, and policy grants it by a wildcard"
        )
    if not user.may_execute(found):
        raise CannotExecute(126, f"{path}: permission denied for {user.name}")


def _check_content(path: str, fd: int, pins: Sequence[str]) -> None:
    """Check that the SHA-256 of an open file is one of those that policy pins."""
    with open(f"/proc/self/fd/{fd}", "rb") as file:  # noqa: PTH123 (the file that was opened, whatever its path is now)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest not in pins:
        raise Refused(f"will not execute {path}: policy pins other content than this (SHA-256 {digest})")


def _untrusted(found: os.stat_result, trusted: frozenset[int]) -> str:
    """Return why a file, folder or link could be changed by an untrusted user, or an empty text."""
    if found.st_uid not in trusted:
        return f"belongs to {user_name(found.st_uid)}"
    # In a sticky folder, only the folder's owner and an entry's owner can replace the entry, and both are trusted.
    sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if found.st_mode & 0o022 and not stat.S_ISLNK(found.st_mode) and not sticky:
        return "can be written by group or others"
    return ""


def _check_path(path: str, trusted: frozenset[int]) -> None:
    """Check every folder and symbolic link on the way to a file.

    Raises:
        Refused: an untrusted user could change one of them.
        CannotExecute: the path leads nowhere.
    """
    remaining = [part for part in path.split("/") if part][::-1]
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
            remaining += [part for part in target.split("/") if part][::-1]
            here = "/" if target.startswith("/") else os.path.dirname(here)  # noqa: PTH120
            continue
        if not remaining:
            return
        part = remaining.pop()
        if part == "..":
            here = os.path.dirname(here)  # noqa: PTH120
        elif part != ".":
            here = os.path.join(here, part)  # noqa: PTH118


def _interpreted(path: str, line: str, argv: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return the interpreter of a script and the argv with which it runs the script (execve(2)).

    Args:
        path: the script.
        line: its first line, without `#!`.
        argv: the script's own argv.
    """
    interpreter, _, argument = line.partition(" ")
    argument = argument.strip()
    if not interpreter.startswith("/"):
        raise CannotExecute(126, f"{path}: its interpreter is not an absolute path: {interpreter!r}")
    if not os.path.exists(interpreter):  # noqa: PTH110 (as everywhere in this module)
        raise CannotExecute(127, f"{path}: the interpreter it names was not found: {interpreter}")
    return interpreter, (interpreter, *((argument,) if argument else ()), path, *argv[1:])


def _interpreter_line(path: str) -> str | None:
    """Return the text after `#!` in the first line of a script, or None for a program."""
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
