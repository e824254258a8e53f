"""The check of everything that a URL names: one server, or Sentinels and all servers that they watch."""

from __future__ import annotations

import asyncio

from tachikoma.diagnosis.findings import Finding, RedisReport
from tachikoma.errors import ConfigurationError, Unavailable
from tachikoma.redis.access import RedisAccess, connect
from tachikoma.redis.commands import Redis
from tachikoma.redis.passwords import Passwords
from tachikoma.redis.sentinel import Address, Primary
from tachikoma.redis.servers import Servers
from tachikoma_orchestrator.commands.redis_check.examine import examine
from tachikoma_orchestrator.commands.redis_check.sentinels import ask_sentinels, sentinel_findings

__all__ = ["examine_all"]

#: Name of the connections in `CLIENT LIST`.
NAME = "redis-check"


async def examine_all(access: RedisAccess, *, passwords: Passwords | None, durable: bool) -> RedisReport:
    """Compare all servers that a URL names with the requirements.

    Args:
        access: as the user `check`, or one with more rights.
        passwords: passwords of all users; None compares rights only.
        durable: whether the orchestrator waits until its audit trail is on disk.

    Raises:
        ConfigurationError: this user may not read the state of the server.
        Unavailable: the server, or the primary that the Sentinels name, cannot be reached.
    """
    client = connect(access, name=NAME, max_connections=1)
    try:
        report = await examine(client, passwords=passwords, durable=durable)
    finally:
        await client.aclose()
    if access.primary is None:
        return report
    findings = await _behind_sentinels(access, access.primary, report, passwords, durable)
    return report.model_copy(update={"findings": tuple(findings)})


async def _behind_sentinels(
    access: RedisAccess, primary: Primary, report: RedisReport, passwords: Passwords | None, durable: bool
) -> list[Finding]:
    """Return the findings of the primary, of each replica, and of the Sentinels."""
    servers = Servers(access, name=NAME)
    try:
        (first, _), *replicas = (await servers.all()).items()
        findings = [_at(first, finding) for finding in report.findings]
        for address, client in replicas:
            findings += await _replica_findings(address, client, passwords, durable)
    finally:
        await servers.close()
    answers = await asyncio.to_thread(ask_sentinels, primary)
    return [*findings, *sentinel_findings(primary.name, answers)]


async def _replica_findings(
    address: Address, client: Redis, passwords: Passwords | None, durable: bool
) -> list[Finding]:
    try:
        report = await examine(client, passwords=passwords, durable=durable)
    except (ConfigurationError, Unavailable) as error:
        return [_at(address, Finding(where="server", what=str(error), remedy="load the same ACL file on every server"))]
    return [_at(address, finding) for finding in report.findings]


def _at(address: Address, finding: Finding) -> Finding:
    return finding.model_copy(update={"where": f"{address[0]}:{address[1]}, {finding.where}"})
