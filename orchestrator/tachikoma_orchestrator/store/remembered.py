"""Values that a process remembers for a while, to write them again if Redis loses them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Entry", "Remembered"]

K = TypeVar("K")
V = TypeVar("V")


class Entry(NamedTuple, Generic[K, V]):
    """A remembered value."""

    key: K
    value: V
    #: Seconds since it was remembered.
    age_seconds: float


class Remembered(Generic[K, V]):
    """Values by key, for a time and up to a number; the oldest are forgotten first."""

    def __init__(self, keep_seconds: float, most: int) -> None:
        """Remember nothing yet.

        Args:
            keep_seconds: how long a value is remembered.
            most: largest number of values.
        """
        self.keep_seconds, self._most = keep_seconds, most
        #: Each value with its time by the monotonic clock, the oldest first.
        self._values: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def put(self, key: K, value: V) -> None:
        """Remember a value in place of the one before."""
        self.forget(key)
        self.put_first(key, value)

    def put_first(self, key: K, value: V) -> None:
        """Remember a value, unless there is one."""
        self._values.setdefault(key, (time.monotonic(), value))
        if len(self._values) > self._most:
            self._values.popitem(last=False)

    def forget(self, key: K) -> None:
        """Forget the value of a key, if there is one."""
        self._values.pop(key, None)

    def get(self, key: K) -> V | None:
        """Return the value of a key; None if the key has none, or an old one."""
        at, value = self._values.get(key, (0.0, None))
        return value if time.monotonic() - at <= self.keep_seconds else None

    def __iter__(self) -> Iterator[Entry[K, V]]:
        """Yield the values that are not too old, the oldest first."""
        now = time.monotonic()
        for key, (at, value) in list(self._values.items()):
            if now - at <= self.keep_seconds:
                yield Entry(key, value, now - at)
