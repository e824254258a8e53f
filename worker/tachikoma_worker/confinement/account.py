"""The user that a command runs as."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from tachikoma_worker.confinement.refusals import Refused

__all__ = ["Account", "account", "user_name"]

#: The user for requests that name none, if the spawner is root and the operator configured no other.
DEFAULT_USER = "nobody"


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this host."""

    name: str
    uid: int
    gid: int
    home: str
    groups: tuple[int, ...]
    #: Whether it is a requester's own, of which the host knows nothing.
    dynamic: bool = False

    def may_execute(self, found: os.stat_result) -> bool:
        """Return whether the permission bits of a file let this user execute it, or enter it if it is a directory."""
        if self.uid == 0:
            return bool(found.st_mode & 0o111)
        if found.st_uid == self.uid:
            return bool(found.st_mode & 0o100)
        if found.st_gid == self.gid or found.st_gid in self.groups:
            return bool(found.st_mode & 0o010)
        return bool(found.st_mode & 0o001)


def account(requested: str, default: str, spawner_uid: int) -> Account:
    """Return the user that a command runs as.

    Args:
        requested: the name in the request, or empty.
        default: the name that the agent's operator configured, or empty.
        spawner_uid: the user of the spawner. Only 0 can start commands as another user.

    Raises:
        Refused: there is no such user, or the spawner cannot start commands as that user.
    """
    name = requested or default
    if not name and spawner_uid == 0:
        name = DEFAULT_USER
    try:
        entry = pwd.getpwnam(name) if name else pwd.getpwuid(spawner_uid)
    except KeyError:
        if name:
            raise Refused(f"there is no user {name!r} on this agent") from None
        return Account(str(spawner_uid), spawner_uid, os.getgid(), "/", tuple(os.getgroups()))
    if spawner_uid not in (0, entry.pw_uid):
        raise Refused(f"this agent runs as {user_name(spawner_uid)} and cannot become {entry.pw_name}")
    # Another name for uid 0 must not be a way around a policy that names root.
    if entry.pw_uid == 0 and name not in ("root", default):
        raise Refused("commands run as root only if the request or the agent's settings name root")
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir, groups)


def user_name(uid: int) -> str:
    """Return a user's name, or its number if it has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
