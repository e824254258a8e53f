"""Confinement seen from the caller: what policy sets, what comes back, what is left."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support import Cli, make_cli, prepare, wait_until

from processes import cgroups_named, processes_named
from tachikoma import Client, ExecRequest, ExecState, PermissionDenied
from tachikoma.dev.stack import Stack

PYTHON = (sys.executable, "-I", "-S", "-c")
HOG = (*PYTHON, "x = bytearray(10**9)")


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    """A stack whose policy limits, and whose agent keeps its own default user."""
    data = prepare(tmp_path_factory.mktemp("strict"))
    file = data / "policy.yaml"
    text = file.read_text()
    file.write_text(text.rstrip() + "\n    limits: {memory: 48MiB, pids: 50}\n    killGrace: 1s\n")
    with Stack(data, redis_server=redis_server, environment={"TACHIKOMA_USER": ""}) as stack:
        yield stack


@pytest.fixture
def limited(strict: Stack, need: Callable[[bool, str], None]) -> Iterator[Client]:
    with Client(strict.profile()) as client:
        [agent] = client.agents()
        need(not agent.warnings, f"cgroups that root may make: {agent.warnings}")
        yield client


def test_without_a_word_a_command_runs_as_nobody(limited: Client) -> None:
    response = limited.execute(ExecRequest(agent_id="agent-1", command=("id", "-un")))
    assert response.stdout == b"nobody\n"


def test_the_limit_of_policy_holds_and_is_told(limited: Client, strict: Stack) -> None:
    response = limited.execute(ExecRequest(agent_id="agent-1", command=HOG, user="root"))
    assert (response.state, response.signal, response.exit_code) == (ExecState.OUT_OF_MEMORY, 9, 137)
    assert "more than its 48.0MiB of memory" in response.error
    assert response.usage.oom_kills
    assert limited.status(response.id).state is ExecState.OUT_OF_MEMORY
    cli: Cli = make_cli(strict)
    done = cli.run("exec", "-u", "root", "agent-1", *HOG)
    assert done.returncode == 137
    assert b"memory" in done.stderr


def test_a_request_lowers_the_limit_and_cannot_raise_it(limited: Client) -> None:
    code = "import sys; sys.stdout.write(str(len(bytearray(30 * 2**20))))"
    base = {"agent_id": "agent-1", "command": (*PYTHON, code), "user": "root"}
    assert limited.execute(ExecRequest(**base)).state is ExecState.SUCCEEDED
    lowered = limited.execute(ExecRequest(**base, limits={"memory": "16MiB"}))
    assert lowered.state is ExecState.OUT_OF_MEMORY
    raised = limited.execute(ExecRequest(agent_id="agent-1", command=HOG, user="root", limits={"memory": "4GiB"}))
    assert raised.state is ExecState.OUT_OF_MEMORY


def test_what_was_used_comes_back_with_the_response_and_later(limited: Client) -> None:
    code = "import time\nend = time.process_time() + 0.1\nwhile time.process_time() < end: pass"
    request = ExecRequest(agent_id="agent-1", command=(*PYTHON, code), user="root")
    usage = limited.execute(request).usage
    assert usage.cpu_seconds is not None
    assert usage.cpu_seconds >= 0.1
    assert usage.oom_kills == 0
    assert limited.execute(request).usage == usage


def test_a_cancel_leaves_nothing_of_a_command_that_hides(limited: Client) -> None:
    mark = f"mark-{uuid.uuid4().hex}"
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork(): os._exit(0)\n"
        "time.sleep(1000)\n"
    )
    request = ExecRequest(agent_id="agent-1", command=(*PYTHON, code, mark), user="root")
    limited.submit(request)
    wait_until(lambda: len(processes_named(mark)) == 2, "it has forked twice")
    limited.cancel(request.id)
    wait_until(lambda: limited.status(request.id).state.terminal, "it has ended")
    assert limited.status(request.id).state is ExecState.CANCELLED
    assert processes_named(mark) == []


def test_a_variable_that_changes_what_runs_is_denied(limited: Client) -> None:
    with pytest.raises(PermissionDenied, match="LD_PRELOAD is never passed on"):
        limited.execute(ExecRequest(agent_id="agent-1", command=("id",), environment={"LD_PRELOAD": "/tmp/x.so"}))


def test_stopping_the_agent_leaves_no_cgroup_and_no_spawner(
    tmp_path: Path, redis_server: Path | None, need: Callable[[bool, str], None]
) -> None:
    need(os.getuid() == 0, "root")
    with Stack(prepare(tmp_path), redis_server=redis_server) as stack, Client(stack.profile()) as client:
        assert client.execute(ExecRequest(agent_id="agent-1", command=("true",))).exit_code == 0
        [spawner] = [p for p in psutil.Process(stack.agents["agent-1"].pid).children() if "spawner" in p.name()]
        command = stack.agents["agent-1"]._command
        name = command[command.index("--cgroup-name") + 1]
        assert cgroups_named(name)
    assert not spawner.is_running()
    assert cgroups_named(name) == []
    assert not (tmp_path / "agents" / "agent-1" / "spawner.sock").exists()


def test_what_a_killed_agent_and_its_killed_spawner_left_is_swept_up_at_the_next_start(
    tmp_path: Path, redis_server: Path | None, need: Callable[[bool, str], None]
) -> None:
    """As after a crash of the whole agent: only the cgroup still knows the command."""
    need(os.getuid() == 0, "root")
    mark = f"mark-{uuid.uuid4().hex}"
    with Stack(prepare(tmp_path), redis_server=redis_server) as stack, Client(stack.profile()) as client:
        request = ExecRequest(agent_id="agent-1", command=(*PYTHON, "import time; time.sleep(1000)", mark))
        client.submit(request)
        wait_until(lambda: len(processes_named(mark)) == 1, "it runs")
        agent = psutil.Process(stack.agents["agent-1"].pid)
        [spawner] = [process for process in agent.children() if "spawner" in process.name()]
        # The spawner first, and at once: an agent whose spawner is gone ends by itself.
        agent.suspend()
        spawner.kill()
        stack.agents["agent-1"].kill()
        assert len(processes_named(mark)) == 1
        stack.start_agent("agent-1")
        wait_until(lambda: client.status(request.id).state.terminal, "it is told")
        assert client.status(request.id).state is ExecState.LOST
        wait_until(lambda: not processes_named(mark), "it is killed")
        assert client.execute(ExecRequest(agent_id="agent-1", command=("true",))).exit_code == 0


def test_an_agent_without_its_spawner_ends_what_it_runs_as_lost_and_stops(
    tmp_path: Path, redis_server: Path | None, need: Callable[[bool, str], None]
) -> None:
    with Stack(prepare(tmp_path), redis_server=redis_server) as stack, Client(stack.profile()) as client:
        request = ExecRequest(agent_id="agent-1", command=(*PYTHON, "import time; time.sleep(1000)"))
        client.submit(request)
        wait_until(lambda: client.status(request.id).state is ExecState.STARTED, "it runs")
        agent = psutil.Process(stack.agents["agent-1"].pid)
        [spawner] = [process for process in agent.children() if "spawner" in process.name()]
        spawner.kill()
        wait_until(lambda: not stack.agents["agent-1"].alive, "the agent ends")
        status = client.status(request.id)
        assert status.state is ExecState.LOST
        assert "the spawner is gone" in status.error


def test_stopping_the_stack_sweeps_up_after_a_killed_agent(
    tmp_path: Path, redis_server: Path | None, need: Callable[[bool, str], None]
) -> None:
    need(os.getuid() == 0, "root")
    mark = f"mark-{uuid.uuid4().hex}"
    with Stack(prepare(tmp_path), redis_server=redis_server) as stack, Client(stack.profile()) as client:
        client.submit(ExecRequest(agent_id="agent-1", command=(*PYTHON, "import time; time.sleep(1000)", mark)))
        wait_until(lambda: len(processes_named(mark)) == 1, "it runs")
        [spawner] = [p for p in psutil.Process(stack.agents["agent-1"].pid).children() if "spawner" in p.name()]
        stack.agents["agent-1"].kill()
        # The spawner holds it.
        assert spawner.is_running()
        assert len(processes_named(mark)) == 1
        name = " ".join(stack.agents["agent-1"]._command).split("--cgroup-name ")[1].split()[0]
        assert cgroups_named(name)
    # An orphan may wait for the first process of the machine to take note of its end.
    assert not spawner.is_running() or spawner.status() == psutil.STATUS_ZOMBIE
    assert processes_named(mark) == []
    assert cgroups_named(name) == []


def test_a_policy_for_agents_with_a_label(tmp_path: Path, redis_server: Path | None) -> None:
    data = prepare(tmp_path)
    file = data / "policy.yaml"
    text = file.read_text()
    file.write_text(text.replace('agents: ["**"]', 'agents: ["role=web"]'))
    environment = {"TACHIKOMA_LABELS": '{"role": "web"}'}
    with Stack(data, redis_server=redis_server, environment=environment) as stack, Client(stack.profile()) as client:
        # What the agent says of itself grants nothing.
        with pytest.raises(PermissionDenied, match="no policy applies to"):
            client.execute(ExecRequest(agent_id="agent-1", command=("true",)))
        labelled = client.label_agent("agent-1", {"role": "web"})
        assert (labelled.labels, labelled.reported_labels) == ({"role": "web"}, {"role": "web"})
        assert client.execute(ExecRequest(agent_id="agent-1", command=("true",))).exit_code == 0
        file.write_text(text.replace('agents: ["**"]', 'agents: ["role=db"]'))
        log = stack.data / "logs" / "orchestrator.log"
        wait_until(lambda: "policy.changed" in log.read_text(), "it takes the new one")
        with pytest.raises(PermissionDenied, match="no policy applies to"):
            client.execute(ExecRequest(agent_id="agent-1", command=("true",)))


def test_the_agents_own_policy_has_the_last_word(tmp_path: Path, redis_server: Path | None) -> None:
    own = tmp_path / "own.yaml"
    rules = "policies:\n  - {name: own, subjects: ['**'], agents: ['**'], allowedCommands: [/usr/bin/id ...]}\n"
    own.write_text(rules)
    environment = {"TACHIKOMA_LOCAL_POLICY": str(own)}
    stack = Stack(prepare(tmp_path), redis_server=redis_server, environment=environment)
    with stack, Client(stack.profile()) as client:
        assert client.execute(ExecRequest(agent_id="agent-1", command=("id", "-u"))).exit_code == 0
        refused = client.execute(ExecRequest(agent_id="agent-1", command=("uname",)))
        assert refused.state is ExecState.REJECTED
        assert "the agent's own policy does not allow it: policy own does not allow the command" in refused.error
        # It is taken when it changes, and kept when the change is wrong.
        own.write_text(rules.replace("/usr/bin/id", "/usr/bin/uname"))
        log = stack.data / "logs" / "agent-1.log"
        wait_until(lambda: "policy.changed" in log.read_text(), "it takes the new one")
        assert client.execute(ExecRequest(agent_id="agent-1", command=("uname",))).exit_code == 0
        own.write_text("nonsense")
        wait_until(lambda: "policy.kept" in log.read_text(), "it keeps the old one")
        assert client.execute(ExecRequest(agent_id="agent-1", command=("uname",))).exit_code == 0
