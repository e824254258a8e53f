"""The command line as a user has it: processes, descriptors, exit codes, signals."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import AGENT, Cli, gone, request, wait_until

from json_schemas import checked
from patience import PATIENCE_SECONDS
from tachikoma import Client, ExecState, InvalidRequest, OutputKind
from tachikoma.dev.stack import TRUST_DOMAIN, Stack
from tachikoma.identity.file_source import FileSvidSource
from tachikoma.identity.signed_messages import Receipt
from tachikoma.identity.signing import verify
from tachikoma.identity.spiffe import agent_id
from warm_start import WarmPopen


def test_exec_needs_no_flags(cli: Cli) -> None:
    done = cli.run("exec", AGENT, "--", "uname", "-s")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Linux\n", b"")


def test_options_of_the_remote_command_are_its_own(cli: Cli) -> None:
    assert cli.run("exec", AGENT, "echo", "--timeout", "-n", "--help").stdout == b"--timeout -n --help\n"


def test_exec_keeps_descriptors_and_exit_code(cli: Cli) -> None:
    done = cli.run("exec", AGENT, "sh", "-c", "echo out; echo err >&2; exit 42")
    assert (done.returncode, done.stdout, done.stderr) == (42, b"out\n", b"err\n")


def test_exec_passes_stdin_and_every_byte(cli: Cli) -> None:
    content = os.urandom(300_000) + bytes(range(256))
    assert cli.run("exec", AGENT, "cat", stdin=content).stdout == content


def test_exec_no_stdin_leaves_it_to_others(cli: Cli) -> None:
    assert cli.run("exec", "-n", AGENT, "cat", stdin=b"not for the agent").stdout == b""


def test_exec_options_reach_the_command(cli: Cli) -> None:
    done = cli.run(
        "exec", "-e", "TEST_A=1 2", "-e", "LANG", "--cwd", "/tmp", AGENT, "sh", "-c", 'echo "$TEST_A" $PWD $LANG'
    )
    expected = f"1 2 /tmp {os.environ.get('LANG', '')}".strip()
    if "LANG" not in os.environ:
        assert "'LANG' is not set here" in done.stderr.decode()
    else:
        assert done.stdout.decode().strip() == expected


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["no-such-program"], 127, "agent-1: no-such-program: command not found"),
        (["/etc/passwd"], 126, "agent-1: /etc/passwd: permission denied"),
        (["sh", "-c", "kill -9 $$"], 137, "agent-1: killed by SIGKILL"),
    ],
)
def test_exec_ends_as_a_shell_would(cli: Cli, command: list[str], code: int, said: str) -> None:
    done = cli.run("exec", AGENT, *command)
    assert (done.returncode, done.stderr.decode()) == (code, f"tachikoma: {said}\n")


def test_exec_ends_with_124_at_its_timeout(cli: Cli) -> None:
    done = cli.run("exec", "--timeout", "300ms", AGENT, "sleep", "600")
    assert (done.returncode, done.stderr) == (124, b"tachikoma: agent-1: killed at its timeout of 0.3 s\n")


def test_exec_shows_each_line_as_it_is_written(cli: Cli, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    process = cli.start("exec", AGENT, "sh", "-c", f"echo hello; while [ ! -e {heard} ]; do sleep 0.01; done; exit 8")
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"hello\n"
        heard.touch()
        assert process.wait(PATIENCE_SECONDS) == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cancels_the_remote_command(cli: Cli, client: Client, number: signal.Signals) -> None:
    process = cli.start("exec", AGENT, "sh", "-c", "echo $$; exec sleep 600")
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        pid = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(PATIENCE_SECONDS) == 130
        said = process.stderr.read().decode()
    assert said == "tachikoma: cancelling; Ctrl-C again to leave\ntachikoma: agent-1: cancelled\n"
    wait_until(lambda: gone(pid), "the remote command is gone")
    (newest,) = client.list_page(AGENT, include_ended=True, page_size=1)[0]
    wait_until(lambda: client.status(newest.id).state is ExecState.CANCELLED, "the ledger has its end")


def test_a_terminal_that_closes_cancels_the_remote_command(cli: Cli, tmp_path: Path) -> None:
    with cli.open("exec", AGENT, "sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 600") as here:
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip(), "it runs")
        here.close()
        here.process.wait(PATIENCE_SECONDS)
    wait_until(lambda: gone(int((tmp_path / "pid").read_text())), "the remote command is gone")


@pytest.mark.parametrize(
    ("target", "reason"), [("/dev/full", "No space left on device"), ("&-", "Bad file descriptor")]
)
def test_output_that_cannot_be_written_ends_the_remote_command(
    cli: Cli, tmp_path: Path, target: str, reason: str
) -> None:
    script = f"echo $$ > {tmp_path}/pid; exec yes"
    arguments = [sys.executable, "-m", "tachikoma", "exec", AGENT, "sh", "-c", script]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" >{target}', "sh", *arguments],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=cli.environment(), timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 125
    assert done.stderr.decode() == (
        f"tachikoma: cannot write to standard output: {reason}; the execution is cancelled\n"
    )
    wait_until(lambda: gone(int((tmp_path / "pid").read_text())), "the remote command is gone")


def test_a_saved_file_that_cannot_be_written_ends_the_remote_command(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "saved" / "full"
    folder.mkdir(parents=True)
    (folder / "stdout").symlink_to("/dev/full")
    script = f"echo $$ > {tmp_path}/pid; exec yes"
    done = cli.run("exec", "--id", "full", "--output-dir", str(folder.parent), AGENT, "sh", "-c", script)
    assert done.returncode == 125
    assert done.stderr.decode() == (
        f"tachikoma: cannot write to {folder}/stdout: No space left on device; the execution is cancelled\n"
    )
    wait_until(lambda: gone(int((tmp_path / "pid").read_text())), "the remote command is gone")


def test_output_result_and_receipt_are_saved_by_exec_and_run(stack: Stack, cli: Cli, tmp_path: Path) -> None:
    bundle = FileSvidSource(stack.identity("user")).current().bundle
    done = cli.run("exec", "--id", "saved", "--output-dir", str(tmp_path), AGENT, "sh", "-c", "echo out; echo err >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\n", b"err\n")
    # Longer than the beginning of an output that the result of a target has.
    done = cli.run("run", "-o", "json", "--output-dir", str(tmp_path), AGENT, "--", "head", "-c", "200000", "/dev/zero")
    assert done.returncode == 0, done.stderr
    (target,) = checked("run", done.stdout)["results"]
    for exec_id, out, err in (("saved", b"out\n", b"err\n"), (target["execId"], bytes(200_000), b"")):
        saved = tmp_path / exec_id
        assert ((saved / "stdout").read_bytes(), (saved / "stderr").read_bytes()) == (out, err)
        assert json.loads((saved / "result.json").read_text())["state"] == "SUCCEEDED"
        token = (saved / "receipt.jws").read_text().strip()
        receipt = verify(token, Receipt, bundle, agent_id(TRUST_DOMAIN, AGENT))
        assert (receipt.jti, receipt.stdout.sha256) == (exec_id, hashlib.sha256(out).hexdigest())
        events = [json.loads(line) for line in cli.run("audit", "show", exec_id, "-o", "jsonl").stdout.splitlines()]
        assert events[-1]["evidenceSha256"] == hashlib.sha256(token.encode()).hexdigest()


def test_exec_reads_and_writes_non_blocking_sockets(cli: Cli) -> None:
    content = os.urandom(300_000)
    (stdin, ours), (stdout, answer) = socket.socketpair(), socket.socketpair()
    for end in (stdin, stdout):
        end.setblocking(False)
    with WarmPopen(
        [sys.executable, "-m", "tachikoma", "exec", AGENT, "cat"],
        stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env=cli.environment(),
    ) as process:  # fmt: skip
        stdin.close()
        stdout.close()
        ours.sendall(content)
        ours.close()
        with answer.makefile("rb") as file:
            assert file.read() == content
        assert process.wait(PATIENCE_SECONDS) == 0
    answer.close()


def test_cancel_ends_each_although_one_is_unknown(cli: Cli) -> None:
    first, second = (cli.run("exec", "-d", AGENT, "sleep", "600").stdout.decode().strip() for _ in range(2))
    done = cli.run("cancel", first, "no-such-id", second)
    assert done.returncode == 1
    assert [line.partition(":")[0] for line in done.stdout.decode().splitlines()] == [first, second]
    assert done.stderr.decode().startswith("tachikoma: no-such-id: ")


def test_leaving_a_stream_of_the_library_ends_the_remote_command_unless_it_is_detached(client: Client) -> None:
    detached = request("sh", "-c", "echo $$; exec sleep 600")
    for output in client.execute_stream(detached, detach=True):
        if output.kind is OutputKind.STDOUT:
            break
    attended = request("sh", "-c", "echo $$; exec sleep 600")
    pid = 0
    for output in client.execute_stream(attended):
        if output.kind is OutputKind.STDOUT:
            pid = int(output.data)
            break
    wait_until(lambda: gone(pid), "the remote command is gone")
    # The notice of its start may be recorded after its first output.
    wait_until(lambda: client.status(detached.id).state is ExecState.STARTED, "the other one still runs")
    client.cancel(detached.id)


@pytest.mark.parametrize("text", ["x", "-", "1-", "1-x", "٣-0", "1-2-3", "9" * 20, f"1-{2**64 - 1}", "9" * 400])
def test_a_cursor_that_is_none_is_refused(client: Client, text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a cursor of the audit trail"):
        client.audit(after=text)


@pytest.mark.parametrize("text", ["x", ":", "1:", "1:x", "٣:1", "1:2:3", "1:" + "9" * 13, "9" * 401 + ":1"])
def test_a_page_token_that_is_none_is_refused(client: Client, text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a page token"):
        client.list_page(include_ended=True, page_token=text)


@pytest.mark.parametrize("text", ["9" * 400 + ":1", "-" + "9" * 400 + ":999999999999", "0:1"])
def test_a_page_token_of_any_place_is_answered(client: Client, text: str) -> None:
    found, _ = client.list_page(include_ended=True, page_token=text)
    assert isinstance(found, tuple)


def test_a_second_ctrl_c_leaves_at_once_and_says_what_goes_on(cli: Cli) -> None:
    process = cli.start("exec", AGENT, "sh", "-c", "trap '' TERM; echo $$; while :; do sleep 0.1; done")
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert b"cancelling" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 130
        assert b"left; the execution continues as " in process.stderr.read()
    # It was asked to end all the same, and is killed after the grace.
    wait_until(lambda: gone(pid), "the remote command is gone")


def test_a_reader_that_leaves_ends_the_remote_command(cli: Cli) -> None:
    process = cli.start("exec", AGENT, "sh", "-c", "echo $$; exec yes")
    with process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.stdout.close()
        assert process.wait(PATIENCE_SECONDS) == 141
    wait_until(lambda: gone(pid), "the remote command is gone")


def test_detach_then_logs_status_ps_and_cancel(cli: Cli, tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = f"echo begun; while [ ! -e {go} ]; do sleep 0.01; done; echo ended"
    exec_id = cli.run("exec", "-d", AGENT, "sh", "-c", script).stdout.decode().strip()
    wait_until(lambda: cli.run("logs", exec_id).stdout == b"begun\n", "what there is is shown")
    assert exec_id in cli.run("ps").stdout.decode()
    assert exec_id in cli.run("ps", AGENT).stdout.decode()
    assert exec_id not in cli.run("ps", "agent-2").stdout.decode()
    status = cli.run("status", exec_id).stdout.decode()
    assert "STARTED" in status
    assert "everybody@" in status
    following = cli.start("logs", "-f", exec_id)
    with following:
        assert following.stdout is not None
        assert following.stdout.readline() == b"begun\n"
        go.touch()
        assert following.stdout.read() == b"ended\n"
        assert following.wait(PATIENCE_SECONDS) == 0
    wait_until(lambda: exec_id not in cli.run("ps").stdout.decode(), "the ledger has its end")
    assert exec_id in cli.run("ps", "-a").stdout.decode()
    assert cli.run("logs", "--after", "1", exec_id).stdout == b"ended\n"
    done = cli.run("cancel", exec_id)
    assert done.stdout.decode() == f"{exec_id}: had already ended (SUCCEEDED)\n"
    assert cli.run("status", "no-such-id").returncode == 1


def test_agents_are_listed_with_how_they_are(cli: Cli) -> None:
    shown = cli.run("agents").stdout.decode()
    for agent in ("agent-1", "agent-2"):
        assert agent in shown
    assert shown.count("online") == 2
    assert "/64" in shown


def test_everything_speaks_json(cli: Cli) -> None:
    lines = cli.run("exec", "-o", "jsonl", AGENT, "sh", "-c", "printf '\\377'; exit 3").stdout.splitlines()
    outputs = [checked("exec -o jsonl", line) for line in lines]
    assert [output["kind"] for output in outputs] == ["status", "stdout", "result"]
    assert outputs[1]["data"] == "/w=="
    result = checked(
        "exec", cli.run("exec", "-o", "json", AGENT, "sh", "-c", "echo ä; printf '\\377' >&2; exit 3").stdout
    )
    assert (result["exitCode"], result["state"], result["agentId"]) == (3, "FAILED", AGENT)
    assert (result["stdoutText"], result["stderrText"], result["stderr"]) == ("ä\n", None, "/w==")
    exec_id = result["id"]
    # The beginning of an id is enough.
    status = checked("status", cli.run("status", "-o", "json", exec_id[:12]).stdout)
    assert status["state"] == "FAILED"
    assert [step["state"] for step in status["history"]][-1] == "FAILED"
    assert exec_id in {item["id"] for item in checked("ps", cli.run("ps", "-a", "-o", "json").stdout)}
    agents = checked("agents", cli.run("agents", "-o", "json").stdout)
    assert {agent["id"] for agent in agents} == {"agent-1", "agent-2"}
    events = checked("audit tail", cli.run("audit", "tail", "--id", exec_id, "-o", "json").stdout)
    assert [event["event"] for event in events] == ["admitted", "dispatched", "started", "failed"]
    assert checked("cancel", cli.run("cancel", "-o", "json", exec_id).stdout)[0]["outcome"] == "ALREADY_ENDED"
    assert checked("exec --detach", cli.run("exec", "-d", "-o", "json", AGENT, "true").stdout)["agentId"] == AGENT
    for command in ("identity show", "identity check", "policy status", "version", "approvals"):
        checked(command, cli.run(*command.split(), "-o", "json").stdout)
    for line in cli.run("logs", exec_id, "-o", "json").stdout.splitlines():
        checked("logs", line)
    failed = cli.run("status", "-o", "json", "no-such-execution")
    assert (failed.returncode, failed.stdout) == (1, b"")
    assert checked("any command that fails", failed.stderr)["error"]["reason"] == "NOT_FOUND"


def test_operators_and_batches_speak_json_too(cli: Cli) -> None:
    def shown(command: str, *arguments: str) -> Any:
        done = cli.run(*command.split(), *arguments, "-o", "json")
        assert done.returncode == 0, done.stderr
        return checked(command, done.stdout)

    report = checked("run", cli.run("run", "-o", "json", "agent-[1-2]", "--", "echo", "a").stdout)
    assert {result["state"] for result in report["results"]} == {"SUCCEEDED"}
    batch_id, exec_id = report["batch"]["id"], report["results"][0]["execId"]
    # The beginning of an id is enough.
    assert shown("batches status", batch_id[:12])["batch"]["state"] == "DONE"
    assert batch_id in {item["id"] for item in shown("batches ls")}
    assert shown("batches cancel", batch_id)["state"] == "DONE"
    assert checked("run --preview", cli.run("run", "--preview", "-o", "json", AGENT, "true").stdout)["targets"]
    assert checked("run --detach", cli.run("run", "-d", "-o", "json", AGENT, "true").stdout)["total"] == 1
    for line in cli.run("run", "-o", "jsonl", AGENT, "true").stdout.splitlines():
        checked("run -o jsonl", line)
    retry = ("batches", "retry", batch_id, "succeeded")
    assert checked("batches retry", cli.run(*retry, "-o", "json").stdout)["batch"]["state"] == "DONE"
    assert checked("batches retry --preview", cli.run(*retry, "--preview", "-o", "json").stdout)["targets"]
    assert checked("batches retry --detach", cli.run(*retry, "-d", "-o", "json").stdout)["total"] == 2
    for line in cli.run(*retry, "-o", "jsonl").stdout.splitlines():
        checked("batches retry -o jsonl", line)
    for line in cli.run("batches", "logs", batch_id, "-o", "json").stdout.splitlines():
        checked("batches logs", line)
    assert shown("agents drain", "agent-2", "-r", "a test")["draining"]
    assert not shown("agents resume", "agent-2")["draining"]
    assert shown("agents label", "agent-2", "json=yes")["labels"] == {"json": "yes"}
    assert shown("agents label", "agent-2", "json-")["labels"] == {}
    assert [event["event"] for event in shown("audit show", exec_id[:12])][-1] == "succeeded"
    for command in ("sessions ls", "users ls"):
        assert isinstance(shown(command), list)


def test_audit_policy_and_diagnosis_speak_json_too(cli: Cli, stack: Stack, tmp_path: Path) -> None:
    def shown(command: str, *arguments: str, code: int = 0) -> Any:
        done = cli.run(*command.split(), "-o", "json", *arguments)
        assert done.returncode == code, done.stderr
        return checked(command, done.stdout)

    exec_id = shown("exec", AGENT, "true")["id"]
    lines = cli.run("audit", "export", "-o", "json").stdout.splitlines()
    assert exec_id in {checked("audit export", line)["id"] for line in lines}
    log = stack.data / "audit" / "audit.jsonl"

    def logged() -> bool:
        return any(exec_id in line and '"succeeded"' in line for line in log.read_text().splitlines())

    wait_until(logged, "the audit log has its end")
    assert shown("audit verify", str(log))["findings"] == []
    assert shown("sessions close", exec_id)["outcome"] == "ALREADY_ENDED"
    assert shown("policy check", str(stack.policy))["policies"] == 1
    stricter = tmp_path / "policy.yaml"
    stricter.write_text(stack.policy.read_text().replace("deniedCommands: [", "deniedCommands: [/usr/bin/true, "))
    assert shown("policy diff", str(stack.policy), str(stricter), code=1)["changes"]
    as_me = ("--policy", str(stack.policy), "--as", str(stack.user))
    assert shown("policy explain", *as_me, AGENT, "true")["decision"]["allowed"]
    diagnosed = checked("doctor", cli.run("doctor", "-o", "json").stdout)
    assert diagnosed["part"] == "client"


def test_what_is_followed_is_one_object_a_line(cli: Cli) -> None:
    with cli.start("audit", "tail", "--follow", "-n", "1", "-o", "json") as process:
        try:
            assert process.stdout is not None
            checked("audit tail --follow", process.stdout.readline())
            exec_id = json.loads(cli.run("exec", "-o", "json", AGENT, "true").stdout)["id"]
            events = (checked("audit tail --follow", line) for line in process.stdout)
            assert next(event for event in events if event["id"] == exec_id)["event"] == "admitted"
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_SECONDS) == 130
        finally:
            process.kill()


def test_the_audit_trail_is_shown_without_secrets(cli: Cli) -> None:
    cli.run("exec", AGENT, "echo", "--password", "hunter2", "token=abcdef")
    shown = cli.run("audit", "tail").stdout.decode()
    assert "echo --password '***' 'token=***'" in shown
    assert "hunter2" not in shown


def test_text_from_a_command_line_cannot_command_the_terminal(cli: Cli) -> None:
    cli.run("exec", AGENT, "echo", "\x1b[2J\x07")
    assert b"\x1b[2J" not in cli.run("ps", "-a").stdout
    assert b"\\x1b[2J" in cli.run("ps", "-a").stdout


def test_a_stopped_orchestrator_is_told_with_its_address(own_stack: Stack) -> None:
    from support import make_cli

    cli = make_cli(own_stack)
    own_stack.orchestrator.stop()
    done = cli.run("agents", timeout=60)
    assert done.returncode == 1
    assert f"cannot reach the orchestrator at {own_stack.address}" in done.stderr.decode()


def test_completion_can_be_installed(cli: Cli) -> None:
    environment = {
        **cli.environment(),
        "_TACHIKOMA_COMPLETE": "complete_bash",
        "COMP_WORDS": "tachikoma ca",
        "COMP_CWORD": "1",
    }
    program = Path(sys.executable).with_name("tachikoma")
    done = subprocess.run([program], env=environment, capture_output=True, check=False)
    assert b"cancel" in done.stdout


def test_help_names_every_command(cli: Cli) -> None:
    shown = cli.run("--help").stdout.decode()
    for name in (
        "exec", "logs", "ps", "status", "cancel", "agents", "audit", "dev", "demo", "orchestrator", "worker", "policy",
    ):  # fmt: skip
        assert f" {name} " in shown
