"""The worker's side of the spawner: the small program that starts commands and stays their parent (worker/spawner).

The worker never forks a command itself. It tells the spawner over a private unix socket what to start, gets the read
ends of its pipes, and hears of its end. The spawner outlives the worker; a worker that was restarted finds in it what
still runs.
"""

from __future__ import annotations

import array
import asyncio
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NoReturn

import structlog

from tachikoma.errors import ConfigurationError

__all__ = ["Exit", "Held", "Process", "SpawnFailed", "SpawnRequest", "Spawner", "SpawnerGone", "Step", "become_spawner"]

log = structlog.get_logger(__name__)

PROTOCOL_VERSION = 1
#: The program, installed beside this file.
PROGRAM = Path(__file__).parents[1] / "tachikoma-spawner"
#: The spawner ends by itself after so long without a worker and without a running command.
LINGER_SECONDS = 600
#: Longest wait for an answer of the spawner, which itself waits for nothing.
ANSWER_SECONDS = 30.0
#: Between looks at whether the killed are gone.
KILL_POLL_SECONDS = 0.02
#: After KILL, how long to wait for all processes to be gone before saying that they are not.
KILL_SECONDS = 5.0

# worker/spawner/protocol.h
_HEADER = struct.Struct("=IIQ")
_HELLO = struct.Struct("=IIQ")
_SPAWN = struct.Struct("=IIIIQIIII64s")
_SPAWNED = struct.Struct("=II")
_SIGNAL = struct.Struct("=64sII")
_SURVIVORS = struct.Struct("=II32I")
_LISTED = struct.Struct("=II")
_HELD = struct.Struct("=64sIIiiQQ")
_FAILURE = struct.Struct("=Ii")
_HAS_STDIN, _UNIFIED = 1, 2
_MAX_DESCRIPTORS = 10


class Operation(IntEnum):
    """What a message is; the numbers of protocol.h."""

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
    """Where the spawner or its child failed; the numbers of protocol.h."""

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
    """The spawner does not answer any more; what it held can only be swept up."""


class SpawnFailed(Exception):
    """A step of the spawner failed; nothing was started."""

    def __init__(self, step: Step, error: int) -> None:
        super().__init__(f"{step.name.lower().replace('_', ' ')}: {os.strerror(error)}")
        self.step = step
        self.errno = error


@dataclass(frozen=True, slots=True)
class SpawnRequest:
    """What the spawner is told to start. Descriptors stay the caller's."""

    name: str
    uid: int
    gid: int
    groups: Sequence[int]
    #: Bits of the capabilities that stay in the bounding set of uid 0.
    capabilities: int
    #: The working directory: one that policy names, and the rest of the way beneath it ("" for itself).
    work_dir_root: str
    work_dir: str
    #: Path and open descriptor of the checked file.
    executable: str
    executable_fd: int
    argv: Sequence[str]
    environment: dict[str, str]
    #: None for /dev/null.
    stdin_fd: int | None = None
    #: Directories of the cgroups to join; first the one that is killed as a whole.
    cgroup_fds: Sequence[int] = ()
    #: Whether they are one of cgroup v2.
    unified: bool = False
    umask: int = 0o022

    def encode(self) -> tuple[bytes, list[int]]:
        """Body and descriptors of the message."""
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
    """How a command ended."""

    exit_code: int
    #: The signal that ended it, or 0.
    signal: int
    #: CPU time of the command and of those of its children that it waited for, in seconds.
    cpu_seconds: float

    @property
    def status(self) -> int:
        """The exit status as `subprocess` tells it: -n after signal n."""
        return -self.signal if self.signal else self.exit_code


@dataclass(frozen=True, slots=True)
class Held:
    """A command that the spawner holds."""

    name: str
    pid: int
    #: None while it runs.
    exit: Exit | None


def _held(data: bytes) -> Held:
    name, pid, exited, code, status, user, system = _HELD.unpack(data)
    end = None
    if exited:
        by_signal = code != os.CLD_EXITED
        end = Exit(128 + status if by_signal else status, status if by_signal else 0, (user + system) / 1e6)
    return Held(name.rstrip(b"\0").decode(), pid, end)


