"""The application as a whole: its options, its errors, its exit codes."""

from __future__ import annotations

import json
import os
import re
from importlib.metadata import version
from typing import Any

import pytest
import typer.main

from tachikoma import NotFound
from tachikoma.cli import main
from tachikoma.cli.app import app
from tachikoma.client.profile import PROFILE_VARIABLE

COMMANDS = {
    "agents", "approvals", "approve", "audit", "batches", "beat", "cancel", "config", "demo", "dev", "doctor", "exec",
    "flower",
    "identity", "login", "logs", "manual", "orchestrator", "play", "policy", "ps", "recordings", "redis", "reject",
    "run", "schedule", "sessions", "setup", "shell", "spawner", "status", "submitter", "users", "version", "worker",
}  # fmt: skip


def commands(group: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """All commands below a group."""
    found = {}
    for name, command in group.commands.items():
        found[*path, name] = command
        if hasattr(command, "commands"):
            found |= commands(command, (*path, name))
    return found


def test_commands_are_listed_by_name() -> None:
    group = typer.main.get_command(app)
    assert list(group.commands) == sorted(COMMANDS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", commands(typer.main.get_command(app)).values(), ids=lambda command: command.name)
def test_every_help_line_is_a_sentence_that_begins_with_a_verb(command: Any) -> None:
    first = command.help.splitlines()[0]
    assert re.fullmatch(r"[A-Z][a-z]+,? .*\.", first)
    assert first.split()[0].rstrip(",") in {
        "Run", "Show", "List", "Create", "Cancel", "Check", "Start", "Stop", "Send", "Revoke", "Reject", "Read", "Find",
        "Write", "Print", "Play", "Set",
    }  # fmt: skip


def test_version(run: Any) -> None:
    assert run("--version").out == f"tachikoma {version('tachikoma-exec')}\n"


def test_a_profile_is_used_by_the_command(run: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROFILE_VARIABLE, "/somewhere")
    seen = []
    client.answers["agents"] = lambda: seen.append(os.environ[PROFILE_VARIABLE]) or ()
    run("agents")
    run("--profile", "/elsewhere", "agents")
    assert seen == ["/somewhere", "/elsewhere"]


def test_an_error_is_one_message_and_exit_code_1(
    client: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    client.answers["status"] = NotFound("there is no execution 'x'")
    monkeypatch.setattr("sys.argv", ["tachikoma", "status", "x"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capfd.readouterr().err == "tachikoma: there is no execution 'x'\n"


@pytest.mark.parametrize(
    ("line", "code", "reason", "message", "command"),
    [
        (("status", "-o", "json"), 2, "USAGE", "Missing argument 'EXEC_ID'.", "tachikoma status"),
        (("ps", "-ojsonl", "--limit", "x"), 2, "USAGE", "Invalid value for '--limit' / '-l': ", "tachikoma ps"),
        (("ps", "--sate", "FAILED", "--output=json"), 2, "USAGE", "No such option: --sate", "tachikoma ps"),
        (("wroker", "--output", "json"), 2, "USAGE", "No such command 'wroker'.", "tachikoma"),
        (("exec", "--timeot", "5s", "-o", "json", "web-1", "ls"), 2, "USAGE", "exec has no option --timeot; did you",
         "tachikoma exec"),
        (("run", "--parralel=5", "-o", "json", "web-1", "ls"), 2, "USAGE", "run has no option --parralel; did you mean",
         "tachikoma run"),
    ],
)  # fmt: skip
def test_wrong_usage_is_json_for_programs(
    run: Any, line: tuple[str, ...], code: int, reason: str, message: str, command: str
) -> None:
    done = run(*line)
    assert (done.code, done.out) == (code, "")
    error = json.loads(done.err)["error"]
    assert (error["reason"], error["code"]) == (reason, "INVALID_ARGUMENT")
    assert error["message"].startswith(message)
    assert error["metadata"]["command"].endswith(command.removeprefix("tachikoma").strip())


def test_a_refused_confirmation_is_json_for_programs(run: Any, client: Any) -> None:
    done = run("users", "revoke", "ada", "-r", "why", "-o", "json", answers=["n"])
    assert (done.code, client.calls) == (1, [])
    assert json.loads(done.err[done.err.index("{") :])["error"]["reason"] == "ABORTED"


def test_the_remote_command_chooses_no_output(run: Any) -> None:
    done = run("exec", "--timeot", "web-1", "--", "ls", "-o", "json")
    assert done.code == 2
    assert done.err.startswith("tachikoma: exec has no option --timeot")


def test_wrong_usage_ends_with_2(run: Any) -> None:
    done = run("wroker")
    assert done.code == 2
    assert "Did you mean 'worker'?" in done.err


@pytest.mark.parametrize("words", [(), ("ps",), ("run",), ("redis", "acl"), ("batches", "logs"), ("worker",)])
def test_help_at_80_columns_shows_names_of_values_and_no_types_of_python(
    run: Any, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(*words, "--help").out
    assert not re.search(r"<(bool|str|int|float|path|list)", shown)
    assert max(map(len, shown.splitlines())) <= 80
