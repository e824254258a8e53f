"""The messages between the worker and the spawner, as bytes: the Python side of worker/spawner/protocol.h.

Pure: every function turns values into bytes or bytes into values. Numbers are in the byte order of the host, since both
programs run on the same one. Functions that decode raise `ValueError` for anything that the spawner cannot have sent.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

__all__ = [
    "HEADER_BYTES",
    "HELLO_BYTES",
    "MAX_BODY_BYTES",
    "MAX_DESCRIPTORS",
    "PROTOCOL_VERSION",
    "Exit",
    "Header",
    "Held",
    "Hello",
    "Operation",
    "SpawnFailed",
    "SpawnRequest",
    "SpawnerGone",
    "Step",
    "Survivors",
    "decode_exited",
    "decode_failure",
    "decode_header",
    "decode_hello",
    "decode_listed",
    "decode_spawned",
    "decode_survivors",
    "encode_list",
    "encode_message",
    "encode_name",
    "encode_signal",
]

PROTOCOL_VERSION = 1
#: Descriptors of one message at most: executable, standard input and cgroups.
MAX_DESCRIPTORS = 10
#: Largest body of a message in either direction.
MAX_BODY_BYTES = 320 * 1024

#: Bytes of a name, with the NUL that ends it.
_NAME_BYTES = 64
_HEADER = struct.Struct("=IIQ")
_HELLO = struct.Struct("=IIQ")
_SPAWN = struct.Struct(f"=IIIIQIIII{_NAME_BYTES}s")
_SPAWNED = struct.Struct("=II")
_SIGNAL = struct.Struct(f"={_NAME_BYTES}sII")
_SURVIVORS = struct.Struct("=II32I")
_PLACE = struct.Struct("=I")
_LISTED = struct.Struct("=II")
_HELD = struct.Struct(f"={_NAME_BYTES}sIIiiQQ")
_FAILURE = struct.Struct("=Ii")
#: Flags of a spawn request.
_HAS_STDIN, _UNIFIED = 1, 2

HEADER_BYTES = _HEADER.size
HELLO_BYTES = _HELLO.size


class Operation(IntEnum):
    """Kinds of messages, with the numbers of protocol.h."""

    HELLO = 1
    SPAWN = 2
    SIGNAL = 3
    KILL = 4
    SWEEP = 5
    LIST = 6
    TAKE = 7
    RELEASE = 8
    STOP = 9
    FAILED = 64
    EXITED = 65


class Step(IntEnum):
    """The step in which the spawner or its child failed, with the numbers of protocol.h."""

    REQUEST = 1
    NAME = 2
    RESOURCES = 3
    FORK = 4
    CGROUP = 5
    LIMITS = 6
    SESSION = 7
    STDIO = 8
    CAPABILITIES = 9
    GROUPS = 10
    USER = 11
    WORK_DIR_ROOT = 12
    WORK_DIR = 13
    REACH = 14
    SWAPPED = 15
    PRIVILEGES = 16
    DESCRIPTORS = 17
    EXECUTE = 18
    SIGNAL = 19
    HELD = 20


class SpawnerGone(Exception):
    """The spawner no longer answers. Only its cgroups are left of the commands that it held."""


class SpawnFailed(Exception):
    """A step of the spawner failed; nothing was started."""

    def __init__(self, step: Step, error: int) -> None:
        super().__init__(f"{step.name.lower().replace('_', ' ')}: {os.strerror(error)}")
        self.step = step
        self.errno = error


@dataclass(frozen=True, slots=True)
class Header:
    """The beginning of each message."""

    #: Bytes of the body that follows.
    length: int
    #: An `Operation`; a plain number, because a newer spawner may send others.
    operation: int
    #: Number by which a reply is matched to its request; 0 in messages that are no reply.
    tag: int


@dataclass(frozen=True, slots=True)
class Hello:
    """The spawner's answer to the first message."""

    version: int
    #: The user that the spawner runs as. Only 0 can start commands as another user.
    uid: int
    #: Bits of the capabilities that a command may keep at most.
    capabilities: int


@dataclass(frozen=True, slots=True)
class SpawnRequest:
    """A command to start. The descriptors stay open and belong to the caller."""

    #: The execution's id.
    name: str
    uid: int
    gid: int
    groups: Sequence[int]
    #: Bits of the capabilities that stay in the bounding set of uid 0.
    capabilities: int
    #: The directory that policy names, and the path from there to the working directory ("" for the directory itself).
    work_dir_root: str
    work_dir: str
    #: Path and open descriptor of the checked file.
    executable: str
    executable_fd: int
    argv: Sequence[str]
    environment: Mapping[str, str]
    #: None for /dev/null.
    stdin_fd: int | None = None
    #: Directories of the cgroups to join; the first one is killed as a whole.
    cgroup_fds: Sequence[int] = ()
    #: Whether they are one directory of cgroup v2.
    unified: bool = False
    umask: int = 0o022

    def encode(self) -> tuple[bytes, list[int]]:
        """Return the body of the message and the descriptors that travel with it."""
        strings = [self.work_dir_root, self.work_dir, self.executable, *self.argv]
        strings += [f"{name}={value}" for name, value in self.environment.items()]
        flags = (_HAS_STDIN if self.stdin_fd is not None else 0) | (_UNIFIED if self.unified else 0)
        head = _SPAWN.pack(
            self.uid, self.gid, self.umask, flags, self.capabilities,
            len(self.groups), len(self.argv), len(self.environment), len(self.cgroup_fds), self.name.encode(),
        )  # fmt: skip
        groups = struct.pack(f"={len(self.groups)}I", *self.groups)
        body = b"".join((head, groups, *(os.fsencode(text) + b"\0" for text in strings)))
        descriptors = [self.executable_fd]
        if self.stdin_fd is not None:
            descriptors.append(self.stdin_fd)
        return body, [*descriptors, *self.cgroup_fds]


