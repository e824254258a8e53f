"""The part of an output stream that a response contains: all of it up to a limit, beyond that its head and tail."""

from __future__ import annotations

import hashlib

from tachikoma.identity.signed_messages import OutputDigest

__all__ = ["Excerpt"]


class Excerpt:
    """Accumulates a whole stream; retains at most `limit` bytes of it, its byte count and its SHA-256."""

    def __init__(self, limit: int) -> None:
        """Start with nothing; `limit` is the number of bytes to retain."""
        self._limit = limit
        self._head_limit = limit // 2
        self._head = bytearray()
        self._tail_limit = limit - self._head_limit
        self._tail = bytearray()
        #: None if the beginning of the stream is no longer available for the digest.
        self._hash: hashlib._Hash | None = hashlib.sha256()
        #: Bytes of the whole stream.
        self.total = 0

    @classmethod
    def resumed(cls, limit: int, total: int, head: bytes, tail: bytes) -> Excerpt:
        """Continue a stream that an earlier worker began.

        Args:
            limit: bytes to retain.
            total: bytes of the stream so far.
            head, tail: the retained parts.
        """
        excerpt = cls(limit)
        excerpt.add(head + tail)
        if total != excerpt.total:
            excerpt._hash, excerpt.total = None, total
        return excerpt

    def add(self, data: bytes) -> None:
        """Append the next piece of the stream."""
        if self._hash is not None:
            self._hash.update(data)
        self.total += len(data)
        room = self._head_limit - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        # Cut only at twice the limit, so that each byte is moved at most once on average.
        if len(self._tail) > 2 * self._tail_limit:
            del self._tail[: -self._tail_limit]

    @property
    def truncated(self) -> bool:
        """True if `content` is only the head and the tail."""
        return self.total > self._limit

    @property
    def head(self) -> bytes:
        """The retained beginning of the stream."""
        return bytes(self._head)

    @property
    def tail(self) -> bytes:
        """The retained end of the stream, without the bytes of `head`."""
        return bytes(self._tail[-self._tail_limit :] if self.truncated else self._tail)

    def content(self) -> bytes:
        """Return the whole stream, or its head and tail."""
        return self.head + self.tail

    def digest(self) -> OutputDigest:
        """Return the description of the stream for the receipt."""
        whole = "" if self._hash is None else self._hash.hexdigest()
        part = hashlib.sha256(self.content()).hexdigest() if self.truncated else whole
        return OutputDigest(total_bytes=self.total, sha256=whole, truncated=self.truncated, excerpt_sha256=part)
