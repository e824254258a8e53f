"""Who may do what in Redis: the ACL user of each part, made from the names in `keys.py`.

Whoever needs a further command or name in Redis adds it to one of the tables below; the tests run the whole system
under them, and fail when anything is denied. `docs/redis.md` is for operators, `docs/decisions/0013` says why.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tachikoma.errors import ConfigurationError
from tachikoma.redis import keys
from tachikoma.vocabulary.types import is_identifier

__all__ = [
    "ADMIN",
    "AGENT_PREFIX",
    "APPLICATION_PREFIX",
    "BEAT",
    "CHECK",
    "DEFAULT_USER_RULES",
    "ENROLLER",
    "FLOWER",
    "OPTIONAL",
    "ORCHESTRATOR",
    "SERVICES",
    "SUBMITTER",
    "Grant",
    "Passwords",
    "acl_file",
    "agent_user",
    "agents_in",
    "application_user",
    "grants_of",
    "is_application",
    "read_password",
    "rules",
]

ORCHESTRATOR = "orchestrator"
FLOWER = "flower"
#: Celery beat.
BEAT = "beat"
#: Celery's side of `tachikoma submitter`.
SUBMITTER = "submitter"
#: Rules of the user `default`. It is off, so that nobody can connect as it, and yet it may do everything: Redis before
#: 7.4 replays the append-only file as this user, and drops each script's and transaction's writes that `default` may
#: not make (redis#14541). With `off` alone, a restart lost everything that was accepted since the last rewrite.
DEFAULT_USER_RULES = "off ~* &* +@all"
#: `tachikoma redis check`.
CHECK = "check"
#: Whoever loads ACL files and repairs things; the only one with all rights.
ADMIN = "admin"
#: What orchestrators that let agents join make and remove agents' users with. It can give any user any right.
ENROLLER = "enroller"
AGENT_PREFIX = "agent."
#: Celery applications that send requests of their own.
APPLICATION_PREFIX = "app."


@dataclass(frozen=True, slots=True)
class Grant:
    """Commands, and the keys and channels they may be used on. Without any, they are commands that touch none."""

    commands: str
    #: Patterns of keys whose values it may learn, and of keys it may change.
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    #: Patterns of channels. PSUBSCRIBE takes exactly these, as they stand here.
    channels: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """As rules of Redis."""
        both = [name for name in self.read if name in self.write]
        return [
            *(f"+{command}" for command in self.commands.split()),
            *(f"~{name}" for name in both),
            *(f"%R~{name}" for name in self.read if name not in both),
            *(f"%W~{name}" for name in self.write if name not in both),
            *(f"&{name}" for name in self.channels),
        ]


#: What every connection does. AUTH and HELLO need no right. No SELECT: everything is in database 0.
_CONNECTION = Grant("client|setname ping")


def _agent(agent: str) -> tuple[Grant, ...]:
    """An agent takes from its queue and cannot put there; of its other names it may change what is its own to say."""
    queue, info, events, control = keys.queue(agent), keys.info(agent), keys.events(agent), keys.control(agent)
    claims, outputs, results = keys.claim(agent, "*"), keys.output(agent, "*"), keys.result(agent, "*")
    cancels, reads = keys.cancel(agent, "*"), keys.read(agent, "*")
    return (
        _CONNECTION,
        Grant("unsubscribe"),
        Grant("brpop", read=(queue,), write=(queue,)),
        # Its registration: for `tachikoma worker health`.
        Grant("get", read=(info, claims, cancels, reads)),
        # SET with GET: what a restarted worker finds there is what it tells once more.
        Grant("set", read=(results,), write=(info, claims, results)),
        Grant("xadd xdel", write=(outputs,)),
        Grant("xrevrange", read=(outputs,)),
        Grant("expire", write=(info, outputs)),
        Grant("publish", channels=(events, outputs, results)),
        Grant("subscribe", channels=(control,)),
    )


_ORCHESTRATOR = (
    _CONNECTION,
    # Without keys, `@blocking` is WAIT and WAITAOF; the latter by its name is an error to Redis 7.0.
    Grant("multi exec time scan script|load unsubscribe @blocking"),
    # What its scripts may do with these keys is said by the lines below: Redis asks again for each command in them.
    Grant("evalsha", read=(keys.ALL_OURS, keys.ALL_QUEUES), write=(keys.ALL_OURS, keys.ALL_QUEUES)),
    Grant(
        "get exists expire pexpire incr hget hset hsetnx hmget hgetall hdel hkeys hvals hexists sadd srem scard "
        "zadd zrem zrange zrevrangebyscore zremrangebyscore zcard xadd xread xrange xrevrange xtrim",
        read=(keys.ALL_OURS,),
        write=(keys.ALL_OURS,),
    ),
    # Neither a record nor the trail can be deleted or written over.
    Grant("set", write=(keys.parked("*"), keys.audit_lock("*"), keys.enrolment("*"))),
    Grant("set", write=(keys.claim("*", "*"), keys.cancel("*", "*"), keys.read("*", "*"))),
    Grant("del", write=(keys.parked("*"), keys.audit_lock("*"), keys.enrolment("*"))),
    Grant("get exists", read=(keys.ALL_INFO, keys.claim("*", "*"), keys.result("*", "*"))),
    Grant("lpush llen", write=(keys.ALL_QUEUES,)),
    Grant("xrange", read=(keys.output("*", "*"),)),
    Grant("publish", channels=(keys.control("*"), keys.ENDED, keys.APPROVED)),
    Grant("publish", channels=(keys.celery_events("task"), keys.celery_events("worker"))),
    Grant("psubscribe", channels=(keys.ALL_EVENTS, keys.ALL_RESULTS, keys.ENDED, keys.APPROVED, keys.EVENTS_WANTED)),
    Grant("subscribe", channels=(keys.output("*", "*"),)),
)

#: It puts nudges on the submitter's queue, and has names of its own.
_BEAT = (
    _CONNECTION,
    Grant("multi exec script|load"),
    Grant(
        "get set del pttl pexpire evalsha hget hset zadd zrem zrange zrangebyscore",
        read=(f"{keys.BEAT}*",),
        write=(f"{keys.BEAT}*",),
    ),
    Grant("lpush", write=(keys.BATCH,)),
    Grant("llen", read=(keys.BATCH,)),
)

_QUEUES = (keys.SUBMIT, keys.BATCH)
_UNACKED = keys.unacked("*")
_APPLICATION_RESULTS = (keys.application_result("*", "*"), keys.ALL_OWN_RESULTS)

#: Celery takes messages and keeps them; results, groups and callbacks are the applications'.
_SUBMITTER = (
    _CONNECTION,
    Grant("multi exec unwatch unsubscribe script|load time"),
    Grant("brpop rpush lpush", read=_QUEUES, write=_QUEUES),
    Grant(
        "hset hget hdel hvals zadd zrem zrange del set get watch",
        read=(keys.SUBMITTERS, *_UNACKED),
        write=(keys.SUBMITTERS, *_UNACKED),
    ),
    Grant(
        "evalsha",
        read=(*_QUEUES, keys.SUBMITTERS, *_UNACKED, keys.ALL_GROUPS),
        write=(*_QUEUES, keys.SUBMITTERS, *_UNACKED, keys.ALL_GROUPS),
    ),
    # An application's own task may be what follows a chord, which ends when the chord fails.
    Grant("get set setex", read=_APPLICATION_RESULTS, write=_APPLICATION_RESULTS),
    Grant("publish", channels=_APPLICATION_RESULTS),
    Grant(
        "get set setex incr del exists expire zadd zcount zrange rpush llen lrange sadd sismember",
        read=(keys.ALL_GROUPS,),
        write=(keys.ALL_GROUPS,),
    ),
    Grant("lpush", write=(keys.CALLBACKS,)),
)


def _application(name: str) -> tuple[Grant, ...]:
    """An application puts on the submitters' queue, and learns of its own results and of groups."""
    results = keys.application_result(name, "*")
    return (
        _CONNECTION,
        Grant("multi exec unsubscribe"),
        Grant("lpush", write=(keys.SUBMIT,)),
        # Stock kombu also asks for the lengths of queues of other priorities.
        Grant("llen", read=(f"{keys.SUBMIT}*",)),
        Grant("sadd", write=keys.binding(keys.SUBMIT)),
        Grant("get mget del", read=(results, keys.ALL_OWN_RESULTS), write=(results, keys.ALL_OWN_RESULTS)),
        Grant("subscribe", channels=(results, keys.ALL_OWN_RESULTS)),
        Grant("get set setex del", read=(keys.ALL_GROUPS,), write=(keys.ALL_GROUPS,)),
    )


