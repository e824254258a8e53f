"""Syslog over a unix socket, TCP and TLS, with receivers that fail, come back and stall."""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from audit_chain import DOMAIN, event, events
from patience import PATIENCE_SECONDS
from tachikoma.dev.ca import DevelopmentCA
from tachikoma.errors import ConfigurationError
from tachikoma.identity.spiffe import service_id
from tachikoma_orchestrator.audit.sinks import syslog
from tachikoma_orchestrator.audit.sinks.sink import SinkUnavailable
from tachikoma_orchestrator.audit.sinks.syslog import SyslogSink, syslog_message


def test_a_syslog_message_is_of_rfc_5424() -> None:
    good = syslog_message(event(7, authorized=True, command="/bin/ls 'ä'"), "host-1").decode()
    header, _, body = good.partition(" - {")
    assert header == f"<110>1 2026-01-31T12:00:07.000Z host-1 tachikoma {os.getpid()} admitted"
    assert json.loads("{" + body)["seq"] == 7
    denied = event(7).model_copy(update={"event": "denied"})
    assert syslog_message(denied, "h").startswith(b"<108>1 ")
    assert b"\n" not in syslog_message(event(7, reason="a\nb"), "h")


def wait_until(condition: Callable[[], object], description: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"did not come true: {description}"
        time.sleep(0.002)


class Receiver(threading.Thread):
    """A syslog server on TCP, as far as RFC 6587 goes. It can be away, and come back on the same port."""

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(daemon=True)
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self.messages: list[dict[str, Any]] = []
        self._connection: socket.socket | None = None
        self._stopping = False
        self.start()

    def run(self) -> None:
        while not self._stopping:
            try:
                self._connection, _ = self._listener.accept()
            except OSError:
                return
            # A client that does not trust this server ends the connection, during the handshake or after it.
            with suppress(OSError):
                if self._tls is not None:
                    self._connection = self._tls.wrap_socket(self._connection, server_side=True)
                self._receive(self._connection)

    def _receive(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            while size := stream.read(1):
                while (digit := stream.read(1)) != b" ":
                    size += digit
                self.messages.append(json.loads(stream.read(int(size)).partition(b" - ")[2]))

    def stop(self) -> None:
        self._stopping = True
        if self._connection is not None:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            self._connection.close()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join(PATIENCE_SECONDS)


@pytest.mark.parametrize("url", ["udp://h:1", "tcp://h", "tcp://:514", "unix://", "tls://h:x", "/dev/log", ""])
def test_a_syslog_that_cannot_be_reached_in_a_known_way_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is not an address of syslog"):
        SyslogSink(url)


def test_syslog_over_a_unix_socket(tmp_path: Path) -> None:
    address = tmp_path / "log"
    sink = SyslogSink(f"unix://{address}")
    with pytest.raises(SinkUnavailable, match="cannot reach"):
        sink.send(events(1, 2))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(address))
        sink.send(events(1, 2))
        assert [json.loads(server.recv(65536).partition(b" - ")[2])["seq"] for _ in range(2)] == [1, 2]
    sink.close()


def test_syslog_that_is_away_loses_and_doubles_nothing() -> None:
    receiver = Receiver()
    sink = SyslogSink(f"tcp://127.0.0.1:{receiver.port}")
    sink.send(events(1, 50))
    wait_until(lambda: len(receiver.messages) == 50, "all arrived")
    receiver.stop()
    with pytest.raises(SinkUnavailable) as away:
        sink.send(events(51, 60))
    assert away.value.sent == 0
    again = Receiver(receiver.port)
    sink.send(events(51, 60))
    wait_until(lambda: len(again.messages) == 10, "the rest arrived")
    sink.close()
    again.stop()
    assert [message["seq"] for message in receiver.messages + again.messages] == list(range(1, 61))


def test_syslog_over_tls_is_for_a_server_that_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = DevelopmentCA(tmp_path / "ca", DOMAIN)
    authority.issue(service_id(DOMAIN, "syslog"), tmp_path / "server", dns_names=("localhost",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server" / "svid.pem", tmp_path / "server" / "svid_key.pem")
    receiver = Receiver(tls=context)
    sink = SyslogSink(f"tls://localhost:{receiver.port}")
    with pytest.raises(SinkUnavailable, match="certificate verify failed"):
        sink.send(events(1, 3))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca" / "ca.pem"))
    sink.send(events(1, 3))
    wait_until(lambda: [message["seq"] for message in receiver.messages] == [1, 2, 3], "all arrived")
    sink.close()
    receiver.stop()


class StallingServer:
    """A TCP server that reads only when a test asks for it; the first connection has a small receive buffer."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.port = self._listener.getsockname()[1]

    def accept(self) -> socket.socket:
        connection, _ = self._listener.accept()
        connection.settimeout(PATIENCE_SECONDS)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024 * 1024)
        return connection if self._tls is None else self._tls.wrap_socket(connection, server_side=True)

    def close(self) -> None:
        self._listener.close()


def read_rest(connection: socket.socket) -> bytes:
    """Read a connection to its end."""
    found = b""
    with suppress(OSError):
        while data := connection.recv(65536):
            found += data
    connection.close()
    return found


def framed(data: bytes) -> tuple[list[int], bytes]:
    """Return the numbers of the events in whole frames, and the incomplete frame after them."""
    seqs = []
    while data:
        size, space, rest = data.partition(b" ")
        if not space or len(rest) < int(size):
            break
        seqs.append(json.loads(rest[: int(size)].partition(b" - ")[2])["seq"])
        data = rest[int(size) :]
    return seqs, data


@pytest.fixture(scope="module")
def server_context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ssl.SSLContext]:
    folder = tmp_path_factory.mktemp("tls")
    DevelopmentCA(folder / "ca", DOMAIN).issue(
        service_id(DOMAIN, "syslog"), folder / "server", dns_names=("localhost",)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server" / "svid.pem", folder / "server" / "svid_key.pem")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(folder / "ca" / "ca.pem"))
        yield context


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
@pytest.mark.parametrize("taken", [0, 1, 700, 40_000, 300_000])
@pytest.mark.slow
def test_a_stalled_receiver_never_sees_a_frame_in_the_middle_of_another(
    scheme: str, taken: int, server_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver reads some bytes and stops; later it reads everything, on the old connection and on the next."""
    monkeypatch.setattr(syslog, "SOCKET_SECONDS", 0.2)
    given = [event(seq, reason="x" * 20_000) for seq in range(1, 61)]
    server = StallingServer(server_context if scheme == "tls" else None)
    sink = SyslogSink(f"{scheme}://localhost:{server.port}")
    streams: list[bytes] = []
    stall, resume = threading.Event(), threading.Event()

    def receive() -> None:
        first = server.accept()
        head = b""
        while len(head) < taken:
            head += first.recv(taken - len(head))
        stall.set()
        resume.wait(PATIENCE_SECONDS)
        streams.append(head + read_rest(first))
        streams.append(read_rest(server.accept()))

    thread = threading.Thread(target=receive)
    thread.start()
    with pytest.raises(SinkUnavailable) as away:
        sink.send(given)
    stall.wait(PATIENCE_SECONDS)
    resume.set()
    wait_until(lambda: streams, "the old connection ends")
    monkeypatch.setattr(syslog, "SOCKET_SECONDS", 20.0)
    sink.send(given[away.value.sent :])
    sink.close()
    thread.join(PATIENCE_SECONDS)
    server.close()
    old, torn = framed(streams[0])
    new, rest = framed(streams[1])
    # All of the second connection is whole frames; of the first, the last one may be incomplete.
    assert rest == b""
    assert torn == b"" or not torn.startswith(b"<")
    assert old == list(range(1, len(old) + 1))
    assert new == list(range(away.value.sent + 1, 61))
    # Nothing that was reported as taken is missing.
    assert away.value.sent <= len(old)


def test_a_slow_receiver_gets_everything_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syslog, "SEND_SECONDS", 0.0)
    receiver = Receiver()
    sink = SyslogSink(f"tcp://127.0.0.1:{receiver.port}")
    given = [event(seq, reason="x" * 20_000) for seq in range(1, 21)]
    parts = 0
    while given:
        taken = len(given)
        try:
            sink.send(given)
        except SinkUnavailable as slow:
            taken = slow.sent
        given = given[taken:]
        parts += 1
    wait_until(lambda: len(receiver.messages) == 20, "all arrived")
    assert [message["seq"] for message in receiver.messages] == list(range(1, 21))
    # A group holds three of them.
    assert parts == 7
    sink.close()
    receiver.stop()
