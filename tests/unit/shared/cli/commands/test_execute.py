"""`tachikoma exec`: what it sends, and the exit code of each outcome."""

from __future__ import annotations

import errno
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tachikoma import (
    AgentInfo,
    AgentOffline,
    AgentUnknown,
    AlreadyExists,
    ExecOutput,
    ExecRequest,
    ExecResponse,
    ExecState,
    OutputKind,
    PermissionDenied,
    ResourceLimits,
    Unauthenticated,
    Unavailable,
)
from tachikoma.cli.descriptors import OutputFailed

ID = ("--id", "job-7")


def ended(state: ExecState = ExecState.SUCCEEDED, exit_code: int = 0, error: str = "") -> list[ExecOutput]:
    result = ExecResponse(id="job-7", agent_id="web-1", state=state, exit_code=exit_code, error=error)
    return [ExecOutput(id="job-7", kind=OutputKind.RESULT, result=result)]


def sent(client: Any) -> ExecRequest:
    (request,) = client.calls[-1][1]
    assert isinstance(request, ExecRequest)
    return request


def test_a_bare_command_leaves_everything_to_the_defaults(run: Any, client: Any) -> None:
    client.answers["execute_stream"] = lambda _, **__: ended()
    assert run("exec", *ID, "web-1", "ls", "-l", "--help").code == 0
    request = sent(client)
    assert request == ExecRequest(
        id="job-7", agent_id="web-1", command=("ls", "-l", "--help"), request_time=request.request_time
    )
    run("exec", "web-1", "--", "ls")
    assert sent(client).command == ("ls",)
    assert sent(client).id != "job-7"


def test_options_become_fields_of_the_request(run: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_HERE", "here")
    client.answers["execute_stream"] = lambda _, **__: ended()
    done = run(
        "exec", *ID, "--timeout", "1m", "-e", "A=b=c", "-e", "TEST_HERE", "--cwd", "/srv", "-u", "web", "--memory",
        "512MiB", "--cpus", "0.5", "--pids", "9", "web-1", "cat", stdin=b"\0\xff",
    )  # fmt: skip
    assert done.code == 0
    request = sent(client)
    assert request == ExecRequest(
        id="job-7", agent_id="web-1", command=("cat",), timeout=timedelta(minutes=1),
        environment={"A": "b=c", "TEST_HERE": "here"}, work_dir="/srv", user="web", stdin=b"\0\xff",
        limits=ResourceLimits(memory=512 * 2**20, cpus=0.5, pids=9), request_time=request.request_time,
    )  # fmt: skip


def test_one_limit_leaves_the_others_open(run: Any, client: Any) -> None:
    client.answers["execute_stream"] = lambda _, **__: ended()
    run("exec", "--pids", "9", "web-1", "x")
    assert sent(client).limits == ResourceLimits(pids=9)


def test_standard_input_is_left_alone_on_request(run: Any, client: Any) -> None:
    client.answers["execute_stream"] = lambda _, **__: ended()
    run("exec", "-n", "web-1", "cat", stdin=b"secret")
    assert sent(client).stdin == b""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--timeout", "soon"), "--timeout: "),
        (("-e", "NO_SUCH_VARIABLE"), "the variable 'NO_SUCH_VARIABLE' is not set here; write NO_SUCH_VARIABLE=value"),
        (("-e", "=x"), "--env: '=x' is not NAME=value"),
        (("--memory", "lots"), "invalid request: limits.memory: "),
        (("--id", "a.b"), "invalid request: id: "),
    ],
)
def test_wrong_options_run_nothing_and_end_with_125(
    run: Any, client: Any, options: tuple[str, ...], message: str
) -> None:
    done = run("exec", *options, "web-1", "x")
    assert (done.code, done.out, client.calls) == (125, "", [])
    assert done.err.startswith(f"tachikoma: {message}")
    assert done.err.count("\n") == 1


def test_a_refusal_ends_with_125(run: Any, client: Any) -> None:
    client.answers["execute_stream"] = PermissionDenied("not allowed: \x1b no policy grants it")
    done = run("exec", "web-1", "reboot")
    assert (done.code, done.err) == (125, "tachikoma: not allowed: \\x1b no policy grants it\n")


