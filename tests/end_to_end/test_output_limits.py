"""What policy lets be kept of an output: its middle is cut, or the command waits for readers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis as redis_py
from support import AGENT, prepare, request, wait_until

from tachikoma import Client, ExecRequest, ExecState, OutputKind
from tachikoma.dev.stack import Stack
from tachikoma.redis import keys
from tachikoma.streams.frames import sequence_of

pytestmark = pytest.mark.long

NUMBERS = b"".join(b"%d\n" % number for number in range(1, 400_001))
LIMIT = 256 * 1024
#: What comes at once may be so much, and is not cut in two.
CHUNK_BYTES = 256 * 1024


#: More than log, spool, pipe and gRPC hold for a caller that does not read.
LARGE_BYTES = 60_000_000


def _stack(data: Path, redis_server: Path | None, when_full: str, limit: str = "256KiB") -> Stack:
    file = prepare(data) / "policy.yaml"
    file.write_text(file.read_text() + f"    output: {{limit: {limit}, whenFull: {when_full}}}\n")
    return Stack(data, redis_server=redis_server)


@pytest.fixture(scope="module")
def cutting(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    with _stack(tmp_path_factory.mktemp("cut"), redis_server, "cut") as stack:
        yield stack


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    with _stack(tmp_path_factory.mktemp("wait"), redis_server, "wait") as stack:
        yield stack


@pytest.fixture(scope="module")
def following(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    """What policies say by default, with a smaller log."""
    with _stack(tmp_path_factory.mktemp("follow"), redis_server, "cut", "4MiB") as stack:
        yield stack


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    with _stack(tmp_path_factory.mktemp("impatient"), redis_server, "cut, waitLimit: 500ms", "4MiB") as stack:
        yield stack


def _last_chunk(stack: Stack, exec_id: str) -> int:
    with redis_py.Redis(**stack.redis_admin) as redis:
        last = redis.xrevrange(keys.output(AGENT, exec_id), count=1)
    return sequence_of(last[0][0]) if last else 0


def _stands_still(stack: Stack, exec_id: str) -> None:
    """Return when some output was written, and no more was for half a second."""
    seen: list[int] = []

    def still() -> bool:
        seen.append(_last_chunk(stack, exec_id))
        # Between two looks at the same place.
        time.sleep(0.05)
        return len(seen) > 10 and seen[-10] == seen[-1] > 0

    wait_until(still, "it writes no more")


def _log_bytes(stack: Stack, exec_id: str) -> int:
    with redis_py.Redis(**stack.redis_admin) as redis:
        return sum(len(fields[b"f"]) for _, fields in redis.xrange(keys.output(AGENT, exec_id)))


def test_what_is_cut_is_the_middle_and_is_told_to_the_byte(cutting: Stack) -> None:
    with Client(cutting.profile()) as client:
        # Written a bit at a time: a chunk is at most 256 KiB, and none of it is cut in two.
        wanted = request("sh", "-c", "for i in $(seq 0 39); do seq $((i*10000+1)) $((i*10000+10000)); sleep 0.01; done")
        client.execute(wanted)
        outputs = list(client.attach(wanted.id))
    result = outputs[-1].result
    assert result is not None
    assert result.stdout_summary.sha256 == hashlib.sha256(NUMBERS).hexdigest()
    assert _log_bytes(cutting, wanted.id) <= LIMIT
    kinds = [output.kind for output in outputs]
    assert kinds.count(OutputKind.GAP) == 1
    gap = kinds.index(OutputKind.GAP)
    begin, end = (b"".join(output.data for output in part) for part in (outputs[:gap], outputs[gap:]))
    assert begin
    assert (NUMBERS.startswith(begin), NUMBERS.endswith(end)) == (True, True)
    assert len(begin) + outputs[gap].missing_bytes + len(end) == len(NUMBERS)


def test_a_command_that_waits_loses_nothing_to_a_reader_who_comes_late(waiting: Stack, tmp_path: Path) -> None:
    done = tmp_path / "done"
    with Client(waiting.profile()) as client:
        wanted = request("sh", "-c", f"seq 400000; touch {done}")
        client.submit(wanted)
        wait_until(lambda: _log_bytes(waiting, wanted.id), "it writes")
        # More than log, spool and pipe hold.
        assert not done.exists()
        outputs = list(client.attach(wanted.id))
        assert _log_bytes(waiting, wanted.id) <= LIMIT + CHUNK_BYTES
    assert b"".join(output.data for output in outputs) == NUMBERS
    assert OutputKind.GAP not in [output.kind for output in outputs]
    result = outputs[-1].result
    assert result is not None
    assert result.state is ExecState.SUCCEEDED
    assert done.exists()


def test_nobody_who_reads_does_not_keep_it_beyond_its_timeout(waiting: Stack, tmp_path: Path) -> None:
    done = tmp_path / "done"
    with Client(waiting.profile()) as client:
        # More than log, spool and pipe hold.
        wanted = request("sh", "-c", f"seq 1000000; touch {done}", timeout=3)
        response = client.execute(wanted)
        assert response.state is ExecState.TIMED_OUT
        assert not done.exists()
        # What it wrote is told as it is, and what of it is gone.
        outputs = list(client.attach(wanted.id))
    told = sum(len(output.data) + output.missing_bytes for output in outputs)
    assert told == response.stdout_summary.total_bytes > LIMIT


def _zeros(done: Path) -> ExecRequest:
    return request("sh", "-c", f"head -c {LARGE_BYTES} /dev/zero; touch {done}", timeout=300)


def test_a_caller_who_is_slow_slows_the_command_down_and_loses_nothing(following: Stack, tmp_path: Path) -> None:
    done = tmp_path / "done"
    wanted = _zeros(done)
    with Client(following.profile()) as client, closing(client.execute_stream(wanted)) as outputs:
        received = len(next(outputs).data)
        _stands_still(following, wanted.id)
        assert not done.exists()
        assert _log_bytes(following, wanted.id) <= 4 * 1024 * 1024 + CHUNK_BYTES
        kinds = set()
        for output in outputs:
            received += len(output.data)
            kinds.add(output.kind)
    assert received == LARGE_BYTES
    assert OutputKind.GAP not in kinds
    assert done.exists()


@pytest.mark.parametrize("leaves", [False, True], ids=["reads on", "leaves"])
def test_output_waits_for_a_caller_who_attached_later_until_it_leaves(
    following: Stack, tmp_path: Path, leaves: bool
) -> None:
    go = tmp_path / "go"
    wanted = request(
        "sh", "-c", f"while ! [ -e {go} ]; do sleep 0.05; done; head -c {LARGE_BYTES} /dev/zero", timeout=300
    )
    with Client(following.profile()) as client:
        client.submit(wanted)
        with closing(client.attach(wanted.id)) as outputs:
            received = len(next(outputs).data)
            wait_until(lambda: _has_reader(following, wanted.id), "the agent can know of its reader")
            go.touch()
            # The command itself has room in the spool.
            _stands_still(following, wanted.id)
            if not leaves:
                rest = list(outputs)
        if leaves:
            rest = list(client.attach(wanted.id))
    assert (OutputKind.GAP in [output.kind for output in rest]) is leaves
    assert received + sum(len(output.data) + output.missing_bytes for output in rest) == LARGE_BYTES


def _has_reader(stack: Stack, exec_id: str) -> bool:
    with redis_py.Redis(**stack.redis_admin) as redis:
        return redis.exists(keys.read(AGENT, exec_id)) == 1


def test_a_caller_who_reads_nothing_for_too_long_gets_a_gap(impatient: Stack, tmp_path: Path) -> None:
    done = tmp_path / "done"
    wanted = _zeros(done)
    with Client(impatient.profile()) as client, closing(client.execute_stream(wanted)) as outputs:
        received = len(next(outputs).data)
        # Nobody reads, and still it ends.
        wait_until(done.exists, "it goes on")
        rest = list(outputs)
    assert OutputKind.GAP in [output.kind for output in rest]
    received += sum(len(output.data) + output.missing_bytes for output in rest)
    assert received == LARGE_BYTES