class Process:
    """A running command, and the read ends of its pipes."""

    def __init__(self, spawner: Spawner, name: str, pid: int, stdout: int, stderr: int) -> None:
        self._spawner = spawner
        self.name = name
        self.pid = pid
        self.stdout = stdout
        self.stderr = stderr
        #: Set when it has ended. Fails with SpawnerGone when nobody will ever know.
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def kill(self, grace_seconds: float) -> list[int]:
        """End the command: TERM to its process group, the grace, then KILL to all of its cgroup until it is empty.

        Returns:
            Process ids of those that are still there, at most 32 of them; empty when all are gone.
        """
        await self.signal(signal.SIGTERM)
        await asyncio.wait((self.exited,), timeout=grace_seconds)
        return await self.kill_all()

    async def kill_all(self) -> list[int]:
        """KILL to all of its cgroup, or of its process group, until it is empty. Returns as `kill` does."""
        deadline = asyncio.get_running_loop().time() + KILL_SECONDS
        while True:
            count, pids = await self._spawner.kill(self.name)
            if not count or asyncio.get_running_loop().time() > deadline:
                return pids
            await asyncio.sleep(KILL_POLL_SECONDS)

    async def signal(self, number: int) -> None:
        """Send a signal to the process group; to nobody if it is gone."""
        with suppress(SpawnFailed):
            await self._spawner.signal(self.name, number)

    def leave(self) -> None:
        """Close the pipes, and leave the command to a later worker."""
        os.close(self.stdout)
        os.close(self.stderr)

    async def close(self) -> None:
        """Close the pipes; if the command has ended, let the spawner forget it."""
        os.close(self.stdout)
        os.close(self.stderr)
        if self.exited.done() and self.exited.exception() is None:
            with suppress(SpawnFailed, SpawnerGone):
                await self._spawner.release(self.name)