SERVICES: dict[str, tuple[Grant, ...]] = {
    ORCHESTRATOR: _ORCHESTRATOR,
    SUBMITTER: _SUBMITTER,
    # It listens. There is no key that it may so much as read.
    FLOWER: (
        _CONNECTION,
        Grant("punsubscribe"),
        Grant("psubscribe", channels=(keys.ALL_CELERY_EVENTS,)),
        Grant("publish", channels=(keys.EVENTS_WANTED,)),
    ),
    BEAT: _BEAT,
    CHECK: (
        _CONNECTION,
        Grant("info config|get acl|list acl|cat acl|dryrun"),
        Grant("hkeys", read=(keys.AGENTS,)),
        Grant("hgetall", read=(keys.REVOKED,)),
    ),
    ADMIN: (Grant("@all", read=("*",), write=("*",), channels=("*",)),),
}

#: Services that not everybody has.
OPTIONAL: dict[str, tuple[Grant, ...]] = {
    ENROLLER: (
        _CONNECTION,
        Grant("acl|setuser acl|deluser acl|save"),
        # The queue and the registration of an agent that was cut off.
        Grant("del", write=(keys.ALL_QUEUES,)),
    ),
}


def grants_of(user: str) -> tuple[Grant, ...]:
    """What a user may do.

    Raises:
        ConfigurationError: there is no such user.
    """
    services = SERVICES | OPTIONAL
    if user in services:
        return services[user]
    for prefix, grants in ((AGENT_PREFIX, _agent), (APPLICATION_PREFIX, _application)):
        name = user.removeprefix(prefix)
        if name != user and is_identifier(name):
            return grants(name)
    raise ConfigurationError(
        f"{user!r} is no Redis user of ours; they are {', '.join(services)}, {AGENT_PREFIX}<id> and "
        f"{APPLICATION_PREFIX}<name>"
    )


