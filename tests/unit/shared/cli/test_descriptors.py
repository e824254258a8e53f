"""Reads and writes that wait for their descriptors, and the faults of standard output."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from patience import PATIENCE_SECONDS
from tachikoma.cli import descriptors
from tachikoma.cli.descriptors import OutputFailed, read_input, write_all
from tachikoma.errors import InvalidRequest

# Tests here start Python, which takes most of their time.
pytestmark = pytest.mark.slow

#: More than pipes and sockets hold.
CONTENT = bytes(range(256)) * 4096

Pair = tuple[int, int]


def pipe() -> Pair:
    return os.pipe()


def sockets() -> Pair:
    left, right = socket.socketpair()
    return left.detach(), right.detach()


@pytest.fixture(params=[pipe, sockets], ids=["pipe", "socket"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The reading and the writing end of a non-blocking pipe or socket."""
    ends: Pair = request.param()
    for end in ends:
        os.set_blocking(end, False)
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def fill(descriptor: int) -> int:
    """Write until no more fits, and return the number of bytes."""
    count = 0
    try:
        while True:
            count += os.write(descriptor, bytes(1024))
    except BlockingIOError:
        return count


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], bytes]:
    def read(descriptor: int, limit: int = 2**21) -> bytes:
        with open(descriptor, "rb", closefd=False) as file, io.TextIOWrapper(file) as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            return read_input(limit)

    return read


def test_input_that_comes_in_parts_is_read_to_its_end(pair: Pair, read: Callable[..., bytes]) -> None:
    def write() -> None:
        os.set_blocking(pair[1], True)
        view = memoryview(CONTENT)
        while view:
            view = view[os.write(pair[1], view[:4000]) :]
        os.close(pair[1])

    writer = threading.Thread(target=write)
    writer.start()
    assert read(pair[0]) == CONTENT
    writer.join()


def test_input_is_read_up_to_the_bound(pair: Pair, read: Callable[..., bytes]) -> None:
    os.write(pair[1], b"abcdef")
    assert read(pair[0], 4) == b"abcd"


def test_empty_input_is_empty(pair: Pair, read: Callable[..., bytes]) -> None:
    os.close(pair[1])
    assert read(pair[0]) == b""


def test_input_that_is_closed_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert read_input(10) == b""


class _Broken(io.RawIOBase):
    """A file whose reads fail, as those of a directory do."""

    def __init__(self, reason: int) -> None:
        self._reason = reason

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        raise OSError(self._reason, os.strerror(self._reason))

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize("reason", [errno.EISDIR, errno.EIO, errno.EBADF])
def test_input_that_fails_is_refused(monkeypatch: pytest.MonkeyPatch, reason: int) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(_Broken(reason))))
    with pytest.raises(
        InvalidRequest, match=f"cannot read standard input: {os.strerror(reason)}; pass --no-stdin to leave it alone"
    ):
        read_input(10)


async def test_output_waits_for_its_reader(pair: Pair) -> None:
    filled = fill(pair[1])
    writing = asyncio.create_task(write_all(pair[1], CONTENT))
    received = bytearray()
    while len(received) < filled + len(CONTENT):
        await asyncio.sleep(0)
        try:
            received += os.read(pair[0], 65536)
        except BlockingIOError:
            continue
    await writing
    assert received[filled:] == CONTENT


async def test_the_event_loop_runs_while_output_waits(pair: Pair) -> None:
    fill(pair[1])
    os.set_blocking(pair[1], True)
    writing = asyncio.create_task(write_all(pair[1], b"x"))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing


async def test_a_reader_that_has_gone_is_reported(pair: Pair) -> None:
    os.close(pair[0])
    with pytest.raises(OutputFailed) as caught:
        await write_all(pair[1], b"x")
    assert caught.value.reader_gone


@pytest.mark.parametrize("path", ["/dev/full", "/dev/null"])
async def test_a_device_that_takes_nothing_is_reported(path: str) -> None:
    # /dev/null is open for reading only, as `prepare` opens it in place of a closed descriptor.
    descriptor = os.open(path, os.O_WRONLY if path == "/dev/full" else os.O_RDONLY)
    try:
        with pytest.raises(OutputFailed) as caught:
            await write_all(descriptor, b"x")
        assert not caught.value.reader_gone
    finally:
        os.close(descriptor)


async def test_a_file_takes_everything(tmp_path: Path) -> None:
    with (tmp_path / "output").open("wb") as file:
        await write_all(file.fileno(), CONTENT)
    assert (tmp_path / "output").read_bytes() == CONTENT


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_descriptor_is_given_to_no_other_file(closed: int) -> None:
    body = "prepare()\nimport os, socket\nprint(socket.socket().fileno(), file=sys.stderr, flush=True)"
    shell = f'exec "$0" -c "$1" {closed}>&-'
    code = f"import sys\nfrom tachikoma.cli.descriptors import *\n{body}"
    if closed == 2:
        code = code.replace("sys.stderr", "sys.stdout")
    done = subprocess.run(["sh", "-c", shell, sys.executable, code], capture_output=True, timeout=60, check=True)
    assert int(done.stderr or done.stdout) > 2


def test_text_waits_for_a_slow_reader_of_a_non_blocking_pipe() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    code = "from tachikoma.cli.descriptors import *\nprepare()\nfor _ in range(50):\n    print('x' * 9999)\n"
    with subprocess.Popen([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        with open(reading, "rb") as file:
            content = file.read()
        assert process.wait(PATIENCE_SECONDS) == 0
    assert len(content) == 50 * 10_000


@pytest.mark.parametrize("arguments", [["--version"], ["exec", "--help"], ["policy", "--help"]])
@pytest.mark.parametrize(
    ("target", "reason"), [("/dev/full", "No space left on device"), ("&-", "Bad file descriptor")]
)
def test_every_command_reports_output_that_cannot_be_written(arguments: list[str], target: str, reason: str) -> None:
    code = "from tachikoma.cli.app import run\nrun()"
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" >{target}', "sh", sys.executable, "-c", code, *arguments],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.decode()) == (1, f"tachikoma: cannot write to standard output: {reason}\n")


def test_abandoned_output_is_discarded(capfd: pytest.CaptureFixture[str]) -> None:
    saved = os.dup(1)
    try:
        descriptors.abandon_output()
        os.write(1, b"nowhere")
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_that_the_locale_lacks_are_escaped_so_that_json_reads_them(encoding: str) -> None:
    text = "é … 😀 \udcff"
    program = (
        "import sys, json\n"
        "from tachikoma.cli import descriptors\n"
        "descriptors.prepare()\n"
        f"print(json.dumps({text!r}, ensure_ascii=False))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout.decode(encoding)) == text
    assert done.stderr == b""