class Spawner:
    """One connection to a spawner. `connect` may be called anywhere; the rest in one asyncio loop."""

    def __init__(self, connection: socket.socket, started: subprocess.Popen[bytes] | None) -> None:
        self._connection = connection
        self._started = started
        self._tag = 0
        self._answers: dict[int, asyncio.Future[tuple[bytes, list[int]]]] = {}
        self._processes: dict[str, Process] = {}
        self._ended_early: dict[str, Exit] = {}
        self._sending = asyncio.Lock()
        self._received = bytearray()
        self._descriptors: list[int] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Set with the reason when the connection broke.
        self.gone: asyncio.Future[None] | None = None
        connection.settimeout(ANSWER_SECONDS)
        connection.sendall(_HEADER.pack(0, Operation.HELLO, 0))
        reply = b""
        while len(reply) < _HEADER.size + _HELLO.size:
            data = connection.recv(_HEADER.size + _HELLO.size - len(reply))
            if not data:
                raise ConfigurationError("the spawner hung up; does it serve this user?")
            reply += data
        version, self.uid, self.capabilities = _HELLO.unpack(reply[_HEADER.size :])
        if version != PROTOCOL_VERSION:
            raise ConfigurationError(
                f"the spawner that runs here speaks version {version} of its protocol, this worker {PROTOCOL_VERSION}; "
                "end what it runs and stop it"
            )
        connection.setblocking(False)

    @classmethod
    def connect(cls, path: Path, capabilities: int = 0) -> Spawner:
        """Reach the spawner that listens there, or start one of our own.

        Args:
            path: of its socket.
            capabilities: bits of the most that a command may keep, for one of our own.

        Raises:
            ConfigurationError: neither is possible; the message says what to do.
        """
        if len(os.fsencode(path)) > 107:
            raise ConfigurationError(f"the path of the spawner's socket is longer than 107 bytes: {path}")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            try:
                connection.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                return cls(connection, _start(path, connection, capabilities))
            return cls(connection, None)
        except OSError as error:
            connection.close()
            raise ConfigurationError(f"cannot reach the spawner at {path}: {error}") from error
        except ConfigurationError:
            connection.close()
            raise

    # --- in the loop --------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Begin to listen, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self.gone = self._loop.create_future()
        self._loop.add_reader(self._connection, self._on_readable)

    async def spawn(self, request: SpawnRequest) -> Process:
        """Start a command.

        Raises:
            SpawnFailed: a step failed; nothing was started.
            SpawnerGone: whether it was started nobody knows.
        """
        body, descriptors = request.encode()
        reply, pipes = await self._ask(Operation.SPAWN, body, descriptors)
        pid, _ = _SPAWNED.unpack(reply)
        return self._adopt(request.name, pid, pipes)

    async def take(self, held: Held) -> Process:
        """Take over a command that was started for an earlier worker.

        Raises:
            SpawnFailed: it is no longer held.
        """
        _, pipes = await self._ask(Operation.TAKE, _name(held.name))
        if held.exit is not None:
            self._ended_early[held.name] = held.exit
        return self._adopt(held.name, held.pid, pipes)

    def _adopt(self, name: str, pid: int, pipes: list[int]) -> Process:
        stdout, stderr = pipes
        for pipe in pipes:
            os.set_blocking(pipe, False)
        process = Process(self, name, pid, stdout, stderr)
        end = self._ended_early.pop(name, None)
        if end is not None:
            process.exited.set_result(end)
        self._processes[name] = process
        return process

    async def held(self) -> list[Held]:
        """All commands it holds, running or ended and not yet released."""
        found: list[Held] = []
        place = 0
        while True:
            reply, _ = await self._ask(Operation.LIST, struct.pack("=I", place))
            place, count = _LISTED.unpack_from(reply)
            for number in range(count):
                begin = _LISTED.size + number * _HELD.size
                found.append(_held(reply[begin : begin + _HELD.size]))
            if not place:
                return found

    async def signal(self, name: str, number: int) -> None:
        """Send a signal to a command's process group."""
        await self._ask(Operation.SIGNAL, _SIGNAL.pack(name.encode(), number, 0))

    async def kill(self, name: str) -> tuple[int, list[int]]:
        """Kill all processes of a command once. Returns how many are still there, and at most 32 of their ids."""
        reply, _ = await self._ask(Operation.KILL, _name(name))
        return _survivors(reply)

    async def sweep(self, cgroup_fds: Sequence[int]) -> list[int]:
        """Kill all processes of a cgroup that no command is known for. Returns those that are still there."""
        pids: list[int] = []
        for descriptor in cgroup_fds[:1]:
            deadline = asyncio.get_running_loop().time() + KILL_SECONDS
            while True:
                reply, _ = await self._ask(Operation.SWEEP, b"", [descriptor])
                count, pids = _survivors(reply)
                if not count or asyncio.get_running_loop().time() > deadline:
                    break
                await asyncio.sleep(KILL_POLL_SECONDS)
        return pids

    async def release(self, name: str) -> None:
        """Forget a command that has ended."""
        self._processes.pop(name, None)
        self._ended_early.pop(name, None)
        await self._ask(Operation.RELEASE, _name(name))

    async def stop(self, *, anyway: bool = False) -> None:
        """End the spawner if this worker started it, or anyway; not while it holds commands. Closes the connection."""
        if self._started is not None or anyway:
            with suppress(SpawnFailed, SpawnerGone):
                await self._ask(Operation.STOP)
        self.close()

    def close(self) -> None:
        """Close the connection; what the spawner holds it goes on holding."""
        if self._loop is not None:
            self._loop.remove_reader(self._connection)
        self._connection.close()
        if self._started is not None:
            with suppress(subprocess.TimeoutExpired):
                self._started.wait(1)

    # --- messages -----------------------------------------------------------------------------------------------------

    async def _ask(
        self, operation: Operation, body: bytes = b"", descriptors: Sequence[int] = ()
    ) -> tuple[bytes, list[int]]:
        assert self._loop is not None, "attach first"
        assert self.gone is not None
        if self.gone.done():
            raise SpawnerGone("the spawner is gone")
        self._tag += 1
        tag = self._tag
        answer: asyncio.Future[tuple[bytes, list[int]]] = self._loop.create_future()
        self._answers[tag] = answer
        try:
            await self._send(_HEADER.pack(len(body), operation, tag) + body, descriptors)
            # Without a bound of its own: when the spawner is gone the answer fails, and it never waits itself.
            return await answer
        except OSError as error:
            self._fail(str(error))
            raise SpawnerGone(f"the spawner is gone: {error}") from None
        finally:
            self._answers.pop(tag, None)

    async def _send(self, message: bytes, descriptors: Sequence[int]) -> None:
        assert self._loop is not None
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        async with self._sending:
            while True:
                try:
                    sent = self._connection.sendmsg([message], rights)
                    break
                except BlockingIOError:
                    await _writable(self._loop, self._connection)
            if sent < len(message):
                await self._loop.sock_sendall(self._connection, message[sent:])

    def _on_readable(self) -> None:
        try:
            # No more than is needed, so that descriptors and their message are read together.
            data, descriptors, flags, _ = socket.recv_fds(self._connection, self._missing(), _MAX_DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(str(error))
            return
        if not data or flags & socket.MSG_CTRUNC:
            self._fail("it hung up")
            return
        self._received += data
        self._descriptors += descriptors
        if self._missing():
            return
        _, operation, tag = _HEADER.unpack_from(self._received)
        body = bytes(self._received[_HEADER.size :])
        pipes, self._descriptors = self._descriptors, []
        self._received.clear()
        for pipe in pipes:
            os.set_inheritable(pipe, False)
        self._on_message(operation, tag, body, pipes)

    def _missing(self) -> int:
        if len(self._received) < _HEADER.size:
            return _HEADER.size - len(self._received)
        length, _, _ = _HEADER.unpack_from(self._received)
        return int(_HEADER.size + length - len(self._received))

    def _on_message(self, operation: int, tag: int, body: bytes, descriptors: list[int]) -> None:
        if operation == Operation.EXITED:
            held = _held(body)
            assert held.exit is not None
            process = self._processes.get(held.name)
            if process is None:
                # Nobody waits for it yet: it is to be taken over, or its start was just told.
                self._ended_early[held.name] = held.exit
            elif not process.exited.done():
                process.exited.set_result(held.exit)
            return
        answer = self._answers.get(tag)
        if answer is None or answer.done():
            for descriptor in descriptors:
                os.close(descriptor)
        elif operation == Operation.FAILED:
            step, error = _FAILURE.unpack(body)
            answer.set_exception(SpawnFailed(Step(step), error))
        else:
            answer.set_result((body, descriptors))

    def _fail(self, why: str) -> None:
        assert self._loop is not None
        assert self.gone is not None
        self._loop.remove_reader(self._connection)
        if self.gone.done():
            return
        log.error("spawner.gone", reason=why)
        self.gone.set_result(None)
        error = SpawnerGone(f"the spawner is gone: {why}")
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(error)
        for process in self._processes.values():
            if not process.exited.done():
                process.exited.set_exception(error)
                # Nobody may be waiting for it just now.
                process.exited.exception()


def _name(name: str) -> bytes:
    return name.encode().ljust(64, b"\0")


def _survivors(reply: bytes) -> tuple[int, list[int]]:
    count, told, *pids = _SURVIVORS.unpack(reply)
    return count, pids[:told]


async def _writable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    ready = loop.create_future()
    loop.add_writer(connection, ready.set_result, None)
    try:
        await ready
    finally:
        loop.remove_writer(connection)


def _listen(path: Path) -> socket.socket:
    if not PROGRAM.exists():
        raise ConfigurationError(
            "this installation has no spawner, so it can run no agent: there was no C compiler when it was installed. "
            "Install one (Debian: gcc, libc6-dev), then `pip install --force-reinstall --no-deps tachikoma-exec`"
        )
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(4)
    except BaseException:
        listener.close()
        raise
    return listener


def _command(listener: socket.socket, *, peer: int, linger_seconds: int, capabilities: int) -> list[str]:
    return [
        *(str(PROGRAM), "--socket", str(listener.fileno()), "--peer", str(peer)),
        *("--linger", str(linger_seconds), "--capabilities", str(capabilities)),
    ]


def _start(path: Path, connection: socket.socket, capabilities: int) -> subprocess.Popen[bytes]:
    """Start a spawner that listens at a path, and connect to it."""
    with _listen(path) as listener:
        # A session of its own: it stays when the worker is killed, and holds what runs.
        program = subprocess.Popen(
            _command(listener, peer=os.getuid(), linger_seconds=LINGER_SECONDS, capabilities=capabilities),
            stdin=subprocess.DEVNULL,
            pass_fds=(listener.fileno(),),
            start_new_session=True,
        )
        connection.connect(str(path))
    return program


def become_spawner(path: Path, uid: int, gid: int, capabilities: int) -> NoReturn:
    """Turn this process into a spawner that serves another user's worker, and stays until it is ended.

    Raises:
        ConfigurationError: the socket cannot be made, or there is no spawner.
    """
    try:
        listener = _listen(path)
        os.chown(path, uid, gid)
    except OSError as error:
        raise ConfigurationError(f"cannot listen at {path}: {error.strerror}") from error
    os.set_inheritable(listener.fileno(), True)
    os.execv(PROGRAM, _command(listener, peer=uid, linger_seconds=0, capabilities=capabilities))  # noqa: S606 (what this is for)
