"""The modes of a terminal at places of its output, for readers of an output whose middle was cut.

A cut may take the sequence that switched a mode on. So some entries of the log contain the modes before them: the entry
after each change, and one in each part of the log that a cut can leave.
"""

from __future__ import annotations

import codecs

from tachikoma.sessions.modes import MAX_CHECKPOINT, Modes

__all__ = ["Checkpoints"]


class Checkpoints:
    """Decides which chunks of a terminal's output get a checkpoint."""

    def __init__(self, interval: int, modes: str = "") -> None:
        """Prepare the checkpoints of an output.

        Args:
            interval: largest size of the entries from one checkpoint to the next, in bytes.
            modes: the modes at this place of an output that an earlier worker began, as `current` returned them.
        """
        self._interval = interval
        self._modes = Modes()
        self._modes.feed(modes)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        #: The last checkpoint, and the size of the entries since. What an earlier worker stored last is not known.
        self._last = self._modes.checkpoint()
        self._size = interval if modes else 0

    def current(self) -> str:
        """Return the sequences that set the modes at this place."""
        return self._modes.checkpoint()

    def before(self, data: bytes, size: int) -> bytes:
        """Follow the next chunk, and return the checkpoint that belongs before it; empty if it needs none.

        Args:
            data: the chunk.
            size: size of its entry in the log, in bytes.
        """
        # Within a sequence or a character, a checkpoint would break it.
        possible = not self._modes.unfinished and not self._decoder.getstate()[0]
        modes = self._modes.checkpoint()
        wanted = possible and (modes != self._last or self._size >= self._interval)
        if wanted:
            self._last, self._size = modes, 0
        self._size += size
        self._modes.feed(self._decoder.decode(data))
        return modes.encode()[:MAX_CHECKPOINT] if wanted else b""
