"""Commands at `private`: what callers see is as without isolation, and other requesters see nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import AGENT, make_cli, prepare, request, wait_until

from tachikoma import Client, ExecResponse, ExecState
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.spiffe import user_id
from tachikoma.vocabulary.isolation import Isolation


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    """A stack whose policy isolates commands, and whose agent gives each requester a user."""
    folder = prepare(tmp_path_factory.mktemp("private"))
    policy = folder / "policy.yaml"
    more = "    allowInteractive: true\n    allowTty: true\n    isolation: private\n    killGrace: 1s\n"
    policy.write_text(policy.read_text() + more)
    environment = {"TACHIKOMA_USER": "", "TACHIKOMA_LEAVE_RUNNING": "true"}
    with Stack(folder, redis_server=redis_server, environment=environment) as running:
        yield running


@pytest.fixture
def client(stack: Stack, need: Callable[[bool, str], None]) -> Iterator[Client]:
    with Client(stack.profile()) as connected:
        [agent] = connected.agents()
        able = Isolation.PRIVATE.value in agent.isolation
        if not able and "TACHIKOMA_TEST_CGROUPS" in os.environ:
            pytest.skip("this container may not make namespaces")
        need(able, f"a host that isolates commands: {agent.warnings}")
        yield connected


def stdout(client: Client, exec_id: str) -> bytes:
    return b"".join(output.data for output in client.attach(exec_id, follow=False))


def end_of(client: Client, exec_id: str) -> ExecResponse:
    result = list(client.attach(exec_id))[-1].result
    assert result is not None
    return result


def test_output_exit_code_usage_and_level_come_back(client: Client) -> None:
    response = client.execute(request("sh", "-c", "echo out; echo err >&2; whoami; exit 3"))
    assert (response.state, response.exit_code) == (ExecState.FAILED, 3)
    assert response.stdout.startswith(b"out\ntachikoma7")
    assert response.stderr == b"err\n"
    assert response.usage.cpu_seconds is not None
    assert response.isolation is not None
    assert response.isolation.level is Isolation.PRIVATE
    assert {"processes", "mounts", "user", "agent files"} <= set(response.isolation.parts)


def test_standard_input_arrives(client: Client) -> None:
    content = os.urandom(100_000)
    response = client.execute(request("sha256sum", stdin=content))
    assert response.stdout.split()[0].decode() == hashlib.sha256(content).hexdigest()


def test_temporary_files_last_for_their_requester_alone(stack: Stack, client: Client) -> None:
    assert client.execute(request("sh", "-c", "echo kept >/tmp/mine")).exit_code == 0
    assert client.execute(request("cat", "/tmp/mine")).stdout == b"kept\n"
    assert not Path("/tmp/mine").exists()
    with Client(stack.issue(user_id(TRUST_DOMAIN, "bob"))) as other:
        assert other.execute(request("ls", "/tmp")).stdout == b""


def test_a_cancel_and_a_timeout_end_all_of_a_command(client: Client) -> None:
    wanted = request("sh", "-c", "setsid sleep 600 & sleep 600 & echo ready; wait")
    client.submit(wanted)
    wait_until(lambda: stdout(client, wanted.id), "it runs")
    client.cancel(wanted.id)
    response = end_of(client, wanted.id)
    assert response.state is ExecState.CANCELLED
    assert response.kill is not None
    assert response.kill.empty
    late = client.execute(request("sleep", "600", timeout=0.5))
    assert late.state is ExecState.TIMED_OUT


def test_a_killed_worker_leaves_the_command_and_the_next_one_takes_it_back(stack: Stack, client: Client) -> None:
    wanted = request("sh", "-c", "seq 20000; until test -e /tmp/go; do sleep 0.05; done; echo end; exit 7")
    client.submit(wanted)
    wait_until(lambda: stdout(client, wanted.id), "it runs")
    stack.agents[AGENT].kill()
    stack.start_agent(AGENT)
    stack.wait_for_agents()
    wait_until(lambda: client.agents()[0].running == 1, "it is taken back")
    # The requester's folder has outlived the worker too, and the new one gives it to the next command.
    assert client.execute(request("touch", "/tmp/go")).exit_code == 0
    response = end_of(client, wanted.id)
    assert (response.state, response.exit_code) == (ExecState.FAILED, 7)
    expected = b"".join(b"%d\n" % number for number in range(1, 20_001)) + b"end\n"
    assert response.stdout_summary.sha256 == hashlib.sha256(expected).hexdigest()
    assert response.isolation is not None
    assert response.isolation.level is Isolation.PRIVATE


def test_a_terminal_works(stack: Stack, client: Client) -> None:
    cli = make_cli(stack)
    shell = ("env", "PS1=ready> ", "bash", "--norc", "--noprofile", "--noediting")
    with cli.open("exec", "-it", AGENT, "--", *shell, rows=33, columns=99) as here:
        here.expect("ready> ")
        here.type("stty size; tty; echo pid $$ of $(ls -d /proc/[0-9]* | wc -l)\r")
        here.expect("\r\n33 99\r\n/dev/pts/")
        here.expect("pid 2 of ")
        here.expect("ready> ")
        here.type("exit 5\r")
        assert here.wait() == 5
