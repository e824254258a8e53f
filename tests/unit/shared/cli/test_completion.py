"""Completion from the orchestrator: what is offered, and nothing when there is no answer."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tachikoma import ExecStatus, PermissionDenied, Unavailable
from tachikoma.cli import completion
from tachikoma.cli.app import app


class Orchestrator:
    """A client with fixed answers."""

    #: Raised instead of an answer.
    error: Exception | None = None
    #: True if no answer ever comes.
    silent = False
    status: Callable[..., ExecStatus]

    async def __aenter__(self) -> Orchestrator:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def _answer(self, value: Any) -> Any:
        if self.silent:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return value

    async def agents(self) -> Any:
        return await self._answer([SimpleNamespace(id=name) for name in ("agent-1", "agent-2", "web-1")])

    async def list_page(self, *, include_ended: bool = False, page_size: int) -> Any:
        ended = [self.status(id="4f1c-ended")] if include_ended else []
        return await self._answer(([self.status(id="4f1c"), self.status(id="9beb", interactive=True), *ended], ""))

    async def approvals(self) -> Any:
        return await self._answer([self.status(id="parked")])

    async def batches(self, *, limit: int) -> Any:
        return await self._answer([SimpleNamespace(id="batch-1")])

    async def recordings(self, *, limit: int) -> Any:
        return await self._answer([SimpleNamespace(id="recorded")])

    async def users(self) -> Any:
        return await self._answer([SimpleNamespace(name="ada")])

    async def schedules(self) -> Any:
        return await self._answer(([SimpleNamespace(name="nightly")], ""))


@pytest.fixture
def orchestrator(monkeypatch: pytest.MonkeyPatch, status: Callable[..., ExecStatus]) -> Orchestrator:
    found = Orchestrator()
    found.status = status
    # It is made from the real client.
    import_module("tachikoma.client.sync")
    monkeypatch.setattr("tachikoma.client.aio.AsyncClient", lambda: found)
    return found


def offered(*words: str, incomplete: str = "", shell: str = "bash") -> list[str]:
    """What a shell offers after some words of a command line."""
    line = ["tachikoma", *words, incomplete]
    environment = {
        "_TACHIKOMA_COMPLETE": f"complete_{shell}", "COMP_WORDS": " ".join(line), "COMP_CWORD": str(len(line) - 1),
        "_TYPER_COMPLETE_ARGS": " ".join(line), "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    done = CliRunner().invoke(app, env=environment, prog_name="tachikoma")
    assert (done.exit_code, done.stderr) == (0, ""), done.exception
    # Zsh gets one list, in which each value is quoted.
    return re.findall(r'"([^"]+)"', done.stdout) if shell == "zsh" else done.stdout.split()


@pytest.mark.parametrize(
    ("words", "incomplete", "found"),
    [
        (("exec",), "", ["agent-1", "agent-2", "web-1"]),
        (("exec",), "ag", ["agent-1", "agent-2"]),
        (("shell",), "web", ["web-1"]),
        (("agents", "drain"), "web", ["web-1"]),
        (("run",), "web", ["web-1"]),
        (("ps",), "web", ["web-1"]),
        (("sessions", "ls"), "web", ["web-1"]),
        (("status",), "4", ["4f1c", "4f1c-ended"]),
        (("logs",), "4", ["4f1c", "4f1c-ended"]),
        (("audit", "show"), "9", ["9beb"]),
        (("audit", "tail", "--id"), "9", ["9beb"]),
        (("cancel",), "4", ["4f1c"]),
        (("cancel", "4f1c"), "9", ["9beb"]),
        (("sessions", "attach"), "", ["9beb"]),
        (("sessions", "close"), "", ["9beb"]),
        (("approve",), "", ["parked"]),
        (("reject",), "", ["parked"]),
        (("approvals",), "", ["parked"]),
        (("batches", "status"), "", ["batch-1"]),
        (("batches", "cancel"), "", ["batch-1"]),
        (("batches", "logs", "--state"), "f", ["failed"]),
        (("run", "--retry"), "b", ["batch-1"]),
        (("run", "--retry", "batch-1"), "unr", ["unreachable"]),
        (("batches", "retry"), "", ["batch-1"]),
        (("batches", "retry", "batch-1"), "unr", ["unreachable"]),
        (("schedule", "pause"), "", ["nightly"]),
        (("sessions", "watch"), "", ["9beb"]),
        (("recordings", "export"), "", ["recorded"]),
        (("recordings", "ls"), "web", ["web-1"]),
        (("play",), "rec", ["recorded"]),
        (("users", "revoke"), "", ["ada"]),
        (("policy", "explain"), "web", ["web-1"]),
        (("schedule", "history"), "x", []),
        (("ps", "--state"), "S", ["STARTED", "SUCCEEDED"]),
    ],
)
def test_names_come_from_the_orchestrator(
    orchestrator: Orchestrator, words: tuple[str, ...], incomplete: str, found: list[str]
) -> None:
    assert offered(*words, incomplete=incomplete) == found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_them(orchestrator: Orchestrator, shell: str) -> None:
    assert offered("exec", incomplete="ag", shell=shell) == ["agent-1", "agent-2"]


@pytest.mark.parametrize("error", [Unavailable("nothing listens"), PermissionDenied("not an operator"), OSError("x")])
def test_an_error_offers_nothing_and_prints_nothing(
    orchestrator: Orchestrator, error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    orchestrator.error = error
    assert offered("exec") == []
    assert capfd.readouterr() == ("", "")


def test_an_orchestrator_that_does_not_answer_offers_nothing(
    orchestrator: Orchestrator, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(completion, "SECONDS", 0.01)
    orchestrator.silent = True
    assert offered("exec") == []
    assert capfd.readouterr() == ("", "")


def test_without_a_profile_nothing_is_offered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TACHIKOMA_PROFILE", str(tmp_path / "none.json"))
    assert offered("exec") == []
    assert capfd.readouterr() == ("", "")


def test_the_profile_of_the_command_line_is_asked(orchestrator: Orchestrator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACHIKOMA_PROFILE", "usual.json")
    assert offered("--profile", "other.json", "exec", incomplete="web") == ["web-1"]
    assert os.environ["TACHIKOMA_PROFILE"] == "other.json"
