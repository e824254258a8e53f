"""The whole system as processes: real Redis, real orchestrator, real agents, real certificates."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tachikoma import Client
from tachikoma.dev.stack import Stack
from tachikoma.identity.spiffe import SpiffeId

# Test folders are no packages; what they share is imported by its plain name.
sys.path.insert(0, str(Path(__file__).parent))
from books import compare_books
from support import Cli, OpenCli, make_cli, nothing_denied, prepare

from pty_process import PtyProcess


@pytest.fixture(scope="session", autouse=True)
def books() -> Iterator[None]:
    """Whatever a test does with a stack: before it stops, its ledger and its audit must tell the same, and Redis must
    have denied nothing to anybody."""
    stop = Stack.stop

    def compare_and_stop(stack: Stack) -> None:
        try:
            nothing_denied(stack)
            # Other kinds have an observer of their own, who knows what was done to them.
            if type(stack) is Stack:
                compare_books(stack)
        finally:
            stop(stack)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stack, "stop", compare_and_stop)
        yield


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    """A stack that tests share. They must leave it as it was; those that break it take `own_stack`."""
    with Stack(prepare(tmp_path_factory.mktemp("stack")), agents=2, redis_server=redis_server) as running:
        yield running


@pytest.fixture
def own_stack(tmp_path: Path, redis_server: Path | None) -> Iterator[Stack]:
    """A stack of one test's own, with one agent."""
    with Stack(prepare(tmp_path), redis_server=redis_server) as running:
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.profile()) as connected:
        yield connected


@pytest.fixture(scope="session")
def cli(stack: Stack) -> Cli:
    return make_cli(stack)


@pytest.fixture
def open_cli(stack: Stack, tmp_path: Path) -> Iterator[OpenCli]:
    """Start the command line of a person at a terminal; without a person, of the owner of the stack."""
    with ExitStack() as opened:

        def start(*arguments: str, person: SpiffeId | None = None, rows: int = 24, columns: int = 80) -> PtyProcess:
            cli = Cli(tmp_path / "profile.json")
            (stack.profile() if person is None else stack.issue(person)).save(cli.profile)
            return opened.enter_context(cli.open(*arguments, rows=rows, columns=columns))

        yield start
