"""The messages between the worker and the spawner, as bytes: the Python side of worker/spawner/protocol.h.

Pure: every function turns values into bytes or bytes into values. Numbers are in the byte order of the host, since both
programs run on the same one. Functions that decode raise `ValueError` for anything that the spawner cannot have sent.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tachikoma.vocabulary.requests import WindowSize

__all__ = [
    "HEADER_BYTES",
    "HELLO_BYTES",
    "INPUT_BYTES",
    "MAX_BODY_BYTES",
    "MAX_DESCRIPTORS",
    "NAME_BYTES",
    "NO_INPUT",
    "NO_WINDOW",
    "PROTOCOL_VERSION",
    "Exit",
    "Header",
    "Held",
    "Hello",
    "InputMode",
    "InputStatus",
    "Operation",
    "SpawnFailed",
    "SpawnerGone",
    "Step",
    "Survivors",
    "decode_exited",
    "decode_failure",
    "decode_header",
    "decode_held",
    "decode_hello",
    "decode_input",
    "decode_listed",
    "decode_spawned",
    "decode_survivors",
    "encode_input",
    "encode_list",
    "encode_message",
    "encode_name",
    "encode_resize",
    "encode_signal",
]

PROTOCOL_VERSION = 2
#: Descriptors of one message at most: executable, standard input and cgroups.
MAX_DESCRIPTORS = 10
#: Largest body of a message in either direction.
MAX_BODY_BYTES = 320 * 1024
#: Bytes of one INPUT request at most, and of accepted input that waits until the command reads it.
INPUT_BYTES = 256 * 1024

#: Bytes of a name, with the NUL that ends it.
NAME_BYTES = 64
_HEADER = struct.Struct("=IIQ")
_HELLO = struct.Struct("=IIQ")
_SPAWNED = struct.Struct("=II")
_SIGNAL = struct.Struct(f"={NAME_BYTES}sII")
_SURVIVORS = struct.Struct("=II32I")
_PLACE = struct.Struct("=I")
_LISTED = struct.Struct("=II")
_STATUS_FIELDS = "QIIIIHHHH"
_HELD = struct.Struct(f"={NAME_BYTES}sIIiiQQ{_STATUS_FIELDS}")
_INPUT = struct.Struct(f"={NAME_BYTES}sQ")
_INPUT_STATE = struct.Struct(f"={NAME_BYTES}s{_STATUS_FIELDS}")
_RESIZE = struct.Struct(f"={NAME_BYTES}sHHHH")
_FAILURE = struct.Struct("=Ii")
#: Flags of an input status.
_ENDED, _BROKEN, _ECHO, _CANONICAL = 1, 2, 4, 8

#: Size of a terminal that does not exist.
NO_WINDOW = WindowSize(0, 0)

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
    INPUT = 10
    END_INPUT = 11
    RESIZE = 12
    HANG_UP = 13
    DROP_TMP = 14
    FAILED = 64
    EXITED = 65
    INPUT_EVENT = 66


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
    TERMINAL = 21
    INPUT = 22
    INIT = 23
    NAMESPACES = 24
    MOUNTS = 25
    READ_ONLY = 26
    CGROUP_FILES = 27
    MASK = 28
    TMP = 29
    DEVICES = 30
    ACCOUNTS = 31
    PROC = 32
    NETWORK = 33
    SCOPES = 34
    SYSTEM_CALLS = 35
    RUN = 36


class InputMode(IntEnum):
    """The source of a command's standard input, with the numbers of protocol.h."""

    #: /dev/null.
    NULL = 0
    #: A descriptor that travels with the request.
    FILE = 1
    #: A pipe that `Process.write` fills.
    PIPE = 2
    #: A terminal into which `Process.write` types. Its output comes as standard output.
    TERMINAL = 3


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
class InputStatus:
    """State of a command's input, and of its terminal if it has one."""

    #: Bytes that the spawner accepted, from the beginning of all input. They reach the command exactly once.
    offset: int = 0
    mode: InputMode = InputMode.NULL
    #: Bytes that the spawner accepts now.
    room: int = 0
    #: Whether the end of the input was accepted.
    ended: bool = False
    #: Whether further input is dropped, because the command reads none or has ended.
    broken: bool = False
    #: Whether the terminal echoes what is typed, and whether it edits lines; false without a terminal.
    echo: bool = False
    canonical: bool = False
    #: Size of the terminal.
    size: WindowSize = NO_WINDOW


#: State of the input of a command that takes none.
NO_INPUT = InputStatus()


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a command's process."""

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
    #: State of its input.
    input: InputStatus = NO_INPUT


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
    return name.encode().ljust(NAME_BYTES, b"\0")


def encode_signal(name: str, number: int, *, foreground: bool = False) -> bytes:
    """Return the body of a SIGNAL request, to the command's group or to the terminal's foreground group."""
    return _SIGNAL.pack(name.encode(), number, foreground)


def encode_input(name: str, offset: int, data: bytes | memoryview = b"") -> bytes:
    """Return the body of an INPUT request; without data, that of END_INPUT.

    Args:
        name: the execution.
        offset: number of input bytes before the data, or before the end.
        data: at most `INPUT_BYTES` bytes.
    """
    return _INPUT.pack(name.encode(), offset) + data


def encode_resize(name: str, size: WindowSize) -> bytes:
    """Return the body of a RESIZE request."""
    return _RESIZE.pack(name.encode(), size.rows, size.columns, size.x_pixels, size.y_pixels)


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


def decode_held(body: bytes) -> Held:
    """Read the reply to TAKE."""
    return _decode_held(body)


def decode_input(body: bytes) -> tuple[str, InputStatus]:
    """Read the reply to INPUT and END_INPUT, or the event of a changed input: the execution and its status."""
    name, *status = _unpack(_INPUT_STATE, body)
    return _decode_name(name), _decode_status(*status)


def decode_failure(body: bytes) -> SpawnFailed:
    """Read the reply to a request that failed."""
    step, error = _unpack(_FAILURE, body)
    return SpawnFailed(Step(step), error)


def _decode_held(body: bytes) -> Held:
    name, pid, exited, code, status, user_us, system_us, *input_status = _unpack(_HELD, body)
    ended = None
    if exited:
        by_signal = code != os.CLD_EXITED
        ended = Exit(
            exit_code=128 + status if by_signal else status,
            signal=status if by_signal else 0,
            cpu_seconds=(user_us + system_us) / 1e6,
        )
    return Held(_decode_name(name), pid, ended, _decode_status(*input_status))


def _decode_name(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("ascii")


def _decode_status(offset: int, mode: int, flags: int, room: int, _reserved: int, *size: int) -> InputStatus:
    _require(room <= INPUT_BYTES, f"promises room for {room} bytes of input")
    return InputStatus(
        offset=offset,
        mode=InputMode(mode),
        room=room,
        ended=bool(flags & _ENDED),
        broken=bool(flags & _BROKEN),
        echo=bool(flags & _ECHO),
        canonical=bool(flags & _CANONICAL),
        size=WindowSize(*size),
    )


def _unpack(layout: struct.Struct, body: bytes) -> tuple[Any, ...]:
    """Return the fields of a body that must have exactly this layout."""
    _require(len(body) == layout.size, f"has {len(body)} bytes instead of {layout.size}")
    return layout.unpack(body)


def _require(condition: bool, problem: str) -> None:
    """Raise ValueError unless a message from the spawner is as it must be."""
    if not condition:
        raise ValueError(f"a message of the spawner {problem}")
