"""Commands outlive their worker: killed or upgraded, the next one takes them back, and nothing of them is lost."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from pathlib import Path

import psutil
import pytest
import redis as redis_py
from support import AGENT, gone, kill_redis, prepare, request, wait_until

from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecOutput, ExecState, OutputKind
from tachikoma.dev.stack import Stack
from tachikoma.redis import keys

pytestmark = pytest.mark.long

#: Writes numbers as fast as it can, and waits for a file between; its last word is its own process id.
WRITER = """
import os, sys, time
for part in range({parts}):
    for number in range(20_000):
        print(part, number)
    print("to stderr", part, file=sys.stderr)
    while not os.path.exists(f"{folder}/go-{{part}}"):
        time.sleep(0.005)
open("{folder}/pids", "a").write(f"{{os.getpid()}}\\n")
sys.exit(7)
"""


def _expected(parts: int) -> tuple[bytes, bytes]:
    out = b"".join(b"%d %d\n" % (part, number) for part in range(parts) for number in range(20_000))
    return out, b"".join(b"to stderr %d\n" % part for part in range(parts))


class Follower(threading.Thread):
    """Follows an execution to its end."""

    def __init__(self, stack: Stack, exec_id: str) -> None:
        super().__init__(daemon=True)
        self._stack, self._exec_id = stack, exec_id
        self.outputs: list[ExecOutput] = []
        self.start()

    def run(self) -> None:
        with Client(self._stack.profile()) as client:
            for output in client.attach(self._exec_id):
                self.outputs.append(output)

    def data(self, kind: OutputKind) -> bytes:
        return b"".join(output.data for output in self.outputs if output.kind is kind)


def _restart(stack: Stack, *, kill: bool) -> None:
    agent = stack.agents[AGENT]
    if kill:
        agent.kill()
    else:
        agent.stop()
    stack.start_agent(AGENT)
    stack.wait_for_agents()


def _python(script: str) -> tuple[str, ...]:
    return ("python3", "-I", "-c", script)


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "upgraded"])
def test_a_restarted_worker_takes_its_commands_back(tmp_path: Path, redis_server: Path | None, kill: bool) -> None:
    parts = 4
    environment = {"TACHIKOMA_LEAVE_RUNNING": "true"}
    with (
        Stack(prepare(tmp_path), redis_server=redis_server, environment=environment) as stack,
        Client(stack.profile()) as client,
    ):
        wanted = request(*_python(WRITER.format(parts=parts, folder=tmp_path)))
        client.submit(wanted)
        follower = Follower(stack, wanted.id)
        for part in range(parts):
            wait_until(lambda part=part: follower.data(OutputKind.STDERR).count(b"\n") == part + 1, "it waits")
            if part < parts - 1:
                _restart(stack, kill=kill)
                wait_until(lambda: client.agents()[0].running == 1, "it is taken back")
            (tmp_path / f"go-{part}").touch()
        follower.join(PATIENCE_SECONDS)
        out, err = _expected(parts)
        result = follower.outputs[-1].result
        assert result is not None
        assert (result.state, result.exit_code) == (ExecState.FAILED, 7)
        assert (follower.data(OutputKind.STDOUT), follower.data(OutputKind.STDERR)) == (out, err)
        assert not [output for output in follower.outputs if output.kind is OutputKind.GAP]
        assert result.stdout_summary.sha256 == hashlib.sha256(out).hexdigest()
        assert result.stderr_summary.sha256 == hashlib.sha256(err).hexdigest()
        assert result.duration.total_seconds() > 0
        assert len((tmp_path / "pids").read_text().split()) == 1
        codes = [event.event for event in client.audit(exec_id=wanted.id)]
        assert codes == ["admitted", "dispatched", "started", "failed"]
        # And nothing is left of it.
        wait_until(lambda: not list((tmp_path / "agents" / AGENT / "spool").iterdir()), "its spool is gone")


def test_killed_while_it_writes_nothing_of_it_is_lost(own_stack: Stack) -> None:
    with Client(own_stack.profile()) as client:
        wanted = request("sh", "-c", "for part in $(seq 60); do seq 20000; sleep 0.05; done")
        client.submit(wanted)
        wait_until(lambda: _stdout(client, wanted.id), "it writes")
        for _ in range(3):
            _restart(own_stack, kill=True)
        outputs = list(client.attach(wanted.id))
        expected = 60 * b"".join(b"%d\n" % number for number in range(1, 20_001))
        assert b"".join(output.data for output in outputs) == expected
        result = outputs[-1].result
        assert result is not None
        assert (result.state, result.stdout_summary.total_bytes) == (ExecState.SUCCEEDED, len(expected))
        assert result.stdout_summary.sha256 == hashlib.sha256(expected).hexdigest()


def test_what_ends_while_there_is_no_worker_is_told_by_the_next(own_stack: Stack, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with Client(own_stack.profile()) as client:
        wanted = request("sh", "-c", f"echo $$; while [ ! -e {go} ]; do sleep 0.01; done; echo done; exit 9")
        client.submit(wanted)
        pid = wait_until(lambda: _stdout(client, wanted.id), "it runs")
        own_stack.agents[AGENT].kill()
        go.touch()
        wait_until(lambda: gone(int(pid)), "it has ended")
        own_stack.start_agent(AGENT)
        result = list(client.attach(wanted.id))[-1].result
        assert result is not None
        assert (result.state, result.exit_code, result.stdout_summary.total_bytes) == (
            (ExecState.FAILED, 9, len(pid) + len("done\n"))
        )


def _stdout(client: Client, exec_id: str) -> bytes:
    return b"".join(output.data for output in client.attach(exec_id, follow=False))


def test_a_cancel_and_a_timeout_that_came_meanwhile_hold(own_stack: Stack) -> None:
    with Client(own_stack.profile()) as client:
        cancelled, timed_out = request("sleep", "600"), request("sleep", "600", timeout=2)
        for wanted in (cancelled, timed_out):
            client.submit(wanted)
        for wanted in (cancelled, timed_out):
            # On a slow machine its time may be over already.
            wait_until(lambda wanted=wanted: client.status(wanted.id).start_time, "it runs")
        own_stack.agents[AGENT].kill()
        client.cancel(cancelled.id)
        own_stack.start_agent(AGENT)
        for wanted, state in ((cancelled, ExecState.CANCELLED), (timed_out, ExecState.TIMED_OUT)):
            result = list(client.attach(wanted.id))[-1].result
            assert result is not None
            assert result.state is state
        assert result.duration.total_seconds() >= 2


def test_while_redis_is_away_commands_run_on_and_the_worker_may_even_be_killed(
    own_stack: Stack, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    with Client(own_stack.profile()) as client:
        wanted = request("sh", "-c", f"echo begun; while [ ! -e {tmp_path}/away ]; do sleep 0.01; done; "
                         f"seq 200000; echo ended > {marks}; exit 5")  # fmt: skip
        client.submit(wanted)
        wait_until(lambda: _stdout(client, wanted.id) == b"begun\n", "it runs")
        kill_redis(own_stack)
        (tmp_path / "away").touch()
        # More than its pipe holds: it ends although nobody takes what it writes.
        wait_until(marks.exists, "it has ended")
        own_stack.agents[AGENT].kill()
        own_stack.agents[AGENT].start()
        own_stack.start_redis()
        outputs = list(client.attach(wanted.id))
        assert b"".join(output.data for output in outputs) == b"begun\n" + b"".join(
            b"%d\n" % n for n in range(1, 200_001)
        )
        result = outputs[-1].result
        assert result is not None
        assert (result.state, result.exit_code) == (ExecState.FAILED, 5)


def test_an_end_that_was_not_delivered_is_delivered_by_the_next_worker(own_stack: Stack, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    spools = own_stack.data / "agents" / AGENT / "spool"
    with Client(own_stack.profile()) as client:
        wanted = request("sh", "-c", f"while [ ! -e {mark} ]; do sleep 0.01; done; exit 4")
        client.submit(wanted)
        wait_until(lambda: client.status(wanted.id).state is ExecState.STARTED, "it runs")
        kill_redis(own_stack)
        mark.touch()
        wait_until(lambda: b'"exit_code":4' in (spools / wanted.id).read_bytes(), "its end is kept")
        own_stack.agents[AGENT].kill()
        own_stack.start_redis()
        own_stack.start_agent(AGENT)
        result = list(client.attach(wanted.id))[-1].result
        assert result is not None
        assert (result.state, result.exit_code) == (ExecState.FAILED, 4)
        assert [event.event for event in client.audit(exec_id=wanted.id)][-1] == "failed"


def test_an_upgraded_worker_leaves_its_commands_at_once(tmp_path: Path, redis_server: Path | None) -> None:
    environment = {"TACHIKOMA_LEAVE_RUNNING": "true", "TACHIKOMA_STOP_GRACE": "10m"}
    with (
        Stack(prepare(tmp_path), redis_server=redis_server, environment=environment) as stack,
        Client(stack.profile()) as client,
    ):
        wanted = request("sleep", "600")
        client.submit(wanted)
        wait_until(lambda: client.status(wanted.id).state is ExecState.STARTED, "it runs")
        agent = psutil.Process(stack.agents[AGENT].pid)
        [spawner] = [process for process in agent.children() if "spawner" in process.name()]
        [command] = spawner.children()
        os.kill(agent.pid, signal.SIGTERM)
        wait_until(lambda: not stack.agents[AGENT].alive, "the worker has stopped")
        assert command.is_running()
        assert client.status(wanted.id).state is ExecState.STARTED
        stack.start_agent(AGENT)
        stack.wait_for_agents()
        wait_until(lambda: client.agents()[0].running == 1, "it is taken back")
        client.cancel(wanted.id)
        wait_until(lambda: client.status(wanted.id).state is ExecState.CANCELLED, "it has ended")
        assert gone(command.pid)


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_what_a_later_worker_cannot_go_on_with_is_ended_and_lost(own_stack: Stack, how: str) -> None:
    """Somebody emptied the agent's folder of spools; or the worker was killed as it began to write one."""
    with Client(own_stack.profile()) as client:
        wanted = request("sleep", "600")
        client.submit(wanted)
        wait_until(lambda: client.status(wanted.id).state is ExecState.STARTED, "it runs")
        own_stack.agents[AGENT].kill()
        spool = own_stack.data / "agents" / AGENT / "spool" / wanted.id
        spool.unlink()
        if how == "empty":
            spool.touch()
        own_stack.start_agent(AGENT)
        result = list(client.attach(wanted.id))[-1].result
        assert result is not None
        assert result.state is ExecState.LOST
        assert "the command was still running and was killed" in result.error
        with redis_py.Redis(**own_stack.redis_admin) as redis:
            assert redis.get(keys.claim(AGENT, wanted.id))
        wait_until(lambda: not spool.exists(), "nothing is left of it")


#: Python imports a module of this name at its start.
HANGS = """
import sys
if "worker" in sys.orig_argv:
    from threading import Event
    import tachikoma_worker.command
    from tachikoma_worker.engine.engine import Engine
    tachikoma_worker.command.STOP_SLACK_SECONDS = 0.5
    Engine.stop = lambda engine: Event().wait()
"""


def test_a_worker_whose_stop_hangs_ends_all_the_same_and_says_where(tmp_path: Path, redis_server: Path | None) -> None:
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text(HANGS)
    environment = {"PYTHONPATH": str(planted), "TACHIKOMA_STOP_GRACE": "0.1s", "TACHIKOMA_KILL_GRACE": "0.1s"}
    with Stack(prepare(tmp_path), redis_server=redis_server, environment=environment) as stack:
        part = stack.agents["agent-1"]
        assert part.process is not None
        part.process.terminate()
        assert part.process.wait(PATIENCE_SECONDS) == 1
        log = (tmp_path / "logs" / "agent-1.log").read_text()
        assert "most recent call first" in log
        assert "in <lambda>" in log
        (planted / "sitecustomize.py").unlink()
        stack.start_agent("agent-1")
