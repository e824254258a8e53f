"""The Redis ACL users of all parts, with their rights, made from the names in `keys.py`.

A part that needs a further command or name in Redis gets it in one of the tables below. The tests run the whole system
with these users and fail when Redis denies a command. `docs/redis.md` is for operators; `docs/decisions/0013` has the
reasons. Redis's rules are described at https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tachikoma.errors import ConfigurationError
from tachikoma.redis import keys
from tachikoma.vocabulary.identifiers import is_identifier

__all__ = [
    "ADMIN",
    "AGENT_PREFIX",
    "APPLICATION_PREFIX",
    "BACKUP",
    "BEAT",
    "CHECK",
    "DEFAULT_USER_RULES",
    "ENROLLER",
    "FLOWER",
    "OPTIONAL",
    "ORCHESTRATOR",
    "REPLICA",
    "SENTINEL",
    "SENTINEL_CLIENT_RULES",
    "SENTINEL_PEER_RULES",
    "SERVICES",
    "SUBMITTER",
    "Grant",
    "agent_user",
    "application_user",
    "grants_of",
    "is_application",
    "rules",
]

#: User of each orchestrator.
ORCHESTRATOR = "orchestrator"
#: User of `tachikoma flower`.
FLOWER = "flower"
#: User of Celery beat.
BEAT = "beat"
#: User of Celery's side of `tachikoma submitter`.
SUBMITTER = "submitter"
#: Rules of the user `default`. It is off, so no client can connect as it, but it has all rights: Redis before 7.4
#: replays the append-only file as this user, and drops the writes of scripts and transactions that `default` may not
#: make (redis#14541). With `off` alone, a restart lost everything that was accepted since the last rewrite.
DEFAULT_USER_RULES = "off ~* &* +@all"
#: User of `tachikoma redis check`.
CHECK = "check"
#: User of operators who load ACL files and repair values; the only enabled one with all rights.
ADMIN = "admin"
#: User by which orchestrators create and remove the users of agents that join. It can give any user any right.
ENROLLER = "enroller"
#: User of `tachikoma redis backup`. It reads everything, and changes nothing.
BACKUP = "backup"
#: User by which replicas follow their primary, and the one by which Sentinels watch servers and each other.
REPLICA, SENTINEL = "replica", "sentinel"
#: Rules of the user `default` at Sentinels: any client with a certificate may ask for the servers, and do nothing else.
SENTINEL_CLIENT_RULES = (
    "on nopass resetkeys resetchannels -@all +ping +sentinel|master +sentinel|get-master-addr-by-name "
    "+sentinel|replicas"
)
#: Channel in which Sentinels find each other.
_HELLO = "__sentinel__:hello"
#: Rules of the user `sentinel` at Sentinels, where other commands exist than at servers.
SENTINEL_PEER_RULES = (
    f"resetkeys resetchannels -@all +ping +client|setname +publish +sentinel|is-master-down-by-addr &{_HELLO}"
)
#: Prefix of the users of agents.
AGENT_PREFIX = "agent."
#: Prefix of the users of Celery applications that send requests.
APPLICATION_PREFIX = "app."


@dataclass(frozen=True, slots=True)
class Grant:
    """Commands, and the keys and channels they may be used on; with neither, commands that touch none."""

    #: Names of commands, separated by spaces; `a|b` is the subcommand b of a, `@a` a category.
    commands: str
    #: Patterns of keys whose values the commands may read.
    read: tuple[str, ...] = ()
    #: Patterns of keys that the commands may change.
    write: tuple[str, ...] = ()
    #: Patterns of channels. PSUBSCRIBE needs exactly one of these patterns as its argument.
    channels: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """Return the grant as rules of Redis."""
        both = [name for name in self.read if name in self.write]
        return [
            *(f"+{command}" for command in self.commands.split()),
            *(f"~{name}" for name in both),
            *(f"%R~{name}" for name in self.read if name not in both),
            *(f"%W~{name}" for name in self.write if name not in both),
            *(f"&{name}" for name in self.channels),
        ]


#: Commands of every connection. AUTH and HELLO need no right. No SELECT: all values are in database 0.
_CONNECTION = Grant("client|setname ping")


def _agent(agent: str) -> tuple[Grant, ...]:
    """Return the rights of an agent: to take from its queue, never to push to it, and to write its own reports."""
    queue, info, events, control = keys.queue(agent), keys.info(agent), keys.events(agent), keys.control(agent)
    lanes = keys.queue_lane(agent, "*")
    claims, outputs, results = keys.claim(agent, "*"), keys.output(agent, "*"), keys.result(agent, "*")
    cancels, reads, orders = keys.cancel(agent, "*"), keys.read(agent, "*"), keys.orders(agent)
    inputs, sessions = keys.input(agent, "*"), keys.session(agent, "*")
    reports = keys.report(agent, "*", "*")
    return (
        _CONNECTION,
        # INFO has the replication id, by which each connection is compared with the current life of Redis.
        Grant("unsubscribe info"),
        Grant("brpop", read=(queue, lanes), write=(queue, lanes)),
        # The registration is read by `tachikoma worker health`.
        Grant("get mget", read=(info, claims, cancels, reads, keys.LIFE)),
        # One command renews the lease and returns whose it is.
        Grant("getex", read=(info,), write=(info,)),
        # The lease is set only if no other worker holds it.
        Grant("multi exec unwatch"),
        Grant("watch", read=(info,)),
        # SET with GET: a claim returns its holder; a restarted worker publishes again the result that is stored.
        Grant("set", read=(claims, results), write=(info, claims, results)),
        # After a failover most of them are still there.
        Grant("exists", read=(claims, results)),
        Grant("xadd xdel", write=(outputs,)),
        # Input of a session is deleted when the command has taken it.
        Grant("xread", read=(inputs,)),
        Grant("xtrim expire", write=(inputs,)),
        Grant("set", write=(sessions,)),
        Grant("xrevrange", read=(outputs, inputs)),
        Grant("hset", write=(orders,)),
        Grant("expire", write=(info, outputs, orders)),
        Grant("publish", channels=(events, outputs, results, reports, sessions)),
        Grant("subscribe", channels=(control,)),
    )


#: Pattern of the results of all agents. Orchestrators of 0.2.0 subscribe to it, and have these rights until they are
#: upgraded. Without it Redis refuses all subscriptions of their one command.
_ALL_RESULTS = "celery-task-meta-*"

#: Rights of an orchestrator: its own names, and the parts of agents' names that it needs.
_ORCHESTRATOR = (
    _CONNECTION,
    # Without keys, `@blocking` is WAIT and WAITAOF; the latter by its name is an error to Redis 7.0, where the category
    # does not contain WAIT.
    Grant("multi exec time scan script|load unsubscribe info wait @blocking"),
    # Redis checks each command of a script again, so the lines below limit what scripts may do with these keys.
    Grant("evalsha", read=(keys.ALL_OURS, keys.ALL_QUEUES), write=(keys.ALL_OURS, keys.ALL_QUEUES)),
    Grant(
        "get exists expire pexpire incr incrby hget hset hsetnx hmget hgetall hdel hkeys hvals hexists sadd srem scard "
        "hincrby zadd zrem zrange zscore zrevrangebyscore zremrangebyscore zcard smembers "
        "xadd xread xrange xrevrange xtrim",
        read=(keys.ALL_OURS,),
        write=(keys.ALL_OURS,),
    ),
    # Neither a ledger record nor the audit trail can be deleted or replaced.
    Grant(
        "set",
        write=(
            keys.parked("*"),
            keys.audit_lock("*"),
            keys.enrolment("*"),
            keys.batch_driver("*"),
            keys.recorder("*"),
            keys.LIFE,
        ),
    ),
    Grant("set", write=(keys.claim("*", "*"), keys.cancel("*", "*"), keys.read("*", "*"))),
    Grant("del", write=(keys.parked("*"), keys.audit_lock("*"), keys.enrolment("*"), keys.recorder("*"))),
    Grant("get exists", read=(keys.ALL_INFO, keys.claim("*", "*"), keys.result("*", "*"))),
    Grant("get", read=(keys.read("*", "*"),)),
    Grant("hkeys hmget", read=(keys.orders("*"),)),
    Grant("lpush llen", write=(keys.ALL_QUEUES,)),
    Grant("xrange", read=(keys.output("*", "*"),)),
    Grant("xadd expire", write=(keys.input("*", "*"),)),
    Grant("get", read=(keys.session("*", "*"),)),
    # Output beyond the quotas is deleted, with a lifetime of 0.
    Grant("expire", write=(keys.output("*", "*"), keys.result("*", "*"))),
    Grant("publish", channels=(keys.control("*"), keys.ENDED, keys.APPROVED, keys.BATCHES_CHANGED)),
    Grant("publish", channels=(keys.celery_events("task"), keys.celery_events("worker"))),
    # Redis compares the argument of PSUBSCRIBE with the pattern itself, so each lane is named. One command subscribes
    # to all of them, so one grant has all.
    Grant(
        "psubscribe",
        channels=(
            *(keys.ALL_EVENTS, keys.ENDED, keys.APPROVED, keys.EVENTS_WANTED, keys.BATCHES_CHANGED),
            *(keys.reports_to(lane) for lane in range(keys.REPLY_LANES)),
            _ALL_RESULTS,
        ),
    ),
    Grant("subscribe", channels=(keys.output("*", "*"), keys.session("*", "*"), keys.BATCHES_CHANGED)),
)

#: Rights of Celery beat: to push hints to the submitter's queue, and its lock.
_BEAT = (
    _CONNECTION,
    Grant("multi exec script|load"),
    Grant("get set del pexpire evalsha", read=(keys.BEAT_LOCK,), write=(keys.BEAT_LOCK,)),
    Grant("lpush", write=(keys.BATCH,)),
    Grant("llen", read=(keys.BATCH,)),
)

_QUEUES = (keys.SUBMIT, keys.BATCH)
_UNACKED = keys.unacked("*")
_APPLICATION_RESULTS = (keys.application_result("*", "*"), keys.ALL_OWN_RESULTS)

#: Rights of Celery's side of the submitter: its queues and messages; results, groups and callbacks of applications.
_SUBMITTER = (
    _CONNECTION,
    Grant("multi exec unwatch unsubscribe script|load time"),
    Grant("brpop rpush lpush llen", read=_QUEUES, write=_QUEUES),
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
    # An application's own task may be the body of a chord, which fails together with the chord.
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
    """Return the rights of an application: to push to the submitters' queue, its own results, and groups."""
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


