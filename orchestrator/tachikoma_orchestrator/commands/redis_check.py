"""What `tachikoma redis check` looks at: whether a live Redis is as `docs/redis.md` says it should be.

It only reads, as the user `check`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from redis.exceptions import NoPermissionError, RedisError

from tachikoma.errors import ConfigurationError, Unavailable
from tachikoma.redis import keys
from tachikoma.redis.commands import Redis
from tachikoma.redis.passwords import Passwords
from tachikoma.redis.users import AGENT_PREFIX, CHECK, ENROLLER, OPTIONAL, SERVICES, agent_user, is_application, rules
from tachikoma.vocabulary.model import Model
from tachikoma_orchestrator.agents.revocations import parse

__all__ = ["Finding", "Report", "categories_of", "examine", "parse_acl", "server_findings"]

#: Connections of an agent that is busy, about (an idle one has four), and those of orchestrators and people together.
AGENT_CONNECTIONS = 8
OTHER_CONNECTIONS = 256

_CONFIGURATION = (
    *("port", "bind", "tls-port", "tls-auth-clients", "unixsocket", "unixsocketperm"),
    *("appendonly", "appendfsync", "maxmemory-policy", "maxclients", "aclfile"),
)
#: Rights that the user `default` needs, although it is off: Redis before 7.4 replays the append-only file as this user.
_REPLAYER = frozenset({"~*", "&*", "+@all"})
#: What a server says of every user, what stands for nothing, and what is told otherwise.
_EMPTY_WORDS = {"reset", "resetchannels", "sanitize-payload", "alldbs", "on", "off"}
#: What nobody but our own users may do, and how it is called.
_PROBES = (
    ("put orders on agents' queues", ("LPUSH", keys.queue("probe"), "x")),
    ("stop or cancel commands", ("PUBLISH", keys.control("probe"), "x")),
    ("change the ledger", ("HSET", keys.execution("probe"), "x", "x")),
    ("change the audit trail", ("XADD", keys.AUDIT, "*", "x", "x")),
    ("read results", ("GET", keys.result("probe", "probe"))),
    ("read output", ("XRANGE", keys.output("probe", "probe"), "-", "+")),
)


class Finding(Model):
    """Something that is not as it should be."""

    #: The setting, port or user.
    where: str
    what: str
    remedy: str


class Report(Model):
    """What was found of a server."""

    version: str
    #: Agents that it knows, or that have a password.
    agents: tuple[str, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Acl:
    """A user's rules, so that equal ones compare equal however a server puts them."""

    enabled: bool
    hashes: frozenset[str]
    words: frozenset[str]
    selectors: frozenset[frozenset[str]]


def categories_of(text: str) -> set[str]:
    """Categories of commands that rules speak of."""
    return {word[2:] for word in text.replace(")", " ").split() if word[:2] in ("+@", "-@")} - {"all"}


def _expanded(words: list[str], categories: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """What words come to, commands one by one: Redis 7.0 tells `+@hash -hlen -hscan` of whom was given each by name."""
    others: set[str] = set()
    given: set[str] = set()
    taken: set[str] = set()
    for word in words:
        sign, name = word[0], word[1:]
        if sign not in "+-":
            others.add(word)
        elif name == "@all":
            given, taken = ({"@all"} if sign == "+" else set()), set()
        else:
            commands = categories.get(name[1:], frozenset()) if name.startswith("@") else {name}
            if sign == "+":
                taken -= commands
                given |= set() if "@all" in given else commands
            else:
                given -= commands
                taken |= commands if "@all" in given else set()
    return frozenset({*others, *(f"+{name}" for name in given), *(f"-{name}" for name in taken)}) - _EMPTY_WORDS


def parse_acl(text: str, categories: Mapping[str, frozenset[str]]) -> Acl:
    """Rules as they stand after `user <name>` in `ACL LIST` and in ACL files.

    Args:
        text: the rules.
        categories: commands of each category that they speak of (`ACL CAT`).
    """
    # Pieces outside and inside of parentheses follow each other; there are none within others.
    pieces = [piece.split() for piece in text.replace(")", "(").split("(")]
    root = [word for words in pieces[::2] for word in words]
    return Acl(
        enabled="on" in root,
        hashes=frozenset(word[1:] for word in root if word.startswith("#")),
        words=_expanded([word for word in root if not word.startswith("#")], categories),
        selectors=frozenset(_expanded(words, categories) for words in pieces[1::2]),
    )


def _version(info: Mapping[str, object]) -> tuple[str, bool]:
    """What the server calls itself, and whether it has what we need: Valkey is always new enough."""
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}", True
    version = str(info.get("redis_version", "0"))
    return f"Redis {version}", int(version.partition(".")[0]) >= 7


