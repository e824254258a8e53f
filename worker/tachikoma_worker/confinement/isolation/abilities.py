"""The kinds of isolation that a host can enforce: the spawner tries each of them once, without executing a program."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from tachikoma.vocabulary.isolation import Isolation, TmpScope
from tachikoma_worker.confinement import protocol
from tachikoma_worker.confinement.isolation.enclosure import Enclosure
from tachikoma_worker.confinement.protocol import Header, Operation, SpawnFailed, Step
from tachikoma_worker.confinement.spawn_request import SpawnRequest

__all__ = ["NO_SCOPES", "NO_SIGNAL_SCOPE", "Abilities", "find_abilities"]

#: The part of isolation that is missing without Landlock's scopes in the kernel, and the remedy.
NO_SCOPES = "abstract sockets: needs Landlock ABI 6 (Linux 6.12)"
#: The same for a command of root with hostAccess at `shared`.
NO_SIGNAL_SCOPE = "signals to the agent's processes: needs Landlock ABI 6 (Linux 6.12), or isolation private in policy"
#: The same for cgroups; followed by the reason.
CGROUP_FILES = "files of cgroups"
#: Size of the temporary folders of a trial.
_TRIAL_BYTES, _TRIAL_INODES = 64 * 1024, 16

_MASKED = Enclosure(masked=True)
_TMP = replace(_MASKED, tmp=TmpScope.EXECUTION, tmp_bytes=_TRIAL_BYTES, tmp_inodes=_TRIAL_INODES)


@dataclass(frozen=True, slots=True)
class Abilities:
    """The isolation that the spawner can enforce on its host. Each text says why not; empty if it can."""

    #: The levels above `shared`.
    levels: Mapping[Isolation, str] = field(default_factory=dict)
    #: Masks over the agent's files, for commands of root with hostAccess at `shared`.
    masks: str = ""
    #: The host's files read-only, for commands of root.
    read_only: str = ""
    #: Scopes of Landlock.
    scopes: str = ""
    #: Read-only files of cgroups.
    cgroup_files: str = ""

    def possible(self) -> tuple[str, ...]:
        """Return the levels that this host can enforce; `shared` is always one of them."""
        return (Isolation.SHARED.value, *(level.value for level, why in self.levels.items() if not why))

    def warnings(self) -> Iterator[str]:
        """Yield a text for people for each part of isolation that this host cannot enforce."""
        for level, why in self.levels.items():
            if why:
                yield f"commands cannot be isolated at {level}: {why}"
        if self.scopes and not self.levels.get(Isolation.PRIVATE):
            yield f"isolated commands reach {self.scopes}"
        if self.scopes and not self.masks:
            yield f"commands of root with hostAccess send {NO_SIGNAL_SCOPE}"
        if self.cgroup_files and not self.masks:
            yield f"isolated commands reach {self.cgroup_files}"
        if self.masks:
            yield f"commands of root reach the agent's keys and processes, and need hostAccess of policy: {self.masks}"
        elif self.read_only:
            yield f"commands of root need hostAccess of policy: {self.read_only}"

    @classmethod
    def none(cls, why: str) -> Abilities:
        """Return the abilities of a spawner that can enforce nothing."""
        return cls({Isolation.PRIVATE: why, Isolation.SEALED: why}, why, why, why, why)


def find_abilities(connection: socket.socket, uid: int) -> Abilities:
    """Try each kind of isolation on a new connection to a spawner, before it is used otherwise. Blocks.

    Args:
        connection: the connection; it is non-blocking afterwards.
        uid: the user of the spawner.

    Raises:
        OSError: the spawner does not answer.
    """
    if uid != 0:
        return Abilities.none("the spawner is not root")
    connection.setblocking(True)
    try:
        scopes = _why_not(connection, replace(_MASKED, scoped=True), only=Step.SCOPES)
        cgroups = _why_not(connection, replace(_MASKED, cgroup_files=True), only=Step.CGROUP_FILES)
        private = replace(_TMP, level=Isolation.PRIVATE, scoped=not scopes, cgroup_files=not cgroups)
        return Abilities(
            {level: _why_not(connection, replace(private, level=level)) for level in list(Isolation)[1:]},
            _why_not(connection, _MASKED),
            _why_not(connection, replace(private, read_only=True)),
            scopes and NO_SCOPES,
            cgroups and f"{CGROUP_FILES}: {cgroups}",
        )
    finally:
        connection.setblocking(False)


def _why_not(connection: socket.socket, enclosure: Enclosure, only: Step | None = None) -> str:
    """Return the reason why the host cannot isolate a command like this; empty if it can.

    With `only`, a failure in another step counts as success.
    """
    name = f"probe-{secrets.token_hex(8)}"
    executable = os.path.realpath(sys.executable)
    fd = os.open(executable, os.O_PATH | os.O_CLOEXEC)
    try:
        request = SpawnRequest(
            name=name, uid=0, gid=0, groups=(), capabilities=0, work_dir_root="/", work_dir="", executable=executable,
            executable_fd=fd, argv=("probe",), environment={}, enclosure=enclosure, probe=True,
        )  # fmt: skip
        _ask(connection, Operation.SPAWN, *request.encode())
    except SpawnFailed as failure:
        return "" if only not in (None, failure.step) else str(failure)
    finally:
        os.close(fd)
    # It has ended, or is about to: it executes nothing.
    while True:
        try:
            _ask(connection, Operation.RELEASE, protocol.encode_name(name))
        except SpawnFailed as failure:
            if failure.step is Step.HELD:
                _message(connection)
                continue
            raise OSError(f"the spawner does not release a trial: {failure}") from None
        return ""


def _ask(connection: socket.socket, operation: Operation, body: bytes, descriptors: list[int] | None = None) -> None:
    """Send a request and wait for its reply. Raises SpawnFailed."""
    message = protocol.encode_message(operation, 1, body)
    socket.send_fds(connection, [message[:1]], descriptors or [])
    connection.sendall(message[1:])
    while True:
        header, reply = _message(connection)
        if header.tag == 1:
            break
    if header.operation == Operation.FAILED:
        raise protocol.decode_failure(reply)


def _message(connection: socket.socket) -> tuple[Header, bytes]:
    """Receive one message; the pipes that come with it are closed."""
    header = protocol.decode_header(_receive(connection, protocol.HEADER_BYTES))
    return header, _receive(connection, header.length)


def _receive(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part, descriptors, _, _ = socket.recv_fds(connection, length - len(data), protocol.MAX_DESCRIPTORS)
        for descriptor in descriptors:
            os.close(descriptor)
        if not part:
            raise OSError("the spawner closed the connection")
        data += part
    return data
