"""What the system stands on goes away and comes back; nothing is lost and nothing hangs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import redis as redis_py
from support import AGENT, kill_redis, make_cli, prepare, request, wait_until

from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecRequest, ExecState, Unavailable
from tachikoma.dev.stack import Stack
from tachikoma.redis import keys
from tachikoma_worker.execution.reserve import RESERVE_BYTES


def _unavailable(client: Client) -> str:
    """What a call says while Redis is away."""
    with pytest.raises(Unavailable) as failure:
        client.execute(request("true"))
    assert failure.value.retry_after_seconds == 1
    return str(failure.value)


def test_redis_away_in_the_middle_is_told_and_survived(own_stack: Stack) -> None:
    cli = make_cli(own_stack)
    with Client(own_stack.profile()) as client:
        before = client.execute(request("echo", "kept"))
        kill_redis(own_stack)
        with ThreadPoolExecutor() as threads:
            # Both wait for as long as Redis may need to answer.
            running = threads.submit(cli.run, "exec", "--id", "in-doubt", AGENT, "true")
            assert _unavailable(client) == "the orchestrator cannot use its Redis now; nothing was lost, try again"
            done = running.result()
        assert (done.returncode, done.stderr.decode().splitlines()) == (
            125,
            [
                "tachikoma: the orchestrator cannot use its Redis now; nothing was lost, try again",
                "tachikoma: the command may run: `tachikoma status in-doubt` shows it, "
                "`tachikoma cancel in-doubt` ends it",
            ],
        )
        own_stack.start_redis()
        own_stack.wait_for_agents()
        assert client.execute(request("echo", "again")).stdout == b"again\n"
        # Recorded before it went away, or from the receipt afterwards: the caller was answered from that.
        wait_until(lambda: client.status(before.id).state is ExecState.SUCCEEDED, "the ledger has its end")


def test_orchestrator_and_agent_start_without_redis_and_work_when_it_comes(own_stack: Stack) -> None:
    own_stack.agents[AGENT].stop()
    own_stack.orchestrator.stop()
    own_stack.redis.stop()
    own_stack.start_orchestrator()
    own_stack.agents[AGENT].start()
    with Client(own_stack.profile()) as client:
        assert "Redis" in _unavailable(client)
        own_stack.start_redis()
        own_stack.wait_for_agents()
        assert client.execute(request("echo", "late")).stdout == b"late\n"


def test_a_command_and_its_follower_survive_a_restart_of_redis(own_stack: Stack, tmp_path: Path) -> None:
    go, mark = tmp_path / "go", tmp_path / "mark"
    script = f"echo one; touch {mark}; while [ ! -e {go} ]; do sleep 0.01; done; seq 1000; exit 5"
    with Client(own_stack.profile()) as client:
        wanted = request("sh", "-c", script)
        seen, restarted = b"", False
        result = None
        for output in client.execute_stream(wanted):
            seen += output.data
            if output.result is not None:
                result = output.result
            if seen == b"one\n" and not restarted:
                restarted = True
                kill_redis(own_stack)
                go.touch()
                own_stack.start_redis()
    assert seen == b"one\n" + b"".join(b"%d\n" % number for number in range(1, 1001))
    assert result is not None
    assert (result.state, result.exit_code) == (ExecState.FAILED, 5)


def test_commands_survive_a_restart_of_the_orchestrator(own_stack: Stack, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with Client(own_stack.profile()) as client:
        wanted = request("sh", "-c", f"while [ ! -e {go} ]; do sleep 0.01; done; echo done; exit 4")
        client.submit(wanted)
        wait_until(lambda: client.status(wanted.id).state is ExecState.STARTED, "it runs")
        own_stack.orchestrator.kill()
        # It ends while nobody collects receipts: the reaper finds this one.
        go.touch()
        with redis_py.Redis(**own_stack.redis_admin) as redis:
            wait_until(lambda: redis.exists(keys.result(AGENT, wanted.id)), "its result is there")
        own_stack.start_orchestrator()
    with Client(own_stack.profile()) as client:
        outputs = list(client.attach(wanted.id))
        assert b"".join(output.data for output in outputs) == b"done\n"
        assert outputs[-1].result is not None
        assert outputs[-1].result.exit_code == 4
        again = client.execute(wanted)
        assert (again.exit_code, again.stdout) == (4, b"done\n")


def test_a_stopped_agent_lets_its_commands_finish_and_reports_them(own_stack: Stack, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with Client(own_stack.profile()) as client:
        wanted = request("sh", "-c", f"while [ ! -e {go} ]; do sleep 0.01; done; echo done")
        client.submit(wanted)
        wait_until(lambda: client.status(wanted.id).state is ExecState.STARTED, "it runs")
        agent = own_stack.agents[AGENT]
        os.kill(agent.pid, signal.SIGTERM)
        go.touch()
        wait_until(lambda: not agent.alive, "the agent has stopped")
        outputs = list(client.attach(wanted.id))
        assert outputs[-1].result is not None
        assert outputs[-1].result.state is ExecState.SUCCEEDED


def test_a_stopped_agent_kills_what_does_not_end_and_reports_that(own_stack: Stack) -> None:
    with Client(own_stack.profile()) as client:
        wanted = request("sleep", "600")
        client.submit(wanted)
        wait_until(lambda: client.status(wanted.id).state is ExecState.STARTED, "it runs")
        own_stack.agents[AGENT].stop(60)
        outputs = list(client.attach(wanted.id))
        assert outputs[-1].result is not None
        assert outputs[-1].result.state is ExecState.FAILED
        assert outputs[-1].result.error == "killed: the agent was shut down"


def test_an_agent_that_dies_for_good_leaves_its_commands_lost(tmp_path: Path, redis_server: Path | None) -> None:
    environment = {"TACHIKOMA_LEASE": "1s", "TACHIKOMA_SWEEP": "0.2s"}
    with (
        Stack(prepare(tmp_path), redis_server=redis_server, environment=environment) as stack,
        Client(stack.profile()) as client,
    ):
        wanted = request("sleep", "600")
        client.submit(wanted)
        wait_until(lambda: client.status(wanted.id).state is ExecState.STARTED, "it runs")
        stack.agents[AGENT].kill()
        with redis_py.Redis(**stack.redis_admin) as redis:
            # As 15 s later, when its last heartbeat expires.
            redis.delete(keys.info(AGENT))
        status = wait_until(
            lambda: (found := client.status(wanted.id)).state.terminal and found, "it is given up", seconds=60
        )
        assert status.state is ExecState.LOST
        assert re.fullmatch(r"its agent sent no heartbeat for \d+ s", status.error)
        assert [event.event for event in client.audit(exec_id=wanted.id)] == [
            "admitted",
            "dispatched",
            "started",
            "lost",
        ]


def test_a_full_disk_under_the_data_folder_is_told_and_nothing_runs_unrecorded(
    tmp_path: Path, redis_server: Path | None, need: Callable[[bool, str], None]
) -> None:
    need(os.getuid() == 0, "root, to mount a small file system")
    disk, marks = tmp_path / "disk", tmp_path / "marks"
    disk.mkdir()
    marks.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], check=True)
    try:
        with Stack(prepare(disk), redis_server=redis_server) as stack, Client(stack.profile()) as client:
            kept = client.execute(request("echo", "kept"))
            accepted: list[str] = []
            _fill(disk / "filler")

            def refused() -> str:
                """What is said when nothing more is accepted."""
                wanted = request("touch", str(marks / f"{len(accepted)}"))
                try:
                    client.submit(wanted)
                except Unavailable as error:
                    return str(error)
                accepted.append(wanted.id)
                return ""

            assert "No space left on device" in wait_until(refused, "the full disk is noticed")
            done = make_cli(stack, tmp_path).run("exec", AGENT, "true")
            assert done.returncode == 125
            assert "tachikoma: the orchestrator's Redis refuses: MISCONF" in done.stderr.decode()
            assert all(part.alive for part in stack.parts)
            (disk / "filler").unlink()
            wait_until(lambda: _runs(client), "it works again when there is room")
            # What had been accepted before has its end: it ran, or the agent refused it and it did not.
            for number, exec_id in enumerate(accepted):
                status = wait_until(
                    lambda exec_id=exec_id: (found := client.status(exec_id)).state.terminal and found, "it has ended"
                )
                ran = (marks / str(number)).exists()
                if status.state is ExecState.SUCCEEDED:
                    assert ran
                else:
                    assert (status.state, ran) == (ExecState.REJECTED, False)
                    assert "journal cannot be written" in status.error
            # Its caller was answered from the receipt. A sweep records it if the disk was full before the ledger had.
            wait_until(lambda: client.status(kept.id).state is ExecState.SUCCEEDED, "what had run is recorded")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_an_agent_whose_disk_is_full_refuses_and_says_why(
    tmp_path: Path, redis_server: Path | None, need: Callable[[bool, str], None]
) -> None:
    need(os.getuid() == 0, "root, to mount a small file system")
    agents, mark = tmp_path / "agents", tmp_path / "mark"
    agents.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(agents)], check=True)
    try:
        with Stack(prepare(tmp_path), redis_server=redis_server) as stack, Client(stack.profile()) as client:
            _fill(agents / "filler")
            # The journal may have some room of its own left; each row takes of it.
            response = wait_until(
                lambda: (found := client.execute(request("true"))).state is ExecState.REJECTED and found,
                "the journal is full",
            )
            assert "the agent's journal cannot be written: database or disk is full" in response.error
            assert client.execute(request("touch", str(mark))).state is ExecState.REJECTED
            assert not mark.exists()
            (agents / "filler").unlink()
            assert client.execute(request("touch", str(mark))).state is ExecState.SUCCEEDED
            assert mark.exists()
    finally:
        subprocess.run(["umount", "-l", str(agents)], check=True)


def test_the_command_that_frees_a_full_disk_runs(
    tmp_path: Path, redis_server: Path | None, need: Callable[[bool, str], None]
) -> None:
    need(os.getuid() == 0, "root, to mount a small file system")
    agents, mark = tmp_path / "agents", tmp_path / "mark"
    agents.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(agents)], check=True)
    fillers = [agents / f"filler-{number}" for number in range(4)]
    reserve = agents / AGENT / "reserve"
    try:
        with Stack(prepare(tmp_path), redis_server=redis_server) as stack, Client(stack.profile()) as client:
            assert reserve.stat().st_size == RESERVE_BYTES
            _fill(fillers[0])
            assert client.execute(request("true")).state is ExecState.SUCCEEDED
            _fill(fillers[1])
            # With output, which then goes through memory; and many at once.
            printed = client.execute(request("sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x"))
            assert (printed.state, printed.stdout) == (ExecState.SUCCEEDED, b"x" * 1_000_000)
            _fill(fillers[2])
            many = [client.submit(request("touch", f"{mark}-{number}")).id for number in range(20)]
            for number, exec_id in enumerate(many):
                wait_until(lambda exec_id=exec_id: client.status(exec_id).state.terminal, "it has ended")
                assert client.status(exec_id).state is ExecState.SUCCEEDED
                assert Path(f"{mark}-{number}").exists()
            # Also by a worker that is started on the full disk.
            _fill(fillers[3])
            stack.agents[AGENT].kill()
            stack.agents[AGENT].start_until_ready()
            assert 0 < reserve.stat().st_size < RESERVE_BYTES
            freed = client.execute(request("rm", *map(str, fillers)))
            assert (freed.state, freed.stderr) == (ExecState.SUCCEEDED, b"")
            wait_until(lambda: reserve.stat().st_size == RESERVE_BYTES, "the reserve has grown again")
    finally:
        subprocess.run(["umount", "-l", str(agents)], check=True)


def _fill(path: Path) -> None:
    """Take all the room there is."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    size = 1024 * 1024
    try:
        while size:
            try:
                os.write(descriptor, bytes(size))
            except OSError:
                size //= 2
    finally:
        os.close(descriptor)