def _at_least_7_2(info: Mapping[str, object]) -> bool:
    major, minor, *_ = (int(part) for part in str(info.get("redis_version", "0.0")).split("."))
    return "valkey_version" in info or (major, minor) >= (7, 2)


def _loopback(bind: str) -> bool:
    addresses = [address.removeprefix("-") for address in bind.split()]
    return bool(addresses) and all(address == "::1" or address.startswith("127.") for address in addresses)


def server_findings(
    info: Mapping[str, object], config: Mapping[str, str], *, agents: int, durable: bool
) -> Iterable[Finding]:
    """What is wrong with a server beside its users.

    Args:
        info: its INFO.
        config: its settings.
        agents: how many connect to it.
        durable: whether the orchestrator waits for its disk.
    """
    version, known = _version(info)
    if not known:
        yield Finding(where="version", what=f"{version} has no ACL selectors", remedy="use Redis 7 or newer, or Valkey")
    if durable and not _at_least_7_2(info):
        yield Finding(
            where="version",
            what=f"{version} cannot say what is on its disk (WAITAOF), so the orchestrator refuses requests",
            remedy="use Redis 7.2 or newer, or Valkey, or set TACHIKOMA_AUDIT_DURABLE=false",
        )
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
    needed = OTHER_CONNECTIONS + AGENT_CONNECTIONS * agents
    if int(config.get("maxclients", 0)) < needed:
        yield Finding(
            where="maxclients",
            what=f"is {config.get('maxclients')}; {agents} agents need about {needed}",
            remedy=f"CONFIG SET maxclients {needed}, and in redis.conf; its limit of open files must allow that",
        )
    if not config.get("aclfile"):
        yield Finding(
            where="aclfile",
            what="is not set: users that are not in redis.conf are gone after a restart",
            remedy="put what `tachikoma redis acl` prints into a file, and its path into redis.conf",
        )
    yield from _network_findings(config)