@dataclass(frozen=True, slots=True)
class Exit:
    """How the process of a command ended."""

    #: 128+n after signal n.
    exit_code: int
    #: The signal that ended it, or 0.
    signal: int
    #: CPU time of the command and of the children that it waited for, in seconds.
    cpu_seconds: float

    @property
    def status(self) -> int:
        """The exit status as in `subprocess`: -n after signal n."""
        return -self.signal if self.signal else self.exit_code


@dataclass(frozen=True, slots=True)
class Held:
    """A command that the spawner holds."""

    #: The execution's id.
    name: str
    pid: int
    #: None while it runs.
    exit: Exit | None


@dataclass(frozen=True, slots=True)
class Survivors:
    """Processes that are still there after a KILL; dying ones may be among them."""

    count: int
    #: Their process ids, at most 32.
    pids: list[int]


def encode_message(operation: Operation, tag: int, body: bytes = b"") -> bytes:
    """Return a whole message."""
    return _HEADER.pack(len(body), operation, tag) + body


def encode_name(name: str) -> bytes:
    """Return the body of requests that name a command and nothing else."""
    return name.encode().ljust(_NAME_BYTES, b"\0")


def encode_signal(name: str, number: int) -> bytes:
    """Return the body of a SIGNAL request."""
    return _SIGNAL.pack(name.encode(), number, 0)


def encode_list(place: int) -> bytes:
    """Return the body of a LIST request that begins at a place."""
    return _PLACE.pack(place)


def decode_header(data: bytes | bytearray) -> Header:
    """Read the header at the beginning of the data."""
    _require(len(data) >= _HEADER.size, "is shorter than a header")
    length, operation, tag = _HEADER.unpack_from(data)
    _require(length <= MAX_BODY_BYTES, f"has a body of {length} bytes")
    return Header(length, operation, tag)


def decode_hello(body: bytes) -> Hello:
    """Read the reply to HELLO."""
    return Hello(*_unpack(_HELLO, body))


def decode_spawned(body: bytes) -> int:
    """Return the process id in the reply to SPAWN."""
    pid, _ = _unpack(_SPAWNED, body)
    return int(pid)


def decode_survivors(body: bytes) -> Survivors:
    """Read the reply to KILL and SWEEP."""
    count, listed, *pids = _unpack(_SURVIVORS, body)
    _require(listed <= len(pids), f"lists {listed} processes")
    return Survivors(count, pids[:listed])


def decode_listed(body: bytes) -> tuple[list[Held], int]:
    """Read the reply to LIST.

    Returns:
        The commands, and the place at which the next request begins, or 0 after the last.
    """
    _require(len(body) >= _LISTED.size, "is shorter than a list")
    place, count = _LISTED.unpack_from(body)
    _require(len(body) == _LISTED.size + count * _HELD.size, f"does not contain the {count} commands that it announces")
    begins = range(_LISTED.size, len(body), _HELD.size)
    return [_decode_held(body[begin : begin + _HELD.size]) for begin in begins], place


def decode_exited(body: bytes) -> Held:
    """Read the event of a command that has ended; its `exit` is set."""
    held = _decode_held(body)
    _require(held.exit is not None, f"reports the end of {held.name}, which runs")
    return held


def decode_failure(body: bytes) -> SpawnFailed:
    """Read the reply to a request that failed."""
    step, error = _unpack(_FAILURE, body)
    return SpawnFailed(Step(step), error)


def _decode_held(body: bytes) -> Held:
    name, pid, exited, code, status, user_us, system_us = _unpack(_HELD, body)
    ended = None
    if exited:
        by_signal = code != os.CLD_EXITED
        ended = Exit(
            exit_code=128 + status if by_signal else status,
            signal=status if by_signal else 0,
            cpu_seconds=(user_us + system_us) / 1e6,
        )
    return Held(name.rstrip(b"\0").decode("ascii"), pid, ended)


def _unpack(layout: struct.Struct, body: bytes) -> tuple[Any, ...]:
    """Return the fields of a body that must have exactly this layout."""
    _require(len(body) == layout.size, f"has {len(body)} bytes instead of {layout.size}")
    return layout.unpack(body)


def _require(condition: bool, problem: str) -> None:
    """Raise ValueError unless a message from the spawner is as it must be."""
    if not condition:
        raise ValueError(f"a message of the spawner {problem}")