@pytest.mark.parametrize(
    ("state", "exit_code", "code"),
    [
        (ExecState.SUCCEEDED, 0, 0),
        (ExecState.FAILED, 3, 3),
        (ExecState.FAILED, 127, 127),
        (ExecState.OUT_OF_MEMORY, 137, 137),
        (ExecState.TIMED_OUT, 137, 124),
        (ExecState.CANCELLED, 143, 130),
        (ExecState.EXPIRED, -1, 125),
        (ExecState.REJECTED, -1, 125),
        (ExecState.LOST, -1, 125),
    ],
)
def test_the_exit_code_tells_the_outcome(
    run: Any, client: Any, capfd: pytest.CaptureFixture[str], state: ExecState, exit_code: int, code: int
) -> None:
    client.answers["execute_stream"] = lambda _, **__: ended(state, exit_code, "why")
    done = run("exec", "web-1", "x")
    assert (done.code, done.err) == (code, "tachikoma: web-1: why\n")
    # In JSON the result says it.
    done = run("exec", "-o", "json", "web-1", "x")
    assert (done.code, done.err) == (code, "")
    assert json.loads(capfd.readouterr().out)["state"] == state


def test_detach_submits_and_prints_the_id(run: Any, client: Any, status: Any) -> None:
    client.answers["submit"] = status()
    assert run("exec", "-d", "web-1", "x").out == "job-7\n"
    assert json.loads(run("exec", "-d", "-o", "json", "web-1", "x").out) == status().to_dict()
    client.answers["submit"] = status(
        state=ExecState.PENDING_APPROVAL, deadline=status().request_time, approvers=("boss", "chief")
    )
    done = run("exec", "-d", "web-1", "x")
    assert done.out == "job-7\n"
    assert "an approval by boss or chief\n" in done.err
    assert done.err.endswith("tachikoma: to approve: tachikoma approve job-7\n")


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (errno.EPIPE, 141, ""),
        (errno.ECONNRESET, 141, ""),
        (errno.ENOSPC, 125, "cannot write to standard output: No space left on device; the execution is cancelled"),
        (errno.EBADF, 125, "cannot write to standard output: Bad file descriptor; the execution is cancelled"),
        (errno.EIO, 125, "cannot write to standard output: Input/output error; the execution is cancelled"),
    ],
)
def test_output_that_cannot_be_written_cancels_the_execution(
    run: Any, client: Any, monkeypatch: pytest.MonkeyPatch, fault: int, code: int, message: str
) -> None:
    failure = OutputFailed(1, OSError(fault, os.strerror(fault)))
    client.answers |= {"execute_stream": lambda _, **__: [failure], "cancel": lambda _: None}
    redirected = []
    monkeypatch.setattr("os.dup2", lambda *given: redirected.append(given[1]))
    done = run("exec", *ID, "web-1", "yes")
    assert (done.code, done.err) == (code, f"tachikoma: {message}\n" if message else "")
    assert client.calls[-1] == ("cancel", ("job-7",), {})
    assert redirected == [1]


