"""The spool: nothing that left a pipe is lost, whenever the worker dies."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tachikoma.streams.frames import STDERR, STDOUT
from tachikoma.vocabulary.states import ExecState
from tachikoma_worker.output.records import Ending, Facts, Totals
from tachikoma_worker.output.spool import CHUNK_BYTES, Spool, SpoolError, host_boot

MIB = 1024 * 1024
START = Facts(
    host=host_boot(), order_sha256="ab" * 32, executable="/bin/true",
    started_ms=1, began_ns=2, timeout=60, kill_grace=1, memory=3,
)  # fmt: skip


def fill(spool: Spool, pieces: list[tuple[int, bytes]]) -> None:
    """Bring pieces through a pipe into it."""
    for kind, data in pieces:
        reading, writing = os.pipe()
        os.write(writing, data)
        os.close(writing)
        assert spool.take(kind, reading) == len(data)
        assert spool.take(kind, reading) == 0
        os.close(reading)


def content(spool: Spool) -> list[tuple[int, int, bytes]]:
    """What is in it that was not read."""
    found = []
    while spool.pending:
        found += [(chunk.kind, chunk.seq, chunk.data) for chunk in spool.chunks(100)]
        spool.done()
    return found


PIECES = st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(min_size=1, max_size=300)), max_size=10)


@given(PIECES)
def test_what_goes_in_comes_out_numbered_now_and_for_a_later_worker(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool.create(folder, "job", START, max_bytes=MIB)
    fill(spool, pieces)
    expected = [(kind, number, data) for number, (kind, data) in enumerate(pieces, 1)]
    assert content(spool) == expected
    later = Spool.open(folder, "job", max_bytes=MIB)
    assert later.start == START
    assert content(later) == expected
    assert later.end is None
    # It goes on where the first stood.
    fill(later, [(STDOUT, b"more")])
    assert content(later) == [(STDOUT, len(pieces) + 1, b"more")]
    for one in (spool, later):
        one.close()


def test_an_end_is_found_and_is_no_output(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, "job", START, max_bytes=MIB)
    fill(spool, [(STDOUT, b"out")])
    end = Ending(state=ExecState.FAILED, exit_code=3)
    spool.finish(end)
    assert content(spool) == [(STDOUT, 1, b"out")]
    later = Spool.open(tmp_path, "job", max_bytes=MIB)
    assert later.end == end
    assert content(later) == [(STDOUT, 1, b"out")]
    later.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_later_worker_knows_why_the_command_is_ended(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, "job", START, max_bytes=MIB)
    assert Spool.open(tmp_path, "job", max_bytes=MIB).stopped == 0
    fill(spool, [(STDOUT, b"out")])
    spool.note_stop(3)
    fill(spool, [(STDOUT, b"last")])
    later = Spool.open(tmp_path, "job", max_bytes=MIB)
    assert (later.start, later.stopped) == (START, 3)
    assert content(later) == content(spool) == [(STDOUT, 1, b"out"), (STDOUT, 2, b"last")]
    spool.renew(Totals(seq=2, offset=7, total={STDOUT: 7}))
    assert Spool.open(tmp_path, "job", max_bytes=MIB).stopped == 3


@given(st.integers(0, 200), PIECES)
def test_whatever_was_cut_off_by_a_crash_the_beginning_is_right_or_it_is_refused(
    tmp_path_factory: pytest.TempPathFactory, cut: int, pieces: list[tuple[int, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool.create(folder, "job", START, max_bytes=MIB)
    fill(spool, pieces)
    spool.finish(Ending(state=ExecState.SUCCEEDED))
    spool.close()
    path = folder / "job"
    os.truncate(path, max(0, path.stat().st_size - cut))
    try:
        later = Spool.open(folder, "job", max_bytes=MIB)
    except SpoolError:
        return
    expected = [(kind, number, data) for number, (kind, data) in enumerate(pieces, 1)]
    found = content(later)
    assert found == expected[: len(found)]
    later.close()


@pytest.mark.parametrize("written", [b"", b"nonsense", bytes(100), os.urandom(5000)])
def test_what_is_no_spool_is_refused(tmp_path: Path, written: bytes) -> None:
    (tmp_path / "job").write_bytes(written)
    with pytest.raises(SpoolError, match="is no spool of this run of the host"):
        Spool.open(tmp_path, "job", max_bytes=MIB)


def test_one_of_an_earlier_run_of_the_host_is_refused(tmp_path: Path) -> None:
    Spool.create(tmp_path, "job", START.model_copy(update={"host": "earlier"}), max_bytes=MIB).close()
    with pytest.raises(SpoolError, match="the host was started again since"):
        Spool.open(tmp_path, "job", max_bytes=MIB)
    with pytest.raises(SpoolError, match="No such file"):
        Spool.open(tmp_path, "other", max_bytes=MIB)


def test_one_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match="Not a directory"):
        Spool.create(Path("/dev/null"), "job", START, max_bytes=MIB)


def test_begun_anew_it_numbers_on(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, "job", START, max_bytes=MIB)
    while not spool.full:
        fill(spool, [(STDOUT, bytes(60_000))])
    numbers = [seq for _, seq, _ in content(spool)]
    totals = Totals(seq=numbers[-1], offset=60_000 * len(numbers), total={STDOUT: 60_000 * len(numbers)})
    spool.renew(totals)
    assert not spool.full
    fill(spool, [(STDERR, b"on")])
    later = Spool.open(tmp_path, "job", max_bytes=MIB)
    assert later.start == START.model_copy(update={"totals": totals})
    assert content(later) == content(spool) == [(STDERR, numbers[-1] + 1, b"on")]
    assert [path.name for path in tmp_path.iterdir()] == ["job"]


#: Moves what comes out of its standard input into a spool, until it is killed.
_TAKER = """
import os, select, sys
from contextlib import suppress
from pathlib import Path
from tachikoma.streams.frames import STDOUT
from tachikoma_worker.output.spool import Spool
spool = Spool.open(Path(sys.argv[1]), "job", max_bytes=2**40)
print("ready", flush=True)
while True:
    select.select([0], [], [])
    with suppress(BlockingIOError):
        spool.take(STDOUT, 0)
"""


@pytest.mark.slow
def test_whoever_takes_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    """Each byte is in the pipe or in the spool, whenever the worker dies."""
    chance = random.Random(5)
    Spool.create(tmp_path, "job", START, max_bytes=MIB).close()
    written = chance.randbytes(16 * MIB)
    reading, writing = os.pipe()
    offset = 0
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", _TAKER, str(tmp_path)], stdin=reading, stdout=subprocess.PIPE
        ) as taker:
            assert taker.stdout is not None
            assert taker.stdout.readline() == b"ready\n"
            goal = offset + chance.randrange(MIB, 2 * MIB)
            while offset < goal:
                offset += os.write(writing, written[offset : offset + chance.randrange(1, 3 * CHUNK_BYTES)])
            # While it is in the middle of it: some of that is still in the pipe.
            taker.send_signal(signal.SIGKILL)
    os.close(writing)
    later = Spool.open(tmp_path, "job", max_bytes=2**40)
    # The writer is gone, so what is there now is all.
    while later.take(STDOUT, reading):
        pass
    os.close(reading)
    found = content(later)
    assert [seq for _, seq, _ in found] == list(range(1, len(found) + 1))
    assert b"".join(data for _, _, data in found) == written[:offset]