def _network_findings(config: Mapping[str, str]) -> Iterable[Finding]:
    plain, tls = config.get("port", "0"), config.get("tls-port", "0")
    bind = config.get("bind", "")
    if plain != "0" and not _loopback(bind):
        yield Finding(
            where=f"port {plain}",
            what=f"is open without TLS on {bind or 'all addresses'}: whoever is on the way reads passwords and output",
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


def _differences(found: Acl, wanted: Acl) -> str:
    def told(words: Iterable[str], selectors: Iterable[frozenset[str]]) -> str:
        return " ".join([*sorted(words), *sorted(f"({' '.join(sorted(selector))})" for selector in selectors)])

    parts = [
        (told(found.words - wanted.words, found.selectors - wanted.selectors), "has in addition"),
        (told(wanted.words - found.words, wanted.selectors - found.selectors), "lacks"),
    ]
    return "; ".join(f"{what} {text}" for text, what in parts if text)


def _user_findings(
    users: Mapping[str, Acl], wanted: Mapping[str, Acl], passwords: Passwords | None
) -> Iterable[Finding]:
    kept = set(passwords.users()) if passwords is not None else set()
    load = "load the ACL file that `tachikoma redis acl` prints (ACL LOAD)"
    for name, right in wanted.items():
        found = users.get(name)
        if found is None:
            yield Finding(where=f"user {name}", what="does not exist, so it cannot connect", remedy=load)
            continue
        if not found.enabled:
            yield Finding(where=f"user {name}", what="is off, so it cannot connect", remedy=load)
        differences = _differences(found, right)
        if differences:
            yield Finding(where=f"user {name}", what=differences, remedy=load)
        if name in kept:
            assert passwords is not None
            hashes = frozenset(passwords.hashes(name))
            if hashes != found.hashes:
                number = len(found.hashes - hashes)
                what = f"accepts {number} passwords that are not its own" if number else "does not accept its password"
                yield Finding(where=f"user {name}", what=what, remedy=load)
        elif not found.hashes:
            yield Finding(where=f"user {name}", what="has no password", remedy=load)
        elif passwords is not None and ENROLLER not in users:
            # Where agents join, they have passwords that nobody else has.
            yield Finding(
                where=f"user {name}",
                what=f"has no password in {passwords.folder}: is it still there?",
                remedy=f"ACL DELUSER {name}, or put its password there",
            )
    default = users.get("default")
    if default is not None and default.enabled:
        rights = "everything" if "+@all" in default.words else " ".join(sorted(default.words))
        needed = "without a password" if "nopass" in default.words else "with a password"
        yield Finding(
            where="user default",
            what=f"whoever connects may do {rights}, {needed}",
            remedy=f"{load}; it switches that user off",
        )
    elif default is not None and not default.words >= _REPLAYER:
        yield Finding(
            where="user default",
            what="may not do everything: a restart of Redis drops what scripts wrote since the last rewrite of the "
            "append-only file (redis#14541)",
            remedy=f"{load}; it leaves that user off and lets the replay write",
        )


def _cut_off_findings(
    cut_off: Iterable[str], users: Mapping[str, Acl], passwords: Passwords | None
) -> Iterable[Finding]:
    kept = set(passwords.users()) if passwords is not None else set()
    for name in cut_off:
        if name in users:
            yield Finding(
                where=f"user {name}",
                what="was cut off, and can still connect",
                remedy=f"ACL DELUSER {name}, and ACL SAVE",
            )
        if name in kept:
            assert passwords is not None
            yield Finding(
                where=f"user {name}",
                what="was cut off, and still has a password: the next ACL file would let it connect",
                remedy=f"remove {passwords.path(name)}",
            )


async def _stranger_findings(redis: Redis, strangers: Iterable[str]) -> list[Finding]:
    findings = []
    for name in strangers:
        may = [
            what for what, command in _PROBES if await redis.execute_command("ACL", "DRYRUN", name, *command) == b"OK"
        ]
        if may:
            findings.append(
                Finding(
                    where=f"user {name}",
                    what=f"is none of ours and may {', '.join(may)}",
                    remedy=f"ACL DELUSER {name}, or take these rights from it",
                )
            )
    return findings


async def examine(redis: Redis, *, passwords: Passwords | None, durable: bool) -> Report:
    """Look at a server.

    Args:
        redis: connected as the user `check`, or one with more rights.
        passwords: of all users, to compare them and to know which agents there are; None compares rights only.
        durable: whether the orchestrator waits until its audit trail is on disk.

    Raises:
        ConfigurationError: this user may not look.
        Unavailable: Redis cannot be reached.
    """
    try:
        info = await redis.info()
        raw = await redis.config_get(*_CONFIGURATION)
        lines = await redis.acl_list()
        heard = await redis.hkeys(keys.AGENTS)
        revoked = await redis.hgetall(keys.REVOKED)
        config = {str(_text(name)): str(_text(value)) for name, value in raw.items()}
        cut_off = {_text(name) for name, raw in revoked.items() if parse(raw).active}
        agents = {_text(agent) for agent in heard}
        known = passwords.users() if passwords is not None else []
        agents |= {name.removeprefix(AGENT_PREFIX) for name in known if name.startswith(AGENT_PREFIX)}
        agents -= cut_off
        present = dict(_text(line).split(" ", 2)[1:] for line in lines)
        optional = [name for name in OPTIONAL if name in present or name in known]
        applications = {name for name in (*known, *present) if is_application(name)}
        ours = (*SERVICES, *optional, *map(agent_user, sorted(agents)), *sorted(applications))
        right = {name: " ".join(rules(name, ())) for name in ours}
        named = set().union(*map(categories_of, (*right.values(), *present.values())))
        categories = {name: frozenset(map(_text, await redis.acl_cat(name))) for name in sorted(named)}
        users = {name: parse_acl(text, categories) for name, text in present.items()}
        strangers = sorted(name for name, acl in users.items() if acl.enabled and name not in {*right, "default"})
        findings = [
            *server_findings(info, config, agents=len(agents), durable=durable),
            *_user_findings(users, {name: parse_acl(text, categories) for name, text in right.items()}, passwords),
            *_cut_off_findings(map(agent_user, sorted(cut_off)), users, passwords),
            *await _stranger_findings(redis, strangers),
        ]
    except NoPermissionError as error:
        raise ConfigurationError(
            f"this Redis user may not look at the server ({error}); use the user {CHECK} of `tachikoma redis acl`"
        ) from None
    except (RedisError, OSError) as error:
        raise Unavailable(f"cannot look at Redis: {error}", metadata={"dependency": "redis"}) from error
    return Report(version=_version(info)[0], agents=tuple(sorted(agents)), findings=tuple(findings))


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
