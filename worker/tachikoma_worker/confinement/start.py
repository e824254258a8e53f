"""The start of a prepared command by the spawner, and the meaning of a step that fails."""

from __future__ import annotations

import errno
import os

from tachikoma.config import tracing
from tachikoma.identity.signed_messages import WorkOrder
from tachikoma.vocabulary.limits import CAPABILITIES
from tachikoma.vocabulary.requests import Terminal
from tachikoma_worker.confinement.account import Account
from tachikoma_worker.confinement.prepare import Prepared
from tachikoma_worker.confinement.process import Process
from tachikoma_worker.confinement.protocol import NO_WINDOW, InputMode, SpawnFailed, Step
from tachikoma_worker.confinement.refusals import CannotExecute, Refused
from tachikoma_worker.confinement.spawn_request import SpawnRequest
from tachikoma_worker.confinement.spawner import Spawner

__all__ = ["explain", "start"]

#: Steps that isolate a command.
_ISOLATING = frozenset(
    {
        Step.INIT, Step.NAMESPACES, Step.MOUNTS, Step.READ_ONLY, Step.CGROUP_FILES, Step.MASK, Step.TMP, Step.DEVICES,
        Step.ACCOUNTS, Step.PROC, Step.NETWORK, Step.SCOPES, Step.SYSTEM_CALLS, Step.RUN,
    }
)  # fmt: skip


async def start(prepared: Prepared, spawner: Spawner) -> Process:
    """Start a prepared command.

    Raises:
        Refused, CannotExecute: a step failed; nothing was started.
        SpawnerGone: it is unknown whether the command was started.
    """
    order, user = prepared.order, prepared.user
    _check_capabilities(prepared, spawner)
    root, beneath = _work_dir(order, user)
    stdin_fd = _stdin_file(order.request.stdin)
    mode = _input_mode(order)
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
                # What the request sets itself was granted by policy, and wins.
                environment={**tracing.variables(), **prepared.environment},
                input=mode,
                stdin_fd=stdin_fd,
                terminal=(order.request.terminal or Terminal()).size if mode is InputMode.TERMINAL else NO_WINDOW,
                cgroup_fds=prepared.cgroup.fds,
                unified=prepared.cgroup.unified,
                enclosure=prepared.enclosure,
                open_files=prepared.limits.open_files or 0,
            )
        )
    except SpawnFailed as failure:
        raise explain(failure, prepared.executable.path, order.request.work_dir or root, user) from None
    finally:
        if stdin_fd is not None:
            os.close(stdin_fd)


def _check_capabilities(prepared: Prepared, spawner: Spawner) -> None:
    """Raise Refused if a command of root would keep capabilities that the spawner lets no command keep."""
    if prepared.user.uid == 0 and (beyond := prepared.order.grant.capabilities & ~spawner.capabilities):
        names = [name for number, name in enumerate(CAPABILITIES) if beyond >> number & 1]
        raise Refused(f"this agent lets no command keep {', '.join(names)}; see its setting capabilities")


def explain(error: SpawnFailed, path: str, work_dir: str, user: Account) -> Refused | CannotExecute:
    """Return the error of an order for a failed step of the spawner.

    Args:
        error: the failure.
        path: path of the executable.
        work_dir: the working directory.
        user: the user that the command would have run as.
    """
    why = os.strerror(error.errno)
    match error.step:
        case Step.WORK_DIR_ROOT | Step.WORK_DIR:
            return Refused(f"cannot enter the directory {work_dir!r} as {user.name}: {_no_entry(error, user)}")
        case Step.REACH:
            return CannotExecute(126, f"{path}: {why} for {user.name}")
        case Step.SWAPPED:
            return Refused(f"will not execute {path}: it was exchanged while it was checked")
        case Step.EXECUTE if error.errno == errno.ENOENT:
            # The file was opened, so its dynamic loader is missing.
            return CannotExecute(127, f"{path}: the interpreter it names was not found")
        case Step.EXECUTE if error.errno in (errno.EACCES, errno.ENOEXEC, errno.EISDIR, errno.ELIBBAD):
            return CannotExecute(126, f"{path}: {why}")
        case Step.EXECUTE if error.errno == errno.E2BIG:
            return Refused(f"{path}: arguments and environment are too long for this host")
        case Step.CGROUP:
            return Refused(f"cannot join the cgroup: {why}")
        case Step.USER | Step.GROUPS:
            return Refused(f"cannot become {user.name}: {why}")
        case Step.TERMINAL:
            return Refused(f"cannot open a terminal: {why}")
        case Step.CAPABILITIES:
            return Refused(f"cannot give up capabilities: {why}")
        case step if step in _ISOLATING:
            return Refused(f"cannot isolate the command ({error}); see the warnings of this agent")
        case _:
            return Refused(f"cannot be started: {error}")


def _no_entry(error: SpawnFailed, user: Account) -> str:
    """Return why a directory was not entered."""
    match error.errno:
        case errno.EXDEV:
            return "it leads out of the directory that policy names"
        case errno.EPERM:
            return (
                "another user could have placed a symbolic link on the way; request the directory itself, "
                f"or let only root or {user.name} own the link and write to its folder"
            )
        case number:
            return os.strerror(number)


def _work_dir(order: WorkOrder, user: Account) -> tuple[str, str]:
    """Return the directory that policy or the account names, and the path from there to the working directory."""
    requested, root = order.request.work_dir, order.grant.work_dir_root
    if not requested:
        return (user.home if os.path.isdir(user.home) else "/"), ""  # noqa: PTH112
    return root, requested.removeprefix(root).strip("/")


def _input_mode(order: WorkOrder) -> InputMode:
    """Return where the command's standard input comes from."""
    if order.request.tty:
        return InputMode.TERMINAL
    if order.request.interactive:
        return InputMode.PIPE
    return InputMode.FILE if order.request.stdin else InputMode.NULL


def _stdin_file(content: bytes) -> int | None:
    """Return a memory file with the standard input, or None for no input; so the worker need not feed a pipe."""
    if not content:
        return None
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
