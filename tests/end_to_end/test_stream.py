"""`ExecuteStream` and `Attach`: output while it is written, and afterwards."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis as redis_py
from support import AGENT, request, wait_until

from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecState, NotFound, OutputAltered, OutputKind
from tachikoma.dev.stack import Stack
from tachikoma.redis import keys
from tachikoma.streams.frames import FIELD, STDOUT, Frame, entry_id


def test_a_line_arrives_while_the_command_still_runs(client: Client, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    # The command ends only after this test has got its line.
    stream = client.execute_stream(request("sh", "-c", f"echo hello; while [ ! -e {heard} ]; do sleep 0.01; done"))
    kinds = []
    for output in stream:
        kinds.append(output.kind)
        if output.kind is OutputKind.STDOUT:
            assert output.data == b"hello\n"
            heard.touch()
    assert kinds == [OutputKind.STATUS, OutputKind.STDOUT, OutputKind.RESULT]


def test_the_first_message_tells_the_id_and_the_last_the_end(client: Client) -> None:
    wanted = request("sh", "-c", "echo out; echo err >&2; exit 5")
    outputs = list(client.execute_stream(wanted))
    assert outputs[0].kind is OutputKind.STATUS
    assert outputs[0].status is not None
    assert outputs[0].status.id == wanted.id
    assert outputs[-1].kind is OutputKind.RESULT
    result = outputs[-1].result
    assert result is not None
    assert (result.exit_code, result.state) == (5, ExecState.FAILED)
    assert result.stdout_summary.total_bytes == 4
    by_kind = {output.kind: output.data for output in outputs[1:-1]}
    assert by_kind == {OutputKind.STDOUT: b"out\n", OutputKind.STDERR: b"err\n"}


def test_a_large_output_arrives_whole_and_in_order(client: Client) -> None:
    digest = hashlib.sha256()
    numbers, result = [], None
    for output in client.execute_stream(request("seq", "3000000")):
        if output.kind is OutputKind.STDOUT:
            digest.update(output.data)
            numbers.append(output.seq)
        elif output.kind is OutputKind.RESULT:
            result = output.result
    assert result is not None
    assert numbers == list(range(1, len(numbers) + 1))
    assert digest.hexdigest() == result.stdout_summary.sha256


def test_attach_replays_from_any_number_also_after_the_end(client: Client) -> None:
    wanted = request("sh", "-c", "for i in 1 2 3 4 5; do echo $i; sleep 0.05; done")
    live = [o for o in client.execute_stream(wanted) if o.kind is OutputKind.STDOUT]
    assert b"".join(o.data for o in live) == b"1\n2\n3\n4\n5\n"
    for after in range(len(live) + 1):
        replayed = list(client.attach(wanted.id, after_seq=after))
        assert replayed[0].kind is OutputKind.STATUS
        assert replayed[-1].kind is OutputKind.RESULT
        assert [o.seq for o in replayed[1:-1]] == [o.seq for o in live[after:]]
        assert [o.data for o in replayed[1:-1]] == [o.data for o in live[after:]]


def test_attach_joins_a_running_command_without_a_hole_or_a_copy(client: Client, tmp_path: Path) -> None:
    go = tmp_path / "go"
    wanted = request("sh", "-c", f"echo before; while [ ! -e {go} ]; do sleep 0.01; done; echo after")
    client.submit(wanted)
    seen = b""
    for output in client.attach(wanted.id):
        seen += output.data
        if seen == b"before\n":
            go.touch()
    assert seen == b"before\nafter\n"


def test_a_follower_that_left_can_come_back_where_it_was(client: Client, tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = f"for i in $(seq 50); do echo $i; done; while [ ! -e {go} ]; do sleep 0.01; done; seq 51 100"
    wanted = request("sh", "-c", script)
    seen, last = b"", 0
    stream = client.execute_stream(wanted, detach=True)
    for output in stream:
        if output.kind is OutputKind.STDOUT:
            seen, last = seen + output.data, output.seq
            break
    stream.close()  # type: ignore[attr-defined]
    go.touch()
    for output in client.attach(wanted.id, after_seq=last):
        seen += output.data
    assert seen == b"".join(b"%d\n" % number for number in range(1, 101))


def test_without_follow_what_there_is_comes_at_once(client: Client, tmp_path: Path) -> None:
    go = tmp_path / "go"
    wanted = request("sh", "-c", f"echo here; while [ ! -e {go} ]; do sleep 0.01; done")
    client.submit(wanted)
    wait_until(lambda: b"here\n" in [o.data for o in client.attach(wanted.id, follow=False)], "the line is there")
    wait_until(lambda: client.status(wanted.id).state is ExecState.STARTED, "its start is told")
    go.touch()
    assert list(client.attach(wanted.id))[-1].kind is OutputKind.RESULT


def test_many_followers_of_one_command_all_get_everything(client: Client) -> None:
    wanted = request("sh", "-c", "for i in $(seq 200); do echo line $i; done")
    client.submit(wanted)
    expected = b"".join(b"line %d\n" % number for number in range(1, 201))
    streams = [client.attach(wanted.id) for _ in range(5)]
    for stream in streams:
        assert b"".join(output.data for output in stream) == expected


def test_attach_to_nothing_is_not_found(client: Client) -> None:
    with pytest.raises(NotFound, match="no-such-id"):
        list(client.attach("no-such-id"))


def test_a_client_takes_up_again_what_a_killed_orchestrator_was_telling_it(own_stack: Stack, tmp_path: Path) -> None:
    marks = [tmp_path / str(number) for number in range(3)]
    script = "".join(f"seq {1000 * n} {1000 * n + 999}; while [ ! -e {mark} ]; do sleep 0.01; done; "
                     for n, mark in enumerate(marks))  # fmt: skip
    wanted = request("sh", "-c", script + "exit 6")
    kinds, seen = [], b""
    with Client(own_stack.profile()) as client:
        for output in client.execute_stream(wanted):
            kinds.append(output.kind)
            seen += output.data
            for number, mark in enumerate(marks):
                if seen.endswith(b"%d\n" % (1000 * number + 999)) and not mark.exists():
                    own_stack.orchestrator.kill()
                    mark.touch()
                    own_stack.start_orchestrator()
    result = output.result
    assert result is not None
    assert (result.state, result.exit_code) == (ExecState.FAILED, 6)
    assert seen == b"".join(b"%d\n" % number for number in range(3000))
    assert (kinds.count(OutputKind.STATUS), kinds.count(OutputKind.GAP)) == (1, 0)


def test_a_call_that_waits_for_an_end_outlives_its_orchestrator(own_stack: Stack, tmp_path: Path) -> None:
    go, marks = tmp_path / "go", tmp_path / "marks"
    wanted = request("sh", "-c", f"echo x >> {marks}; while [ ! -e {go} ]; do sleep 0.01; done; exit 3")
    with Client(own_stack.profile()) as client, ThreadPoolExecutor() as pool:
        waiting = pool.submit(client.execute, wanted)
        wait_until(marks.exists, "it runs")
        own_stack.orchestrator.kill()
        own_stack.start_orchestrator()
        go.touch()
        assert waiting.result(PATIENCE_SECONDS).exit_code == 3
    assert marks.read_text() == "x\n"


@pytest.mark.parametrize("how", ["added", "changed"])
def test_output_that_was_tampered_with_is_found(client: Client, stack: Stack, tmp_path: Path, how: str) -> None:
    go = tmp_path / "go"
    wanted = request("sh", "-c", f"echo true; while [ ! -e {go} ]; do sleep 0.01; done")
    with redis_py.Redis(**stack.redis_admin) as redis:
        key = keys.output(AGENT, wanted.id)
        client.submit(wanted)
        wait_until(lambda: redis.xlen(key), "it has written")
        if how == "added":
            raw = Frame(STDOUT, 2, 5, time.time_ns() // 1000, b"false\n").encode()
            redis.xadd(key, {FIELD: raw}, id=entry_id(2))
        else:
            redis.delete(key)
            redis.xadd(key, {FIELD: Frame(STDOUT, 1, 0, time.time_ns() // 1000, b"lies\n").encode()}, id=entry_id(1))
        go.touch()
        with pytest.raises(OutputAltered, match="stdout"):
            list(client.attach(wanted.id))
    # How it ended is signed, and not in doubt.
    assert client.status(wanted.id).state is ExecState.SUCCEEDED
    assert client.execute(wanted).stdout == b"true\n"
    codes = [event.event for event in client.audit(exec_id=wanted.id)]
    assert codes[-1] == "output_altered"
