"""The worker's connection to the spawner, the small program that starts commands and stays their parent.

The worker never forks a command itself. It sends a request over a private unix socket, receives the read ends of the
command's pipes, and is notified when the command ends. The spawner outlives the worker: a restarted worker finds the
running commands in it. `protocol` is the format of the messages, worker/spawner the other side.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from tachikoma.errors import ConfigurationError
from tachikoma.vocabulary.requests import WindowSize
from tachikoma_worker.confinement import protocol
from tachikoma_worker.confinement.greeting import greet
from tachikoma_worker.confinement.isolation.abilities import Abilities, find_abilities
from tachikoma_worker.confinement.launch import start_spawner
from tachikoma_worker.confinement.process import KILL_POLL_SECONDS, KILL_SECONDS, Process
from tachikoma_worker.confinement.protocol import (
    Exit,
    Held,
    Hello,
    InputStatus,
    Operation,
    SpawnerGone,
    SpawnFailed,
    Survivors,
)
from tachikoma_worker.confinement.spawn_request import SpawnRequest

__all__ = ["Spawner"]

log = structlog.get_logger(__name__)

#: Longest wait for a spawner of our own to end after it was asked to.
STOP_SECONDS = 1.0
#: Longest path of a unix socket (unix(7)).
MAX_PATH_BYTES = 107
#: Messages that contain the state of a command's input.
_WITH_INPUT_STATUS = (Operation.INPUT, Operation.END_INPUT, Operation.INPUT_EVENT)


@dataclass(frozen=True, slots=True)
class _Reply:
    """The body of a reply and the descriptors that came with it."""

    body: bytes
    descriptors: list[int]


class Spawner:
    """One connection to a spawner. `connect` may be called anywhere; the other methods belong to one asyncio loop."""

    def __init__(self, connection: socket.socket, hello: Hello, started: subprocess.Popen[bytes] | None) -> None:
        """Take over a connection; `started` is the program if this worker started it."""
        self._connection = connection
        self._started = started
        #: The user that the spawner runs as.
        self.uid = hello.uid
        #: Bits of the capabilities that a command may keep at most.
        self.capabilities = hello.capabilities
        self._tag = 0
        self._replies: dict[int, asyncio.Future[_Reply]] = {}
        self._processes: dict[str, Process] = {}
        #: Exits that were reported before this worker knew the command.
        self._early_exits: dict[str, Exit] = {}
        #: States of inputs that were reported before this worker knew the command.
        self._early_inputs: dict[str, InputStatus] = {}
        self._sending = asyncio.Lock()
        self._received = bytearray()
        self._descriptors: list[int] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Resolves when the connection has broken.
        self.gone: asyncio.Future[None] | None = None

    @classmethod
    def connect(cls, path: Path, capabilities: int = 0) -> Spawner:
        """Connect to the spawner that listens at a path, or start one of our own.

        Args:
            path: path of its socket.
            capabilities: for one of our own, bits of the capabilities that a command may keep at most.

        Raises:
            ConfigurationError: neither is possible; the message says what to do.
        """
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise ConfigurationError(f"the path of the spawner's socket is longer than {MAX_PATH_BYTES} bytes: {path}")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        started: subprocess.Popen[bytes] | None = None
        try:
            try:
                connection.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                started = start_spawner(path, connection, capabilities)
            return cls(connection, greet(connection), started)
        except OSError as error:
            connection.close()
            raise ConfigurationError(f"cannot reach the spawner at {path}: {error}") from error
        except ConfigurationError:
            connection.close()
            raise

    def abilities(self) -> Abilities:
        """Return what the spawner can enforce on this host. Only before `attach`; blocks.

        Raises:
            ConfigurationError: the spawner does not answer.
        """
        try:
            return find_abilities(self._connection, self.uid)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"cannot try what the spawner can isolate: {error}") from error

    # --- in the loop --------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Start receiving in the running loop."""
        self._loop = asyncio.get_running_loop()
        self.gone = self._loop.create_future()
        self._loop.add_reader(self._connection, self._on_readable)

    async def spawn(self, request: SpawnRequest) -> Process:
        """Start a command.

        Raises:
            SpawnFailed: a step failed; nothing was started.
            SpawnerGone: it is unknown whether the command was started.
        """
        body, descriptors = request.encode()
        reply = await self._ask(Operation.SPAWN, body, descriptors)
        held = Held(request.name, protocol.decode_spawned(reply.body), None, InputStatus(mode=request.input))
        return self._adopt(held, reply.descriptors)

    async def take(self, held: Held) -> Process:
        """Take over a command that was started for an earlier worker.

        Raises:
            SpawnFailed: the spawner no longer holds it.
            SpawnerGone: the spawner no longer answers.
        """
        reply = await self._ask(Operation.TAKE, protocol.encode_name(held.name))
        now = protocol.decode_held(reply.body)
        if now.exit is not None:
            self._early_exits[now.name] = now.exit
        return self._adopt(now, reply.descriptors)

    async def held(self) -> list[Held]:
        """Return all commands that the spawner holds: running, or ended and not yet released.

        Raises:
            SpawnerGone: the spawner no longer answers.
        """
        found: list[Held] = []
        place = 0
        while True:
            reply = await self._ask(Operation.LIST, protocol.encode_list(place))
            commands, place = protocol.decode_listed(reply.body)
            found += commands
            if not place:
                return found

    async def signal(self, name: str, number: int, *, foreground: bool = False) -> None:
        """Send a signal to a command's process group, or to the foreground group of its terminal."""
        await self._ask(Operation.SIGNAL, protocol.encode_signal(name, number, foreground=foreground))

    async def send_input(self, name: str, offset: int, data: memoryview) -> None:
        """Send bytes of input that begin at an offset. The reply is in `Process.input`."""
        await self._ask(Operation.INPUT, protocol.encode_input(name, offset, data))

    async def end_input(self, name: str, offset: int) -> None:
        """End a command's input at an offset. The reply is in `Process.input`."""
        await self._ask(Operation.END_INPUT, protocol.encode_input(name, offset))

    async def resize(self, name: str, size: WindowSize) -> None:
        """Set the size of a command's terminal."""
        await self._ask(Operation.RESIZE, protocol.encode_resize(name, size))

    async def hang_up(self, name: str) -> None:
        """Close a command's terminal. Its processes get SIGHUP."""
        await self._ask(Operation.HANG_UP, protocol.encode_name(name))

    async def kill(self, name: str) -> Survivors:
        """Kill all processes of a command once, and return those that are still there."""
        reply = await self._ask(Operation.KILL, protocol.encode_name(name))
        return protocol.decode_survivors(reply.body)

    async def sweep(self, cgroup_fds: Sequence[int]) -> list[int]:
        """Kill all processes of a cgroup for which the spawner holds no command.

        Args:
            cgroup_fds: directories of the cgroup; the first one is killed. Without any, nothing is done.

        Returns:
            Process ids of the survivors, at most 32.
        """
        survivors = Survivors(0, [])
        for descriptor in cgroup_fds[:1]:
            deadline = asyncio.get_running_loop().time() + KILL_SECONDS
            while True:
                reply = await self._ask(Operation.SWEEP, b"", [descriptor])
                survivors = protocol.decode_survivors(reply.body)
                if not survivors.count or asyncio.get_running_loop().time() > deadline:
                    break
                await asyncio.sleep(KILL_POLL_SECONDS)
        return survivors.pids

    async def drop_tmp(self, path: str) -> None:
        """Remove a requester's temporary folders. Raises SpawnFailed, SpawnerGone."""
        await self._ask(Operation.DROP_TMP, os.fsencode(path) + b"\0")

    async def release(self, name: str) -> None:
        """Remove a command that has ended from the spawner."""
        self._processes.pop(name, None)
        self._early_exits.pop(name, None)
        self._early_inputs.pop(name, None)
        await self._ask(Operation.RELEASE, protocol.encode_name(name))

    async def stop(self, *, anyway: bool = False) -> None:
        """End the spawner if it holds no commands, and close the connection.

        Args:
            anyway: end it also if another worker started it.
        """
        if self._started is not None or anyway:
            with suppress(SpawnFailed, SpawnerGone):
                await self._ask(Operation.STOP)
        self.close()

    def close(self) -> None:
        """Close the connection. The spawner keeps the commands that it holds."""
        if self._loop is not None:
            self._loop.remove_reader(self._connection)
        self._connection.close()
        if self._started is not None:
            with suppress(subprocess.TimeoutExpired):
                self._started.wait(STOP_SECONDS)

    def _adopt(self, held: Held, pipes: list[int]) -> Process:
        """Return the process of a command whose pipes were received."""
        stdout, stderr = pipes
        for pipe in pipes:
            os.set_blocking(pipe, False)
        status = self._early_inputs.pop(held.name, held.input)
        process = Process(self, held.name, held.pid, stdout, stderr, status)
        early = self._early_exits.pop(held.name, None)
        if early is not None:
            process.exited.set_result(early)
        self._processes[held.name] = process
        return process

    # --- requests -----------------------------------------------------------------------------------------------------

    async def _ask(self, operation: Operation, body: bytes = b"", descriptors: Sequence[int] = ()) -> _Reply:
        """Send a request and wait for its reply."""
        assert self._loop is not None, "attach first"
        assert self.gone is not None
        if self.gone.done():
            raise SpawnerGone("the spawner is gone")
        self._tag += 1
        tag = self._tag
        reply: asyncio.Future[_Reply] = self._loop.create_future()
        self._replies[tag] = reply
        try:
            await self._send(protocol.encode_message(operation, tag, body), descriptors)
            # No timeout: the spawner never waits for anything, and its death fails the reply.
            return await reply
        except OSError as error:
            self._fail(str(error))
            raise SpawnerGone(f"the spawner is gone: {error}") from None
        finally:
            self._replies.pop(tag, None)

    async def _send(self, message: bytes, descriptors: Sequence[int]) -> None:
        """Send a message. Its descriptors travel with its first byte."""
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
                await self._send_rest(message[sent:])

    async def _send_rest(self, part: bytes) -> None:
        """Send the rest of a message, even if this is cancelled: half a message would spoil the next ones."""
        assert self._loop is not None
        sending = asyncio.ensure_future(self._loop.sock_sendall(self._connection, part))
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            await asyncio.wait({sending})
            raise

    # --- replies and events -------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        try:
            # Never beyond the end of a message, so that its descriptors are received with it.
            data, descriptors, flags, _ = socket.recv_fds(
                self._connection, self._missing_bytes(), protocol.MAX_DESCRIPTORS
            )
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(str(error))
            return
        self._descriptors += descriptors
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        if not data or flags & socket.MSG_CTRUNC:
            self._fail("it closed the connection")
            return
        self._received += data
        try:
            if not self._missing_bytes():
                self._on_message()
        except ValueError as error:
            self._fail(str(error))

    def _missing_bytes(self) -> int:
        """Return the number of bytes that are missing of the current message, or of its header."""
        if len(self._received) < protocol.HEADER_BYTES:
            return protocol.HEADER_BYTES - len(self._received)
        header = protocol.decode_header(self._received)
        return protocol.HEADER_BYTES + header.length - len(self._received)

    def _on_message(self) -> None:
        """Handle the received message: an event, or the reply to a request."""
        header = protocol.decode_header(self._received)
        body = bytes(self._received[protocol.HEADER_BYTES :])
        descriptors, self._descriptors = self._descriptors, []
        self._received.clear()
        if header.operation == Operation.EXITED:
            self._on_exited(protocol.decode_exited(body))
            return
        if header.operation in _WITH_INPUT_STATUS:
            # Here, in the order of the messages: a later one must not be replaced by an earlier one.
            self._on_input(header.operation, *protocol.decode_input(body))
        reply = self._replies.get(header.tag)
        if reply is None or reply.done():
            for descriptor in descriptors:
                os.close(descriptor)
        elif header.operation == Operation.FAILED:
            reply.set_exception(protocol.decode_failure(body))
        else:
            reply.set_result(_Reply(body, descriptors))

    def _on_input(self, operation: int, name: str, status: InputStatus) -> None:
        process = self._processes.get(name)
        if process is None:
            self._early_inputs[name] = status
        else:
            process.on_input(status, room=operation == Operation.INPUT_EVENT)

    def _on_exited(self, held: Held) -> None:
        assert held.exit is not None
        process = self._processes.get(held.name)
        if process is None:
            # Not known yet: it is still to be taken over, or the reply to its start is still to be handled.
            self._early_exits[held.name] = held.exit
        elif not process.exited.done():
            process.exited.set_result(held.exit)

    def _fail(self, reason: str) -> None:
        """Fail everything that waits for the spawner."""
        assert self._loop is not None
        assert self.gone is not None
        self._loop.remove_reader(self._connection)
        if self.gone.done():
            return
        log.error("spawner.gone", reason=reason)
        self.gone.set_result(None)
        error = SpawnerGone(f"the spawner is gone: {reason}")
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(error)
        for process in self._processes.values():
            if not process.exited.done():
                process.exited.set_exception(error)
                # Retrieved, or asyncio logs an error if no caller waits at this moment.
                process.exited.exception()


async def _writable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    """Wait until a socket accepts more data."""
    ready = loop.create_future()
    loop.add_writer(connection, ready.set_result, None)
    try:
        await ready
    finally:
        loop.remove_writer(connection)