def test_an_execution_that_cannot_be_cancelled_either_is_named(
    run: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = OutputFailed(1, OSError(errno.ENOSPC, "No space left on device"))
    client.answers |= {"execute_stream": lambda _, **__: [failure], "cancel": Unavailable("cannot reach it")}
    monkeypatch.setattr("os.dup2", lambda *_: None)
    done = run("exec", *ID, "web-1", "yes")
    assert done.code == 125
    assert done.err.endswith("; the execution continues as job-7, since it cannot be cancelled: cannot reach it\n")


@pytest.mark.parametrize(
    ("error", "fate"),
    [
        (
            Unavailable("broken", metadata={"id": "job-7"}),
            "the command may run: `tachikoma status job-7` shows it, `tachikoma cancel job-7` ends it",
        ),
        (Unavailable("nothing accepts connections"), "the command did not run"),
        (
            Unauthenticated("your identity ended", metadata={"id": "job-7"}),
            "the command may run: `tachikoma status job-7` shows it, `tachikoma cancel job-7` ends it",
        ),
        (AgentOffline("web-1 is offline"), None),
        (AlreadyExists("the id was used for another request", metadata={"id": "job-7"}), None),
    ],
)
def test_giving_up_says_whether_the_command_may_run(run: Any, client: Any, error: Exception, fate: str | None) -> None:
    client.answers["execute_stream"] = lambda _, **__: [error]
    done = run("exec", *ID, "web-1", "true")
    assert (done.code, done.err.splitlines()) == (
        125,
        [f"tachikoma: {error}", *([] if fate is None else [f"tachikoma: {fate}"])],
    )
    # One document on standard error, which names the execution by itself.
    done = run("exec", *ID, "-o", "json", "web-1", "true")
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (("ls -l",), "no shell reads the command; write tachikoma exec web-1 ls -l, "
                     "or tachikoma exec web-1 sh -c 'ls -l'"),
        (("--timeout", "5s", "ls"), "options of exec come before the agent: tachikoma exec --timeout … web-1 COMMAND"),
    ],
)  # fmt: skip
def test_a_command_that_is_no_program_gets_the_right_hint(
    run: Any, client: Any, command: tuple[str, ...], hint: str
) -> None:
    client.answers["execute_stream"] = lambda _, **__: ended(ExecState.FAILED, 127, f"{command[0]}: command not found")
    done = run("exec", "web-1", *command)
    assert (done.code, done.err.splitlines()[0]) == (127, f"tachikoma: {hint}")
    # An allowlist refuses it before an agent looks for the program.
    client.answers["execute_stream"] = PermissionDenied("no policy grants it", metadata={"rule": "x"})
    done = run("exec", "web-1", *command)
    assert (done.code, done.err) == (125, f"tachikoma: no policy grants it; {hint}\n")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--timeot", "exec has no option --timeot; did you mean --timeout?"),
        ("--timeot=5s", "exec has no option --timeot; did you mean --timeout?"),
        ("--qqq", "exec has no option --qqq; `tachikoma exec --help` lists them"),
    ],
)
def test_a_mistyped_option_is_no_agent(run: Any, client: Any, option: str, message: str) -> None:
    done = run("exec", option, "web-1", "ls")
    assert (done.code, done.err, client.calls) == (2, f"tachikoma: {message}\n", [])


def test_an_unknown_agent_is_answered_with_a_similar_one(run: Any, client: Any) -> None:
    client.answers |= {"execute_stream": AgentUnknown("there is no agent 'wbe-1'"), "agents": (AgentInfo(id="web-1"),)}
    done = run("exec", "wbe-1", "ls")
    assert (done.code, done.err) == (125, "tachikoma: there is no agent 'wbe-1'; did you mean web-1?\n")


def test_a_refusal_is_json_for_programs(run: Any, client: Any) -> None:
    client.answers["execute_stream"] = PermissionDenied("no policy grants it", metadata={"rule": "x"})
    done = run("exec", "-o", "json", "web-1", "reboot")
    error = json.loads(done.err)["error"]
    assert (done.code, done.out, error["reason"], error["metadata"]) == (125, "", "PERMISSION_DENIED", {"rule": "x"})


def test_output_is_saved_besides(run: Any, client: Any, tmp_path: Path) -> None:
    client.answers["execute_stream"] = lambda _, **__: ended()
    done = run("exec", "--id", "job-7", "--output-dir", str(tmp_path), "web-1", "ls")
    assert done.code == 0
    assert {path.name for path in (tmp_path / "job-7").iterdir()} == {"stdout", "stderr", "result.json"}
    done = run("exec", "--detach", "--output-dir", str(tmp_path), "web-1", "ls")
    assert (done.code, done.err) == (
        125, "tachikoma: --output-dir saves the output when it comes, so it takes no --detach\n"
    )  # fmt: skip


def test_a_file_that_takes_no_more_output_cancels_the_execution(run: Any, client: Any, tmp_path: Path) -> None:
    (tmp_path / "job-7").mkdir()
    (tmp_path / "job-7" / "stdout").symlink_to("/dev/full")
    chunk = ExecOutput(id="job-7", kind=OutputKind.STDOUT, seq=1, data=b"y")
    client.answers |= {"execute_stream": lambda _, **__: [chunk, *ended()], "cancel": None}
    done = run("exec", *ID, "--output-dir", str(tmp_path), "web-1", "yes")
    assert (done.code, done.err) == (
        125,
        f"tachikoma: cannot write to {tmp_path}/job-7/stdout: No space left on device; the execution is cancelled\n",
    )
    assert client.calls[-1][:2] == ("cancel", ("job-7",))
