"""The check of a live server. The command itself is tested in tests/security."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tachikoma.errors import ConfigurationError, Unavailable
from tachikoma.redis import keys
from tachikoma.redis.access import connect
from tachikoma.redis.commands import Redis
from tachikoma.redis.passwords import Passwords
from tachikoma.redis.users import SERVICES, rules
from tachikoma_orchestrator.commands.redis_check.examine import examine

USERS = (*SERVICES, "agent.web-1", "agent.web-2", "eve")


@pytest.fixture
async def server(redis: Redis) -> AsyncIterator[Redis]:
    """A server whose users are removed afterwards."""
    yield redis
    await redis.execute_command("ACL", "DELUSER", *USERS)


async def set_user(redis: Redis, passwords: Passwords, name: str) -> None:
    passwords.make(name)
    await redis.execute_command("ACL", "SETUSER", name, *rules(name, passwords.hashes(name)))


async def found(redis: Redis, passwords: Passwords | None = None) -> dict[str, list[str]]:
    report = await examine(redis, passwords=passwords, durable=False)
    findings: dict[str, list[str]] = {}
    for item in report.findings:
        findings.setdefault(item.where, []).append(item.what)
    return findings


async def test_users_as_they_should_be_are_no_findings(server: Redis, tmp_path: Path) -> None:
    passwords = Passwords(tmp_path)
    for name in (*SERVICES, "agent.web-1"):
        await set_user(server, passwords, name)
    await server.hset(keys.AGENTS, "web-1", "x")
    report = await examine(server, passwords=passwords, durable=False)
    assert report.agents == ("web-1",)
    # The server of these tests keeps nothing on disk, and lets every client in.
    wrong = {item.where for item in report.findings}
    assert wrong == {"appendonly", "aclfile", "user default"}


async def test_agents_are_known_by_their_connections_and_by_their_passwords(server: Redis, tmp_path: Path) -> None:
    await server.hset(keys.AGENTS, "web-1", "x")
    passwords = Passwords(tmp_path)
    passwords.make("agent.web-2")
    report = await examine(server, passwords=passwords, durable=False)
    assert report.agents == ("web-1", "web-2")


async def test_a_revoked_agent_should_not_exist(server: Redis, tmp_path: Path) -> None:
    passwords = Passwords(tmp_path)
    await set_user(server, passwords, "agent.web-1")
    await server.hset(keys.AGENTS, "web-1", "x")
    # An entry that cannot be read counts as a revocation.
    await server.hset(keys.REVOKED, "web-1", "nonsense")
    report = await examine(server, passwords=passwords, durable=False)
    assert report.agents == ()
    assert [item.what for item in report.findings if item.where == "user agent.web-1"] == [
        "is revoked, and can still connect",
        "is revoked, and still has a password: the next ACL file would let it connect",
    ]


async def test_an_unknown_user_is_a_finding_only_with_rights_that_matter(server: Redis) -> None:
    await server.execute_command("ACL", "SETUSER", "eve", "on", "nopass", "~other:*", "+@all")
    assert "user eve" not in await found(server)
    await server.execute_command("ACL", "SETUSER", "eve", "~*")
    ((what),) = (await found(server))["user eve"]
    assert what.startswith("is not a user of Tachikoma and may put orders on agents' queues, ")
    await server.execute_command("ACL", "SETUSER", "eve", "off")
    assert "user eve" not in await found(server)


async def test_a_user_without_rights_and_a_server_that_is_unavailable_are_errors(
    server: Redis, redis_url: str, tmp_path: Path
) -> None:
    await server.execute_command("ACL", "SETUSER", "eve", "on", ">x", "+ping", "+client|setname")
    for url, kind, text in (
        (f"{redis_url}?db=0".replace("unix://", "unix://eve:x@"), ConfigurationError, "use the user check"),
        (f"unix://{tmp_path}/nowhere", Unavailable, "cannot check Redis: "),
    ):
        client = connect(url, name="test-check", max_connections=1)
        with pytest.raises(kind, match=text):
            await examine(client, passwords=None, durable=False)
        await client.aclose()
