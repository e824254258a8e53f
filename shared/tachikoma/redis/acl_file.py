"""The ACL file that a Redis server loads (https://redis.io/docs/latest/commands/acl-load/)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from tachikoma.redis.passwords import Passwords
from tachikoma.redis.users import (
    ADMIN,
    AGENT_PREFIX,
    DEFAULT_USER_RULES,
    SENTINEL,
    SENTINEL_CLIENT_RULES,
    SENTINEL_PEER_RULES,
    rules,
)
from tachikoma.vocabulary.identifiers import is_identifier

__all__ = ["acl_file", "agents_in", "sentinel_acl_file"]


def agents_in(acl: str) -> dict[str, list[str]]:
    """Return the users of agents in an ACL file, with the SHA-256 of their passwords.

    The passwords of agents that joined with a token are stored nowhere else.
    """
    found = {}
    for line in acl.splitlines():
        word, _, rest = line.partition(" ")
        name, *words = rest.split() or [""]
        if word == "user" and is_identifier(name.removeprefix(AGENT_PREFIX)) and name.startswith(AGENT_PREFIX):
            found[name] = [item[1:] for item in words if re.fullmatch("#[0-9a-f]{64}", item)]
    return found


def acl_file(passwords: Passwords, *, joined: Mapping[str, Iterable[str]] | None = None) -> str:
    """Return the text of the ACL file of all users that have a password.

    Args:
        passwords: the folder of passwords.
        joined: further users of agents, by name, with the SHA-256 of their passwords.
    """
    hashes = {user: passwords.hashes(user) for user in passwords.users()}
    users = {**hashes, **{user: given for user, given in (joined or {}).items() if user not in hashes}}
    lines = [f"user default {DEFAULT_USER_RULES}"]
    lines += (f"user {user} {' '.join(rules(user, given))}" for user, given in users.items())
    return "\n".join(lines) + "\n"


def sentinel_acl_file(passwords: Passwords) -> str:
    """Return the text of the ACL file of Sentinels: for clients, for the other Sentinels, and for operators.

    Args:
        passwords: the folder of passwords, which has those of the users `sentinel` and `admin`.
    """
    peer = " ".join(f"#{digest}" for digest in passwords.hashes(SENTINEL))
    lines = [
        f"user default {SENTINEL_CLIENT_RULES}",
        f"user {SENTINEL} on {peer} {SENTINEL_PEER_RULES}",
        f"user {ADMIN} {' '.join(rules(ADMIN, passwords.hashes(ADMIN)))}",
    ]
    return "\n".join(lines) + "\n"
