"""What is wrong with a server, by its settings. Live servers are checked in tests/security."""

from __future__ import annotations

import pytest

from tachikoma_orchestrator.commands.redis_check.server import server_findings

INFO = {"redis_version": "7.2.4", "aof_last_write_status": "ok"}
CONFIG = {
    "port": "0",
    "bind": "* -::*",
    "tls-port": "6379",
    "tls-auth-clients": "yes",
    "unixsocket": "",
    "unixsocketperm": "0",
    "appendonly": "yes",
    "appendfsync": "always",
    "maxmemory-policy": "noeviction",
    "maxclients": "10000",
    "aclfile": "/etc/redis/users.acl",
}


def found(info: dict[str, object] | None = None, *, agents: int = 1, durable: bool = True, **config: str) -> list[str]:
    settings = {**CONFIG, **{name.replace("_", "-"): value for name, value in config.items()}}
    findings = list(server_findings({**INFO, **(info or {})}, settings, agents=agents, durable=durable))
    assert all(item.what and item.remedy for item in findings)
    return [item.where for item in findings]


def test_all_is_right() -> None:
    assert found() == []
    assert found({"valkey_version": "9.1.2"}) == []
    assert found(port="6379", bind="127.0.0.1 -::1", tls_port="0") == []
    # Valkey without TLS, on a private socket.
    assert found(tls_port="0", unixsocket="/run/r.sock", unixsocketperm="700") == []


@pytest.mark.parametrize("bind", ["", "* -::*", "10.0.0.1", "127.0.0.1 10.0.0.1", "127.0.0.1 ::", "localhost.evil"])
def test_a_port_without_tls_is_for_this_host_only(bind: str) -> None:
    assert found(port="6379", bind=bind) == ["port 6379"]


@pytest.mark.parametrize("value", ["no", "optional"])
def test_clients_show_a_certificate(value: str) -> None:
    assert found(tls_auth_clients=value) == ["tls-auth-clients"]


def test_a_socket_is_not_for_everybody() -> None:
    assert found(unixsocket="/run/r.sock", unixsocketperm="777") == ["/run/r.sock"]
    assert found(unixsocket="/run/r.sock", unixsocketperm="770") == []


@pytest.mark.parametrize(
    ("memory", "wrong"),
    [
        ({"used_memory": 81, "maxmemory": 100}, ["maxmemory"]),
        ({"used_memory": 79, "maxmemory": 100, "total_system_memory": 10}, []),
        ({"used_memory": 81, "maxmemory": 0, "total_system_memory": 100}, ["memory of the host"]),
        ({"used_memory": 81, "maxmemory": 0}, []),
    ],
)
def test_memory_that_may_be_full_soon_is_found(memory: dict[str, object], wrong: list[str]) -> None:
    assert found(memory) == wrong


def test_nothing_accepted_is_lost() -> None:
    assert found(appendonly="no") == ["appendonly"]
    assert found(appendfsync="no") == ["appendfsync"]
    assert found(maxmemory_policy="volatile-lru") == ["maxmemory-policy"]
    assert found({"aof_last_write_status": "err"}) == ["appendonly"]
    assert found(aclfile="") == ["aclfile"]


def test_versions() -> None:
    assert found({"redis_version": "7.0.15"}) == ["version"]
    assert found({"redis_version": "7.0.15"}, durable=False) == []
    assert found({"redis_version": "6.2.14"}, durable=False) == ["version"]
    # Valkey says it is Redis 7.2.4, whatever it is.
    assert found({"redis_version": "7.2.4", "valkey_version": "8.0.0"}) == []


def test_every_agent_can_connect() -> None:
    assert found(agents=1218) == []
    assert found(agents=1219) == ["maxclients"]
