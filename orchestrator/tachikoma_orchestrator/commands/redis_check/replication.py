"""Findings about a server that has replicas or is one: the data that a failover or a separation would lose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tachikoma.diagnosis.findings import Finding
from tachikoma_orchestrator.store.known import online_replicas

__all__ = ["replication_findings"]

#: Longest silence of a replica after which its primary stops to accept writes, and of a primary after which its
#: replica connects again, in seconds.
MOST_LAG_SECONDS, MOST_TIMEOUT_SECONDS = 2, 10


def replication_findings(info: Mapping[str, object], config: Mapping[str, str]) -> Iterable[Finding]:
    """Find problems of a server's replication; a server without replicas has none.

    Args:
        info: the server's INFO.
        config: its settings.
    """
    online, replica = online_replicas(info), info.get("role") == "slave"
    if not online and not replica:
        return
    yield from _separation_findings(config)
    yield from _login_findings(config)
    if replica and info.get("master_link_status") != "up":
        yield Finding(
            where="replication",
            what="this replica does not reach its primary, so a failover to it would lose what it lacks",
            remedy="see its log; compare masteruser, masterauth and certificates with docs/redis.md",
        )
    needed = _number(config, "min-replicas-to-write")
    if not replica and online < needed:
        yield Finding(
            where="min-replicas-to-write",
            what=f"is {needed}, and {online} replicas follow: Redis refuses every change",
            remedy="start the replicas, and see their logs",
        )


def _separation_findings(config: Mapping[str, str]) -> Iterable[Finding]:
    """Check the settings for a separated primary, also on replicas: each may become the primary."""
    if not _number(config, "min-replicas-to-write"):
        yield Finding(
            where="min-replicas-to-write",
            what="is 0: a primary that is separated from its replicas accepts changes, which the failover loses",
            remedy="CONFIG SET min-replicas-to-write 1, and in redis.conf",
        )
    lag = _number(config, "min-replicas-max-lag")
    if not 1 <= lag <= MOST_LAG_SECONDS:
        what = f"is {lag}: a separated primary accepts changes for {lag} s longer" if lag else "is 0, which means never"
        yield Finding(
            where="min-replicas-max-lag", what=what, remedy="CONFIG SET min-replicas-max-lag 1, and in redis.conf"
        )
    timeout = _number(config, "repl-timeout")
    if timeout > MOST_TIMEOUT_SECONDS:
        yield Finding(
            where="repl-timeout",
            what=f"is {timeout}: a replica notices after {timeout} s that its primary is silent",
            remedy=f"CONFIG SET repl-timeout {MOST_TIMEOUT_SECONDS}, and in redis.conf",
        )


def _login_findings(config: Mapping[str, str]) -> Iterable[Finding]:
    if not config.get("masteruser"):
        yield Finding(
            where="masteruser",
            what="is not set: as a replica, this server would log in as `default`, which is off",
            remedy="set masteruser replica, and masterauth to the password in PASSWORDS/replica",
        )
    if config.get("tls-port", "0") != "0" and config.get("tls-replication") != "yes":
        yield Finding(
            where="tls-replication",
            what="is no: as a replica, this server would copy everything without TLS",
            remedy="CONFIG SET tls-replication yes, and in redis.conf",
        )


def _number(config: Mapping[str, str], name: str) -> int:
    text = config.get(name, "0")
    return int(text) if text.isdigit() else 0
