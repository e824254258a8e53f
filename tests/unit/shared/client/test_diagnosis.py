"""Why there is no connection: each cause on a real socket."""

from __future__ import annotations

import datetime as dt
import gc
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from authority import Authority
from patience import PATIENCE_SECONDS
from tachikoma.client.diagnosis import Trouble, diagnose
from tachikoma.identity.files import CERTIFICATE_FILE, KEY_FILE

NAME = "orchestrator.example.org"
SERVICE = "spiffe://example.org/service/orchestrator"


@contextmanager
def listening(tls: ssl.SSLContext | None) -> Iterator[str]:
    """The address of a server that makes one handshake, or answers one line without TLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    if tls is None:
                        connection.sendall(b"220 not TLS\r\n")
                    else:
                        with tls.wrap_socket(connection, server_side=True) as encrypted:
                            # As the settings of HTTP/2.
                            encrypted.sendall(b"x")

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(PATIENCE_SECONDS)


def server_of(authority: Authority, folder: Path, **options: object) -> ssl.SSLContext:
    authority.write(folder, SERVICE, **{"dns": [NAME], **options})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / CERTIFICATE_FILE, folder / KEY_FILE)
    return context


def test_a_good_server_has_no_trouble(tmp_path: Path) -> None:
    authority = Authority("example.org")
    with listening(server_of(authority, tmp_path)) as address:
        assert diagnose(address, NAME, authority.pem) is None


@pytest.mark.parametrize(
    ("case", "text"),
    [
        (
            "unknown",
            "its certificate is signed by an authority that your bundle does not contain; renew your bundle",
        ),
        (
            "name",
            "its certificate is not for 'orchestrator.example.org'; check `serverName` in the client profile, "
            "or you reached another service",
        ),
        (
            "expired",
            "its certificate has expired; renew the orchestrator's certificate, or check the clock of this host",
        ),
        ("early", "its certificate is not valid yet; check the clocks of both hosts"),
    ],
)
def test_a_wrong_certificate_is_named_and_waiting_does_not_help(case: str, text: str, tmp_path: Path) -> None:
    authority, now = Authority("example.org"), dt.datetime.now(dt.UTC)
    options: dict[str, dict[str, object]] = {
        "name": {"dns": ["other.example.org"]},
        "expired": {"begin": now - dt.timedelta(minutes=9), "end": now - dt.timedelta(minutes=3)},
        "early": {"begin": now + dt.timedelta(minutes=9), "end": now + dt.timedelta(minutes=19)},
    }
    trusted = Authority("example.org") if case == "unknown" else authority
    with listening(server_of(authority, tmp_path, **options.get(case, {}))) as address:
        assert diagnose(address, NAME, trusted.pem) == Trouble(text, lasting=True)


@pytest.mark.parametrize(
    ("case", "text"),
    [
        (
            "unknown",
            "it does not trust the authority that signed your certificate; use an identity of its trust domain, "
            "or have its bundle renewed",
        ),
        ("expired", "it says that your certificate has expired; check the clocks of both hosts"),
        ("accepted", None),
    ],
)
def test_a_server_that_refuses_the_clients_certificate_is_understood(
    case: str, text: str | None, tmp_path: Path
) -> None:
    authority, now = Authority("example.org"), dt.datetime.now(dt.UTC)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir(), theirs.mkdir()
    signer = Authority("example.org") if case == "unknown" else authority
    times = {"begin": now - dt.timedelta(minutes=9), "end": now - dt.timedelta(minutes=3)} if case == "expired" else {}
    signer.write(ours, "spiffe://example.org/user/alice", **times)
    server = server_of(authority, theirs)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(cadata=authority.pem.decode())
    files = (ours / CERTIFICATE_FILE, ours / KEY_FILE)
    with listening(server) as address:
        found = diagnose(address, NAME, authority.pem, *(file.read_bytes() for file in files))
    assert found == (Trouble(text, lasting=True) if text else None)


@pytest.mark.parametrize("known", [True, False])
def test_a_server_of_grpc_refuses_in_words_that_are_understood(known: bool, tmp_path: Path) -> None:
    authority = Authority("example.org")
    folder = tmp_path / "ours"
    folder.mkdir()
    (authority if known else Authority("example.org")).write(folder, "spiffe://example.org/user/alice")
    server_of(authority, tmp_path)
    server = grpc.server(ThreadPoolExecutor(1))
    pair = ((tmp_path / KEY_FILE).read_bytes(), (tmp_path / CERTIFICATE_FILE).read_bytes())
    credentials = grpc.ssl_server_credentials([pair], authority.pem, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        shown = ((folder / name).read_bytes() for name in (CERTIFICATE_FILE, KEY_FILE))
        found = diagnose(f"127.0.0.1:{port}", NAME, authority.pem, *shown)
    finally:
        server.stop(0).wait(PATIENCE_SECONDS)
    said = (
        "it closes the connection when it sees your certificate; does it trust the authority that signed that? "
        "`tachikoma identity show` names it"
    )
    assert found == (None if known else Trouble(said, refused=True))


def test_a_closed_port_is_named() -> None:
    # Taken, so that no other process listens there; but nothing accepts connections.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        found = diagnose(f"127.0.0.1:{taken.getsockname()[1]}", NAME, Authority("example.org").pem)
    assert found == Trouble("nothing accepts connections there; is the orchestrator running?", refused=True)


def test_each_of_several_addresses_is_tried(tmp_path: Path) -> None:
    authority = Authority("example.org")
    refused = "nothing accepts connections there; is the orchestrator running?"
    no_tls = "the service there speaks no TLS of this kind; is the port right?"
    with socket.socket() as first, socket.socket() as second:
        closed = []
        for taken in (first, second):
            taken.bind(("127.0.0.1", 0))
            closed.append(f"127.0.0.1:{taken.getsockname()[1]}")
        assert diagnose(",".join(closed), NAME, authority.pem) == Trouble(refused, refused=True)
        with listening(None) as plain:
            found = diagnose(f"{closed[0]}, {plain}", NAME, authority.pem)
            assert found == Trouble(f"{closed[0]}: {refused}; {plain}: {no_tls}")
        with listening(server_of(authority, tmp_path)) as good:
            assert diagnose(f"{closed[0]},{good}", NAME, authority.pem) is None
        with listening(server_of(Authority("example.org"), tmp_path)) as foreign:
            found = diagnose(f"{closed[0]},{foreign}", NAME, authority.pem)
    # The one that is not running may be right when it runs.
    assert found is not None
    assert (found.lasting, found.refused) == (False, True)


def test_a_service_without_tls_is_named() -> None:
    with listening(None) as address:
        found = diagnose(address, NAME, Authority("example.org").pem)
    assert found == Trouble("the service there speaks no TLS of this kind; is the port right?")


@pytest.mark.slow
def test_a_service_that_resets_connections_is_named_and_no_socket_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.create_connection

    def and_wait_for_the_reset(*arguments: Any, **values: Any) -> socket.socket:
        connection = connect(*arguments, **values)
        accepted, _ = server.accept()
        # Without a delay at its end, a close resets the connection.
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
        return connection

    monkeypatch.setattr(socket, "create_connection", and_wait_for_the_reset)
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = diagnose(f"127.0.0.1:{server.getsockname()[1]}", NAME, Authority("example.org").pem)
    gc.collect()
    assert found == Trouble("the service there speaks no TLS of this kind; is the port right?")


def test_an_unknown_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", unknown)
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    found = diagnose("nowhere.example:8534", NAME, Authority("example.org").pem)
    assert found == Trouble("the name nowhere.example is not known; check `address` in the client profile")


def test_the_cause_behind_a_proxy_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert diagnose("orchestrator.example.org:8534", NAME, b"") is None
    assert diagnose("unix:/run/x.sock", NAME, b"") is None