#: Rights of the users that every installation has.
SERVICES: dict[str, tuple[Grant, ...]] = {
    ORCHESTRATOR: _ORCHESTRATOR,
    SUBMITTER: _SUBMITTER,
    # Flower listens to events. It may not read any key.
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

#: Rights of the users that only some installations have.
OPTIONAL: dict[str, tuple[Grant, ...]] = {
    ENROLLER: (
        _CONNECTION,
        # Behind Sentinels, users are compared on all servers.
        Grant("acl|setuser acl|deluser acl|save acl|list"),
        # The queue and the registration of a revoked agent are removed.
        Grant("del", write=(keys.ALL_QUEUES,)),
    ),
    BACKUP: (
        _CONNECTION,
        Grant("psync replconf info acl|list"),
        Grant("get", read=(keys.AUDIT_SEQ,)),
    ),
    REPLICA: (Grant("psync replconf ping"),),
    # From https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/.
    SENTINEL: (
        _CONNECTION,
        Grant("multi exec info role slaveof replicaof config|rewrite client|kill script|kill failover"),
        Grant("publish subscribe", channels=(_HELLO,)),
    ),
}


def grants_of(user: str) -> tuple[Grant, ...]:
    """Return the rights of a user.

    Raises:
        ConfigurationError: no part of Tachikoma has a user of this name.
    """
    services = SERVICES | OPTIONAL
    if user in services:
        return services[user]
    for prefix, grants in ((AGENT_PREFIX, _agent), (APPLICATION_PREFIX, _application)):
        name = user.removeprefix(prefix)
        if name != user and is_identifier(name):
            return grants(name)
    raise ConfigurationError(
        f"{user!r} is not a Redis user of Tachikoma; they are {', '.join(services)}, {AGENT_PREFIX}<id> and "
        f"{APPLICATION_PREFIX}<name>"
    )


def agent_user(agent: str) -> str:
    """Return the name of an agent's user."""
    return f"{AGENT_PREFIX}{agent}"


def application_user(name: str) -> str:
    """Return the name of an application's user."""
    return f"{APPLICATION_PREFIX}{name}"


def is_application(user: str) -> bool:
    """Return True if a name is that of an application's user."""
    return user.startswith(APPLICATION_PREFIX) and is_identifier(user.removeprefix(APPLICATION_PREFIX))


def rules(user: str, hashes: Iterable[str]) -> list[str]:
    """Return a user's complete rules: the words after `ACL SETUSER <user>`, and after `user <user>` in an ACL file.

    Args:
        user: name of the user.
        hashes: SHA-256 of each of the user's passwords, in hexadecimal.

    Raises:
        ConfigurationError: no part of Tachikoma has a user of this name.
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
    # Each further grant is a selector, so that its commands are allowed on its own names only.
    return words + [f"(resetchannels -@all {' '.join(grant.words())})" for grant in rest]
