"""What tests of the command line share: a client that answers as it is told, and a way to run commands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import pytest
from typer.testing import CliRunner

from tachikoma import ExecOutput, ExecState, ExecStatus, TachikomaError
from tachikoma.cli.app import app
from tachikoma.cli.commands import ordinary
from tachikoma.cli.output import expect_output
from tachikoma.client import aio, wire
from tachikoma.exec.v1 import remote_execution_pb2 as pb

#: Modules that make clients.
SYNC = (
    "batch_approvals",
    "agents",
    "approvals",
    "audit",
    "batches",
    "executions",
    "identity",
    "policy",
    "recordings",
    "schedule",
    "sessions",
    "users",
)
ASYNC = ("attended", "logs", "run", "sessions")


@pytest.fixture(autouse=True)
def no_chosen_output() -> None:
    """Forget the `--output` of the command of another test."""
    expect_output(())


@dataclass
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str
    #: The error that would be shown, or None.
    error: TachikomaError | None


@dataclass
class FakeClient:
    """Both clients at once. Answers are given by the name of the method: a value, an error, or a function."""

    answers: dict[str, Any] = field(default_factory=dict)
    #: Calls in their order: name, positional and named arguments.
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    asynchronous: bool = False

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    async def __aenter__(self) -> FakeClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def _answer(self, name: str, *given: Any, **named: Any) -> Any:
        self.calls.append((name, given, named))
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer(*given, **named) if callable(answer) else answer

    def __getattr__(self, name: str) -> Any:
        async def call(*given: Any, **named: Any) -> Any:
            return self._answer(name, *given, **named)

        async def stream(*given: Any, **named: Any) -> AsyncIterator[ExecOutput]:
            for item in self._answer(name, *given, **named):
                if isinstance(item, BaseException):
                    raise item
                yield item

        if not self.asynchronous:
            return lambda *given, **named: self._answer(name, *given, **named)
        return stream if name in ("execute_stream", "attach", "run", "watch_session") else call


class FakePlainClient:
    """The client of short commands, with the answers of another one."""

    def __init__(self, client: FakeClient) -> None:
        self._client = client

    async def __aenter__(self) -> FakePlainClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def execute_stream(self, message: pb.ExecRequest) -> AsyncIterator[ExecOutput]:
        async for item in self._client.execute_stream(wire.request_from_pb(message), detach=True):
            yield item

    async def cancel(self, exec_id: str) -> None:
        await self._client.cancel(exec_id)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """The client that every command of the command line uses."""
    fake = FakeClient()
    for name in SYNC:
        monkeypatch.setattr(import_module(f"tachikoma.cli.commands.{name}"), "Client", lambda: fake)
    asynchronous = FakeClient(fake.answers, fake.calls, asynchronous=True)
    for name in ASYNC:
        monkeypatch.setattr(import_module(f"tachikoma.cli.commands.{name}"), "AsyncClient", lambda: asynchronous)
    monkeypatch.setattr(ordinary, "PlainClient", lambda: FakePlainClient(asynchronous))
    # An unknown agent is explained with a client of its own.
    monkeypatch.setattr(aio, "AsyncClient", lambda: asynchronous)
    return fake


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line; `answers` are typed at the terminal, without them there is none."""

    def run(*arguments: str, answers: Iterable[str] | None = None, stdin: bytes = b"") -> Done:
        runner = CliRunner()
        if answers is not None:
            monkeypatch.setattr("tachikoma.cli.options.interactive", lambda: True)
            stdin = "".join(f"{answer}\n" for answer in answers).encode()
        done = runner.invoke(app, list(arguments), input=stdin)
        error = done.exception if isinstance(done.exception, TachikomaError) else None
        if done.exception is not None and error is None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Done(done.exit_code, done.stdout, done.stderr, error)

    return run


def make_status(**values: Any) -> ExecStatus:
    """A status of an execution that runs."""
    return ExecStatus(
        **{
            "id": "job-7",
            "agent_id": "web-1",
            "state": ExecState.STARTED,
            "command": ("ls", "-l", "a b"),
            "requested_by": "spiffe://example.org/user/alice",
            "request_time": datetime(2026, 1, 31, 12, tzinfo=UTC),
            **values,
        }
    )


@pytest.fixture
def status() -> Callable[..., ExecStatus]:
    return make_status
