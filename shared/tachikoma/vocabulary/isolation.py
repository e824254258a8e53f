"""Isolation of executions from each other and from the agent: levels, temporary folders, and the stricter of two."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Isolation", "TmpScope", "strictest", "strictest_tmp"]


class Isolation(StrEnum):
    """The levels of isolation of an execution, from the weakest to the strongest."""

    #: Only users separate executions. A command of root is kept from the agent and the host.
    SHARED = "shared"
    #: Own processes, temporary folders, System V objects and keys; the agent's files are out of reach.
    PRIVATE = "private"
    #: In addition no network, and no system calls that open a way around the isolation.
    SEALED = "sealed"

    @property
    def rank(self) -> int:
        """Return the number of the level, higher for a stronger one; the spawner's protocol has the same numbers."""
        return list(Isolation).index(self)


class TmpScope(StrEnum):
    """The `/tmp`, `/var/tmp` and `/dev/shm` that a command has at `private` and `sealed`."""

    #: Those of the host.
    HOST = "host"
    #: Those of its requester on this agent, which last between commands.
    REQUESTER = "requester"
    #: Those of its execution alone, which end with it.
    EXECUTION = "execution"

    @property
    def rank(self) -> int:
        """Return the number of the scope, higher for a narrower one; the spawner's protocol has the same numbers."""
        return list(TmpScope).index(self)


def strictest(*levels: Isolation | None) -> Isolation | None:
    """Return the strongest level; None if all are None, so none is requested."""
    given = [level for level in levels if level is not None]
    return max(given, key=lambda level: level.rank) if given else None


def strictest_tmp(*scopes: TmpScope | None) -> TmpScope | None:
    """Return the narrowest scope; None if all are None."""
    given = [scope for scope in scopes if scope is not None]
    return max(given, key=lambda scope: scope.rank) if given else None
