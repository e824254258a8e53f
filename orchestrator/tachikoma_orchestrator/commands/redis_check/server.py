"""Findings about the settings of a server: version, memory, disk, connections and network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tachikoma.diagnosis.findings import Finding
from tachikoma_orchestrator.commands.redis_check.replication import replication_findings

__all__ = ["CONFIGURATION", "server_findings", "version_of"]

#: Settings that the check reads.
CONFIGURATION = (
    *("port", "bind", "tls-port", "tls-auth-clients", "unixsocket", "unixsocketperm"),
    *("appendonly", "appendfsync", "maxmemory-policy", "maxclients", "aclfile"),
    *("min-replicas-to-write", "min-replicas-max-lag", "repl-timeout", "masteruser", "tls-replication"),
)
#: Connections of a busy agent, approximately; an idle one has four.
AGENT_CONNECTIONS = 8
#: Connections of orchestrators, submitters, Flower and people together.
OTHER_CONNECTIONS = 256
#: Share of the memory above which it may be full soon.
FULL_SHARE = 0.8


def version_of(info: Mapping[str, object]) -> str:
    """Return name and version of the server."""
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info.get('redis_version', '0')}"


def server_findings(
    info: Mapping[str, object], config: Mapping[str, str], *, agents: int, durable: bool
) -> Iterable[Finding]:
    """Find what is wrong with the settings of a server.

    Args:
        info: the server's INFO.
        config: its settings, those of `CONFIGURATION`.
        agents: number of agents that connect to it.
        durable: whether the orchestrator waits for the server's disk.
    """
    yield from _version_findings(info, durable=durable)
    yield from _persistence_findings(info, config)
    yield from _capacity_findings(config, agents)
    yield from _memory_findings(info)
    yield from _network_findings(config)
    yield from replication_findings(info, config)


def _at_least(info: Mapping[str, object], *wanted: int) -> bool:
    """Return True if the server has the features of a version of Redis. Every Valkey has those of 7.2."""
    version = str(info.get("redis_version", "0.0")).split(".")
    return "valkey_version" in info or tuple(int(part) for part in version[: len(wanted)]) >= wanted


def _version_findings(info: Mapping[str, object], *, durable: bool) -> Iterable[Finding]:
    version = version_of(info)
    if not _at_least(info, 7):
        yield Finding(where="version", what=f"{version} has no ACL selectors", remedy="use Redis 7 or newer, or Valkey")
    if durable and not _at_least(info, 7, 2):
        yield Finding(
            where="version",
            what=f"{version} cannot report what is on its disk (WAITAOF), so the orchestrator refuses requests",
            remedy="use Redis 7.2 or newer, or Valkey, or set TACHIKOMA_AUDIT_DURABLE=false",
        )


def _persistence_findings(info: Mapping[str, object], config: Mapping[str, str]) -> Iterable[Finding]:
    if config.get("maxmemory-policy") != "noeviction":
        yield Finding(
            where="maxmemory-policy",
            what=f"is {config.get('maxmemory-policy')}: a full memory would drop orders, claims and audit events",
            remedy="CONFIG SET maxmemory-policy noeviction, and in redis.conf",
        )
    if config.get("appendonly") != "yes":
        yield Finding(
            where="appendonly",
            what=f"is {config.get('appendonly')}: a restart loses what was accepted, and its audit events",
            remedy="CONFIG SET appendonly yes, and in redis.conf",
        )
    elif config.get("appendfsync") == "no":
        yield Finding(
            where="appendfsync",
            what="is no: a crash of the host loses what the kernel has not written yet",
            remedy="CONFIG SET appendfsync always (or everysec), and in redis.conf",
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        yield Finding(
            where="appendonly",
            what="the last write of the append-only file failed, so Redis refuses every change",
            remedy="see its log; most likely the disk is full",
        )
    if not config.get("aclfile"):
        yield Finding(
            where="aclfile",
            what="is not set: users that are not in redis.conf are gone after a restart",
            remedy="put what `tachikoma redis acl` prints into a file, and its path into redis.conf",
        )


def _capacity_findings(config: Mapping[str, str], agents: int) -> Iterable[Finding]:
    needed = OTHER_CONNECTIONS + AGENT_CONNECTIONS * agents
    if int(config.get("maxclients", 0)) < needed:
        yield Finding(
            where="maxclients",
            what=f"is {config.get('maxclients')}; {agents} agents need about {needed}",
            remedy=f"CONFIG SET maxclients {needed}, and in redis.conf; its limit of open files must allow that",
        )


def _memory_findings(info: Mapping[str, object]) -> Iterable[Finding]:
    used, limit, name = int(str(info.get("used_memory", 0))), int(str(info.get("maxmemory", 0))), "maxmemory"
    if not limit:
        # Without a limit of its own, the server is killed when the memory of its host is full.
        limit, name = int(str(info.get("total_system_memory", 0))), "memory of the host"
    if limit and used > limit * FULL_SHARE:
        yield Finding(
            where=name,
            what=f"{used >> 20} of {limit >> 20} MiB are in use; when it is full, every change is refused or lost",
            remedy="give Redis more memory (maxmemory), or retain less: TACHIKOMA_OUTPUT_BYTES, TACHIKOMA_RETENTION",
        )


def _loopback(bind: str) -> bool:
    addresses = [address.removeprefix("-") for address in bind.split()]
    return bool(addresses) and all(address == "::1" or address.startswith("127.") for address in addresses)


def _network_findings(config: Mapping[str, str]) -> Iterable[Finding]:
    plain, tls = config.get("port", "0"), config.get("tls-port", "0")
    bind = config.get("bind", "")
    if plain != "0" and not _loopback(bind):
        yield Finding(
            where=f"port {plain}",
            what=f"is open without TLS on {bind or 'all addresses'}: passwords and output can be read in transit",
            remedy="set port 0 and tls-port in redis.conf, or bind it to 127.0.0.1",
        )
    if tls != "0" and config.get("tls-auth-clients") != "yes":
        yield Finding(
            where="tls-auth-clients",
            what=f"is {config.get('tls-auth-clients')}: a password is enough to connect",
            remedy="CONFIG SET tls-auth-clients yes, and in redis.conf",
        )
    permissions = config.get("unixsocketperm") or "0"
    if config.get("unixsocket") and int(permissions, 8) & 0o007:
        yield Finding(
            where=str(config["unixsocket"]),
            what=f"every user of the host may connect ({permissions})",
            remedy="set unixsocketperm 770 or 700 in redis.conf",
        )