def _runs(client: Client) -> bool:
    try:
        return client.execute(request("true")).state is ExecState.SUCCEEDED
    except Unavailable:
        return False


def test_a_frozen_orchestrator_is_noticed_by_its_clients(own_stack: Stack) -> None:
    pid = own_stack.orchestrator.pid
    ended: list[str] = []

    def execute(client: Client, wanted: ExecRequest) -> None:
        with pytest.raises(Unavailable):
            client.execute(wanted)
        ended.append("execute")

    def stream(client: Client, wanted: ExecRequest) -> None:
        with pytest.raises(Unavailable):
            list(client.execute_stream(wanted))
        ended.append("stream")

    with (
        Client(own_stack.profile()) as observer,
        Client(own_stack.profile(), reconnect=timedelta(0)) as first,
        Client(own_stack.profile(), reconnect=timedelta(0)) as second,
    ):
        one, other = (request("sh", "-c", "echo begun; sleep 600") for _ in range(2))
        callers = [
            threading.Thread(target=execute, args=(first, one)),
            threading.Thread(target=stream, args=(second, other)),
        ]
        for caller in callers:
            caller.start()
        ids = {one.id, other.id}
        wait_until(lambda: ids <= {item.id for item in observer.list_page()[0]}, "both are accepted")
        os.kill(pid, signal.SIGSTOP)
        try:
            # 15 s by the table of bounds, and time for a loaded machine; with gRPC's defaults it is more than a minute.
            for caller in callers:
                caller.join(PATIENCE_SECONDS)
            assert sorted(ended) == ["execute", "stream"]
        finally:
            os.kill(pid, signal.SIGCONT)
            for caller in callers:
                caller.join()
        for exec_id in ids:
            observer.cancel(exec_id)


def test_a_proxy_is_not_used_on_the_same_host(own_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    # An address for documentation (RFC 5737), at which no proxy answers.
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://192.0.2.1:3128")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    done = make_cli(own_stack).run("exec", AGENT, "echo", "hello")
    assert (done.returncode, done.stdout) == (0, b"hello\n")
