"""The check of a live server: it reads the server's state, and compares it with the requirements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from redis.exceptions import NoPermissionError, RedisError

from tachikoma.diagnosis.findings import Finding, RedisReport
from tachikoma.errors import ConfigurationError, Unavailable
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.redis.passwords import Passwords
from tachikoma.redis.users import AGENT_PREFIX, CHECK, OPTIONAL, SERVICES, agent_user, is_application, rules
from tachikoma_orchestrator.agents.revocations import parse
from tachikoma_orchestrator.commands.redis_check.acl import Acl, categories_of, parse_acl
from tachikoma_orchestrator.commands.redis_check.server import CONFIGURATION, server_findings, version_of
from tachikoma_orchestrator.commands.redis_check.users import (
    PROBES,
    default_user_findings,
    revoked_findings,
    stranger_finding,
    user_findings,
)

__all__ = ["examine"]


@dataclass(frozen=True, slots=True)
class _Server:
    """The state of a server."""

    info: Mapping[str, object]
    config: Mapping[str, str]
    #: Rules of each user, as the server prints them.
    users: Mapping[str, str]
    #: Ids of agents that have ever connected, and of revoked ones.
    agents: frozenset[str]
    revoked: frozenset[str]


async def examine(redis: Redis, *, passwords: Passwords | None, durable: bool) -> RedisReport:
    """Compare a server with the requirements.

    Args:
        redis: connected as the user `check`, or one with more rights.
        passwords: passwords of all users, to compare them and to know the agents; None compares rights only.
        durable: whether the orchestrator waits until its audit trail is on disk.

    Raises:
        ConfigurationError: this user may not read the state of the server.
        Unavailable: Redis cannot be reached.
    """
    try:
        server = await _read(redis)
        known = passwords.users() if passwords is not None else []
        agents = server.agents | {name.removeprefix(AGENT_PREFIX) for name in known if name.startswith(AGENT_PREFIX)}
        agents -= server.revoked
        right = _right_users(agents, {*server.users, *known})
        users, wanted = await _parsed(redis, server.users, right)
        findings = [
            *server_findings(server.info, server.config, agents=len(agents), durable=durable),
            *user_findings(users, wanted, passwords),
            *default_user_findings(users.get("default")),
            *revoked_findings(map(agent_user, sorted(server.revoked)), users, passwords),
            *await _stranger_findings(redis, users, known=right),
        ]
    except NoPermissionError as error:
        raise ConfigurationError(
            f"this Redis user may not read the state of the server ({error}); use the user {CHECK} of "
            "`tachikoma redis acl`"
        ) from None
    except (RedisError, OSError) as error:
        raise Unavailable(f"cannot check Redis: {error}", metadata={"dependency": "redis"}) from error
    return RedisReport(version=version_of(server.info), agents=tuple(sorted(agents)), findings=tuple(findings))


async def _read(redis: Redis) -> _Server:
    """Read the state of a server. Raises redis errors."""
    config = await redis.config_get(*CONFIGURATION)
    revoked = await redis.hgetall(keys.REVOKED)
    lines = (_text(line).split(" ", 2) for line in await redis.acl_list())
    return _Server(
        info=await redis.info(),
        config={_text(name): _text(value) for name, value in config.items()},
        users={name: text for _, name, text in lines},
        agents=frozenset(map(_text, await redis.hkeys(keys.AGENTS))),
        revoked=frozenset(_text(name) for name, raw in revoked.items() if parse(raw).active),
    )


def _right_users(agents: Iterable[str], known: set[str]) -> dict[str, str]:
    """Return the users that should exist, with their rules.

    Args:
        agents: ids of the agents.
        known: names of users that exist or have a password; optional users and applications are among them.
    """
    optional = [name for name in OPTIONAL if name in known]
    applications = sorted(name for name in known if is_application(name))
    names = (*SERVICES, *optional, *map(agent_user, sorted(agents)), *applications)
    return {name: " ".join(rules(name, ())) for name in names}


async def _parsed(
    redis: Redis, present: Mapping[str, str], right: Mapping[str, str]
) -> tuple[dict[str, Acl], dict[str, Acl]]:
    """Parse the rules of present and right users, with the server's own categories. Raises redis errors."""
    mentioned: set[str] = set().union(*map(categories_of, (*right.values(), *present.values())))
    categories = {name: frozenset(map(_text, await redis.acl_cat(name))) for name in sorted(mentioned)}

    def parsed(users: Mapping[str, str]) -> dict[str, Acl]:
        return {name: parse_acl(text, categories) for name, text in users.items()}

    return parsed(present), parsed(right)


async def _stranger_findings(redis: Redis, users: Mapping[str, Acl], *, known: Iterable[str]) -> list[Finding]:
    """Find unknown users with rights that only our own users should have. Raises redis errors."""
    ours = {*known, "default"}
    findings = []
    for name in sorted(name for name, acl in users.items() if acl.enabled and name not in ours):
        actions = [
            action
            for action, command in PROBES
            if await redis.execute_command("ACL", "DRYRUN", name, *command) == b"OK"
        ]
        if actions:
            findings.append(stranger_finding(name, actions))
    return findings


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
