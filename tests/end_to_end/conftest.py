"""The whole system as processes: real Redis, real orchestrator, real agents, real certificates."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tachikoma import Client, ExecRequest
from tachikoma.dev.stack import Stack

AGENT = "agent-1"


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """Wait for a condition and return its value; fail when it does not come true."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"did not come true in {seconds:g} s: {what}")
        time.sleep(0.01)


def request(*command: str, **values: Any) -> ExecRequest:
    """A request to the first agent."""
    return ExecRequest(agent_id=values.pop("agent_id", AGENT), command=command, **values)


@dataclass
class Cli:
    """The command line, as processes."""

    profile: Path

    def environment(self) -> dict[str, str]:
        return {**os.environ, "TACHIKOMA_PROFILE": str(self.profile), "COLUMNS": "200"}

    def run(
        self, *arguments: str, stdin: bytes | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """Run to the end."""
        return subprocess.run(
            [sys.executable, "-m", "tachikoma", *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env=self.environment(),
            timeout=timeout,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start, to be watched while it runs."""
        return subprocess.Popen(
            [sys.executable, "-m", "tachikoma", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(),
            # As in a terminal: Ctrl-C goes to the process, not to pytest.
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def make_cli(stack: Stack) -> Cli:
    path = stack.data / "profile.json"
    stack.profile().save(path)
    return Cli(path)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_server: Path | None) -> Iterator[Stack]:
    """A stack that tests share. They must leave it as it was; those that break it take `own_stack`."""
    with Stack(tmp_path_factory.mktemp("stack"), agents=2, redis_server=redis_server) as running:
        yield running


@pytest.fixture
def own_stack(tmp_path: Path, redis_server: Path | None) -> Iterator[Stack]:
    """A stack of one test's own, with one agent."""
    with Stack(tmp_path, redis_server=redis_server) as running:
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.profile()) as connected:
        yield connected


@pytest.fixture(scope="session")
def cli(stack: Stack) -> Cli:
    return make_cli(stack)
