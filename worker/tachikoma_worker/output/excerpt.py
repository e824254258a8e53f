"""What a response holds of an output stream: all of it up to a limit, beyond that the head and the tail."""

from __future__ import annotations

import hashlib

from tachikoma.identity.signed_messages import OutputDigest

__all__ = ["Excerpt"]


class Excerpt:
    """Takes the whole stream; keeps at most `limit` bytes of it, and the count and SHA-256 of all."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._head_limit = limit // 2
        self._head = bytearray()
        self._tail_limit = limit - self._head_limit
        self._tail = bytearray()
        #: None where the beginning of a longer stream is no longer there to be hashed.
        self._hash: hashlib._Hash | None = hashlib.sha256()
        self.total = 0

    @classmethod
    def resumed(cls, limit: int, total: int, head: bytes, tail: bytes) -> Excerpt:
        """Go on with a stream of which so many bytes came, and this was kept."""
        excerpt = cls(limit)
        excerpt.add(head + tail)
        if total != excerpt.total:
            excerpt._hash, excerpt.total = None, total
        return excerpt

    def add(self, data: bytes) -> None:
        """Take the next piece."""
        if self._hash is not None:
            self._hash.update(data)
        self.total += len(data)
        room = self._head_limit - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        # Cut rarely, so that each byte is moved at most once on the average.
        if len(self._tail) > 2 * self._tail_limit:
            del self._tail[: -self._tail_limit]

    @property
    def truncated(self) -> bool:
        """Whether `content` is not the whole."""
        return self.total > self._limit

    @property
    def head(self) -> bytes:
        """What is kept of the beginning."""
        return bytes(self._head)

    @property
    def tail(self) -> bytes:
        """What is kept behind that."""
        return bytes(self._tail[-self._tail_limit :] if self.truncated else self._tail)

    def content(self) -> bytes:
        """The whole, or head and tail."""
        return self.head + self.tail

    def digest(self) -> OutputDigest:
        """What the receipt says of the stream."""
        whole = "" if self._hash is None else self._hash.hexdigest()
        part = hashlib.sha256(self.content()).hexdigest() if self.truncated else whole
        return OutputDigest(total_bytes=self.total, sha256=whole, truncated=self.truncated, excerpt_sha256=part)
