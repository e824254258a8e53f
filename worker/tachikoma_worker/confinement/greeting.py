"""The first messages between a worker and a spawner, which are the same in all versions of their protocol."""

from __future__ import annotations

import socket

from tachikoma.errors import ConfigurationError
from tachikoma_worker.confinement import protocol
from tachikoma_worker.confinement.protocol import Hello, Operation

__all__ = ["greet"]

#: Longest wait for the spawner's answer to the first message.
HELLO_SECONDS = 30.0


def greet(connection: socket.socket) -> Hello:
    """Exchange the first messages and check the version.

    Raises:
        ConfigurationError: the spawner does not serve this user, or has another version.
        OSError: it does not answer.
    """
    connection.settimeout(HELLO_SECONDS)
    connection.sendall(protocol.encode_message(Operation.HELLO, 0))
    reply = b""
    expected = protocol.HEADER_BYTES + protocol.HELLO_BYTES
    while len(reply) < expected:
        data = connection.recv(expected - len(reply))
        if not data:
            raise ConfigurationError("the spawner closed the connection; does it serve this user?")
        reply += data
    hello = protocol.decode_hello(reply[protocol.HEADER_BYTES :])
    if hello.version != protocol.PROTOCOL_VERSION:
        raise ConfigurationError(
            f"the spawner uses version {hello.version} of its protocol, this worker {protocol.PROTOCOL_VERSION}; end "
            "its commands and stop it, and install worker and spawner of one version"
        )
    connection.setblocking(False)
    return hello
