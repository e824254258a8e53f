"""Bad input gets a clear error, in Python and at the command line, and loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import AGENT, Cli, make_cli, request, wait_until

from tachikoma import (
    AgentOffline,
    AgentUnknown,
    AlreadyExists,
    Client,
    ConfigurationError,
    ExecState,
    PermissionDenied,
    ResourceExhausted,
)
from tachikoma.dev.stack import Stack


def _refused(cli: Cli, *arguments: str, code: int = 125, stdin: bytes | None = None) -> str:
    """What `exec` says when it refuses; it says it in one line and on standard error."""
    done = cli.run("exec", *arguments, stdin=stdin)
    assert done.returncode == code, done
    assert done.stdout == b""
    text = done.stderr.decode()
    assert "Traceback" not in text
    return text


def test_an_unknown_agent_is_not_found(client: Client, cli: Cli) -> None:
    with pytest.raises(AgentUnknown, match="no agent 'nobody'") as refusal:
        client.execute(request("true", agent_id="nobody"))
    assert refusal.value.code == "NOT_FOUND"
    assert _refused(cli, "nobody", "true") == (
        "tachikoma: there is no agent 'nobody'; `tachikoma agents` lists the agents\n"
    )


def test_an_offline_agent_is_unavailable_and_says_when_to_retry(own_stack: Stack) -> None:
    cli = make_cli(own_stack)
    own_stack.agents[AGENT].stop()
    with Client(own_stack.profile()) as client:
        with pytest.raises(AgentOffline, match="agent 'agent-1' is offline") as refusal:
            client.execute(request("true"))
        assert refusal.value.code == "UNAVAILABLE"
        assert refusal.value.retry_after_seconds == 5
        assert _refused(cli, AGENT, "true") == "tachikoma: agent 'agent-1' is offline\n"
        (agent,) = client.agents()
        assert not agent.online
        own_stack.start_agent(AGENT)
        own_stack.wait_for_agents()
        assert client.execute(request("true")).exit_code == 0


def test_the_same_id_for_another_request_already_exists(client: Client, cli: Cli) -> None:
    first = request("true")
    client.execute(first)
    with pytest.raises(AlreadyExists, match=first.id) as refusal:
        client.execute(request("false", id=first.id))
    assert refusal.value.code == "ALREADY_EXISTS"
    assert "was used before for another request" in _refused(cli, "--id", first.id, AGENT, "false")
    assert client.status(first.id).exit_code == 0


def test_policy_names_the_rule_that_refused(client: Client, cli: Cli) -> None:
    for command in (("reboot",), ("/sbin/reboot", "-f"), ("touch", "/forbidden")):
        with pytest.raises(PermissionDenied, match="policy everybody denies") as refusal:
            client.execute(request(*command))
        assert refusal.value.code == "PERMISSION_DENIED"
        assert refusal.value.metadata["rule"].startswith("deniedCommands: ")
        assert refusal.value.metadata["policy"].startswith("everybody@")
    assert "policy everybody denies 'reboot'" in _refused(cli, AGENT, "reboot")
    assert "allows at most 10m, not 1h" in _refused(cli, "--timeout", "1h", AGENT, "true")
    assert "plain absolute path" in _refused(cli, "--timeout", "1m", AGENT, "./true")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--timeout", "-5s", AGENT, "true"], "timeout: must be longer than zero"),
        (["--timeout", "soon", AGENT, "true"], "'soon' is not a duration"),
        (["--id", "a b", AGENT, "true"], "id: 'a b' is not an id"),
        (["bad.agent", "true"], "agent_id: 'bad.agent' is not an id"),
        ([AGENT, ""], "the program, is empty"),
        (["--env", "NOT_SET_HERE", AGENT, "true"], "'NOT_SET_HERE' is not set here"),
        (["--cwd", "relative", AGENT, "true"], "not an absolute path"),
        (["--user", "0", AGENT, "true"], "numeric ids are not accepted"),
        ([AGENT, "echo", "x" * 130_000], "at most 131072 are allowed"),
    ],
)
def test_the_command_line_says_what_is_wrong(cli: Cli, arguments: list[str], what: str) -> None:
    if len(arguments[-1]) > 100_000:
        arguments = [*arguments, "y" * 10_000]
    assert what in _refused(cli, *arguments)


def test_too_much_stdin_is_refused_and_not_cut(cli: Cli) -> None:
    # More than a request can hold streams, where policy allows it.
    too_much = bytes(4 * 1024 * 1024 + 1)
    assert "does not allow interactive executions" in _refused(cli, AGENT, "cat", stdin=too_much)


def test_no_command_is_a_usage_error(cli: Cli) -> None:
    assert "Missing argument" in _refused(cli, AGENT, code=2)


def test_a_full_queue_is_exhausted_and_nothing_of_it_is_lost(tmp_path: Path, redis_server: Path | None) -> None:
    from support import prepare

    environment = {"TACHIKOMA_SLOTS": "1", "TACHIKOMA_RATE_LIMIT": '{"queueSize": 2}'}
    go = tmp_path / "go"
    with (
        Stack(prepare(tmp_path), redis_server=redis_server, environment=environment) as stack,
        Client(stack.profile()) as client,
    ):
        blocker = request("sh", "-c", f"while [ ! -e {go} ]; do sleep 0.01; done")
        client.submit(blocker)
        wait_until(lambda: client.status(blocker.id).state == "STARTED", "the only slot is taken")
        accepted = [request("true"), request("true")]
        for item in accepted:
            client.submit(item)
        with pytest.raises(ResourceExhausted, match="queue of agent 'agent-1' is full") as refusal:
            client.submit(request("true"))
        assert refusal.value.retry_after_seconds == 1
        go.touch()
        for item in (blocker, *accepted):
            assert list(client.attach(item.id))[-1].result.exit_code == 0  # type: ignore[union-attr]


def test_a_queue_timeout_ends_expired_and_never_starts(tmp_path: Path, redis_server: Path | None) -> None:
    from support import prepare

    environment = {
        "TACHIKOMA_SLOTS": "1",
        "TACHIKOMA_RATE_LIMIT": '{"queueTimeout": "2s"}',
        "TACHIKOMA_SWEEP": "0.2s",
    }
    go, mark = tmp_path / "go", tmp_path / "mark"
    with (
        Stack(prepare(tmp_path), redis_server=redis_server, environment=environment) as stack,
        Client(stack.profile()) as client,
    ):
        blocker = request("sh", "-c", f"while [ ! -e {go} ]; do sleep 0.01; done")
        client.submit(blocker)
        wait_until(lambda: client.status(blocker.id).state == "STARTED", "the only slot is taken")
        response = client.execute(request("touch", str(mark)))
        assert response.state == "EXPIRED"
        assert response.error == "not started before its queue timeout"
        go.touch()
        assert list(client.attach(blocker.id))[-1].result.exit_code == 0  # type: ignore[union-attr]
        assert client.execute(request("true")).exit_code == 0
        assert not mark.exists()


def test_a_policy_file_with_a_typo_keeps_the_server_from_starting(tmp_path: Path, redis_server: Path | None) -> None:
    from support import prepare

    policy = prepare(tmp_path) / "policy.yaml"
    policy.write_text(policy.read_text().replace("maxTimeout", "maxTimout"))
    with pytest.raises(ConfigurationError) as failure:
        Stack(tmp_path, redis_server=redis_server).start()
    assert f"tachikoma: {policy}:13:5: policies[0].maxTimout: unknown field; did you mean maxTimeout?" in str(
        failure.value
    )
    assert "Traceback" not in str(failure.value)


def test_a_running_server_keeps_its_policy_when_an_edit_is_broken(own_stack: Stack) -> None:
    log = own_stack.data / "logs" / "orchestrator.log"
    good = own_stack.policy.read_text()
    with Client(own_stack.profile()) as client:
        own_stack.policy.write_text(good.replace("deniedCommands: [reboot,", "deniedCommands: [uname, ["))
        wait_until(lambda: "policy.kept" in log.read_text(), "it says that it keeps the old one")
        assert "policy.yaml:" in log.read_text()
        assert client.execute(request("uname")).exit_code == 0
        own_stack.policy.write_text(good.replace("deniedCommands: [reboot,", "deniedCommands: [uname, reboot,"))
        wait_until(lambda: "policy.changed" in log.read_text(), "it takes the right one")
        with pytest.raises(PermissionDenied):
            client.execute(request("uname"))


def test_policy_check_tells_each_mistake_with_its_place(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("policies:\n  - name: x\n    subjects: [a]\n    agents: [b]\n    maxTimeout: soon\n    wrong: 1\n")
    done = cli.run("policy", "check", str(file))
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        f"tachikoma: {file}:5:5: policies[0].maxTimeout: 'soon' is not a duration; write it like 30s, 5m, 1h30m "
        "or 250ms",
        f"{file}:6:5: policies[0].wrong: unknown field; known are name, subjects, agents, allowedCommands, "
        "deniedCommands, allowInterpreters, allowedUsers, allowedWorkDirs, allowedEnvironment, approvers, "
        "approvalTimeout, rateLimit, maxTargets, maxTargetsPercent, requireApprovalAbove, limits, output, "
        "capabilities, executableSha256, killGrace, maxTimeout, requireApproval, allowInteractive, allowTty, "
        "idleTimeout, maxDuration, detachedTimeout, observers, record, recordInput, players, isolation, tmp, "
        "hostAccess, allowedNetworks",
    ]
    file.write_text("policies: []\n")
    assert cli.run("policy", "check", str(file)).stdout.decode() == f"{file}: 0 policies, all right\n"


def test_without_a_profile_the_client_says_what_to_do(tmp_path: Path) -> None:
    done = Cli(tmp_path / "none.json").run("agents")
    assert done.returncode == 1
    assert "there is no client profile at" in done.stderr.decode()
    assert "tachikoma dev" in done.stderr.decode()


@pytest.mark.parametrize(
    ("command", "work_dir", "state"),
    [
        ("/" + "a" * 9000, "", ExecState.FAILED),
        ("b" * 8500, "", ExecState.FAILED),
        ("/bin/true", "/tmp/" + "\x01" * 3000, ExecState.REJECTED),
        ("/" + "é" * 9000, "", ExecState.FAILED),
        ("x\n" * 5000, "", ExecState.FAILED),
        ("\U000e0041" * 8300, "", ExecState.FAILED),
        ("/bin/true", "/tmp/" + "\U000e0041" * 900, ExecState.REJECTED),
    ],
    ids=[
        "a long path",
        "a long name",
        "a directory of control characters",
        "a path of many bytes",
        "a name of lines",
        "a name of characters that are escaped",
        "a directory of characters that are escaped",
    ],
)
def test_an_error_that_is_too_long_for_a_receipt_is_clipped_and_told(
    client: Client, command: str, work_dir: str, state: ExecState
) -> None:
    response = client.execute(request(command, work_dir=work_dir, timeout=5))
    assert response.state is state
    assert response.error.endswith("(clipped)")
    assert client.status(response.id).state is state
