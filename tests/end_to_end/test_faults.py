"""What the system stands on goes away and comes back; nothing is lost and nothing hangs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import redis as redis_py
from support import AGENT, make_cli, prepare, request, wait_until

from tachikoma import Client, ExecState, TachikomaError, Unavailable, keys
from tachikoma.dev.stack import Stack


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
        own_stack.redis.kill()
        assert _unavailable(client) == "the orchestrator cannot use its Redis now; nothing was lost, try again"
        done = cli.run("exec", AGENT, "true")
        assert (done.returncode, done.stderr.decode()) == (
            125,
            "tachikoma: the orchestrator cannot use its Redis now; nothing was lost, try again\n",
        )
        own_stack.start_redis()
        own_stack.wait_for_agents()
        assert client.execute(request("echo", "again")).stdout == b"again\n"
        # Written to disk before it went away, or given up by nobody: the ledger still knows it.
        assert client.status(before.id).state is ExecState.SUCCEEDED


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
                own_stack.redis.kill()
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
        with redis_py.Redis(unix_socket_path=str(own_stack.socket)) as redis:
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
        status = wait_until(
            lambda: (found := client.status(wanted.id)).state.terminal and found, "it is given up", seconds=60
        )
        assert status.state is ExecState.LOST
        assert re.fullmatch(r"its agent was not heard of for \d+ s", status.error)
        assert [event.event for event in client.audit(exec_id=wanted.id)] == ["admitted", "started", "lost"]


def test_a_full_disk_under_the_data_folder_is_told_and_nothing_runs_unrecorded(
    tmp_path: Path, redis_server: Path | None, need: Callable[[bool, str], None]
) -> None:
    need(os.getuid() == 0, "root, to mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], check=True)
    filler, mark = disk / "filler", tmp_path / "mark"
    try:
        with Stack(prepare(disk), redis_server=redis_server) as stack, Client(stack.profile()) as client:
            kept = client.execute(request("echo", "kept"))
            with filler.open("wb") as file, pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(bytes(4096))
                    file.flush()
            with redis_py.Redis(unix_socket_path=str(stack.socket)) as redis:

                def outcome() -> str:
                    """What a command comes to while the disk is full."""
                    mark.unlink(missing_ok=True)
                    try:
                        response = client.execute(request("touch", str(mark)))
                    except TachikomaError as error:
                        assert not mark.exists()
                        return str(error)
                    # Redis had room in what it had buffered: then the agent must say what it could not write.
                    if response.state is ExecState.REJECTED:
                        assert not mark.exists()
                        return response.error
                    return ""

                said = wait_until(outcome, "the full disk is noticed")
                assert "journal cannot be written" in said or "cannot use its Redis" in said
                assert redis.ping()
            assert all(part.alive for part in stack.parts)
            filler.unlink()
            wait_until(lambda: _runs(client), "it works again when there is room")
            assert client.status(kept.id).state is ExecState.SUCCEEDED
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def _runs(client: Client) -> bool:
    try:
        return client.execute(request("true")).state is ExecState.SUCCEEDED
    except Unavailable:
        return False
