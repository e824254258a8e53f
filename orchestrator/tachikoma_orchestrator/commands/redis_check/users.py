"""Findings about the users of a server: their rights and passwords, revoked agents, and unknown users."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tachikoma.diagnosis.findings import Finding
from tachikoma.redis import keys
from tachikoma.redis.passwords import Passwords
from tachikoma.redis.users import ENROLLER
from tachikoma_orchestrator.commands.redis_check.acl import Acl, differences

__all__ = ["PROBES", "default_user_findings", "revoked_findings", "stranger_finding", "user_findings"]

#: Actions that only our own users may take, each with a command that it needs.
PROBES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("put orders on agents' queues", ("LPUSH", keys.queue("probe"), "x")),
    ("stop or cancel commands", ("PUBLISH", keys.control("probe"), "x")),
    ("change the ledger", ("HSET", keys.execution("probe"), "x", "x")),
    ("change the audit trail", ("XADD", keys.AUDIT, "*", "x", "x")),
    ("read results", ("GET", keys.result("probe", "probe"))),
    ("read output", ("XRANGE", keys.output("probe", "probe"), "-", "+")),
)
#: Rights that the user `default` needs, although it is off: Redis before 7.4 replays the append-only file as this user.
_REPLAYER = frozenset({"~*", "&*", "+@all"})
_LOAD = "load the ACL file that `tachikoma redis acl` prints (ACL LOAD)"


def user_findings(
    users: Mapping[str, Acl], wanted: Mapping[str, Acl], passwords: Passwords | None
) -> Iterable[Finding]:
    """Find users that cannot connect, have other rights than they should, or other passwords.

    Args:
        users: all users of the server.
        wanted: the users that should exist, with their rights.
        passwords: the folder of passwords; None compares rights only.
    """
    known = set(passwords.users()) if passwords is not None else set()
    for name, right in wanted.items():
        found = users.get(name)
        if found is None:
            yield _finding(name, "does not exist, so it cannot connect")
            continue
        if not found.enabled:
            yield _finding(name, "is off, so it cannot connect")
        if text := differences(found, right):
            yield _finding(name, text)
        if passwords is not None and name in known:
            yield from _password_findings(name, found, frozenset(passwords.hashes(name)))
        elif not found.hashes:
            yield _finding(name, "has no password")
        elif passwords is not None and ENROLLER not in users:
            # With an enroller, agents that joined have passwords that are in no folder.
            yield _finding(
                name,
                f"has no password in {passwords.folder}: is it still in use?",
                f"ACL DELUSER {name}, or put its password there",
            )


def _password_findings(name: str, found: Acl, hashes: frozenset[str]) -> Iterable[Finding]:
    if hashes == found.hashes:
        return
    number = len(found.hashes - hashes)
    yield _finding(
        name,
        f"accepts {number} passwords that are not its own" if number else "does not accept its password",
    )


def default_user_findings(default: Acl | None) -> Iterable[Finding]:
    """Check the user `default`, which clients without a user name use."""
    if default is None:
        return
    if default.enabled:
        rights = "everything" if "+@all" in default.words else " ".join(sorted(default.words))
        needed = "without a password" if "nopass" in default.words else "with a password"
        yield _finding("default", f"any client may do {rights}, {needed}", f"{_LOAD}; it switches that user off")
    elif not default.words >= _REPLAYER:
        yield _finding(
            "default",
            "may not do everything: a restart of Redis drops what scripts wrote since the last rewrite of the "
            "append-only file (redis#14541)",
            f"{_LOAD}; it leaves that user off and lets the replay write",
        )


def revoked_findings(
    revoked: Iterable[str], users: Mapping[str, Acl], passwords: Passwords | None
) -> Iterable[Finding]:
    """Find users of revoked agents that can connect, or could after the next ACL file is loaded."""
    known = set(passwords.users()) if passwords is not None else set()
    for name in revoked:
        if name in users:
            yield _finding(name, "is revoked, and can still connect", f"ACL DELUSER {name}, and ACL SAVE")
        if passwords is not None and name in known:
            yield _finding(
                name,
                "is revoked, and still has a password: the next ACL file would let it connect",
                f"remove {passwords.path(name)}",
            )


def stranger_finding(name: str, actions: Sequence[str]) -> Finding:
    """Return the finding about an unknown user that may take actions of `PROBES`."""
    return _finding(
        name,
        f"is not a user of Tachikoma and may {', '.join(actions)}",
        f"ACL DELUSER {name}, or take these rights from it",
    )


def _finding(user: str, what: str, remedy: str = _LOAD) -> Finding:
    return Finding(where=f"user {user}", what=what, remedy=remedy)
