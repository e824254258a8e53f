"""The first messages with a spawner that has another version, does not serve this user, or does not answer."""

from __future__ import annotations

import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tachikoma.errors import ConfigurationError
from tachikoma_worker.confinement import greeting, protocol
from tachikoma_worker.confinement.protocol import Operation, encode_message
from tachikoma_worker.confinement.spawner import Spawner


@pytest.fixture
def path() -> Iterator[Path]:
    """Where a spawner may listen; not under tmp_path, since the path of a unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="tk-") as folder:
        yield Path(folder) / "s"


def answering(path: Path, *answers: bytes) -> threading.Thread:
    """A spawner that reads one request for each of its answers, and then closes the connection."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener:
            connection, _ = listener.accept()
        with connection:
            for answer in answers:
                header = connection.recv(protocol.HEADER_BYTES, socket.MSG_WAITALL)
                connection.recv(protocol.decode_header(header).length, socket.MSG_WAITALL)
                connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("version", [1, 3, 99])
def test_a_spawner_of_another_version_is_refused_with_a_remedy(path: Path, version: int) -> None:
    server = answering(path, encode_message(Operation.HELLO, 0, struct.pack("=IIQ", version, 0, 0)))
    with pytest.raises(ConfigurationError, match=rf"version {version} of its protocol, this worker 2; end"):
        Spawner.connect(path)
    server.join()


def test_a_spawner_that_does_not_serve_this_user_is_told(path: Path) -> None:
    server = answering(path)
    with pytest.raises(ConfigurationError, match=r"closed the connection|cannot reach the spawner"):
        Spawner.connect(path)
    server.join()


def test_a_spawner_that_does_not_answer_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting, "HELLO_SECONDS", 0.01)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(ConfigurationError, match=f"cannot reach the spawner at {path}: timed out"):
            Spawner.connect(path)


@pytest.mark.parametrize("operation", [Operation.EXITED, Operation.INPUT_EVENT])
def test_events_may_come_before_the_first_answer(path: Path, operation: Operation) -> None:
    """A spawner sends them to each connection, also to one that has not said anything yet."""
    event = encode_message(operation, 0, b"job-7".ljust(protocol.NAME_BYTES, b"\0"))
    hello = encode_message(Operation.HELLO, 0, struct.pack("=IIQ", protocol.PROTOCOL_VERSION, 1000, 0))
    server = answering(path, event + event + hello)
    spawner = Spawner.connect(path)
    assert spawner.uid == 1000
    spawner.close()
    server.join()


def test_an_answer_that_is_no_message_is_refused(path: Path) -> None:
    server = answering(path, b"x" * 64)
    with pytest.raises(ConfigurationError, match="is no spawner of Tachikoma"):
        Spawner.connect(path)
    server.join()
