"""The facts that a process remembers about its Redis, also after a loss: latest audit event, number of replicas."""

from __future__ import annotations

import time
from collections.abc import Mapping
from weakref import WeakKeyDictionary

from tachikoma.redis.commands import Redis

__all__ = ["Known", "known", "online_replicas", "share_known"]

#: How long replicas count after the last one has left, in seconds. A separated primary with `min-replicas-to-write`
#: accepted changes for up to 2.2 s.
LINGER_SECONDS = 5.0


class Known:
    """The knowledge about one Redis, which all scripts of a process share."""

    def __init__(self) -> None:
        #: Number of the latest audit event; 0 for none.
        self.seq = 0
        #: Its place in the trail.
        self.cursor = "0-0"
        #: Number of replicas that follow, or followed a moment ago. If it is not 0, a change is reported as done only
        #: after one of them has it.
        self.replicas = 0
        self._followed_at = 0.0

    def note(self, seq: int, cursor: str) -> None:
        """Remember an event, unless a later one is known."""
        if seq > self.seq:
            self.seq, self.cursor = seq, cursor

    def note_replicas(self, number: int) -> None:
        """Note the number of connected replicas.

        The last number counts for `LINGER_SECONDS` after all have left. A primary that was separated from them is
        noticed by Redis about a second later (`min-replicas-to-write`), and accepts changes until then.
        """
        now = time.monotonic()
        if number:
            self._followed_at = now
        elif self.replicas and now - self._followed_at < LINGER_SECONDS:
            return
        self.replicas = number

    @property
    def time_ms(self) -> int:
        """Time of the latest event by the clock of Redis, in milliseconds since the epoch."""
        return int(self.cursor.partition("-")[0])


def online_replicas(info: Mapping[str, object]) -> int:
    """Return the number of replicas that follow, from the section `replication` of INFO.

    `connected_slaves` also counts those that are still being sent all data, and backups. They confirm nothing.
    """
    replicas = (value for name, value in info.items() if name.startswith("slave") and name[5:].isdigit())
    return sum(isinstance(replica, Mapping) and replica.get("state") == "online" for replica in replicas)


_known: WeakKeyDictionary[object, Known] = WeakKeyDictionary()


def known(redis: Redis) -> Known:
    """Return the known facts about the Redis of a client; all runners on its connections share them."""
    return _known.setdefault(redis.connection_pool, Known())


def share_known(redis: Redis, values: Known) -> None:
    """Set the facts about the Redis of a client, for all script runners on its connections."""
    _known[redis.connection_pool] = values
