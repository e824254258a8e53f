"""The facts that a process remembers about its Redis, also after a loss: latest audit event, number of replicas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from weakref import WeakKeyDictionary

from tachikoma.redis.commands import Redis

__all__ = ["Known", "known", "online_replicas", "share_known"]

#: How long a replica counts after it has left, in seconds. A separated primary with `min-replicas-to-write` accepted
#: changes for up to 2.2 s, and one whose replica Sentinel was promoting for 1 s.
LINGER_SECONDS = 5.0
#: A replica that acknowledged nothing for a longer time does not count, in seconds. Each acknowledges once a second.
LAG_SECONDS = 2
#: Time between two looks at the number of replicas while a change waits for it, in seconds.
LOOK_SECONDS = 0.1


class Known:
    """The knowledge about one Redis, which all scripts of a process share."""

    def __init__(self) -> None:
        #: Number of the latest audit event; 0 for none.
        self.seq = 0
        #: Its place in the trail.
        self.cursor = "0-0"
        #: The most replicas that followed at once in the last moments. A change is reported as done only after as many
        #: have it, so that it is on each one that could be promoted.
        self.replicas = 0
        #: Replication id of the server that has them; empty before the first look.
        self.replid = ""
        #: Times by the monotonic clock, and the numbers of replicas then; those that still count.
        self._seen: list[tuple[float, int]] = []

    def note(self, seq: int, cursor: str) -> None:
        """Remember an event, unless a later one is known."""
        if seq > self.seq:
            self.seq, self.cursor = seq, cursor

    def note_replicas(self, number: int, replid: str) -> None:
        """Note the number of connected replicas of a server.

        A number counts for `LINGER_SECONDS`. While Sentinel promotes a replica, the primary still has the others, which
        confirm changes and lose them later. A primary that was separated from all of them is noticed by Redis about a
        second later (`min-replicas-to-write`), and accepts changes until then.

        Args:
            number: replicas that follow now.
            replid: replication id of the server.
        """
        now = time.monotonic()
        if replid != self.replid:
            # The other servers connect to a promoted one in the next seconds. Until then it needs one of them.
            self._seen = [(now, min(1, self.replicas))]
            self.replid = replid
        self._seen = [(at, before) for at, before in self._seen if now - at < LINGER_SECONDS] + [(now, number)]
        self.replicas = max(before for _, before in self._seen)

    async def suffice(self, confirmations: int) -> bool:
        """Return whether the confirmations of a change suffice, after a wait if a replica has just left.

        If that replica is being promoted, the change is not on it, and connections to the old primary end meanwhile. If
        the primary stays the same for as long as a replica counts, the replicas that are left suffice.
        """
        if not confirmations:
            return False
        replid, until = self.replid, time.monotonic() + LAG_SECONDS + 2 * LINGER_SECONDS
        while confirmations < self.replicas:
            if time.monotonic() > until:
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return self.replid == replid

    @property
    def time_ms(self) -> int:
        """Time of the latest event by the clock of Redis, in milliseconds since the epoch."""
        return int(self.cursor.partition("-")[0])


def online_replicas(info: Mapping[str, object]) -> int:
    """Return the number of replicas that follow, from the section `replication` of INFO.

    `connected_slaves` also counts those that are still being sent all data, and backups. They confirm nothing.
    """
    replicas = (value for name, value in info.items() if name.startswith("slave") and name[5:].isdigit())
    return sum(isinstance(replica, Mapping) and _follows(replica) for replica in replicas)


def _follows(replica: Mapping[str, object]) -> bool:
    lag = replica.get("lag", 0)
    return replica.get("state") == "online" and isinstance(lag, int) and 0 <= lag <= LAG_SECONDS


_known: WeakKeyDictionary[object, Known] = WeakKeyDictionary()


def known(redis: Redis) -> Known:
    """Return the known facts about the Redis of a client; all runners on its connections share them."""
    return _known.setdefault(redis.connection_pool, Known())


def share_known(redis: Redis, values: Known) -> None:
    """Set the facts about the Redis of a client, for all script runners on its connections."""
    _known[redis.connection_pool] = values
