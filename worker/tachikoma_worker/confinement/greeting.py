"""The first messages between a worker and a spawner, which are the same in all versions of their protocol."""

from __future__ import annotations

import socket

from tachikoma.errors import ConfigurationError
from tachikoma_worker.confinement import protocol
from tachikoma_worker.confinement.protocol import Hello, Operation

__all__ = ["greet"]

#: Longest wait for the spawner's answer to the first message.
HELLO_SECONDS = 30.0
#: Messages that a spawner sends to each worker unasked.
_EVENTS = (Operation.EXITED, Operation.INPUT_EVENT)


def greet(connection: socket.socket) -> Hello:
    """Exchange the first messages and check the version.

    Raises:
        ConfigurationError: the spawner does not serve this user, has another version, or is none.
        OSError: it does not answer.
    """
    connection.settimeout(HELLO_SECONDS)
    connection.sendall(protocol.encode_message(Operation.HELLO, 0))
    try:
        operation, body = _message(connection)
        while operation in _EVENTS:
            # An event of a command that runs. The list of commands, which the worker asks for next, has it too.
            operation, body = _message(connection)
        hello = protocol.decode_hello(body)
    except ValueError as error:
        raise ConfigurationError(f"what listens there is no spawner of Tachikoma: {error}") from None
    if hello.version != protocol.PROTOCOL_VERSION:
        raise ConfigurationError(
            f"the spawner uses version {hello.version} of its protocol, this worker {protocol.PROTOCOL_VERSION}; end "
            "its commands and stop it, and install worker and spawner of one version"
        )
    connection.setblocking(False)
    return hello


def _message(connection: socket.socket) -> tuple[int, bytes]:
    """Receive one message, and return its operation and its body."""
    header = protocol.decode_header(_receive(connection, protocol.HEADER_BYTES))
    return header.operation, _receive(connection, header.length)


def _receive(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise ConfigurationError("the spawner closed the connection; does it serve this user?")
        data += part
    return data