def agent_user(agent: str) -> str:
    """Name of an agent's user."""
    return f"{AGENT_PREFIX}{agent}"


def application_user(name: str) -> str:
    """Name of an application's user."""
    return f"{APPLICATION_PREFIX}{name}"


def is_application(user: str) -> bool:
    """Whether it is the name of an application's user."""
    return user.startswith(APPLICATION_PREFIX) and is_identifier(user.removeprefix(APPLICATION_PREFIX))


def rules(user: str, hashes: Iterable[str]) -> list[str]:
    """A user's rules, from nothing on: the words after `ACL SETUSER <user>`, and after `user <user>` in an ACL file.

    Args:
        user: its name.
        hashes: SHA-256 of each of its passwords, in hex.

    Raises:
        ConfigurationError: there is no such user.
    """
    grants = grants_of(user)
    words = ["reset", "resetchannels", "on", *(f"#{digest}" for digest in hashes), "-@all"]
    rest = list(grants)
    if user == ADMIN:
        return words + rest[0].words()
    for grant in grants:
        if not (grant.read or grant.write or grant.channels):
            words += grant.words()
            rest.remove(grant)
    # Each further grant is a selector: its commands are allowed on its own names, and on no other grant's.
    return words + [f"(resetchannels -@all {' '.join(grant.words())})" for grant in rest]


def read_password(path: Path) -> str:
    """The password in a file: its first line.

    Raises:
        ConfigurationError: it cannot be read, or there is none.
    """
    return _read_passwords(path)[0]


def _read_passwords(path: Path) -> list[str]:
    try:
        found = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the Redis password in {path}: {error}") from error
    if not found:
        raise ConfigurationError(f"there is no password in {path}; `tachikoma redis acl` makes one where no file is")
    return found


class Passwords:
    """A folder with a file for each user, of the user's name; so it is also the list of who there is.

    A file holds one password a line. Clients use the first; Redis takes all, so that a password can be replaced without
    anybody being locked out.
    """

    def __init__(self, folder: Path) -> None:
        """Take the folder, or make it.

        Raises:
            ConfigurationError: it cannot be made.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigurationError(f"cannot use the folder of passwords {folder}: {error}") from error

    def path(self, user: str) -> Path:
        """Where a user's password is."""
        return self.folder / user

    def users(self) -> list[str]:
        """Who has one: services first, in their order, then agents."""
        names = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        for name in names:
            grants_of(name)
        services = SERVICES | OPTIONAL
        return [*(name for name in services if name in names), *sorted(names - services.keys())]

    def make(self, user: str) -> None:
        """Make a password, unless there is one.

        Raises:
            ConfigurationError: there is no such user, or the file cannot be written.
        """
        grants_of(user)
        try:
            descriptor = os.open(self.path(user), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return
        except OSError as error:
            raise ConfigurationError(f"cannot write the password of {user} to {self.path(user)}: {error}") from error
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{secrets.token_hex(32)}\n")

    def hashes(self, user: str) -> list[str]:
        """What Redis knows a user's passwords by.

        Raises:
            ConfigurationError: the file cannot be read, or is empty.
        """
        return [hashlib.sha256(password.encode()).hexdigest() for password in _read_passwords(self.path(user))]


def agents_in(acl: str) -> dict[str, list[str]]:
    """Users of agents in an ACL file, with the SHA-256 of their passwords; who joined is nowhere else."""
    found = {}
    for line in acl.splitlines():
        word, _, rest = line.partition(" ")
        name, *words = rest.split() or [""]
        if word == "user" and is_identifier(name.removeprefix(AGENT_PREFIX)) and name.startswith(AGENT_PREFIX):
            found[name] = [item[1:] for item in words if re.fullmatch("#[0-9a-f]{64}", item)]
    return found


def acl_file(passwords: Passwords, *, joined: Mapping[str, Iterable[str]] | None = None) -> str:
    """The ACL file of all users that have a password.

    Args:
        passwords: theirs.
        joined: further users of agents, by name, with the SHA-256 of their passwords.
    """
    hashes = {user: passwords.hashes(user) for user in passwords.users()}
    everybody = {**hashes, **{user: given for user, given in (joined or {}).items() if user not in hashes}}
    lines = [f"user default {DEFAULT_USER_RULES}"]
    lines += (f"user {user} {' '.join(rules(user, given))}" for user, given in everybody.items())
    return "\n".join(lines) + "\n"
