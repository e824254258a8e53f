"""Standard input, output and error of this process, also when they are non-blocking, full or closed.

A parent may share a non-blocking pipe or socket with this process. Its flag belongs to the open file, so changing it
would disturb the parent. Each read and write therefore waits for its descriptor (read(2), write(2), EAGAIN).
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn, TextIO

from tachikoma.errors import InvalidRequest

__all__ = ["OutputFailed", "abandon_output", "leave", "prepare", "read_input", "write_all"]

#: Bytes of one write to a descriptor that may block. A pipe that is ready takes so many at once (pipe(7), PIPE_BUF).
WRITE_BYTES: Final = select.PIPE_BUF

_NAMES: Final = {1: "standard output", 2: "standard error"}


class OutputFailed(OSError):
    """A descriptor of this process, or a file of `--output-dir`, can take no more output."""

    def __init__(self, place: int | Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self._place = place

    @property
    def standard(self) -> bool:
        """True if it is standard output or error."""
        return isinstance(self._place, int)

    @property
    def reader_gone(self) -> bool:
        """True if the reader of a pipe or socket has closed it, which is no fault."""
        return self.standard and self.errno in (errno.EPIPE, errno.ECONNRESET)

    def __str__(self) -> str:
        place = _NAMES[self._place] if isinstance(self._place, int) else self._place
        return f"cannot write to {place}: {self.strerror}"


class _WaitingFile(io.RawIOBase):
    """A descriptor for output that waits where a non-blocking one would refuse, and whose faults are `OutputFailed`."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def writable(self) -> bool:
        """Return that it is open for output."""
        return True

    def fileno(self) -> int:
        """Return the descriptor, which this file never closes."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data: object) -> int:
        """Write a part of the data when the descriptor is ready, and return its length in bytes."""
        assert isinstance(data, bytes | bytearray | memoryview)
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                _wait(self._descriptor, select.POLLOUT)
            except OSError as error:
                raise OutputFailed(self._descriptor, error) from error


#: Name of the handler of characters that the encoding of a stream lacks.
ESCAPE = "tachikoma-escape"


def prepare() -> None:
    """Make standard output and error fit for use, before anything else is opened.

    The number of a closed descriptor would be given to the next file or connection, which would then receive the
    output. It is taken by a descriptor that refuses each write, so that the fault is reported.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            mode = os.O_RDONLY if descriptor else os.O_WRONLY
            # open(2) returns the lowest free number, which is this one.
            os.open(os.devnull, mode)
    # A stream that a program put in their place is left alone.
    if sys.stdout is sys.__stdout__:
        sys.stdout = _waiting(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _waiting(sys.stderr, 2)


def _waiting(stream: TextIO | None, descriptor: int) -> TextIO:
    """Return a stream that waits for its descriptor, with the encoding of the given one; None if that is closed."""
    raw = _WaitingFile(descriptor)
    encoding = stream.encoding if stream is not None else "utf-8"
    codecs.register_error(ESCAPE, _escape)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors=ESCAPE, line_buffering=descriptor == 2 or raw.isatty()
    )


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""Replace characters that a locale cannot write by `\uXXXX`, which JSON reads as the same characters."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    units = text.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2)), error.end


def read_input(limit: int) -> bytes:
    """Read standard input to its end, at most `limit` bytes; a terminal and a closed one are empty.

    Raises:
        InvalidRequest: it cannot be read, for instance since it is a directory.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return b""
    # The raw file returns None where a buffered one would return a part, as if that were all.
    raw = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    content = bytearray()
    while len(content) < limit:
        try:
            part = raw.read(limit - len(content))
        except OSError as error:
            raise InvalidRequest(
                f"cannot read standard input: {error.strerror or error}; pass --no-stdin to leave it alone"
            ) from None
        if part is None:
            _wait(sys.stdin.fileno(), select.POLLIN)
        elif not part:
            break
        else:
            content += part
    return bytes(content)


async def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes unbuffered, since the next chunk may be minutes away. Signals are handled while it waits.

    Raises:
        OutputFailed: the descriptor takes no more.
    """
    view = memoryview(data)
    try:
        while view:
            await _ready(descriptor)
            with suppress(BlockingIOError):
                view = view[os.write(descriptor, view[:WRITE_BYTES]) :]
    except OSError as error:
        raise OutputFailed(descriptor, error) from error


def abandon_output() -> None:
    """Discard what standard output still buffers, which Python would write at exit, and complain about."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def leave(code: int) -> NoReturn:
    """End this process at once, after its streams are written."""
    for stream in (sys.stdout, sys.stderr):
        # What cannot be written was reported before.
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


async def _ready(descriptor: int) -> None:
    """Wait until a descriptor can take output. A file is always ready, and epoll refuses it."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    if poll.poll(0):
        return
    # Imported here: most commands that print do not need it.
    import asyncio

    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(descriptor)


def _wait(descriptor: int, event: int) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    poll.poll()
